"""The batch sampler against plain forward passes of the same model."""

import asyncio
import random

import pytest
import torch

from agentrl.engines.local import sampler as sampler_module
from agentrl.engines.local.cache import RowCache
from agentrl.engines.local.qwen2 import FastQwen2
from agentrl.engines.local.sampler import BatchSampler, _inverse_cdf
from agentrl.engines.shared.text import TokenText
from agentrl.errors import AgentRLError
from tests.fakes import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def hf_logits(model):
    def next_logits(ids, last, cache, plan):
        with torch.no_grad():
            out = model.model(
                input_ids=ids,
                attention_mask=plan.mask,
                position_ids=plan.position,
                past_key_values=cache.hf_cache(model.config.num_hidden_layers, plan),
                use_cache=True,
            )
            return model.lm_head(out.last_hidden_state[torch.arange(len(ids)), last])

    return next_logits


def fast_logits(model):
    fast = FastQwen2(model)
    fast.refresh()
    return fast.next_logits


def make(model, path=hf_logits, seed=0):
    return BatchSampler(
        path(model),
        TokenText(tiny_tokenizer()),
        eos_ids=[model.config.eos_token_id],
        seed=seed,
        context_length=1024,
        device=torch.device("cpu"),
    )


async def conversation(sampler, session, turns=3, temperature=1.0, pause=None):
    """A multi-turn episode with pseudo-random tool outputs; returns [(context length, sample)] and the context."""
    r = random.Random(session)
    context = [r.randrange(3, 500) for _ in range(r.randrange(3, 12))]
    seen = []
    for _ in range(turns):
        sample = await sampler.sample(
            context, max_tokens=r.randrange(2, 12), stop=(">",), session=session, temperature=temperature
        )
        seen.append((len(context), sample))
        if pause:
            await asyncio.sleep(pause * random.random())
        context = context + sample.ids + [r.randrange(3, 500) for _ in range(r.randrange(1, 15))]
    sampler.release(session)
    return seen, context


async def many(sampler, n, **kw):
    return await asyncio.gather(*[conversation(sampler, i, **kw) for i in range(n)])


@pytest.mark.parametrize("path", [hf_logits, fast_logits])
def test_logprobs_are_those_of_a_plain_forward_pass(model, path):
    for seen, context in asyncio.run(many(make(model, path), 17)):
        with torch.no_grad():
            logp = model(torch.tensor([context])).logits[0].log_softmax(-1)
        for n, sample in seen:
            for k, (token, lp) in enumerate(zip(sample.ids, sample.logprobs)):
                assert context[n + k] == token
                assert lp == pytest.approx(logp[n + k - 1, token].item(), abs=1e-4)


def test_both_paths_sample_the_same_tokens(model):
    a = asyncio.run(many(make(model, hf_logits), 9))
    b = asyncio.run(many(make(model, fast_logits), 9))
    assert [[s.ids for _, s in seen] for seen, _ in a] == [[s.ids for _, s in seen] for seen, _ in b]


def test_who_is_batched_with_whom_does_not_matter(model):
    together = asyncio.run(many(make(model), 12))
    with_pauses = asyncio.run(many(make(model), 12, pause=0.01))
    alone = [asyncio.run(conversation(make(model), i)) for i in range(12)]
    ids = [[s.ids for _, s in seen] for seen, _ in together]
    assert ids == [[s.ids for _, s in seen] for seen, _ in alone]
    assert ids == [[s.ids for _, s in seen] for seen, _ in with_pauses]


def test_seed_and_policy_version_change_the_draw(model):
    def draw(seed, version):
        s = make(model, seed=seed)
        s.reset(version)
        return asyncio.run(conversation(s, 1))[1]

    assert draw(0, 0) == draw(0, 0)
    assert draw(0, 0) != draw(1, 0)
    assert draw(0, 0) != draw(0, 1)


def test_greedy_takes_the_likeliest_token(model):
    seen, context = asyncio.run(conversation(make(model), 3, temperature=0))
    with torch.no_grad():
        best = model(torch.tensor([context])).logits[0].argmax(-1)
    for n, sample in seen:
        assert sample.ids == best[n - 1 : n - 1 + len(sample.ids)].tolist()


