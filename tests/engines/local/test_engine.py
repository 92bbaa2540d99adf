"""The local engine: sampler and scorer agree, micro-batches do not matter, saving is exact."""

import asyncio

import pytest
import torch

from agentrl.batch import pack
from agentrl.config import LossConfig, ModelConfig, NTHRConfig, OptimConfig, RunConfig
from agentrl.engines.base import ScoreResult
from agentrl.engines.kind import Parts
from agentrl.engines.local import engine as local
from agentrl.engines.local.engine import LocalEngine
from agentrl.engines.local.kind import ENGINE
from agentrl.engines.shared.head import OutputHead
from agentrl.engines.shared.loading import load_model, load_tokenizer, pick_device
from agentrl.engines.shared.scoring import group_batches
from agentrl.errors import ModelError
from agentrl.types import Trajectory, Turn
from tests.fakes import save_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def make(folder, *, optim=None, micro_batch_tokens=8192, seed=0, keep_reference=False, **model):
    config = ModelConfig(path=str(folder), device="cpu", threads=1, **model)
    tokenizer = load_tokenizer(config)
    return LocalEngine(
        load_model(config, tokenizer, seed),
        tokenizer,
        config=config,
        optim=optim or OptimConfig(lr=1e-2),
        total_steps=10,
        micro_batch_tokens=micro_batch_tokens,
        seed=seed,
        keep_reference=keep_reference,
    )


async def episode(engine, k):
    """Two turns with a made-up tool output between them."""
    prompt = [10 + k, 20, 30 + k]
    first = await engine.sample(prompt, max_tokens=5 + k % 3, session=k)
    tool = [40, 41 + k, 42]
    second = await engine.sample(prompt + first.ids + tool, max_tokens=4, session=k)
    engine.release(k)
    turns = tuple(Turn(p, s.ids, s.logprobs, s.text, "", 0.0, s.stop) for p, s in ((prompt, first), (tool, second)))
    ok = k % 3 == 0
    return Trajectory(f"s{k}", f"g{k // 4}", "e", 0, turns, float(ok), ok, True, False)


def rollout(engine, n=12):
    async def go():
        return await asyncio.gather(*[episode(engine, k) for k in range(n)])

    return pack(asyncio.run(go()), engine.tokenizer.pad_token_id)


@pytest.mark.parametrize("fast_path", ["auto", "off"])
def test_sampler_and_scorer_agree(folder, fast_path):
    engine = make(folder, fast_path=fast_path)
    assert (engine.fast is not None) == (fast_path == "auto")
    batch = rollout(engine)
    scored = engine.score(batch, entropy=True)
    assert float((scored.logprobs - batch.rollout_logprobs).abs().max()) < 1e-4
    assert not scored.logprobs[~batch.action_mask].any() and not scored.entropy[~batch.action_mask].any()
    ids = batch.input_ids[:1, : int(batch.lengths()[0])]
    with torch.no_grad():
        logp = engine.model(ids).logits[0, :-1].log_softmax(-1)
    own = torch.special.entr(logp.exp()).sum(-1)[batch.action_mask[0, : logp.shape[0]]]
    assert torch.allclose(scored.entropy[0][batch.action_mask[0]], own, atol=1e-4)


def test_the_sampler_rests_before_the_model_scores_or_trains(folder, monkeypatch):
    engine = make(folder)
    batch = rollout(engine, 4)
    rests = []
    monkeypatch.setattr(engine.sampler, "rest", lambda: rests.append(True))
    old = engine.score(batch).logprobs
    assert len(rests) == 1
    engine.update(batch, torch.ones_like(old), old, loss=LossConfig())
    assert len(rests) == 2


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
def test_micro_batches_do_not_change_scores_or_updates(folder, aggregation):
    results = []
    for micro_batch_tokens in (8192, 40):
        engine = make(folder, micro_batch_tokens=micro_batch_tokens, optim=OptimConfig(lr=1e-2, max_grad_norm=1e9))
        batch = rollout(make(folder))
        scored = engine.score(batch, entropy=True)
        adv = (batch.rewards - 0.3)[:, None] * batch.action_mask
        loss = LossConfig(aggregation=aggregation, entropy_coef=0.01, nll_coef=0.1)
        metrics = engine.update(batch, adv, scored.logprobs, loss=loss)
        results.append((scored.logprobs, metrics, [p.detach().clone() for p in engine.model.parameters()]))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-5)
    for name, value in results[0][1].items():
        assert results[1][1][name] == pytest.approx(value, rel=2e-3, abs=1e-5), name
    moved = max(float((a - b).detach().abs().max()) for a, b in zip(results[0][2], make(folder).model.parameters()))
    apart = max(float((a - b).abs().max()) for a, b in zip(results[0][2], results[1][2]))
    assert moved > 5e-3 and apart < 0.2 * moved  # Adam's first step is lr x sign, so noise near zero may flip a sign


