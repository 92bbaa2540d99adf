"""What every sampler must do, with a real model: torch's, vLLM's in this process, OpenRLHF's.

`Sampled` holds an engine and the Hugging Face model of its first weights; each function of CONTRACT is one rule.
"""

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from agentrl.batch import pack
from agentrl.config import LossConfig
from agentrl.errors import AgentRLError
from agentrl.rollouts.play import parts_of
from agentrl.types import Trajectory, Turn

LONG = 14  # tokens of a turn


@dataclass
class Sampled:
    """An engine of the model in `folder`."""

    engine: Any
    folder: Path
    ids: list[int]  # a question's
    gap: float = 1e-4  # nats allowed to a plain forward pass

    def __post_init__(self):
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)

    def ask(self, context=None, **options):
        """One turn, or one for each of several contexts at once."""
        return self.ask_all([context or self.ids], **options)[0]

    def ask_all(self, contexts, **options):
        options = {"max_tokens": LONG, "stop": (), "temperature": 1.0} | options

        async def go():
            return await asyncio.gather(*[self.engine.sample(c, session=k, **options) for k, c in enumerate(contexts)])

        out = asyncio.run(go())
        for k in range(len(contexts)):
            self.engine.release(k)
        return out

    def logits(self, ids):
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0]

    def gaps(self, context, sample, temperature=1.0):
        """|log π of the sampler - of a plain forward pass| of every token."""
        logp = (self.logits(context + sample.ids) / temperature).log_softmax(-1)[len(context) - 1 : -1]
        own = logp.gather(-1, torch.tensor(sample.ids)[:, None])[:, 0]
        return (own - torch.tensor(sample.logprobs)).abs()

    def greedy(self, n=LONG):
        """The likeliest continuation, by plain forward passes."""
        ids = list(self.ids)
        for _ in range(n):
            ids.append(int(self.logits(ids)[-1].argmax()))
        return ids[len(self.ids) :]

    def text(self, ids):
        return self.engine.sampler.text.decode(ids) if hasattr(self.engine, "sampler") else self.engine.text.decode(ids)


def question(job) -> list[int]:
    """The ids of a training question, as an episode begins."""
    env = job.make_env()
    observation, info = env.reset(seed=0, options=job.train_tasks[0].options)
    env.close()
    return list(job.chat.start(parts_of(observation, info)))


def with_end(model: Path, folder: Path, question: list[int]) -> Path:
    """A copy of the model in which a word of the likeliest answer ends a turn, too, as its generation config says."""
    from agentrl.config import ModelConfig
    from agentrl.engines.shared.loading import load_tokenizer

    shutil.copytree(model, folder)
    tokenizer = load_tokenizer(ModelConfig(path=str(folder)))
    ids = list(question)
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    n = len(ids)
    for _ in range(20):
        with torch.no_grad():
            ids.append(int(net(torch.tensor([ids])).logits[0, -1].argmax()))
    new = max(k for k in range(n, n + 20) if ids[k] not in ids[n:k])  # the last one that has not come before
    assert new > n, "the likeliest answer says one word alone"
    GenerationConfig(eos_token_id=[tokenizer.eos_token_id, ids[new]]).save_pretrained(folder)
    return folder


def log_probabilities_are_of_the_distribution_sampled_from(s):
    for temperature in (1.0, 0.5):
        contexts = [[*s.ids, 5 + k] for k in range(12)]
        for context, sample in zip(contexts, s.ask_all(contexts, temperature=temperature)):
            assert len(sample.ids) == len(sample.logprobs)
            assert float(s.gaps(context, sample, temperature).max()) < s.gap


def temperature_0_takes_the_likeliest_and_its_log_probability_is_at_1(s):
    sample, best = s.ask(temperature=0.0), s.greedy()
    assert sample.ids == best[: len(sample.ids)] and len(sample.ids) > 3
    assert float(s.gaps(s.ids, sample).max()) < s.gap


def a_turn_ends_with_the_token_that_completes_a_stop_string(s):
    best = s.greedy()
    words = [s.text([t]).strip() for t in best]
    for stop in (words[2], s.text(best[1:3]).strip(), words[2][-1]):  # of one token, of two, of a part of one
        end = next(n for n in range(1, LONG) if stop in s.text(best[:n]))
        for others in ((stop,), ("never said", stop)):
            sample = s.ask(temperature=0.0, stop=others)
            assert (sample.ids, sample.stop) == (best[:end], "stop"), stop
            assert stop in sample.text and stop not in s.text(sample.ids[:-1])


def a_stop_string_in_the_context_does_not_end_a_turn(s):
    stop = s.text(s.ids[-1:]).strip()
    best = s.greedy(3)
    if stop not in s.text(best):
        assert s.ask(temperature=0.0, stop=(stop,), max_tokens=3).ids == best


