"""Several environments in one run: who plays what, by whose limits, and what is measured, resumed and told of each."""

import json
import math
from unittest.mock import patch

import gymnasium
import pytest
from gymnasium.spaces import Text

from agentrl.config.files import load_config, to_yaml
from agentrl.envs.errors import ToolFailure
from agentrl.errors import ConfigError
from agentrl.runs.files import read_json
from agentrl.runs.read import read_evals, read_metrics, read_rollouts
from agentrl.train.build import build_job
from agentrl.train.start import resume_run
from agentrl.types import Alarm
from tests.fakes import save_tiny_model
from tests.small import merged, small_config, train_until, without_times
from tests.train.golden import ENV_ID, QUESTIONS, _ids


class Once(gymnasium.Env):
    """One turn; correct where the action has an even number of letters. `broken`: its tool is away."""

    stop_strings = ()
    observation_space = action_space = Text(10_000)

    def __init__(self, broken=False):
        self.broken = broken

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return f"Once: {options['question']}\n", {}

    def step(self, action):
        if self.broken:
            raise ToolFailure("away")
        even = len(action) % 2 == 0
        return "", float(even), True, False, {"kind": "answer", "valid": True, "correct": even}


gymnasium.register("Mixture/Once-v0", Once, disable_env_checker=True)
ONCE = "tests.train.test_mixture:Mixture/Once-v0"


def config_of(folder, **changes):
    """Two environments of their own questions and limits; the model has learned nothing."""
    save_tiny_model(folder / "model")
    for name in ("letters", "once"):
        rows = [{"id": str(i), "question": f"{name} {q}", "golden_answers": ["x"]} for i, q in enumerate(QUESTIONS)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {n: {"train": str(folder / f"{n}.jsonl"), "test": str(folder / f"{n}.jsonl")} for n in ("letters", "once")}
    tree = {
        "world": None,
        "env": [
            {"id": ENV_ID, "weight": 2, "data": data["letters"], "rollout": {"max_turns": 2}},
            {"id": ONCE, "data": data["once"], "rollout": {"max_turns": 1, "max_tokens_per_turn": 3}},
        ],
        "rollout": {"max_tokens_per_turn": 5, "max_context": 256, "temperature": 0.3},
        "train": {"steps": 3, "delta_every": 1, "mini_batches": 2},
        "eval": {"questions": 2, "temperature": 0.1},
        "log": {"rollout_groups": -1, "checkpoint_every": 1},
    }
    return small_config(folder, folder / "model", **merged(tree, changes))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    config = config_of(folder, curriculum={"enabled": True})
    return train_until(config)


def test_each_question_is_played_in_its_own_environment_by_its_own_limits(run):
    rows = [row for n in range(3) for row in read_rollouts(run, n)]
    seen = {row["env_id"] for row in rows}
    assert seen == {"Golden/Letters-v0", "Mixture/Once-v0"}
    for row in rows:
        name, turns, tokens = ("letters", 2, 5) if row["env_id"].startswith("Golden") else ("once", 1, 3)
        assert row["group_id"].partition("/")[2].startswith(f"{name}:") and row["task"]["question"].startswith(name)
        assert len(row["turns"]) == turns
        assert max(len(turn["action_ids"]) for turn in row["turns"]) <= tokens
    assert max(len(t["action_ids"]) for r in rows for t in r["turns"]) == 5  # the top's limit, not the smallest


def test_groups_never_mix_and_advantages_are_of_the_group(run):
    groups = {}
    for row in read_rollouts(run, 0):
        groups.setdefault(row["group_id"], []).append(row)
    assert len(groups) == 4
    for rows in groups.values():
        assert len(rows) == 4 and len({row["env_id"] for row in rows}) == 1
        rewards = [row["reward"] for row in rows]
        mean = sum(rewards) / 4
        sigma = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 4)
        for row in rows:
            got = {round(a, 4) for turn in row["turns"] for a in turn["advantages"]}
            assert got == {round((row["reward"] - mean) / (sigma + 1e-6), 4) if sigma else 0.0} or sigma