def test_responses_without_advantage_are_skipped_and_change_nothing(folder, monkeypatch):
    batch = rollout(make(folder))
    adv = (batch.rewards - 0.3)[:, None] * batch.action_mask * (batch.group_ids == 1)[:, None]
    engine = make(folder)
    old = engine.score(batch).logprobs
    rows = []
    monkeypatch.setattr(
        engine, "logprobs", lambda b, *a, **k: rows.append(len(b)) or LocalEngine.logprobs(engine, b, *a, **k)
    )
    skipped = engine.update(batch, adv, old, loss=LossConfig())["grad_norm"]
    assert sum(rows) == 4 < len(batch)
    assert engine.update(batch, adv * 0, old, loss=LossConfig())["grad_norm"] == 0.0
    other = make(folder)
    monkeypatch.setattr(local, "rows_with_gradient", lambda *a: torch.arange(len(batch)))
    assert other.update(batch, adv, old, loss=LossConfig())["grad_norm"] == pytest.approx(skipped, rel=1e-4)


@pytest.mark.parametrize("optim", [{}, {"weight_decay": 0.5}])
def test_a_step_without_any_gradient_moves_no_weight_but_counts(folder, optim):
    """AdamW's momentum of earlier steps, and its weight decay, would move them."""
    engine = make(folder, optim=OptimConfig(lr=1e-2, schedule="linear", **optim))
    batch = rollout(engine)
    old = engine.score(batch).logprobs
    adv = (batch.rewards - 0.3)[:, None] * batch.action_mask
    before = [p.detach().clone() for p in engine.model.parameters()]
    assert engine.update(batch, adv, old, loss=LossConfig())["grad_norm"] > 0
    after = [p.detach().clone() for p in engine.model.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(before, after))
    rate = engine.scheduled_lr
    metrics = engine.update(batch, adv * 0, old, loss=LossConfig())
    assert metrics["grad_norm"] == 0.0 and "nonfinite" not in metrics
    assert all(torch.equal(a, b) for a, b in zip(after, engine.model.parameters()))
    assert engine.updates == 2 and engine.scheduled_lr < rate  # the schedule goes on


def test_weight_decay_leaves_norms_and_biases_alone(folder):
    engine = make(folder, optim=OptimConfig(weight_decay=0.5))
    named = {id(p): name for name, p in engine.model.named_parameters()}
    decayed = {named[id(p)]: g["weight_decay"] for g in engine.optimizer.param_groups for p in g["params"]}
    assert set(decayed) == set(named.values())
    alone = {name for name, decay in decayed.items() if decay == 0.0}
    assert alone == {name for name in decayed if "norm" in name or name.endswith("bias")} and alone
    assert {decayed[name] for name in decayed if name not in alone} == {0.5}


def test_without_a_limit_the_gradient_is_not_clipped(folder):
    batch = rollout(make(folder))
    adv = (batch.rewards - 0.3)[:, None] * batch.action_mask * 1000
    grown = {}
    for limit in (None, 1e-3):
        engine = make(folder, optim=OptimConfig(lr=1e-4, max_grad_norm=limit))
        engine.optimizer = torch.optim.SGD(engine.model.parameters(), lr=1.0)
        before = [p.detach().clone() for p in engine.model.parameters()]
        norm = engine.update(batch, adv, engine.score(batch).logprobs, loss=LossConfig())["grad_norm"]
        moved = sum(float((a - b).double().square().sum()) for a, b in zip(before, engine.model.parameters())) ** 0.5
        grown[limit] = moved / (1e-4 * norm)
    assert grown[None] == pytest.approx(1.0, rel=1e-3) and grown[1e-3] < 0.1


