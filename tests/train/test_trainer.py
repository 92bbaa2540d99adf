"""The loop: resuming is exact, what is not finite is never learned, and the metrics are what they say."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from agentrl.batch import pack
from agentrl.config.files import load_config
from agentrl.errors import NonFiniteError, RunError
from agentrl.monitors import Monitor
from agentrl.runs.checkpoint import list_checkpoints
from agentrl.runs.log import RunLog
from agentrl.runs.read import read_alarms, read_evals, read_info, read_metrics, read_rollouts
from agentrl.train.build import build_job
from agentrl.train.diversity import control_tokens, diversity
from agentrl.train.evaluate import EvalResult
from agentrl.train.start import resume_run, train_run
from agentrl.train.trainer import Trainer
from agentrl.types import Alarm, Trajectory, Turn
from tests.small import files_of, small_config, train_until, without_times

NTHR = {"algorithm": {"nthr": {"enabled": True}}}
LLDS = {"algorithm": {"loss": {"llds": {"enabled": True, "answer_weight": "schedule"}}}, "train": {"epochs": 2}}
LORA = {"model": {"lora": {"rank": 4}}, "optim": {"lr": 1e-2}}
KL = {"algorithm": {"loss": {"kl_coef": 0.1, "entropy_coef": 0.01, "nll_coef": 0.1}}}
SAMPLING = {"algorithm": {"dynamic_sampling": True}, "rollout": {"prompts_per_step": 3}}
MODULE = {"model": {"fast_path": "off"}}
WARM = {"lookup_steps": 0, "demonstrations": 800, "epochs": 2, "lr": 1e-2, "threads": 1}
BUILTIN = KL | {"model": {"path": "builtin:tiny"}, "warm_start": WARM}  # weights from memory first, from a file later
BF16 = {"model": {"dtype": "bfloat16"}}
CASES = {
    "nthr": NTHR,
    "llds": LLDS,
    "lora": LORA,
    "kl": KL,
    "sampling": SAMPLING,
    "module": MODULE,
    "bf16": BF16,
    "builtin": BUILTIN,
}


@pytest.fixture
def started(tmp_path, warm_model):
    """A trainer that has not begun; `started(**changes)` makes it."""
    opened = []

    def start(**changes):
        config = small_config(tmp_path, changes.pop("model_path", warm_model), **changes)
        run = RunLog.create(tmp_path, f"run{len(opened)}", config)
        trainer = Trainer(build_job(config, run.path, say=lambda line: None), run, monitor=Monitor())
        opened.append((trainer, run))
        return trainer

    yield start
    for trainer, run in opened:
        trainer.close()
        run.close()


def plain_logprobs(model, trajectory, temperature=1.0):
    """log π of each action token of one episode: the module's own forward pass, one token after the other."""
    ids, actions = [], []
    for turn in trajectory.turns:
        ids += turn.prompt_ids
        actions += range(len(ids), len(ids) + len(turn.action_ids))
        ids += turn.action_ids
    with torch.no_grad():
        logp = (model(torch.tensor([ids])).logits[0] / temperature).log_softmax(-1)
    return [float(logp[i - 1, ids[i]]) for i in actions]


# ------------------------------------------------------------------------------------------------------------ resuming