def test_temperature_is_in_the_logprobs(model):
    seen, context = asyncio.run(conversation(make(model), 4, temperature=0.5))
    with torch.no_grad():
        logp = (model(torch.tensor([context])).logits[0] / 0.5).log_softmax(-1)
    for n, sample in seen:
        for k, (token, lp) in enumerate(zip(sample.ids, sample.logprobs)):
            assert lp == pytest.approx(logp[n + k - 1, token].item(), abs=1e-4)


def test_a_turn_ends_with_the_token_that_completes_a_stop_string(model):
    tokenizer = tiny_tokenizer()
    script = tokenizer.encode("so <search> where is it </search> and more", add_special_tokens=False)

    def scripted(ids, last, cache, plan):
        out = torch.full((len(ids), 528), -50.0)
        for row in range(len(ids)):
            at = int(plan.position[row, last[row]]) - 2  # the prompt has three tokens
            out[row, script[at]] = 50.0
        return out

    sampler = BatchSampler(
        scripted, TokenText(tokenizer), eos_ids=[], seed=0, context_length=1024, device=torch.device("cpu")
    )
    sample = asyncio.run(sampler.sample([5, 6, 7], max_tokens=len(script), stop=("</search>",)))
    assert sample.stop == "stop"
    assert sample.text.rstrip().endswith("</search>") and "and" not in sample.text.split("</search>")[1]
    assert sample.ids == script[: len(sample.ids)]
    assert tokenizer.decode(sample.ids[:-1]).find("</search>") == -1


def test_end_of_text_ends_a_turn_and_is_not_in_the_text(model):
    eos = model.config.eos_token_id

    def always_eos(ids, last, cache, plan):
        out = torch.zeros(len(ids), 528)
        out[:, eos] = 100.0
        return out

    sampler = BatchSampler(
        always_eos, TokenText(tiny_tokenizer()), eos_ids=[eos], seed=0, context_length=64, device=torch.device("cpu")
    )
    sample = asyncio.run(sampler.sample([5], max_tokens=9))
    assert (sample.ids, sample.text, sample.stop) == ([eos], "", "stop")


def test_a_changed_past_is_fed_again(model):
    sampler = make(model)

    async def go():
        await sampler.sample([5, 6, 7, 8], max_tokens=3, session=1)
        return await sampler.sample([5, 6, 9, 10, 11], max_tokens=6, session=1)

    sample = asyncio.run(go())
    with torch.no_grad():
        logp = model(torch.tensor([[5, 6, 9, 10, 11, *sample.ids]])).logits[0].log_softmax(-1)
    for k, (token, lp) in enumerate(zip(sample.ids, sample.logprobs)):
        assert lp == pytest.approx(logp[4 + k, token].item(), abs=1e-4)