def test_metrics_and_evaluations_are_of_each_and_of_all(run):
    for n, row in enumerate(read_metrics(run)):
        rows = read_rollouts(run, n)
        of = {"letters": [], "once": []}
        for r in rows:
            of["letters" if "Golden" in r["env_id"] else "once"].append(r)
        for name, mine in of.items():
            if mine:
                assert row[f"reward/{name}"] == pytest.approx(sum(r["reward"] for r in mine) / len(mine))
                assert row[f"turns/{name}"] == (2 if name == "letters" else 1)
            else:
                assert f"reward/{name}" not in row
        assert row["reward"] == pytest.approx(sum(r["reward"] for r in rows) / len(rows))
        assert row["share/letters"] + row["share/once"] == pytest.approx(1)
        if "delta_correct" in row and "delta_correct/once" in row and "delta_correct/letters" not in row:
            assert row["delta_correct/once"] == pytest.approx(row["delta_correct"], rel=1e-4)
    assert read_metrics(run)[0]["share/letters"] == pytest.approx(2 / 3)
    assert read_metrics(run)[2]["share/letters"] != pytest.approx(2 / 3)  # the curriculum has moved it
    for row in read_evals(run):
        assert (row["n"], row["n/letters"], row["n/once"]) == (4, 2, 2)
        assert row["em"] == pytest.approx((row["em/letters"] + row["em/once"]) / 2)
    assert list(read_json(run / "meta.json")["questions"]) == ["train", "test"]


def exact(rows):
    """Without what is of two ways to compute the same: rounding, by which threads of environments come first."""
    noise = ("mismatch", "mismatch_max", "kl_sampler")
    return [{k: v for k, v in row.items() if k.partition("/")[0] not in noise} for row in without_times(rows)]


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path, run):
    config = config_of(tmp_path, curriculum={"enabled": True})
    other = train_until(config, 1)
    resume_run(other, quiet=True)
    assert exact(read_metrics(other)) == exact(read_metrics(run))
    assert [list(_ids(row)) for row in read_rollouts(other, 2)] == [list(_ids(row)) for row in read_rollouts(run, 2)]
    assert without_times(read_evals(other)) == without_times(read_evals(run))


def test_each_environment_has_alarms_of_its_own(tmp_path):
    from agentrl.monitors import Monitor

    observe, told = Monitor.observe, []

    def noisy(self, record):
        alarms = observe(self, record)
        if record.metrics.get("turns") == 1.0:  # once alone
            told.append(record)
            alarms.append(Alarm("x-000000-warn", record.step, "x", "warn", "look"))
        return alarms

    config = as_often(config_of(tmp_path, train={"steps": 1}, eval={"questions": 0}))
    with patch.object(Monitor, "observe", noisy):
        path = train_until(config)
    rows = [json.loads(line) for line in (path / "alarms.jsonl").read_text().splitlines()]
    [mine] = [row for row in rows if row["rule"] == "x"]
    assert (mine["id"], mine["message"]) == ("x-000000-warn-once", "once: look")
    [record] = told
    assert {row["env"] for row in record.groups} == {"once"} and "entropy" in record.metrics


def test_the_monitors_of_each_are_saved_with_the_run_and_forget_with_the_guard(run, tmp_path):
    from agentrl.monitors import Monitor
    from agentrl.runs.checkpoint import latest_checkpoint
    from agentrl.train.entries import Entries

    _, state = latest_checkpoint(run)
    assert list(state["monitors_of"]) == ["letters", "once"]
    entries = Entries(["letters", "once"], Monitor())
    entries.load_state_dict(state["monitors_of"])
    assert entries.monitors["letters"].seen > 0 and entries.state_dict() == state["monitors_of"]
    guards = []
    config = as_often(config_of(tmp_path, guard={"enabled": True}, train={"steps": 0}, eval={"questions": 0}))
    train_until(config, meddle=lambda trainer: guards.append((trainer.guard, trainer.entries)))
    [(guard, entries)] = guards
    assert guard.others == list(entries.monitors.values()) and len(guard.others) == 2


def test_an_outage_of_one_tool_is_waited_for_though_the_others_go_on(tmp_path):
    from agentrl.errors import OutageError

    config = config_of(tmp_path, rollout={"outage_wait_s": 0.6}, eval={"questions": 0}, train={"steps": 1})
    config.env[1].kwargs = {"broken": True}
    with pytest.raises(OutageError, match="episodes lost their tool"):
        train_until(as_often(config))


def as_often(config):
    """As often one as the other, so that the first step has both."""
    config.env[0].weight = 1.0
    config.rollout.prompts_per_step = 8
    return config


# ----------------------------------------------------------------------------------------------------------- the config

