"""The callback in TRL's own GRPOTrainer, on a model of a few thousand parameters and a reward that follows a script."""

import argparse
import io
import json

import pytest

from agentrl.commands import watch

pytest.importorskip("trl")  # is cheap: its trainers are imported where they are used
from transformers import TrainerControl, TrainerState

from agentrl.integrations.trl import MonitorCallback
from agentrl.monitors.remedies import OPTIONS

WORDS = 32
FALL = 12  # the step from which nothing is rewarded


class ScriptedReward:
    """High until FALL, then zero, with a little noise from the completions themselves so that groups differ."""

    __name__ = "scripted"

    def __init__(self):
        self.calls = 0

    def __call__(self, completions, **kwargs):
        self.calls += 1
        level = 0.7 if self.calls <= FALL else 0.0
        return [level + 0.02 * (len(c) % 3) for c in completions]


def trainer(folder, callback):
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    vocabulary = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, WORDS)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="w2"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="w2")
    config = Qwen2Config(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=16, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    args = GRPOConfig(
        output_dir=str(folder), max_steps=40, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
        per_device_train_batch_size=4, num_generations=4, max_completion_length=4, bf16=False, disable_tqdm=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    return GRPOTrainer(
        model=Qwen2ForCausalLM(config),
        reward_funcs=ScriptedReward(),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": [f"w{2 + i} w3" for i in range(8)]}),
        processing_class=tokenizer,
        callbacks=[callback],
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpo")
    callback = MonitorCallback(stream=io.StringIO(), on_critical="stop")
    run = trainer(folder, callback)
    run.train()
    run.state.save_to_json(str(folder / "trainer_state.json"))
    return folder, callback, run


@pytest.mark.slow
def test_a_fall_of_the_reward_is_alarmed(finished):
    folder, callback, _ = finished
    first = next(a for a in callback.alarms if a.rule == "collapse")
    assert FALL < first.step <= FALL + 6
    assert "In TRL: optim.lr is learning_rate" in first.remedy
    lines = [json.loads(line) for line in (folder / "alarms.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [a.id for a in callback.alarms]
    assert first.message in callback.stream.getvalue()


@pytest.mark.slow
def test_real_names_are_recognised_and_missing_ones_named(finished):
    _, callback, _ = finished
    columns = callback.mapping.columns
    assert callback.mapping.trainer == "TRL"
    assert columns["reward"] == "reward" and columns["response_length"] == "completions/mean_length"
    assert {"clip_fraction", "entropy", "grad_norm", "lr", "truncated_share", "reward_group_std"} <= set(columns)
    assert "missing" in callback.stream.getvalue() and "probe_logprob" in callback.mapping.missing


@pytest.mark.slow
def test_remedies_name_options_that_trl_has(finished):
    _, _, run = finished
    assert [name for name in OPTIONS["TRL"].values() if not hasattr(run.args, name)] == []


@pytest.mark.slow
def test_watching_the_logs_gives_the_same_alarms(finished, capsys):
    folder, callback, _ = finished
    parser = argparse.ArgumentParser()
    watch.add_arguments(parser)
    watch.run(parser.parse_args([str(folder / "trainer_state.json"), "--once", "--json"]))
    out, err = capsys.readouterr()
    assert [json.loads(line)["id"] for line in out.splitlines()] == [a.id for a in callback.alarms]
    assert "TRL names" in err


@pytest.mark.slow
def test_a_resumed_run_remembers_what_was_logged(finished, tmp_path):
    """After the fall of the first run, the second says it again neither aloud nor late."""
    folder, callback, run = finished
    again = MonitorCallback(stream=io.StringIO())
    state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
    again.on_train_begin(run.args, state, TrainerControl())
    assert again.monitor.state_dict() == callback.monitor.state_dict()
    assert again.alarms == [] and again.stream.getvalue() == ""


@pytest.mark.slow
def test_it_stops_the_run_when_asked_to(finished):
    _, callback, run = finished
    critical = next(a for a in callback.alarms if a.level == "critical")
    assert run.state.global_step == critical.step < 40


def test_other_processes_and_evaluations_are_silent():
    callback = MonitorCallback(stream=None)
    state = TrainerState(global_step=1)
    callback.on_log(None, state, TrainerControl(), {"eval_reward": 0.5, "eval_loss": 1.0})
    callback.on_log(None, state, TrainerControl(), {"train_runtime": 3.0, "total_flos": 1.0})
    callback.on_log(None, TrainerState(global_step=2, is_world_process_zero=False), TrainerControl(), {"reward": 0.5})
    assert callback.monitor.seen == 0
    with pytest.raises(ValueError, match="'continue' or 'stop'"):
        MonitorCallback(on_critical="halt")
