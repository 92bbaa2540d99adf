"""Several rewards in a run: each is a metric of its own, and a judge that fails costs its episodes, not a 0."""

import pytest

from agentrl.envs.errors import ToolFailure
from agentrl.runs.read import read_evals, read_metrics, read_rollouts
from tests.small import small_config, train_until


class Unreliable:
    """A judge that is away for every second answer that it has not seen."""

    def __init__(self, share: float = 0.5) -> None:
        self.share = share

    def __call__(self, answer, golden_answers, question=""):
        if not question:
            raise AssertionError("the question was not handed on")
        if sum(answer.encode()) % 2:
            raise ToolFailure("the judge is away")
        return self.share


REWARD = {"exact_match": 1.0, "tests.train.test_rewards:Unreliable": {"weight": 0.5, "share": 0.2}}


@pytest.fixture(scope="module")
def run(tmp_path_factory, warm_model):
    changes = {"rollout": {"outage_wait_s": 0.0}, "eval": {"questions": 6, "every": 1}, "log": {"rollout_groups": -1}}
    config = small_config(tmp_path_factory.mktemp("run"), warm_model, env={"kwargs": {"reward": REWARD}}, **changes)
    return train_until(config)


def test_each_reward_is_a_metric_and_stands_in_evaluations(run):
    told = 0
    for n, row in enumerate(read_metrics(run)):
        rollouts = read_rollouts(run, n)
        good = [r for r in rollouts if not r["error"]]
        failed = [r for r in rollouts if r["error"]]
        assert row["failed_rollouts"] == len(failed)
        assert all("the judge is away" in r["error"] for r in failed)
        each = [r["turns"][-1]["info"]["rewards"] for r in good if "rewards" in r["turns"][-1]["info"]]
        if each:
            told += 1
            assert row["rewards/exact_match"] == pytest.approx(sum(e["exact_match"] for e in each) / len(each))
            assert row["rewards/tests.train.test_rewards:Unreliable"] == pytest.approx(0.2)
    assert told
    assert any("rewards/exact_match" in row for row in read_evals(run))
    assert any(row["failed"] for row in read_evals(run))