def end_of_turn_is_in_the_ids_and_not_in_the_text(s):
    ends = set(GenerationConfig.from_pretrained(s.folder).eos_token_id)
    best = s.greedy(20)
    end = next(n for n, t in enumerate(best) if t in ends)
    sample = s.ask(temperature=0.0, max_tokens=20)
    assert (sample.ids, sample.stop) == (best[: end + 1], "stop")
    assert sample.text == s.text(best[:end])


def the_budget_ends_a_turn(s):
    sample = s.ask(temperature=0.0, max_tokens=3)
    assert (sample.ids, sample.stop) == (s.greedy(3), "length")
    assert sample.text == s.text(sample.ids)


def a_conversation_goes_on_with_all_that_was_said(s):
    async def go():
        context, seen = list(s.ids), []
        for turn in range(3):
            sample = await s.engine.sample(context, max_tokens=6, session=7)
            seen.append((list(context), sample))
            context += [*sample.ids, 5 + turn, 6, 7]
        s.engine.release(7)
        s.engine.release(99)  # unknown: ignored
        return seen

    for context, sample in asyncio.run(go()):
        assert float(s.gaps(context, sample).max()) < s.gap


def a_cancelled_episode_leaves_the_others_alone(s):
    async def go():
        tasks = [asyncio.create_task(s.engine.sample([*s.ids, 5 + k], max_tokens=LONG, session=k)) for k in range(6)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    out = asyncio.run(go())
    assert isinstance(out[2], asyncio.CancelledError)
    for k in (0, 1, 3, 4, 5):
        assert float(s.gaps([*s.ids, 5 + k], out[k]).max()) < s.gap
        s.engine.release(k)
    s.engine.release(2)
    assert s.ask().ids


def more_episodes_than_are_decoded_at_once(s):
    before = s.engine.sampled_tokens
    contexts = [[*s.ids, 3 + k % 40, 4 + k] for k in range(60)]
    out = s.ask_all(contexts, max_tokens=5)
    assert len(out) == 60 and s.engine.sampled_tokens - before == sum(len(x.ids) for x in out)
    for context, sample in zip(contexts[::7], out[::7]):
        assert float(s.gaps(context, sample).max()) < s.gap


def draws_differ_between_sessions(s):
    drawn = {tuple(x.ids) for x in s.ask_all([s.ids] * 8)}
    assert len(drawn) > 1


def a_context_beyond_the_limit_is_refused(s):
    with pytest.raises(AgentRLError, match=r"exceed the engine's \d+ positions"):
        s.ask(s.ids * 200)
    with pytest.raises(ValueError, match="must be positive"):
        s.ask([], max_tokens=0)


def after_an_update_it_samples_from_the_new_weights(s, folder):
    """The log-probabilities move by far more than the gap, and follow the trainer's saved weights."""
    samples = s.ask_all([[*s.ids, 5 + k] for k in range(8)])
    version = s.engine.policy_version
    episodes = [_episode(s, k, x) for k, x in enumerate(samples)]
    batch = pack(episodes, s.engine.tokenizer.pad_token_id)
    advantages = torch.randn(len(batch), 1, generator=torch.Generator().manual_seed(0)) * batch.action_mask
    for _ in range(3):
        s.engine.update(batch, advantages, batch.rollout_logprobs, loss=LossConfig())
    s.engine.sync()
    s.engine.save_model(folder)
    before, s.model = s.model, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    try:
        assert s.engine.policy_version == version + 1
        contexts = [[*s.ids, 5 + k] for k in range(8)]
        out = s.ask_all(contexts)
        gap = max(float(s.gaps(c, x).max()) for c, x in zip(contexts, out))
        after, s.model = s.model, before
        moved = max(float(s.gaps(c, x).max()) for c, x in zip(contexts, out))
        s.model = after
        assert gap < s.gap and moved > 100 * max(gap, 1e-6) and moved > 0.01, (gap, moved)
    finally:
        s.folder = folder
    return gap, moved


def _episode(s, k, sample):
    turn = Turn([*s.ids, 5 + k], sample.ids, sample.logprobs, sample.text, "", 1.0, sample.stop)
    return Trajectory(str(k), str(k // 4), "x", 0, (turn,), float(k % 2), k % 2 == 1, True, False)


CONTRACT = [
    log_probabilities_are_of_the_distribution_sampled_from,
    temperature_0_takes_the_likeliest_and_its_log_probability_is_at_1,
    a_turn_ends_with_the_token_that_completes_a_stop_string,
    a_stop_string_in_the_context_does_not_end_a_turn,
    end_of_turn_is_in_the_ids_and_not_in_the_text,
    the_budget_ends_a_turn,
    a_conversation_goes_on_with_all_that_was_said,
    a_cancelled_episode_leaves_the_others_alone,
    more_episodes_than_are_decoded_at_once,
    draws_differ_between_sessions,
    a_context_beyond_the_limit_is_refused,
]
