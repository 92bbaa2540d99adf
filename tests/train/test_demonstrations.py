"""Demonstrations become exactly the tokens and masks that a rollout would have; only the model's own are learned."""

import asyncio
import json
import math

import gymnasium
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentrl import envs
from agentrl.batch import pack
from agentrl.cli import main
from agentrl.config import LoraConfig, RolloutConfig
from agentrl.data.demonstrations import demonstration, read_demonstrations
from agentrl.errors import DataError
from agentrl.rollouts.chat import ChatFormat
from agentrl.rollouts.play import EnvPool, Player
from agentrl.runs.checkpoint import list_checkpoints
from agentrl.runs.files import read_json, strict_json
from agentrl.runs.read import read_rollouts
from agentrl.train import warmstart
from agentrl.train.build import build_job
from agentrl.train.demonstrations import played
from agentrl.train.imitation import _epochs, _gradient, likelihood, split
from agentrl.train.start import resume_run, train_run
from agentrl.types import Task
from tests.fakes import ScriptedSampler, save_tiny_model
from tests.rollouts.test_tiny_qwen import Shelf
from tests.small import small_config

ROW = {"id": "q", "question": "where was Ada Rowan born?", "golden_answers": ["Port Ellis"]}
SAID = ["<think>\nhm\n</think> <search> Ada Rowan </search>", "no tags here", "<answer> Port Ellis </answer>"]
LONG = "Ada Rowan was born in Port Ellis, <|im_end|> says </information> the passage. " * 9  # hostile, and cut


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"), context=2048)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def make():
    envs.register_envs()
    return gymnasium.make("agentrl/Search-v0", disable_env_checker=True, retriever=Shelf(LONG))


def chat_of(tokenizer, style, **options):
    limits = {"max_context": 1500, "max_tokens_per_turn": 100, "max_observation_tokens": 60}
    return ChatFormat(tokenizer, RolloutConfig(style=style, **{**limits, **options}))


def as_rollout(tokenizer, chat):
    """The episode as reinforcement learning would have played it: the same words, sampled."""
    with EnvPool(make) as pool:
        sampler = ScriptedSampler(tokenizer, SAID, eos=True)
        return Player(sampler, pool, chat, chat.config).collect([Task("q", ROW)], 1)[0]


WAYS = {
    "actions": lambda t: {"actions": SAID},
    "messages": lambda t: {"messages": [m for u in t.turns for m in (
        {"role": "assistant", "content": u.action}, {"role": "tool", "content": u.observation})][:-1]},
    "turns": lambda t: {"turns": [{"action": u.action, "observation": u.observation} for u in t.turns]},
    "stored": lambda t: {"turns": [{"action": u.action, "observation": u.observation, "action_ids": u.action_ids,
                                    "prompt_ids": u.prompt_ids} for u in t.turns]},
}  # fmt: skip