def test_the_clip_fraction_does_not_depend_on_an_unrelated_coefficient(folder):
    """A KL of 1e-30 computes the rows without an advantage, too, which the clip does not touch."""
    batch = rollout(make(folder))
    adv = (batch.rewards - 0.3)[:, None] * batch.action_mask * (batch.group_ids == 1)[:, None]
    old = make(folder).score(batch).logprobs - 3.0 * torch.linspace(-1, 1, len(batch))[:, None]  # other ratios
    got = []
    for kl in (0.0, 1e-30):
        engine = make(folder)
        got.append(engine.update(batch, adv, old, loss=LossConfig(kl_coef=kl), reference_logprobs=old))
    for name in ("clip_fraction", "clip_fraction_low", "clip_fraction_high", "ratio_max"):
        assert got[0][name] == pytest.approx(got[1][name], rel=1e-5), name
    assert got[0]["clip_fraction"] > 0
    nothing = make(folder).update(batch, adv * 0, old, loss=LossConfig())
    assert not {"clip_fraction", "ratio_max"} & set(nothing)  # of no token: not measured


def test_an_update_raises_what_was_rewarded(folder):
    engine = make(folder, optim=OptimConfig(lr=3e-3))
    batch = rollout(engine)
    old = engine.score(batch).logprobs
    adv = (batch.correct.float() * 2 - 1)[:, None] * batch.action_mask
    engine.update(batch, adv, old, loss=LossConfig())
    engine.sync()
    assert engine.policy_version == 1
    change = ((engine.score(batch).logprobs - old) * batch.action_mask).sum(1)
    assert change[batch.correct].mean() > 0 > change[~batch.correct].mean()


def test_kl_uses_the_frozen_first_policy(folder):
    engine = make(folder, keep_reference=True)
    batch = rollout(engine)
    old = engine.score(batch).logprobs
    adv = torch.ones_like(old) * batch.action_mask
    engine.update(batch, adv, old, loss=LossConfig())
    reference = engine.score(batch, reference=True).logprobs
    assert torch.allclose(reference, old, atol=1e-5)
    metrics = engine.update(batch, adv, old, loss=LossConfig(kl_coef=0.1), reference_logprobs=reference)
    gap = (reference - engine.score(batch).logprobs)[batch.action_mask]
    assert metrics["kl"] > 0 and gap.abs().max() > 0


def test_a_non_finite_gradient_skips_the_step(folder):
    engine = make(folder)
    batch = rollout(engine)
    before = [p.detach().clone() for p in engine.model.parameters()]
    adv = torch.full_like(batch.rollout_logprobs, float("nan"))
    metrics = engine.update(batch, adv, engine.score(batch).logprobs, loss=LossConfig())
    assert metrics["nonfinite"] == 1.0 and engine.updates == 0
    assert all(torch.equal(a, b) for a, b in zip(before, engine.model.parameters()))


def test_saving_and_loading_continue_exactly(folder, tmp_path):
    def step(engine, batch):
        old = engine.score(batch).logprobs
        engine.update(batch, (batch.rewards - 0.3)[:, None] * batch.action_mask, old, loss=LossConfig())
        engine.sync()

    a = make(folder)
    batch = rollout(a)
    step(a, batch)
    a.save(tmp_path)
    b = make(folder)
    b.load(tmp_path)
    assert b.policy_version == a.policy_version and b.updates == a.updates
    for engine in (a, b):
        step(engine, batch)
    for (name, x), y in zip(a.model.named_parameters(), b.model.parameters()):
        assert torch.equal(x, y), name
    assert rollout(a).input_ids.tolist() == rollout(b).input_ids.tolist()
    reloaded = make(tmp_path / "model")  # and the folder is a Hugging Face model
    assert reloaded.tokenizer.chat_template


def test_lora_trains_only_adapters_and_saves_them(folder, tmp_path):
    engine = make(folder, lora={"rank": 4, "alpha": 8, "targets": "all-linear"}, keep_reference=True)
    assert engine.fast is None and engine.reference is None
    batch = rollout(engine)
    old = engine.score(batch).logprobs
    base = engine.base.model.embed_tokens.weight.detach().clone()
    for _ in range(2):
        engine.update(batch, batch.correct.float()[:, None] * batch.action_mask, old, loss=LossConfig())
    engine.sync()
    assert torch.equal(base, engine.base.model.embed_tokens.weight)
    new = engine.score(batch).logprobs
    assert (new - old)[batch.action_mask].abs().max() > 1e-4
    assert torch.allclose(engine.score(batch, reference=True).logprobs, old, atol=1e-5)
    engine.save(tmp_path)
    other = make(folder, lora={"rank": 4, "alpha": 8, "targets": "all-linear"})
    other.load(tmp_path)
    assert torch.allclose(other.score(batch).logprobs, new, atol=1e-6)