SLOW = {"builtin": pytest.mark.slow, "lora": pytest.mark.slow}  # more than ten seconds


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(c, marks=SLOW.get(c, ())) for c in CASES])
def test_stopping_and_resuming_changes_nothing(tmp_path, warm_model, case):
    changes = copy.deepcopy(CASES[case])
    changes["train"] = {"steps": 4} | changes.get("train", {})
    changes["optim"] = {"schedule": "linear", "warmup_steps": 2, "weight_decay": 0.01} | changes.get("optim", {})
    changes["eval"] = {"questions": 6, "every": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_until(small_config(whole, warm_model, **changes))
    stopped = train_until(small_config(parts, warm_model, **changes), steps=2)
    assert read_info(stopped).status == "stopped" and len(read_metrics(stopped)) == 2
    assert resume_run(stopped, quiet=True).result.status == "finished"

    rows = read_metrics(whole / "a")
    assert len(rows) == 4 and any(r["grad_norm"] > 0 for r in rows)  # it did learn something
    assert without_times(read_metrics(parts / "a")) == without_times(rows)
    assert without_times(read_evals(parts / "a")) == without_times(read_evals(whole / "a"))
    first, second = (files_of(runs / "a" / "checkpoints" / "step-000004") for runs in (whole, parts))
    for file in ("manifest.json", "state.json"):
        del first[file], second[file]  # the manifest is of the others; the state has times in the monitors' series
    assert first == second and any(name.endswith("optimizer.safetensors") for name in first)
    actions = [[[t["action_ids"] for t in row["turns"]] for row in read_rollouts(r / "a", 3)] for r in (whole, parts)]
    assert actions[0] == actions[1]
    weights = "adapter_model.safetensors" if "lora" in changes.get("model", {}) else "model.safetensors"
    before = load_file(stopped / "checkpoints" / "step-000002" / "model" / weights)
    after = load_file(stopped / "checkpoints" / "step-000004" / "model" / weights)
    assert any(not torch.equal(after[k], before[k]) for k in before)


def test_the_monitors_and_the_position_in_the_data_are_resumed(tmp_path, warm_model):
    config = small_config(tmp_path, warm_model, train={"steps": 4})
    path = train_until(config, steps=3)
    state = json.loads((path / "checkpoints" / "step-000003" / "state.json").read_text())
    assert state["step"] == 3 and state["data"]["position"] == 12 and state["monitor"]["seen"] == 3
    assert state["tokens"] == read_metrics(path)[-1]["tokens"]


# ---------------------------------------------------------------------------------------------------------- not finite


def spoil(trainer, steps):
    """Gradients of NaN, from autograd itself, in the given steps."""
    parameter = next(p for p in trainer.engine.model.parameters() if p.requires_grad)
    parameter.register_hook(lambda g: g * math.nan if trainer.step_number in steps else g)


def test_one_step_that_is_not_finite_is_skipped(tmp_path, warm_model):
    config = small_config(tmp_path, warm_model, train={"steps": 4})
    path = train_until(config, meddle=lambda t: spoil(t, {1}))
    rows = read_metrics(path)
    assert [r["skipped_updates"] for r in rows] == [0, 2, 0, 0]
    assert rows[1]["grad_norm"] is None and "grad_norm" in rows[1]["nonfinite"]  # not a number, and not faked as 0
    assert all(math.isfinite(r["grad_norm"]) for r in (rows[0], rows[2], rows[3]))
    [dump] = (path / "dumps").iterdir()
    tensors = load_file(dump)
    assert dump.name == "step-000001.safetensors"
    assert tensors["input_ids"].shape[0] == tensors["advantages"].shape[0] == 16
    weights = load_file(path / "checkpoints" / "step-000004" / "model" / "model.safetensors")
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_a_skipped_step_changes_no_weight(started):
    trainer = started()
    spoil(trainer, {0})
    before = copy.deepcopy(trainer.engine.model.state_dict())
    record = trainer.step()
    assert record.metrics["skipped_updates"] == 2 and trainer.engine.updates == 0
    assert all(torch.equal(v, before[k]) for k, v in trainer.engine.model.state_dict().items())


def test_three_in_a_row_stop_the_run_and_are_never_saved(tmp_path, warm_model):
    config = small_config(tmp_path, warm_model, train={"steps": 9}, log={"checkpoint_every": 1})
    with pytest.raises(NonFiniteError, match=r"3 steps in a row.*dumps.*lower optim.lr") as caught:
        train_until(config, meddle=lambda t: spoil(t, {2, 4, 5, 6, 7}))
    assert caught.value.exit_code == 3
    path = tmp_path / "a"
    assert sorted(p.name[5:11] for p in (path / "dumps").iterdir()) == ["000002", "000004", "000005", "000006"]
    info = read_info(path)
    assert info.status == "failed" and "non-finite" in info.message
    assert list_checkpoints(path)[-1][0] == 6  # skipped steps leave the weights as they were
    for _, checkpoint in list_checkpoints(path):
        weights = load_file(checkpoint / "model" / "model.safetensors")
        assert all(torch.isfinite(w).all() for w in weights.values())
    assert resume_run(path, quiet=True).result.status == "finished"  # without the cause it goes on


def test_the_count_of_skipped_steps_survives_a_resume(tmp_path, warm_model):
    config = small_config(tmp_path, warm_model, train={"steps": 6})
    path = train_until(config, steps=2, meddle=lambda t: spoil(t, {0, 1}))
    state = json.loads((path / "checkpoints" / "step-000002" / "state.json").read_text())
    assert state["nonfinite_in_a_row"] == 2


# -------------------------------------------------------------------------------------------------- groups and failures


def test_dynamic_sampling_keeps_groups_with_contrast(started):
    trainer = started(**SAMPLING)
    dropped = position = 0
    for step in range(6):  # not every step meets a group without contrast
        rollouts = trainer.rollouts(step)
        groups = {}
        for t in rollouts.used:
            groups.setdefault(t.group_id, set()).add(t.reward)
        assert groups and all(len(rewards) > 1 for rewards in groups.values())
        drawn = {t.group_id for t in rollouts.all}
        equal = {g for g in drawn if len({t.reward for t in rollouts.all if t.group_id == g}) == 1}
        assert equal.isdisjoint(groups) and equal | set(groups) == drawn
        assert 3 <= len(drawn) <= 9 and (len(groups) == 3 or len(drawn) == 9)
        assert len(rollouts.used) == 4 * len(groups)
        position += len(drawn)
        assert trainer.stream.position == position  # questions that were drawn are used up
        dropped += len(equal)
    assert dropped


def test_dynamic_sampling_stops_at_the_cap_and_the_update_is_zero(started):
    trainer = started(model_path=None, algorithm={"dynamic_sampling": True, "dynamic_sampling_max": 2})
    before = copy.deepcopy(trainer.engine.model.state_dict())
    record = trainer.step()  # an untrained model is always wrong
    rows = read_rollouts(trainer.run.path, 0)
    assert trainer.stream.position == 8 and record.metrics["groups_all_wrong"] == 1.0
    assert record.metrics["grad_norm"] == 0.0 and rows
    assert all(torch.equal(v, before[k]) for k, v in trainer.engine.model.state_dict().items())


def trajectory(name, group, reward, error=None):
    turn = Turn([1, 2], [3], [-1.0], "x", "", reward, "stop")
    return Trajectory(name, group, "e", 0, (turn,), reward, reward == 1.0, True, False, error)


def test_failed_rollouts_and_groups_of_one_are_left_out(started, monkeypatch):
    trainer = started()
    tasks = trainer.job.train_tasks[:4]
    monkeypatch.setattr(trainer.stream, "take", lambda n: tasks)
    episodes = [
        trajectory(f"g{g}-{i}", f"g{g}", math.nan if failed else float(i == 0), "tool: down" if failed else None)
        for g, failures in enumerate([(), (1,), (0, 2, 3), (0, 1, 2, 3)])
        for i in range(4)
        for failed in [i in failures]
    ]
    trainer.player = SimpleNamespace(collect=lambda *a, **k: episodes)
    rollouts = trainer.rollouts(0)
    assert [t.sample_id for t in rollouts.used] == ["g0-0", "g0-1", "g0-2", "g0-3", "g1-0", "g1-2", "g1-3"]
    assert len(rollouts.all) == 16 and rollouts.task_of["g2"] is tasks[2]


def test_a_step_in_which_everything_failed_says_why(started):
    trainer = started(rollout={"outage_wait_s": 0})
    broken = [trajectory(f"g{i // 4}-{i}", f"g{i // 4}", math.nan, "ToolFailure: no route") for i in range(16)]
    trainer.player = SimpleNamespace(collect=lambda *a, **k: broken)
    with pytest.raises(RunError, match=r"step 0: 16 of 16 rollouts failed .*no route.*Fix the tool or server"):
        trainer.step()


# ------------------------------------------------------------------------------------------------------------- metrics


def test_sampler_and_scorer_agree_on_a_default_like_job(tmp_path):
    small = [
        "rollout.prompts_per_step=6", "train.steps=2", "warm_start=null", "eval.questions=0", "model.threads=1",
        "log.name=a", f"log.runs_dir={tmp_path}", "world={people: 24, companies: 10, cities: 8, regions: 6}",
    ]  # fmt: skip
    done = train_run(load_config("search_tiny", small).config, quiet=True)
    rows = read_metrics(done.run_dir)
    assert len(rows) == 2
    assert all(0 < r["mismatch"] <= r["mismatch_max"] < 1e-3 for r in rows)


@pytest.mark.parametrize("fast_path", ["auto", "off"])
def test_sampler_and_scorer_agree_after_updates(tmp_path, warm_model, fast_path):
    config = small_config(
        tmp_path, warm_model, model={"fast_path": fast_path}, rollout={"temperature": 0.7}, train={"steps": 3}
    )
    rows = read_metrics(train_until(config))
    assert rows[-1]["grad_norm"] > 0
    assert all(r["mismatch_max"] < 1e-3 for r in rows)


def test_probe_and_displacement_against_plain_loops(started):
    trainer = started(train={"probe_size": 3, "delta_every": 1}, optim={"lr": 3e-3})
    taken = []
    rollouts = trainer.rollouts
    trainer.rollouts = lambda n: taken.append(rollouts(n)) or taken[-1]
    for _ in range(10):
        before = copy.deepcopy(trainer.engine.model)
        record = trainer.step()
        if len(trainer.probe) == 3 and "delta_correct" in record.metrics:
            break
    after = trainer.engine.model
    used = taken[-1].used

    assert [t.correct for t in trainer.probe] == [True] * 3
    first_seen = [t.sample_id for r in taken for t in r.used if t.correct][:3]
    assert [t.sample_id for t in trainer.probe] == first_seen
    logps = [x for t in trainer.probe for x in plain_logprobs(after, t)]
    assert record.metrics["probe_logprob"] == pytest.approx(sum(logps) / len(logps), abs=1e-5)

    outcomes = {g: {t.correct for t in used if t.group_id == g} for g in {t.group_id for t in used}}
    change = [
        [b - a for a, b in zip(plain_logprobs(before, t), plain_logprobs(after, t))]
        for t in used
        if t.correct and outcomes[t.group_id] == {True, False}
    ]
    per_token = sum(sum(c) / len(c) for c in change) / len(change)
    assert abs(per_token) > 1e-3
    assert record.metrics["delta_correct"] == pytest.approx(per_token, abs=1e-5)
    assert record.metrics["delta_correct_seq"] == pytest.approx(sum(map(sum, change)) / len(change), abs=1e-4)
    correct = [x for t in used if t.correct for x in plain_logprobs(before, t)]
    assert record.metrics["logprob_correct"] == pytest.approx(sum(correct) / len(correct), abs=1e-5)


def test_no_probe_value_before_the_set_is_full_and_only_when_due(started):
    trainer = started(train={"probe_size": 5, "probe_every": 3, "delta_every": 2, "steps": 8})
    records = [trainer.step() for _ in range(7)]
    assert len(trainer.probe) == 5
    assert {r.step for r in records if "probe_logprob" in r.metrics} <= {0, 3, 6}
    assert "probe_logprob" in records[6].metrics
    assert {r.step for r in records if "delta_correct" in r.metrics} <= {0, 2, 4, 6}
    off = started(train={"probe_every": 0, "delta_every": 0})
    record = off.step()
    assert off.probe == [] and not {"probe_logprob", "delta_correct"} & set(record.metrics)


def test_the_scheduled_answer_weight_counts_executed_searches(started, monkeypatch):
    trainer = started(**LLDS)
    seen, weights = [], set()
    rollouts, update = trainer.rollouts, trainer.engine.update
    monkeypatch.setattr(trainer, "rollouts", lambda n: seen.append(rollouts(n)) or seen[-1])
    monkeypatch.setattr(
        trainer.engine, "update", lambda *a, **k: weights.add(k["loss"].llds.answer_weight) or update(*a, **k)
    )
    trainer.step()
    turns = [u for t in seen[0].used for u in t.turns]
    found = sum(u.info["kind"] == "search" and u.info["valid"] for u in turns) / len(seen[0].used)
    assert weights == {min(found / 2, 1.0)} and 0 < found < len(turns) / len(seen[0].used) - 1


def test_a_step_records_what_the_monitors_ask_of_its_rollouts(started, monkeypatch):
    """Diversity, control tokens, valid actions, equal groups and the mismatch: each from this step's own episodes."""
    trainer = started()
    said, rollouts, score = [], trainer.rollouts, trainer.engine.score
    trainer._special = frozenset(range(200))  # many of the random model's tokens: a share that is not 0
    monkeypatch.setattr(trainer, "rollouts", lambda n: said.append(rollouts(n)) or said[-1])
    scored = []
    monkeypatch.setattr(trainer.engine, "score", lambda *a, **k: scored.append(score(*a, **k)) or scored[-1])
    metrics = trainer.step().metrics
    every, groups = said[0].all, {}
    for t in every:
        groups.setdefault(t.group_id, []).append(t.reward)
    turns = [u for t in every for u in t.turns]
    assert diversity(every).items() <= metrics.items() and len(diversity(every)) == 3
    assert metrics["control_tokens"] == control_tokens(every, trainer._special)["control_tokens"] > 0
    assert metrics["valid_action_ratio"] == pytest.approx(sum(bool(u.info["valid"]) for u in turns) / len(turns))
    assert metrics["groups_equal"] == sum(len(set(r)) == 1 for r in groups.values()) / len(groups)
    own = torch.tensor([p for t in said[0].used for u in t.turns for p in u.logprobs])
    batch = pack(said[0].used, trainer.engine.tokenizer.pad_token_id)
    apart = (scored[0].logprobs[batch.action_mask].cpu() - own).abs()
    assert metrics["mismatch"] == pytest.approx(float(apart.mean()), abs=1e-6)
    assert metrics["entropy"] > 0 and metrics["t_rollout_s"] > 0
    assert read_metrics(trainer.run.path)[0].items() >= {k: metrics[k] for k in ("mismatch", "groups_equal")}.items()


def test_the_rollout_file_holds_the_scores(started):
    trainer = started(**NTHR, log={"rollout_groups": 2})
    trainer.step()
    rows = read_rollouts(trainer.run.path, 0)
    assert len(rows) == 8 and len({r["group_id"] for r in rows}) == 2
    for row in rows:
        for turn in row["turns"]:
            n = len(turn["action_ids"])
            assert n == len(turn["action_tokens"]) == len(turn["logprobs"]) == len(turn["old_logprobs"])
            assert n == len(turn["advantages"]) == len(turn["entropy"]) == len(turn["nthr_selected"])
            assert max(abs(a - b) for a, b in zip(turn["logprobs"], turn["old_logprobs"])) < 1e-3
    rewards = {r["group_id"]: {q["reward"] for q in rows if q["group_id"] == r["group_id"]} for r in rows}
    for row in rows:
        sign = {a > 0 for t in row["turns"] for a in t["advantages"] if a}
        if len(rewards[row["group_id"]]) > 1:
            assert sign <= {row["reward"] == 1.0}
        else:
            assert sign == set()


def test_the_groups_an_alarm_names_are_stored_as_well(started):
    trainer = started(log={"rollout_groups": 1})
    named = []

    def alarm(record):
        named.append(record.groups[-1]["group_id"])
        return [Alarm("x", record.step, "x", "warn", "", groups=named[-1:])]

    trainer.observe = alarm
    trainer.step()
    rows = read_rollouts(trainer.run.path, 0)
    groups = list(dict.fromkeys(r["group_id"] for r in rows))
    assert len(groups) == 2 and groups[-1] == named[0] and all("advantages" in t for r in rows for t in r["turns"])


def test_the_monitors_see_held_out_evaluations(tmp_path, warm_model, monkeypatch):
    """Held-out accuracy that falls while the reward of training holds is told at the step after, also once resumed."""
    shares = {0: 0.5, 1: 0.9, 2: 0.1, 3: 0.1, 4: 0.1}

    def held_out(job, pool, *, step, patience):
        summary = {"step": step, "n": 400, "failed": 0, "responses": 400, "em": shares[step], "reward": 1.0}
        return EvalResult(summary | {"em_1hop": 1.0, "em_2hop": float(step == 0)}, [], [])

    monkeypatch.setattr("agentrl.train.trainer.evaluate", held_out)
    early = {"thresholds": {"raising.warmup": 1}}
    config = small_config(tmp_path, warm_model, train={"steps": 4}, eval={"questions": 4, "every": 1}, monitors=early)
    path = train_until(config, steps=3)
    assert [a for a in read_alarms(path) if a["rule"] == "validation"] == []
    resume_run(path, quiet=True)
    rows = read_metrics(path)
    assert [row["validation"] for row in rows] == [0.5, 0.9, 0.1, 0.1]
    assert [row["validation_at_zero"] for row in rows] == [0, 1, 1, 1]
    assert rows[1]["validation_error"] == pytest.approx(math.sqrt(0.9 * 0.1 / 400), rel=0.02)
    [alarm] = [a for a in read_alarms(path) if a["rule"] == "validation"]
    assert alarm["step"] == 3 and "fell from 0.900 to 0.100" in alarm["message"]


def test_a_step_without_an_evaluation_has_no_held_out_figure(tmp_path, warm_model):
    config = small_config(tmp_path, warm_model, train={"steps": 3}, eval={"questions": 4, "every": 2})
    rows, evals = read_metrics(path := train_until(config)), read_evals(path)
    assert ["validation" in row for row in rows] == [True, False, True]
    assert [rows[0]["validation"], rows[2]["validation"]] == [row["em"] for row in evals[:2]]


def test_the_reference_of_kl_is_the_policy_after_the_warm_start(tmp_path):
    config = small_config(tmp_path, **KL, warm_start=WARM, train={"steps": 2}, optim={"lr": 1e-6})
    kept = {}
    path = train_until(config, steps=1, meddle=lambda t: kept.update(copy.deepcopy(t.engine.model.state_dict())))
    saved = load_file(path / "reference" / "model.safetensors")
    assert all(torch.equal(saved[k], kept[k]) for k in saved)
    assert read_metrics(path)[0]["kl"] < 1e-4  # far from it is the model before the warm start


def test_lora_begins_at_the_seed(tmp_path, warm_model):
    folder = tmp_path / "w"
    adapters = []
    for seed in (1, 1, 2):
        config = small_config(tmp_path, warm_model, **LORA, seed=seed)
        job = build_job(config, folder, say=lambda line: None)
        adapters.append({k: v for k, v in job.engine.model.state_dict().items() if "lora_A" in k})
    first, again, other = adapters
    assert first and all(torch.equal(first[k], again[k]) for k in first)
    assert not any(torch.equal(first[k], other[k]) for k in first)


def test_same_seed_same_run_and_another_seed_another(tmp_path, warm_model):
    rows = []
    for i, seed in enumerate((5, 5, 6)):
        config = small_config(tmp_path / str(i), warm_model, seed=seed, world={"seed": 3})
        rows.append(without_times(read_metrics(train_until(config))))
    assert rows[0] == rows[1] != rows[2]


def test_the_hand_written_path_is_taken_whatever_the_weights(started):
    """In fp32 it differs from the module by more on sharp attention; a resume must not take another path for it."""
    sharp = started()
    with torch.no_grad():
        for layer in sharp.engine.model.model.layers:
            layer.self_attn.q_proj.weight *= 5
    sharp.engine._check_paths()
    assert sharp.engine.fast is not None
    assert started(model={"fast_path": "off"}).engine.fast is None


def test_with_one_update_a_batch_nthr_comes_from_the_updates_own_pass(tmp_path, warm_model):
    """No scoring pass, and the run is what it is with one; a group that is too large for a micro-batch gets one."""
    rows, scored, used = {}, [], {}
    for name, tokens, fits in (("fused", 8192, True), ("apart", 8192, False), ("too large", 200, True)):

        def meddle(trainer, name=name):
            score, trace = trainer.engine.score, trainer._trace
            trainer.engine.score = lambda *a, **k: (scored.append(name) if k.get("nthr") else None) or score(*a, **k)
            trainer._trace = lambda step, named: used.setdefault(name, step.advantages) is None or trace(step, named)

        changes = {
            "algorithm": {"nthr": {"enabled": True, "beta": 0.0}},
            "train": {"mini_batches": 1, "steps": 2, "micro_batch_tokens": tokens},
        }
        config = small_config(tmp_path / name.replace(" ", ""), warm_model, **changes)
        with pytest.MonkeyPatch.context() as patch:
            if not fits:
                patch.setattr("agentrl.train.trainer.whole_groups_fit", lambda *a: False)
            rows[name] = without_times(read_metrics(train_until(config, meddle=meddle)))
    assert scored == ["apart"] * 2 + ["too large"] * 2
    assert rows["fused"][0]["nthr_selected"] > 0 and rows["fused"][0]["nthr_eta"] < 1
    assert torch.allclose(used["fused"], used["apart"])  # for the record, too, with NTHR's factor
    for mine, theirs in zip(rows["fused"], rows["apart"], strict=True):
        for noise in ("mismatch", "mismatch_max", "kl_sampler"):
            mine.pop(noise), theirs.pop(noise)
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)