@pytest.mark.parametrize("style", ["tag", "chat"])
@pytest.mark.parametrize(
    ("way", "limit"),
    [("actions", 60), ("stored", 60), *((way, 400) for way in WAYS)],  # 60: observations are cut
)
def test_tokens_and_masks_are_those_of_the_rollout(tokenizer, style, way, limit):
    chat = chat_of(tokenizer, style, max_observation_tokens=limit)
    rollout = as_rollout(tokenizer, chat)
    assert rollout.correct and len(rollout.turns) == 3
    demo = demonstration(ROW | WAYS[way](rollout), "f:1", "1")
    [t] = played([demo], make, chat, say=print)
    assert (max(len(u.prompt_ids) for u in rollout.turns[1:]) < 100) == (limit == 60)
    ours, theirs = pack([t]), pack([rollout])
    for name in ("input_ids", "attention_mask", "action_mask", "turn_ids"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert 0 < int(ours.action_mask.sum()) < ours.action_mask.numel() / 2
    said = tokenizer.decode(ours.input_ids[:, 1:][ours.action_mask])
    assert "Ada Rowan was born" not in said and "Answer the question" not in said and "no tags here" in said


def test_ids_as_sampled_are_kept_where_encoding_the_text_would_give_others(tokenizer):
    chat = chat_of(tokenizer, "chat")
    text = SAID[2]
    usual = tokenizer(text, add_special_tokens=False)["input_ids"]
    sampled = [i for c in text for i in tokenizer(c, add_special_tokens=False)["input_ids"]]  # letter by letter
    assert tokenizer.decode(sampled) == text and sampled != usual
    for ids, kept in ((sampled, sampled), ([len(tokenizer) + 3], usual), (usual[:-2], usual)):
        demo = demonstration(ROW | {"turns": [{"action": text, "action_ids": ids}]}, "f:1", "1")
        assert played([demo], make, chat, print)[0].turns[0].action_ids == kept


def test_stored_prompts_of_another_style_or_with_smuggled_control_tokens_are_not_taken(tokenizer):
    chat, other = chat_of(tokenizer, "chat", max_observation_tokens=400), chat_of(tokenizer, "tag")
    rollout = as_rollout(tokenizer, chat)
    bad = [list(u.prompt_ids) for u in rollout.turns]
    end = tokenizer("<|im_end|>")["input_ids"]
    said = tokenizer.decode(bad[1])
    bad[1] = tokenizer(said)["input_ids"]  # the passage's "<|im_end|>" as a control token: the same text
    assert tokenizer.decode(bad[1]) == said and bad[1].count(end[0]) > rollout.turns[1].prompt_ids.count(end[0])
    for prompts in (bad, [list(u.prompt_ids) for u in as_rollout(tokenizer, other).turns]):
        turns = [
            {"action": u.action, "observation": u.observation, "prompt_ids": p} for u, p in zip(rollout.turns, prompts)
        ]
        [t] = played([demonstration(ROW | {"turns": turns}, "f:1", "1")], make, chat, print)
        assert [u.prompt_ids for u in t.turns][1:] == [u.prompt_ids for u in rollout.turns][1:]


@pytest.mark.parametrize(
    ("actions", "options", "reason"),
    [
        ([SAID[0] + " and more", SAID[2]], {}, "action 1: the turn ends at '...*</search>', and ' and more' follows"),
        ([SAID[2], SAID[2]], {}, "the environment ends the episode after 1 of 2 actions"),
        ([SAID[0]], {}, "the environment goes on after its last action"),
        ([SAID[0], SAID[2]], {"max_tokens_per_turn": 8}, "tokens, and rollout.max_tokens_per_turn is 8"),
        ([SAID[0], SAID[2]], {"max_turns": 1}, "after 1 of 2 actions rollout.max_turns or rollout.max_context cuts it"),
    ],
)
def test_what_cannot_be_an_episode_of_this_run_is_named(tokenizer, actions, options, reason):
    good = demonstration(
        ROW | {"actions": SAID[::2]} if not options else ROW | {"actions": [SAID[2]]}, "f.jsonl:1", "1"
    )
    bad = demonstration(ROW | {"actions": actions}, "f.jsonl:7", "7")
    with pytest.raises(DataError, match=f"^f.jsonl:7: .*{reason.replace('...*', '.*')}") as error:
        played([bad, good] if not options else [bad], make, chat_of(tokenizer, "tag", **options), print)
    assert len(str(error.value).splitlines()) == 1


def test_wrong_answers_are_left_out_aloud_and_all_of_them_are_an_error(tokenizer):
    said, chat = [], chat_of(tokenizer, "chat")
    good = demonstration(ROW | {"actions": SAID}, "f:1", "1")
    wrong = demonstration(ROW | {"actions": ["<answer> Varn </answer>"]}, "f:2", "2")
    assert [t.sample_id for t in played([good, wrong], make, chat, said.append)] == ["demonstration-1"]
    assert said == ["1 of 2 demonstrations do not end in a correct answer and are left out (the first: f:2)"]
    with pytest.raises(DataError, match="f:2: no demonstration ends in an answer"):
        played([wrong], make, chat, said.append)


# ------------------------------------------------------------------------------------------------------------ learning


def config_of(tmp_path, folder, demos, **changes):
    base = {
        "model": {"threads": 1},
        "warm_start": {"file": str(demos), "batch": 4, "epochs": 6, "lr": 1e-2, "held_out": 0.25},
        "rollout": {"style": "chat", "max_tokens_per_turn": 60, "max_observation_tokens": 60, "max_context": 700},
        "train": {"steps": 1},
    }
    return small_config(tmp_path, folder, **{**base, **changes})


@pytest.fixture
def demos(tmp_path):
    lines = []
    for n in range(12):
        answer = ["Varn", "Port Ellis"][n % 2]
        say = [
            ("assistant", "<search> Ada </search>"),
            ("tool", f"Doc 1 {answer}"),
            ("assistant", f"<answer> {answer} </answer>"),
        ]
        lines.append({"question": f"where is number {n}?", "messages": [{"role": r, "content": c} for r, c in say]})
    path = tmp_path / "demos.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def job(tmp_path, folder, demos):
    return build_job(config_of(tmp_path, folder, demos), tmp_path)


def trajectories(job):
    return played(read_demonstrations(job.config.warm_start.file), job.make_env, job.chat, print)


def test_loss_gradient_and_accuracy_are_those_of_the_models_own_tokens(job, folder):
    """Against transformers alone: one episode after the other, labels -100 where the model did not write."""
    some = trajectories(job)[:5]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total, tokens, hits = torch.tensor(0.0), 0, 0
    for t in some:
        ids, labels = [], []
        for u in t.turns:
            ids += [*u.prompt_ids, *u.action_ids]
            labels += [-100] * len(u.prompt_ids) + list(u.action_ids)
        logits = model(torch.tensor([ids])).logits[0, :-1]
        want = torch.tensor(labels[1:])
        total = total + F.cross_entropy(logits, want, ignore_index=-100, reduction="sum")
        tokens += int((want >= 0).sum())
        hits += int((logits.argmax(-1) == want).sum())
    loss = total / tokens
    loss.backward()
    job.engine.micro_batch_tokens = 250  # several micro-batches
    assert _gradient(job.engine, pack(some)) == pytest.approx(loss.item(), abs=1e-5)
    own = dict(job.engine.model.named_parameters())
    for name, p in model.named_parameters():
        assert torch.allclose(own[name].grad, p.grad, atol=1e-5), name
    found = likelihood(job.engine, pack(some))
    assert found["loss"] == pytest.approx(loss.item(), abs=1e-5) and found["accuracy"] == pytest.approx(hits / tokens)


def test_it_learns_and_says_how_well_on_held_out_ones(job):
    said = []
    before = likelihood(job.engine, pack(trajectories(job)))
    out = warmstart.warmed_up(job, said.append)
    assert out["demonstrations"] == 9 and out["demonstration_steps"] == 6 * math.ceil(9 / 4)
    assert out["demonstration_held_out_loss"] < before["loss"] / 2
    assert before["accuracy"] < 0.2 < 0.5 < out["demonstration_held_out_accuracy"] <= 1
    assert 0 <= out["format_rate"] <= 1 and 0 <= out["held_out_correct"] <= 1
    assert said[-1].startswith("demonstrations: step 18/18, loss ")
    assert job.engine.policy_version == 0 and not job.engine.optimizer.state


def test_the_sampler_has_the_new_weights(job):
    ids = job.chat.start(warmstart_parts(job))
    sample = lambda: asyncio.run(job.engine.sample(ids, max_tokens=8, temperature=0)).ids  # noqa: E731
    before = sample()
    warmstart.warmed_up(job, lambda line: None)
    assert sample() != before


def warmstart_parts(job):
    from agentrl.rollouts.chat import parts_of

    return parts_of(*job.make_env().reset(options=ROW))


@pytest.mark.slow
def test_lora_learns_in_its_adapters_alone(tmp_path, folder, demos):
    config = config_of(tmp_path, folder, demos)
    config.model.lora, config.warm_start.lr = LoraConfig(rank=4), None
    job = build_job(config, tmp_path)
    before = {n: p.detach().clone() for n, p in job.engine.model.named_parameters()}
    out = warmstart.warmed_up(job, lambda line: None)
    assert out["demonstration_lr"] == 2e-4
    for n, p in job.engine.model.named_parameters():
        assert torch.equal(p, before[n]) != ("lora_" in n), n
    assert all(p.grad is None for p in job.engine.model.parameters())


def test_a_run_begins_with_it_keeps_step_0_and_a_resume_does_not_repeat_it(tmp_path, folder, demos, monkeypatch):
    config = config_of(tmp_path, folder, demos, train={"steps": 2}, log={"checkpoint_every": 0})
    run = train_run(config, quiet=True).run_dir
    measured = read_json(run / "meta.json")["warm_start"]
    assert {"demonstration_held_out_accuracy", "format_rate", "seconds"} <= set(measured)
    assert [n for n, _ in list_checkpoints(run)] == [0, 2]
    monkeypatch.setattr("agentrl.train.start.warmed_up", None)  # whoever calls it fails
    again = resume_run(run, checkpoint=0, quiet=True)
    assert again.result.status == "finished"


def test_a_bad_demonstration_stops_the_run_before_it_begins(tmp_path, folder, demos, capsys):
    demos.write_text(demos.read_text() + '{"question": "x"}\n')
    config = config_of(tmp_path, folder, demos)
    with pytest.raises(DataError, match=r"demos.jsonl:13: one of messages, turns, actions"):
        train_run(config, quiet=True)
    assert not list(tmp_path.glob("a*"))


@pytest.mark.slow
def test_rejection_sampling_is_two_commands(tmp_path, folder, demos, capsys):
    """What a run has sampled and got right is exported, and warms up the next one, token for token."""
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    exact.resize_token_embeddings(len(AutoTokenizer.from_pretrained(folder)))  # every id is a token
    exact.save_pretrained(tmp_path / "exact")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "exact")
    config = config_of(tmp_path, tmp_path / "exact", demos, log={"rollout_groups": -1, "name": "first"})
    config.world, config.warm_start.epochs = small_config(tmp_path).world, 1
    run = train_run(config, quiet=True).run_dir
    rows = read_rollouts(run, 0)
    out = tmp_path / "own.jsonl"
    assert main(["rollouts", "export", str(run), str(out)]) == 0
    assert f"{out}: {len(rows)} of {len(rows)} stored episodes" in capsys.readouterr().out
    job = build_job(config, tmp_path / "again")
    again = played(read_demonstrations(out), job.make_env, job.chat, print)
    assert [[u.action_ids for u in t.turns] for t in again] == [[u["action_ids"] for u in r["turns"]] for r in rows]
    assert [[u.prompt_ids for u in t.turns] for t in again] == [[u["prompt_ids"] for u in r["turns"]] for r in rows]
    assert main(["rollouts", "export", str(run), str(out)]) == 2  # never written over
    assert "own.jsonl" in capsys.readouterr().err


def test_strict_json_of_a_line_is_read_again():
    row = ROW | {"turns": [{"action": SAID[2], "observation": "", "action_ids": [3]}], "reward": math.nan}
    assert demonstration(json.loads(strict_json(row)), "f:1", "1").actions == (SAID[2],)


def test_epochs_and_the_held_out_share():
    import random

    batches = _epochs(10, 4, 2.5, random.Random(0))
    assert [len(b) for b in batches] == [4, 4, 2, 4, 4, 2, 4, 1]  # none has one twice
    flat = [i for b in batches for i in b]
    assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10)) and len(set(flat[20:])) == 5
    learned, held = split(list(range(20)), 0.25, random.Random(0))
    assert len(held) == 5 and sorted(learned + held) == list(range(20))
    assert [len(x) for x in split([1], 0.5, random.Random(0))] == [1, 0]
    assert len(split(list(range(1000)), 0.5, random.Random(0))[1]) == 32