def test_bfloat16_scores_are_close(folder):
    a, b = make(folder, fast_path="off"), make(folder, dtype="bfloat16")
    batch = rollout(a)
    gap = (a.score(batch).logprobs - b.score(batch).logprobs)[batch.action_mask].abs()
    assert 0 < gap.mean() < 0.05


def test_gradient_checkpointing_changes_nothing(folder):
    norms = []
    for on in (False, True):
        engine = make(folder, gradient_checkpointing=on, fast_path="off")
        batch = rollout(make(folder))
        adv = (batch.rewards - 0.3)[:, None] * batch.action_mask
        norms.append(engine.update(batch, adv, engine.score(batch).logprobs, loss=LossConfig())["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_bad_models_are_explained(tmp_path, folder):
    with pytest.raises(ModelError, match="there is no such folder"):
        load_tokenizer(ModelConfig(path="./nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_tokenizer(ModelConfig(path=str(tmp_path / "empty")))
    with pytest.raises(ModelError, match="no such module"):
        make(folder, head="nonsense")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="sees no CUDA device"):
            pick_device("cuda")


def test_a_head_that_cannot_be_found_says_how_to_name_it():
    class Model(torch.nn.Module):
        config = type("Config", (), {})()

        def __init__(self, declared):
            super().__init__()
            self.norm, self.lm_head, self.act = torch.nn.LayerNorm(4), torch.nn.Linear(4, 9), torch.nn.ReLU()
            self.get_output_embeddings = lambda: getattr(self, declared) if declared else None

    for declared, name, message in (
        (None, None, r"Model declares no output head; name it with model\.head, for example model\.head: lm_head"),
        ("act", None, r"as it declares it, is a ReLU without a weight matrix; name the linear layer with model\.head"),
        (None, "act", r"Model, act, is a ReLU without a weight matrix; name the linear layer with model\.head"),
        (None, "lm_haed", r"model\.head is 'lm_haed', but the model has no such module; did you mean 'lm_head'\?"),
        (None, "q.x.9", r"model\.head is 'q\.x\.9', .*; the last one that has a weight is 'lm_head'"),
    ):
        with pytest.raises(ModelError, match=message):
            OutputHead.find(Model(declared), name)
    model = Model(None)
    assert OutputHead.find(model, "lm_head").module is model.lm_head


def test_a_head_that_does_not_give_the_models_logits_is_refused(folder):
    engine = make(folder)
    engine.head = OutputHead(torch.nn.Linear(64, 528, bias=False))
    with pytest.raises(ModelError, match=r"name the right module with model\.head"):
        engine._check_paths()


@pytest.mark.parametrize("matrix", [True, False], ids=["matrix", "called"])
def test_head_in_blocks_equals_head_at_once(monkeypatch, matrix):
    torch.manual_seed(0)
    head = OutputHead(torch.nn.Linear(8, 50), softcap=5.0)
    monkeypatch.setattr(OutputHead, "matrices", OutputHead.matrices if matrix else lambda *a: None)
    hidden, target = torch.randn(33, 8, requires_grad=True), torch.randint(0, 50, (33,))
    got = torch.stack(head.logprobs(hidden, target, 0.7, entropy=True))
    logits = torch.tanh((hidden @ head.module.weight.t() + head.module.bias) / 5.0) * 5.0 / 0.7
    logp = logits.log_softmax(-1)
    wanted = torch.stack([logp[torch.arange(33), target], -(logp.exp() * logp).sum(-1)])
    leaves = [hidden, *head.module.parameters()]
    grads = torch.autograd.grad(wanted.square().sum(), leaves)
    assert torch.allclose(got, wanted, atol=1e-5)
    monkeypatch.setattr("agentrl.algorithms.head.BLOCK_ELEMENTS", 350)
    parts = torch.stack(head.logprobs(hidden, target, 0.7, entropy=True))
    for values in (got, parts):
        mine = torch.autograd.grad(values.square().sum(), leaves)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(mine, grads, strict=True))
    fixed = head.logprobs(hidden, target, entropy=True, entropy_gradient=False)[1]
    assert fixed is not None and not fixed.requires_grad


@pytest.mark.parametrize("coefficient", [0.01, 0.0])
def test_an_entropy_bonus_has_a_gradient_where_tokens_are_impossible(folder, coefficient):
    """Half of the tokens have logits far below the others': their p is 0 in fp32."""
    engine = make(folder, optim=OptimConfig(lr=1e-3))
    engine.head.module.bias = torch.nn.Parameter(torch.where(torch.arange(528) % 2 == 0, 0.0, -200.0))
    engine.fast = None
    engine.sync()
    batch = rollout(engine)
    adv = (batch.rewards - 0.3)[:, None] * batch.action_mask
    metrics = engine.update(batch, adv, engine.score(batch).logprobs, loss=LossConfig(entropy_coef=coefficient))
    assert "nonfinite" not in metrics and metrics["grad_norm"] > 0


def test_bfloat16_with_logits_of_forty_passes_the_check_of_the_head(folder):
    """The model's own logits and those of the head found, both in bf16: the same to the last bit."""
    engine = make(folder, dtype="bfloat16")
    ids = torch.randint(5, 500, (4, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        largest = engine.head.logits(engine.hidden(ids, torch.ones_like(ids))).abs().max()
        engine.base.model.norm.weight.mul_(40 / largest)  # the head itself is tied to the embedding
        with engine._autocast():
            now = engine.head.logits(engine.hidden(ids, torch.ones_like(ids)))
        alone = engine.head.logits(engine.hidden(ids, torch.ones_like(ids)))  # the head in fp32, as it was looked at
    assert 35 < float(now.abs().max()) < 45
    assert float((now.log_softmax(-1) - alone.log_softmax(-1)).abs().max()) > 0.1  # which was refused
    engine._check_paths()
    batch = rollout(engine)
    metrics = engine.update(
        batch, (batch.rewards - 0.3)[:, None] * batch.action_mask, engine.score(batch).logprobs, loss=LossConfig()
    )
    assert "nonfinite" not in metrics and 0 < metrics["grad_norm"] < float("inf")
    engine.head = OutputHead(torch.nn.Linear(64, 528, bias=False))
    with pytest.raises(ModelError, match=r"name the right module with model\.head"):
        engine._check_paths()


def test_scores_from_the_update_itself(folder):
    """One update per batch: scores, loss and weights are those of a scoring pass followed by the update."""
    batch = rollout(make(folder))
    adv = (batch.rewards - 0.3)[:, None] * batch.action_mask
    adv[: len(batch) // 3] = 0.0  # rows without a gradient are scored too
    two = make(folder, micro_batch_tokens=60)
    scored = two.score(batch, entropy=True)
    expected = two.update(batch, adv, scored.logprobs, loss=LossConfig())
    one = make(folder, micro_batch_tokens=60)
    zeros = torch.zeros(batch.action_mask.shape)
    filled = ScoreResult(zeros.clone(), zeros.clone())
    metrics = one.update(batch, adv, zeros, loss=LossConfig(), scores=filled)
    assert torch.allclose(filled.logprobs, scored.logprobs, atol=1e-5)
    assert torch.allclose(filled.entropy, scored.entropy, atol=1e-4)
    assert metrics["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    for a, b in zip(one.model.parameters(), two.model.parameters()):
        gap = (a.detach() - b.detach()).abs()
        assert float(gap.max()) < 2.1e-2 and float(gap.mean()) < 1e-4  # Adam's first step is lr x sign


@pytest.mark.parametrize("entropy_coef", [0.0, 0.01])
@pytest.mark.parametrize("nthr", [{}, {"beta": 0.0}, {"baseline": "random"}, {"method": "vstar"}])
def test_nthr_from_the_update_itself(folder, nthr, entropy_coef):
    """Scores, selection, loss and weights are those of a scoring pass with NTHR followed by the update."""
    how, loss = NTHRConfig(enabled=True, **nthr), LossConfig(entropy_coef=entropy_coef)
    batch = rollout(make(folder))
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    batch = batch.rows(order)  # groups are not neighbours
    adv = (batch.rewards - 0.3)[:, None] * batch.action_mask * (batch.group_ids != 0)[:, None]
    two = make(folder, micro_batch_tokens=60)
    scored = two.score(batch, entropy=True, nthr=how)
    expected = two.update(batch, adv * scored.nthr_factor, scored.logprobs, loss=loss)
    zeros = torch.zeros(batch.action_mask.shape)
    for tokens in (8192, 60):  # all groups at once, and one by one
        one, filled = make(folder, micro_batch_tokens=tokens), ScoreResult(zeros.clone(), zeros.clone())
        metrics = one.update(batch, adv, zeros, loss=loss, scores=filled, nthr=how)
        assert torch.allclose(filled.logprobs, scored.logprobs, atol=1e-5)
        assert torch.allclose(filled.entropy, scored.entropy, atol=1e-4)
        # a group without advantages has no gradient, and its NTHR is not needed
        rows = (batch.group_ids != 0) if not entropy_coef else torch.ones(len(batch), dtype=torch.bool)
        assert torch.equal(filled.nthr_selected[rows], scored.nthr_selected[rows])
        assert torch.allclose(filled.nthr_factor[rows], scored.nthr_factor[rows])
        scale = float(scored.nthr_scores.abs().max())
        assert torch.allclose(filled.nthr_scores[rows], scored.nthr_scores[rows], rtol=1e-3, atol=1e-5 * scale)
        for g, value in filled.gwhes.items():
            assert value == pytest.approx(scored.gwhes[g], rel=1e-3)
        assert set(filled.gwhes) == set(scored.gwhes) - ({0} if not entropy_coef else set())
        assert set(filled.metrics) == set(scored.metrics)
        assert metrics == pytest.approx({k: expected[k] for k in metrics}, rel=1e-3, abs=1e-5)
        for (name, a), b in zip(one.model.named_parameters(), two.model.parameters()):
            assert float((a - b).detach().abs().mean()) < 2e-4, name


def test_micro_batches_of_whole_groups():
    lengths, groups = torch.tensor([5, 9, 4, 3, 8, 2]), torch.tensor([7, 1, 7, 1, 7, 3])
    correct = torch.tensor([False, False, True, True, True, False])
    assert [x.tolist() for x in group_batches(lengths, groups, correct, 1)] == [[3, 1], [5], [2, 4, 0]]
    assert [x.tolist() for x in group_batches(lengths, groups, correct, 27)] == [[3, 1, 5], [2, 4, 0]]
    assert [x.tolist() for x in group_batches(lengths, groups, correct, 54)] == [[3, 1, 5, 2, 4, 0]]
    assert group_batches(lengths[:0], groups[:0], correct[:0], 9) == []


def test_the_whole_state_of_the_optimiser_is_where_its_parameter_is(folder, tmp_path):
    """Fused AdamW refuses a count of steps on another device than the weights; `meta` stands for a GPU here."""
    a = make(folder)
    batch = rollout(a)
    adv = (batch.rewards - 0.3)[:, None] * batch.action_mask
    a.update(batch, adv, a.score(batch).logprobs, loss=LossConfig())
    assert all(g["fused"] for g in a.optimizer.param_groups)
    a.save(tmp_path)
    b = make(folder)
    b.load(tmp_path)
    saved = a.optimizer.state_dict()["state"]
    for i, state in b.optimizer.state_dict()["state"].items():
        assert {k: (v.shape, v.dtype) for k, v in state.items()} == {k: (v.shape, v.dtype) for k, v in saved[i].items()}
        assert all(torch.equal(v, saved[i][k]) for k, v in state.items()) and float(state["step"]) == 1.0
    b.update(batch, adv, b.score(batch).logprobs, loss=LossConfig())  # it goes on
    elsewhere = make(folder)
    elsewhere.model.to("meta")
    elsewhere.fast = None
    elsewhere.optimizer = elsewhere._make_optimizer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "load_weights", lambda *a: None)
        elsewhere.load(tmp_path)
    states = elsewhere.optimizer.state.values()
    assert states and {v.device.type for state in states for v in state.values()} == {"meta"}


def test_fp32_on_a_gpu_is_warned_of(folder, monkeypatch):
    """The device is made up; the CPU and bf16 are what they should be."""
    said = []
    config = RunConfig.model_validate({"data": {"train": "t"}, "model": {"path": str(folder), "threads": 1}})
    for device, dtype in (("cpu", "float32"), ("cuda", "bfloat16"), ("cuda", "float32")):
        model = load_model(config.model, load_tokenizer(config.model), 0)
        monkeypatch.setattr(type(model), "device", torch.device(device), raising=False)
        monkeypatch.setattr("agentrl.engines.shared.loading.load_model", lambda *a, model=model: model)
        monkeypatch.setattr(local, "LocalEngine", lambda *a, **k: None)
        of = config.model.model_copy(update={"dtype": dtype})
        ENGINE.build(Parts(config, of, None, load_tokenizer(config.model), folder, 1, said.append))
        monkeypatch.undo()
    assert len(said) == 1 and "model.dtype is float32 on cuda" in said[0] and "model.dtype: bfloat16" in said[0]
