"""What one row of evals.jsonl says, for episodes whose outcome is known."""

import pytest

from agentrl.data.tasks import subset
from agentrl.rollouts.chat import ChatFormat
from agentrl.rollouts.play import EnvPool
from agentrl.runs.log import RunLog
from agentrl.runs.read import read_alarms, read_evals, read_rollouts
from agentrl.train.build import Job
from agentrl.train.evaluate import evaluate, failures_alarm, in_words
from agentrl.train.trainer import Trainer
from agentrl.types import Task
from tests.fakes import ScriptedSampler, tiny_tokenizer
from tests.rollouts.worlds import Blocking
from tests.small import small_config

TOKENIZER = tiny_tokenizer()
SAID = ["<search> one </search>", "so <answer> Port Ellis </answer>"]


def task(name, reward, **more):
    return Task(name, {"question": f"{name}?", "reward": reward, **more})


TASKS = [
    task("a", 0.2, hops=1, level=1),  # wrong, in the right format
    task("b", 0.2, hops=2, level=1),
    task("c", 0.2, hops=2, level=2, last_info={"correct": False}),
    task("d", 1.0, hops=2, level=2),
    task("e", 1.0, hops=1, fail=ConnectionResetError("reset")),
    task("f", 0.9, hops=1, last_info={"correct": True}),
]


def make_job(tmp_path, **changes):
    rollout = {"temperature": 0.9, "max_context": 1000, "max_tokens_per_turn": 50, "concurrency": 2}
    changes = {"eval": {"questions": 6, "temperature": 0.3, "batch": 4}, **changes}
    config = small_config(tmp_path, rollout=rollout, **changes)
    sampler = ScriptedSampler(TOKENIZER, SAID)
    sampler.samples_ahead, sampler.needs_first_checkpoint = 0, False
    return Job(config, sampler, ChatFormat(TOKENIZER, config.rollout), lambda: Blocking(turns=2), TASKS, TASKS)


def test_em_is_the_share_of_correct_responses_and_reward_stands_beside_it(tmp_path):
    job = make_job(tmp_path)
    with EnvPool(job.make_env) as pool:
        result = evaluate(job, pool, step=4)
    row = result.summary
    assert (row["step"], row["split"], row["n"], row["failed"]) == (4, "test", 6, 1)
    assert row["em"] == 2 / 5  # d and f; the failed one is not counted as wrong
    assert row["reward"] == pytest.approx((0.2 * 3 + 1.0 + 0.9) / 5)
    assert (row["em_1hop"], row["em_2hop"]) == (1 / 2, 1 / 3)
    assert (row["em_level_1"], row["em_level_2"]) == (0.0, 1 / 2)
    assert row["turns"] == 2.0 and len(result.trajectories) == 6


def test_three_wrong_answers_with_a_format_reward_are_no_match(tmp_path):
    job = make_job(tmp_path)
    with EnvPool(job.make_env) as pool:
        row = evaluate(job, pool, step=0, tasks=TASKS[:3]).summary
    assert row["em"] == 0.0 and row["reward"] == pytest.approx(0.2)


def test_the_threshold_decides_where_the_environment_does_not(tmp_path):
    job = make_job(tmp_path, algorithm={"correct_threshold": 0.2})
    with EnvPool(job.make_env) as pool:
        assert evaluate(job, pool, step=0, tasks=TASKS[:3]).summary["em"] == pytest.approx(2 / 3)


def test_failures_and_the_token_limit_stand_in_the_line_and_beyond_a_share_are_an_alarm(tmp_path):
    """ "1.000 on 6 questions" where five of six had failed."""
    job, told = make_job(tmp_path, eval={"questions": 6}), []
    with RunLog.create(tmp_path, "run", job.config) as run:
        trainer = Trainer(job, run, say=told.append)
        trainer.evaluate()
        trainer.close()
        [alarm] = read_alarms(run.path)
    assert told == [
        "held-out after 0 steps: 0.400 correct, reward 0.500, 6 questions, 1 of 6 responses failed and are left out"
    ]
    assert (alarm["rule"], alarm["level"]) == ("held_out_failures", "warn") and alarm["message"].startswith("1 of 6")
    whole = {"step": 3, "n": 20, "responses": 20, "failed": 2, "em": 0.5, "reward": 0.5, "cut_share": 0.25}
    assert failures_alarm(whole) is None and failures_alarm(whole | {"failed": 3}).step == 2
    line = in_words(whole | {"failed": 0}, job.config.rollout)
    assert line == "0.500 correct, reward 0.500, 20 questions, 25% cut at rollout.max_tokens_per_turn = 50"
    line = in_words(whole | {"failed": 0, "cut_share": 0.0, "gold_found": 0.75}, job.config.rollout)
    assert line == "0.500 correct, reward 0.500, 20 questions, 0.75 of the gold passages found"


def test_nothing_but_failures_is_told_without_a_figure(tmp_path):
    summary = {"step": 3, "n": 2, "responses": 2, "failed": 2}
    line = in_words(summary, make_job(tmp_path).config.rollout)
    assert line == "2 questions, 2 of 2 responses failed and are left out"


def test_samples_and_temperature_are_the_evaluations_own(tmp_path):
    job = make_job(tmp_path, eval={"questions": 2, "samples": 3, "temperature": 0.3, "batch": 4})
    with EnvPool(job.make_env) as pool:
        result = evaluate(job, pool, step=0)
        assert pool.made == 4  # eval.batch at once, not rollout.concurrency
    assert {call["temperature"] for call in job.engine.calls} == {0.3}
    asked = [t.id for t in subset(TASKS, 2)]  # not the first two of the file
    assert [t.sample_id for t in result.trajectories] == [f"eval0/{x}-{i}" for x in asked for i in range(3)]
    assert [t.id for t in result.tasks] == asked != ["a", "b"]
    with EnvPool(job.make_env) as pool:
        job.engine.calls.clear()
        job.player(pool, seed=0).collect(TASKS[:2], 1)
    assert {call["temperature"] for call in job.engine.calls} == {0.9}  # training's


def test_the_row_is_written_and_told(tmp_path):
    job, told = make_job(tmp_path, eval={"questions": 4}), []
    with RunLog.create(tmp_path, "run", job.config) as run:
        trainer = Trainer(job, run, say=told.append)
        row = trainer.evaluate()
        trainer.close()
        assert [{k: v for k, v in r.items() if k != "time"} for r in read_evals(run.path)] == [row]
    assert told == ["held-out after 0 steps: 0.500 correct, reward 0.575, 4 questions"]


def test_the_questions_are_a_fixed_random_subset_and_their_episodes_stand_beside_them(tmp_path):
    assert [t.id for t in subset(TASKS, 4)] == [t.id for t in subset(TASKS, 4)] != [t.id for t in TASKS[:4]]
    assert subset(TASKS, 0) == subset(TASKS, 6) == subset(TASKS, 99) == TASKS
    many = [Task(str(i), {}) for i in range(1000)]
    drawn = [int(t.id) for t in subset(many, 100)]
    assert drawn == sorted(set(drawn)) and 400 < sum(drawn) / 100 < 600
    job = make_job(tmp_path, eval={"questions": 3})
    with RunLog.create(tmp_path, "run", job.config) as run:
        trainer = Trainer(job, run)
        trainer.evaluate()
        trainer.close()
        rows = read_rollouts(run.path, 0, "eval")
    assert [r["task"]["question"] for r in rows] == [f"{t.id}?" for t in subset(TASKS, 3)]
    assert all(r["task"]["question"] == f"{r['group_id'].split('/')[1]}?" for r in rows)