BASE = """
model: {path: "builtin:tiny"}
rollout: {max_context: 200}
retriever: {url: "http://127.0.0.1:1"}
env:
  - {id: agentrl/Search-v0, weight: 2, world: {kind: search}, rollout: {max_turns: 5}}
  - id: agentrl/Math-v0
    name: sums
    world: {kind: arithmetic}
    rollout: {max_turns: 1, max_context: 100}
    retriever: {index: somewhere}
"""


def written(tmp_path, text=BASE, *changes):
    path = tmp_path / "mix.yaml"
    path.write_text(text)
    return load_config(path, changes)


def test_what_does_not_stand_in_an_entry_comes_from_the_top(tmp_path):
    loaded = written(tmp_path, BASE, "env.0.weight=3")
    config = loaded.config
    alone = config.alone()
    assert config.weights == {"search": 3.0, "sums": 1.0} and loaded.origins["env.0.weight"] == "--set"
    assert loaded.origins["env.1.rollout.max_turns"].endswith("mix.yaml:10")
    search, sums = alone["search"], alone["sums"]
    assert (search.rollout.max_turns, search.rollout.max_context) == (5, 200)
    assert (sums.rollout.max_turns, sums.rollout.max_context) == (1, 100)
    assert (search.retriever.url, sums.retriever.url, sums.retriever.index) == ("http://127.0.0.1:1", None, "somewhere")
    assert (config.widest().rollout.max_turns, config.widest().rollout.max_context) == (5, 200)
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config))
    assert load_config(again).config == config


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("weight: 2", "weigth: 2", r"mix.yaml:6: env.0.weigth: no such key; did you mean 'weight'\?"),
        ("max_turns: 5", "max_turn: 5", r"env.0.rollout.max_turn: no such key; did you mean 'max_turns'\?"),
        ("max_turns: 5", "group_size: 5", r"env.0.rollout.group_size: no such key; valid here: stop, max_turns"),
        ("weight: 2", "weight: -1", r"env.0.weight: should be greater than or equal to 0, but is -1"),
        ("world: {kind: search}", "kwargs: {}", r"env.0 \(search\): neither world nor data.train is set"),
        ("max_context: 100", "max_context: 20", r"mix.yaml:5: env: max_context is 20 but one turn may take"),
        ("name: sums", "name: a b", r"env.1.name: "),
    ],
)
def test_a_wrong_entry_is_named_with_its_line_and_the_nearest_key(tmp_path, old, new, said):
    with pytest.raises(ConfigError, match=said):
        written(tmp_path, BASE.replace(old, new))


def test_weights_of_nothing_doubled_names_and_a_lonely_curriculum_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="the 2 weights sum to nothing: give at least one entry a weight above 0"):
        written(tmp_path, BASE, "env.0.weight=0", "env.1.weight=0")
    with pytest.raises(ConfigError, match="two entries have the name sums"):
        written(tmp_path, BASE, "env.0.name=sums")
    with pytest.raises(ConfigError, match=r"--set env.7: there is no such entry; there are 2, from 0 to 1"):
        written(tmp_path, BASE, "env.7.weight=1")
    with pytest.raises(ConfigError, match="env is an empty list"):
        written(tmp_path, BASE, "env=[]")
    with pytest.raises(ConfigError, match=r"curriculum\.enabled weighs several environments"):
        load_config("search_tiny", ["curriculum.enabled=true"])
    assert written(tmp_path, BASE, "env.1.id=agentrl/Search-v0", "env.1.world.kind=search", "env.1.name=null").config


def test_the_warm_start_shows_each_world_by_its_share(tmp_path):
    few = {"people": 24, "companies": 10, "cities": 8, "regions": 6}
    env = [{"world": {"kind": "search", **few}, "demonstrations": 3}, {"world": {"kind": "arithmetic"}, "name": "sums"}]
    tree = {
        "world": None,
        "env": env,
        "rollout": {"max_tokens_per_turn": 40},
        "model": {"tiny": {"max_positions": 512}},
    }
    config = small_config(tmp_path, **tree)
    assert config.demonstrated == {"search": 3.0, "sums": 1.0}
    assert build_job(config, tmp_path / "job").world.shares == (3.0, 1.0)
    for entry in env:
        entry["demonstrations"] = 0
    with pytest.raises(ValueError, match="no entry has demonstrations for warm_start"):
        small_config(tmp_path, **merged(tree, {"warm_start": {"epochs": 1}}))
