"""The seven question sets from files of the released shape, folders and hub ids; rows that are broken."""

import json

import datasets
import pytest

from agentrl.data.suites import BY_SUBSET, QA7, RELEASED, is_qa7, load_qa7, set_named
from agentrl.errors import DataError
from tests.qa7 import released_row, released_rows, write_parquet

SAID = []


def load(source):
    return load_qa7(source, SAID.append)


def test_the_released_file_as_it_is(tmp_path):
    file = write_parquet(tmp_path / "test.parquet", released_rows())
    suite = load(f"qa7:{file}")
    assert list(suite.sets) == list(QA7) and not suite.broken and not suite.others
    task = suite.sets["hotpotqa"][1]
    assert task.id == "test_1" and task.options["question"] == "who made thing hotpotqa-1"
    assert task.options["golden_answers"] == ["maker hotpotqa-1", "the 1"] and "prompt" not in task.options
    assert load(f"qa7:{tmp_path}").sets.keys() == suite.sets.keys()  # the folder that a download makes


def test_a_folder_with_a_file_for_each_set(tmp_path):
    rows = [{"question": f"q{i}", "golden_answers": ["a"]} for i in range(2)]
    (tmp_path / "nq_test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    write_parquet(tmp_path / "2wikimultihopqa.parquet", [released_row("2wikimultihopqa", 0, "w", ["b"])])
    (tmp_path / "README.md").write_text("none of them")
    assert {n: len(t) for n, t in load(f"qa7:{tmp_path}").sets.items()} == {"nq": 2, "2wikimultihopqa": 1}
    assert len(load(f"qa7:{tmp_path / 'nq_test.jsonl'}").sets["nq"]) == 2


def test_a_local_copy_stands_in_for_the_hub(tmp_path, monkeypatch):
    write_parquet(tmp_path / "qa7.parquet", released_rows(1))
    monkeypatch.setenv("AGENTRL_DATASETS", str(tmp_path))
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("the hub was asked"))
    assert len(load("qa7").sets) == 7


def test_hub_ids(monkeypatch):
    asked = []

    def load_dataset(name, subset=None, split=None):
        asked.append((name, subset, split))
        rows = released_rows(1) if subset is None else [{"id": "x", "question": "q", "golden_answers": ["a"]}]
        return datasets.Dataset.from_list(rows)

    monkeypatch.delenv("AGENTRL_DATASETS", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load("qa7").sets) == 7 and asked == [(RELEASED, None, "test")]
    [(hub, splits)] = BY_SUBSET.items()
    assert load(f"qa7:{hub}").sets.keys() == set(QA7) == set(splits)
    assert asked[1] == (hub, "nq", "test") and (hub, "musique", "dev") in asked
    load("qa7:somebody/elses")
    assert asked[-1] == ("somebody/elses", None, "test")


def test_broken_rows_are_counted_with_file_and_row(tmp_path):
    rows = released_rows(40)
    rows[5]["question"] = " "
    rows[250]["golden_answers"] = rows[250]["reward_model"]["ground_truth"]["target"] = []
    file = write_parquet(tmp_path / "test.parquet", rows)
    suite = load(f"qa7:{file}")
    assert sum(map(len, suite.sets.values())) == 278 and len(suite.sets["nq"]) == 39
    assert [b.partition(": ")[0] for b in suite.broken] == [f"{file} row 6", f"{file} row 251"]
    assert "question" in suite.broken[0] and "golden_answers" in suite.broken[1]


def test_lines_that_are_torn_and_rows_of_no_set(tmp_path):
    lines = [json.dumps(r) for r in released_rows(60)]
    lines[7] = lines[7][:20]
    lines += [json.dumps(released_row("webquestions", i, "w", ["x"])) for i in range(2)]
    lines.append(json.dumps({"question": "of which set?", "golden_answers": ["x"]}))
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    suite = load(f"qa7:{tmp_path / 'all.jsonl'}")
    assert sum(map(len, suite.sets.values())) == 419 and suite.others == ("2 rows of webquestions",)
    assert [b.partition(": ")[0] for b in suite.broken] == [f"{tmp_path / 'all.jsonl'}:{n}" for n in (8, 423)]
    assert "not JSON" in suite.broken[0] and "data_source has no value" in suite.broken[1]


def test_a_file_of_another_kind_is_an_error(tmp_path):
    rows = released_rows(3)
    for row in rows[:2]:
        row["question"] = ""
    file = write_parquet(tmp_path / "test.parquet", rows)
    with pytest.raises(DataError, match=r"(?s)2 of 21 rows of .*row 1: question is empty"):
        load(f"qa7:{file}")
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        load(f"qa7:{file}")
    (tmp_path / "math.jsonl").write_text(json.dumps(released_row("gsm8k", 0, "q", ["1"])))
    with pytest.raises(DataError, match=r"holds none of nq, .*data_source is gsm8k"):
        load(f"qa7:{tmp_path / 'math.jsonl'}")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="it has no rows"):
        load(f"qa7:{tmp_path / 'empty.jsonl'}")
    with pytest.raises(DataError, match=r"maths\.jsonl does not exist; did you mean 'math\.jsonl'"):
        load(f"qa7:{tmp_path / 'maths.jsonl'}")


def test_names():
    assert is_qa7("qa7") and is_qa7("qa7:x") and not is_qa7("qa7.jsonl")
    named = {"nq": "nq", "searchR1_nq": "nq", "HotpotQA": "hotpotqa", "2WikiMultihopQA": "2wikimultihopqa",
             "musique-dev": "musique", "nqx": None, "": None}  # fmt: skip
    assert {text: set_named(text) for text in named} == named
