"""Every recipe on a few rows of the shape that the hub's set has."""

import json

import pytest

from agentrl.data.recipes import CATALOGUE, EVALUATION_SUITES, RECIPES, boxed_in
from agentrl.envs.grading import grade_response
from agentrl.envs.math import MathEnv
from agentrl.errors import DataError

ROWS = {
    "math": {"problem": "P", "level": "Level 1", "type": "Algebra", "solution": r"so $\boxed{\frac{1}{2}}$."},
    "math_3to5": {"problem": "P", "level": "Level 4", "type": "Algebra", "solution": r"\boxed{3}, no \boxed{4}"},
    "deepscaler": {"problem": "P", "answer": "-\\frac{2}{3}", "solution": "..."},
    "gsm8k": {"question": "P", "answer": "She has 1,000 + 5.\n#### 1,005"},
    "aime24": {"id": 60, "problem": "P", "solution": "...", "answer": "204", "url": "u", "year": "2024"},
    "amc23": {"id": 0, "question": "P", "answer": 27.0, "url": "u"},
    "math500": {"problem": "P", "solution": "...", "answer": r"\left( 3, \frac{\pi}{2} \right)", "level": 2},
    "minerva": {"question": "P", "answer": "0.004"},
    "olympiadbench": {
        "id": 1,
        "question": "P",
        "solution": ["..."],
        "final_answer": ["$(1,8,19), (2,7,13)$"],
        "context": None,
        "is_multiple_answer": True,
        "unit": None,
        "answer_type": "Tuple",
        "error": None,
        "subfield": "Algebra",
    },
}
GOLDEN = {
    "math": [r"\frac{1}{2}"],
    "math_3to5": ["4"],
    "deepscaler": ["-\\frac{2}{3}"],
    "gsm8k": ["1005"],
    "aime24": ["204"],
    "amc23": ["27"],
    "math500": [r"\left( 3, \frac{\pi}{2} \right)"],
    "minerva": ["0.004"],
    "olympiadbench": ["(1,8,19), (2,7,13)"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTRL_DATASETS", str(tmp_path))
    return tmp_path


def test_every_recipe_is_tested():
    assert set(ROWS) == set(CATALOGUE) == set(RECIPES) and set(EVALUATION_SUITES) <= set(RECIPES)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_rows_of_the_hubs_shape(folder, name):
    (folder / f"{name}.jsonl").write_text(json.dumps(ROWS[name]) + "\n" + json.dumps(ROWS[name]) + "\n")
    rows = list(RECIPES[name]("test"))
    assert [r["golden_answers"] for r in rows] == [GOLDEN[name]] * 2
    assert [r["question"] for r in rows] == ["P", "P"] and rows[0]["id"] != rows[1]["id"]


def test_a_row_keeps_the_tolerance_that_its_set_states(folder):
    row = ROWS["olympiadbench"] | {"final_answer": ["3.5"]}
    rows = [row | {"error": error} for error in ("1e-1", None, "", "1e-1,1e-2")]
    (folder / "olympiadbench.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = list(RECIPES["olympiadbench"]("test"))
    assert [r.get("tolerance") for r in found] == [0.1, None, None, 0.01]
    assert ["tolerance" in r for r in found] == [True, False, False, True]
    (folder / "olympiadbench.jsonl").write_text(json.dumps(row | {"error": "a bit"}))
    with pytest.raises(DataError, match="row 0 of math-ai/olympiadbench has error = 'a bit', which is no number"):
        list(RECIPES["olympiadbench"]("test"))


def test_the_tolerance_reaches_the_grader(folder):
    from agentrl.config import DataConfig
    from agentrl.data.tasks import load_tasks

    row = ROWS["olympiadbench"] | {"final_answer": ["3.5"], "error": "1e-1"}
    (folder / "olympiadbench.jsonl").write_text(json.dumps(row))
    [task] = load_tasks(DataConfig(test="recipe:olympiadbench"), "test")
    env = MathEnv()
    for answer, reward in (("3.55", 1.0), ("3.7", 0.0), (r"\sqrt{12}", 1.0)):
        env.reset(options=task.options)
        assert env.step(f"\\boxed{{{answer}}}")[1] == reward


def test_a_local_copy_may_be_of_one_split(folder):
    for split, answer in (("train", 1), ("test", 2)):
        (folder / f"gsm8k-{split}.jsonl").write_text(json.dumps({"question": "P", "answer": f"#### {answer}"}))
    assert [next(iter(RECIPES["gsm8k"](s)))["golden_answers"] for s in ("train", "test")] == [["1"], ["2"]]


def test_only_levels_three_to_five(folder):
    levels = [dict(ROWS["math_3to5"], level=f"Level {n}") for n in range(1, 6)]
    (folder / "math_3to5.jsonl").write_text("\n".join(map(json.dumps, levels)))
    assert len(list(RECIPES["math_3to5"]("train"))) == 3


def test_a_changed_shape_and_a_missing_answer_are_named(folder):
    (folder / "gsm8k.jsonl").write_text(json.dumps({"question": "P", "answer": "no mark"}))
    with pytest.raises(DataError, match=r"1 of 1 rows of openai/gsm8k have no answer \(row 0\)"):
        list(RECIPES["gsm8k"]("test"))
    (folder / "aime24.jsonl").write_text(json.dumps({"text": "P", "answer": "1"}))
    with pytest.raises(DataError, match=r"no column 'problem' but \['answer', 'text'\]"):
        list(RECIPES["aime24"]("test"))
    (folder / "aime24.jsonl").write_text(json.dumps({"problem": "P", "solution": "1"}))
    with pytest.raises(DataError, match=r"no column 'answer' but \['problem', 'solution'\]"):
        list(RECIPES["aime24"]("test"))


def test_a_few_rows_without_an_answer_are_left_out_aloud(folder):
    rows = [ROWS["deepscaler"]] * 150
    rows[70] = ROWS["deepscaler"] | {"answer": ""}
    (folder / "deepscaler.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(UserWarning, match=r"1 of 150 rows .* have no answer \(row 70\); they are left out"):
        kept = list(RECIPES["deepscaler"]("train"))
    assert len(kept) == 149 and "deepscaler-70" not in {r["id"] for r in kept}


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"the answer is \boxed 2.", "2"),
        (r"we get $x=\boxed 17$", "17"),
        (r"hence \fbox{3}", "3"),
        (r"\fbox{3}, that is \boxed{4}", "4"),
        (r"\boxed{\text{(A)}}", r"\text{(A)}"),
    ],
)
def test_the_forms_of_boxes_in_worked_solutions(solution, answer):
    assert boxed_in("solution")({"solution": solution}) == answer


@pytest.mark.parametrize(
    ("response", "correct"),
    [
        (r"\boxed{(1,8,19), (2,7,13)}", True),
        (r"\boxed{(2,7,13), (1,8,19)}", True),
        (r"\boxed{(1,8,19)}", False),
        (r"\boxed{(1,8,19), (2,7,14)}", False),
    ],
)
def test_all_parts_of_an_answer_are_asked_for(response, correct):
    assert grade_response(response, GOLDEN["olympiadbench"]).correct == correct


@pytest.mark.slow
def test_eval_takes_recipes_as_suites(folder, monkeypatch, capsys):
    """A math model on local copies of two of the papers' suites, in the papers' table."""
    from agentrl.cli import main
    from agentrl.train.start import train_run
    from tests.small import small_config

    suites = {
        "aime24": [{"problem": f"{a} + 1 = ?", "answer": str(a + 1)} for a in range(1, 4)],
        "olympiadbench": [{"question": "2 * 3 = ?", "final_answer": ["6"]}],
    }
    for name, rows in suites.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = small_config(
        folder / "runs",
        world={"kind": "arithmetic", "levels": [1]},
        env={"id": "agentrl/Math-v0"},
        rollout={"max_turns": 1},
        train={"steps": 0},
    )
    run = train_run(config, quiet=True).run_dir
    command = ["eval", str(run), "--suite", "recipe:aime24", "--suite", "recipe:olympiadbench", "--samples", "2"]
    assert main([*command, "--json"]) == 0
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert out["questions"] == {"aime24": 3, "olympiadbench": 1}
    for rows in out["results"].values():
        values = [suite["avg"]["value"] if "avg" in suite else None for suite in rows["suites"].values()]
        assert set(rows["suites"]) == set(suites)
        if None not in values:
            assert rows["average"] == pytest.approx(sum(values) / 2)
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["method", "aime24", "olympiadbench", "average"]