def test_cancelling_one_episode_leaves_the_others_alone(model):
    sampler = make(model)

    async def go():
        tasks = [asyncio.create_task(conversation(sampler, i)) for i in range(6)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(go())
    alone = [asyncio.run(conversation(make(model), i)) for i in range(6)]
    assert isinstance(results[2], asyncio.CancelledError)
    for i in (0, 1, 3, 4, 5):
        assert results[i][1] == alone[i][1]  # the same tokens


def test_rows_that_still_wait_survive_when_gaps_are_closed(model):
    """Ten turns are sampled; two more ask, and wait for their first tokens while seven of the ten end."""

    async def run():
        sampler = make(model)
        lengths = [3] * 7 + [12] * 3
        first = [asyncio.create_task(sampler.sample([4 + k], max_tokens=n, session=k)) for k, n in enumerate(lengths)]
        while not sampler.active:
            await asyncio.sleep(0)
        late = [asyncio.create_task(sampler.sample([30 + k], max_tokens=2, session=100 + k)) for k in range(2)]
        return await asyncio.gather(*first, *late)

    alone = [asyncio.run(make(model).sample([4 + k], max_tokens=12, session=k)).ids for k in (7, 8, 9)]
    got = asyncio.run(run())
    assert [s.ids for s in got[7:10]] == alone and [len(s.ids) for s in got[10:]] == [2, 2]


def test_a_failing_model_reaches_every_waiting_episode(model):
    def broken(ids, last, cache, plan):
        raise RuntimeError("out of memory")

    sampler = make(model)
    sampler.next_logits = broken

    async def go():
        return await asyncio.gather(*[sampler.sample([4], max_tokens=3) for _ in range(3)], return_exceptions=True)

    assert [str(e) for e in asyncio.run(go())] == ["out of memory"] * 3
    sampler.next_logits = hf_logits(model)
    assert asyncio.run(sampler.sample([4], max_tokens=3)).ids  # and it works again


@pytest.mark.parametrize("what", ["reset", "release"])
def test_whoever_waits_for_a_turn_that_is_dropped_is_told(model, what):
    """They waited for ever."""
    sampler = make(model)
    sampler.eos = frozenset()  # no turn ends by itself

    async def go():
        asked = [asyncio.create_task(sampler.sample([4], max_tokens=50, session=k)) for k in (1, 2)]
        for _ in range(20):  # both have begun
            await asyncio.sleep(0)
        late = asyncio.create_task(sampler.sample([4, 5], max_tokens=50, session=3))
        await asyncio.sleep(0)
        if what == "reset":
            sampler.reset(1)
        else:
            sampler.release(1)
            sampler.release(3)
        got = await asyncio.wait_for(asyncio.gather(*asked, late, return_exceptions=True), 30)
        return [str(g) if isinstance(g, Exception) else len(g.ids) for g in got]

    if what == "reset":
        assert asyncio.run(go()) == ["the weights changed while it was sampling"] * 3
    else:
        first, second, third = asyncio.run(go())
        assert first == "session 1 was released while it was sampling" and second > 0
        assert third == "session 3 was released while it was sampling"
    assert asyncio.run(sampler.sample([4], max_tokens=3, session=1)).ids  # and it works again


def test_a_context_beyond_the_model_is_refused(model):
    with pytest.raises(AgentRLError, match=r"1020 context tokens \+ max_tokens 8 exceed the engine's 1024"):
        asyncio.run(make(model).sample([4] * 1020, max_tokens=8))


def test_one_session_takes_one_turn_at_a_time(model):
    sampler = make(model)

    async def go():
        await asyncio.gather(*[sampler.sample([4], max_tokens=3, session=7) for _ in range(2)])

    with pytest.raises(RuntimeError, match="session 7 is already sampling"):
        asyncio.run(go())


def test_inverse_cdf_follows_the_distribution():
    p = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    u = (torch.arange(10_000) + 0.5) / 10_000
    tokens = _inverse_cdf(p.log().expand(10_000, -1), u)
    share = torch.bincount(tokens, minlength=6) / 10_000
    assert torch.allclose(share, p, atol=1e-3)
    edge = _inverse_cdf(p.log().expand(2, -1), torch.tensor([0.0, 1.0 - 2**-24]))
    assert edge.tolist() == [1, 4]  # never a token of probability zero


def test_row_cache_keeps_what_it_must():
    cache = RowCache(torch.device("cpu"), torch.float32)
    cache.reserve(3, 4)
    plan = cache.plan(3, torch.tensor([0, 0, 0]), torch.tensor([2, 1, 2]))
    kv = torch.arange(3 * 2 * 2 * 1 * 2, dtype=torch.float32).view(3, 2, 2, 1, 2)
    keys, values = cache.write_and_read(0, kv, plan)
    assert torch.equal(keys[0, 0], kv[0, :, 0, 0]) and torch.equal(values[2, 0], kv[2, :, 1, 0])
    assert torch.equal(keys[1, 0, 0], kv[1, 0, 0, 0])
    assert not cache.layer(0, 1, 2)[1, 0, 0, 1].any()  # padding went to scratch
    cache.keep([2, 0], 2)
    cache.reserve(5, 9)
    assert cache.n_rows >= 5 and cache.capacity >= 9
    kept = cache.layers[0][:2, 0, 0, :2]
    assert torch.equal(kept[0], kv[2, :, 0, 0]) and torch.equal(kept[1], kv[0, :, 0, 0])


def test_a_turn_leaves_its_list_however_it_ends_and_the_row_stays_with_its_session(model):
    sampler = make(model)

    async def go():
        kept = asyncio.create_task(sampler.sample([5, 6], max_tokens=30, session=1))
        once = asyncio.create_task(sampler.sample([7, 8, 9], max_tokens=30))
        late = asyncio.create_task(sampler.sample([10], max_tokens=30, session=2))
        await asyncio.sleep(0)
        assert [q.ids for q in sampler.waiting] == [[5, 6], [7, 8, 9], [10]] and not sampler.active
        late.cancel()
        await asyncio.sleep(0)
        assert [q.ids for q in sampler.waiting] == [[5, 6], [7, 8, 9]]
        while not sampler.active:
            await asyncio.sleep(0)
        assert not sampler.waiting and [q.row.known for q in sampler.active] == [[5, 6], [7, 8, 9]]
        once.cancel()
        await asyncio.sleep(0)
        assert [q.row.session for q in sampler.active] == [1]
        return await kept

    sample = asyncio.run(go())
    assert not sampler.waiting and not sampler.active
    rows = {row.session: row for row in sampler.rows if row is not None}
    assert set(rows) == {1, 2} == set(sampler.by_session)  # the turn of no session left its row free
    assert rows[1].known == [5, 6, *sample.ids[:-1]] and rows[2].known == []  # the last token was not fed yet
    again = asyncio.run(sampler.sample([11, 12], max_tokens=2, session=3))
    assert again.ids and sampler.by_session[3].index not in {rows[1].index, rows[2].index}
    assert len(sampler.rows) == 3  # it took the free one
    sampler.release(1)
    assert {row and row.session for row in sampler.rows} == {None, 2, 3}


@pytest.mark.parametrize("path", [hf_logits, fast_logits])
def test_a_context_that_many_begin_with_is_fed_once(model, path):
    """Every row gets a copy: each goes on by itself, as it would alone."""
    fed = []

    def counted(ids, last, cache, plan):
        fed.append(ids.shape)
        return forward(ids, last, cache, plan)

    forward = path(model)
    contexts = [[5, 6, 7, 8], [9, 10, 11], [5, 6, 7, 8], [9, 10, 11], [5, 6, 7, 8], [5, 6, 7]]

    async def together(sampler):
        return await asyncio.gather(*[sampler.sample(c, max_tokens=6, session=k) for k, c in enumerate(contexts)])

    got = asyncio.run(together(make(model, lambda _: counted)))
    assert fed[0] == (3, 4) and all(c == 1 for _, c in fed[1:])  # [5, 6, 7] is none of the others
    alone = []
    for k, c in enumerate(contexts):
        alone.append(asyncio.run(make(model, path).sample(c, max_tokens=6, session=k)))
    assert [s.ids for s in got] == [s.ids for s in alone]
    assert len({tuple(s.ids) for s in got}) > 3
    for a, b in zip(got, alone, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_a_large_cache_rests_while_nobody_speaks_and_changes_nothing(model, monkeypatch):
    monkeypatch.setattr(sampler_module, "KEPT_BYTES", 0)

    async def played(rests):
        sampler = make(model)
        open_one = await sampler.sample([3, 4, 5], max_tokens=4, session=1)
        held = sampler.cache.bytes
        sampler.rest()
        assert held and sampler.cache.bytes == held  # a conversation is open
        sampler.release(1)
        if rests:
            sampler.rest()
            assert sampler.cache.bytes == 0
        seen, _ = await conversation(sampler, 2)
        return open_one, seen

    assert asyncio.run(played(True)) == asyncio.run(played(False))


def test_a_small_cache_stays(model):
    sampler = make(model)
    asyncio.run(conversation(sampler, 1))
    sampler.rest()
    assert sampler.cache.bytes
