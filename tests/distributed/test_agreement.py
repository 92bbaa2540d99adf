"""OpenRLHF's worker and the local engine are the same function: log π, NTHR, loss, and the fp32 update of every weight.

Tolerances: log π and entropy 1e-5 nats, NTHR scores 1e-4 of the largest, its selection exactly, loss and metrics 1e-5,
and gradient norm 1e-4 of themselves. AdamW's first step is lr x sign: where a gradient is nothing but rounding (key
biases, which softmax hardly sees), so is the step. Weights are held to 1e-3 of a step on average, 2e-2 in each tensor.
"""

from dataclasses import replace

import pytest
import torch

from agentrl.algorithms import settled
from agentrl.batch import pack
from agentrl.commands.export import _merge
from agentrl.config import LossConfig, NTHRConfig
from agentrl.engines.shared.updates import learning_rate
from agentrl.rollouts.play import EnvPool, Player
from agentrl.train.build import build_job
from tests.small import merged, small_config

NTHR = NTHRConfig(enabled=True, method="exact")
LR = 1e-3
LOSSES = {
    "clipped": LossConfig(),
    "llds": LossConfig(llds={"enabled": True, "weight": 0.5, "answer_weight": 0.5}),
    "llds, response": LossConfig(llds={"enabled": True, "gate": "response"}),
    "llds, token": LossConfig(llds={"enabled": True, "gate": "token"}),
    "all": LossConfig(aggregation="seq-mean-token-mean", ratio="sequence", dual_clip=3.0, kl_coef=0.1, nll_coef=0.1,
                      entropy_coef=0.01, tis_cap=2.0),
}  # fmt: skip
HOW = {
    "zero2": {},
    "zero3": {"openrlhf": {"zero_stage": 3}},
    "packed": {"openrlhf": {"packing": True}},
    "micro-batches": {"train": {"micro_batch_tokens": 300}},
    "zero3-micro-batches": {"openrlhf": {"zero_stage": 3}, "train": {"micro_batch_tokens": 300}},
    "checkpointing": {"model": {"gradient_checkpointing": True}},
}


@pytest.fixture(scope="module")
def rolled(warm_model, tmp_path_factory):
    """A batch of the warm model's episodes with mixed groups, and the job they were played with."""
    folder = tmp_path_factory.mktemp("agreement")
    job = build_job(small_config(folder, warm_model), folder)
    with EnvPool(job.make_env) as pool:
        episodes = Player(job.engine, pool, job.chat, job.config.rollout, seed=1).collect(job.train_tasks[:5], 4)
    batch = pack(episodes, job.chat.tokenizer.pad_token_id)
    assert 0 < int(batch.correct.sum()) < len(batch)
    generator = torch.Generator().manual_seed(0)
    advantages = torch.randn(len(batch), 1, generator=generator) * batch.action_mask
    return batch, advantages


@pytest.fixture
def both(warm_model, tmp_path):
    """(worker, local engine) of the same weights, for changes to the config."""
    from tests.distributed.workers import policy

    def make(**changes):
        changes = merged({"model": {"fast_path": "off"}, "optim": {"lr": LR, "weight_decay": 0.1}}, changes)
        config = small_config(tmp_path, warm_model, **changes)
        return policy(config, warm_model), build_job(config, tmp_path).engine

    return make


@pytest.mark.parametrize("how", HOW)
def test_scores_agree(both, rolled, how):
    batch, _ = rolled
    worker, local = both(**HOW[how])
    for temperature in (1.0, 0.7):
        mine = worker.score(batch, temperature, NTHR, True, False)
        theirs = local.score(batch, temperature=temperature, nthr=NTHR, entropy=True)
        assert torch.allclose(mine.logprobs, theirs.logprobs, atol=1e-5)
        assert torch.allclose(mine.entropy, theirs.entropy, atol=1e-5)
        largest = float(theirs.nthr_scores.abs().max())
        assert largest > 0 and float((mine.nthr_scores - theirs.nthr_scores).abs().max()) < 1e-4 * largest
        assert torch.equal(mine.nthr_selected, theirs.nthr_selected) and bool(mine.nthr_selected.any())
        assert torch.allclose(mine.nthr_factor, theirs.nthr_factor)
        assert mine.gwhes == pytest.approx(theirs.gwhes, rel=1e-3)
    plain = worker.score(batch, 1.0, None, False, False)
    assert torch.allclose(plain.logprobs, local.score(batch).logprobs, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("how", HOW)
def test_updates_agree(both, rolled, how, loss):
    from tests.distributed.workers import update, weights

    batch, advantages = rolled
    worker, local = both(**HOW[how])
    noise = torch.randn(batch.action_mask.shape, generator=torch.Generator().manual_seed(1))
    old = local.score(batch).logprobs + 0.05 * noise * batch.action_mask  # ratios away from 1, where gates are at rest
    reference = old - 0.1 * batch.action_mask
    before = {n: p.detach().clone() for n, p in local.model.named_parameters()}
    for k in range(2):
        lr = learning_rate(local.optim_config, k, local.total_steps)
        mine = update(worker, batch, advantages, old, loss=LOSSES[loss], lr=lr, reference=reference)
        theirs = local.update(batch, advantages, old, loss=LOSSES[loss], reference_logprobs=reference)
        assert mine == pytest.approx(theirs, rel=1e-4 if k == 0 else 2e-2, abs=1e-5 if k == 0 else 1e-2)
        if k == 0:
            after, gaps = weights(worker), []
            for name, parameter in local.model.named_parameters():
                gap = (after[name] - parameter.detach()).abs()
                step = (parameter.detach() - before[name]).abs()
                assert float(step.max()) > 0.5 * LR, name
                assert float(gap.mean()) < 2e-2 * LR, name
                gaps.append(gap.flatten())
            assert float(torch.cat(gaps).mean()) < 1e-3 * LR
    again = worker.score(batch, 1.0, None, False, False).logprobs
    assert float((again - old).abs().max()) > 0.01  # it did learn


@pytest.mark.parametrize("how", ["zero2", "zero3"])
def test_a_gradient_that_is_not_finite_changes_nothing(both, rolled, how):
    from tests.distributed.workers import update, weights

    batch, advantages = rolled
    worker, local = both(**HOW[how])
    old = local.score(batch).logprobs
    before = weights(worker)
    bad = advantages.clone()
    bad[0][batch.action_mask[0]] = float("inf")
    assert update(worker, batch, bad, old, loss=LossConfig(), lr=LR)["nonfinite"] == 1.0
    after = weights(worker)
    assert all(torch.equal(before[n], after[n]) for n in before)
    mine = update(worker, batch, advantages, old, loss=LossConfig(), lr=LR)  # and leaves nothing behind
    assert mine == pytest.approx(local.update(batch, advantages, old, loss=LossConfig()), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("how", ["zero2", "zero3", "micro-batches"])
def test_without_a_change_of_policy_llds_has_no_gradient_and_no_weight_moves(both, rolled, how):
    """Also where AdamW's momentum and weight decay would move them; as on the local engine, the next step is its."""
    from tests.distributed.workers import update, weights

    batch, advantages = rolled
    worker, local = both(**HOW[how])
    old = worker.score(batch, 1.0, None, False, False).logprobs
    update(worker, batch, advantages, old, loss=LossConfig(), lr=LR)  # momentum
    local.update(batch, advantages, local.score(batch).logprobs, loss=LossConfig())
    rounding = 1e-4 * torch.randn(batch.action_mask.shape, generator=torch.Generator().manual_seed(2))
    old = worker.score(batch, 1.0, None, False, False).logprobs + rounding * batch.action_mask
    plain = LossConfig(llds={"enabled": True, "weight": 0.5})
    for k, loss in enumerate((settled(plain, unchanged=True, noise=0.0, moved=True), LossConfig(nll_coef=0.1))):
        part = batch if k == 0 else replace(batch, correct=torch.zeros_like(batch.correct))  # no response to imitate
        before = weights(worker)
        row = update(worker, part, advantages * 0, old, loss=loss, lr=LR)
        assert row["grad_norm"] == 0.0 and "nonfinite" not in row
        after = weights(worker)
        assert all(torch.equal(before[n], after[n]) for n in before)
    assert update(worker, batch, advantages * 0, old, loss=plain, lr=0.0)["grad_norm"] > 0  # what rounding would do
    old = local.score(batch).logprobs  # and nothing stays behind: the next step agrees
    mine = update(worker, batch, advantages, old, loss=LossConfig(), lr=LR)
    assert mine == pytest.approx(local.update(batch, advantages, old, loss=LossConfig()), rel=2e-2, abs=1e-2)


def test_weight_decay_leaves_norms_and_biases_alone(both, rolled):
    """Two workers that differ in their weight decay alone: matrices differ after a step by its share, and no other."""
    from tests.distributed.workers import update, weights

    batch, advantages = rolled
    decay, after, before = 0.5, {}, {}
    for value in (0.0, decay):
        worker = both(optim={"weight_decay": value})[0]
        old = worker.score(batch, 1.0, None, False, False).logprobs
        before = weights(worker)
        update(worker, batch, advantages, old, loss=LossConfig(), lr=LR)
        after[value] = weights(worker)
    alone = {n for n in before if torch.equal(after[0.0][n], after[decay][n])}
    assert alone == {n for n in before if "norm" in n or n.endswith("bias")} and alone
    for name in before.keys() - alone:
        share = after[0.0][name] - after[decay][name]
        assert torch.allclose(share, LR * decay * before[name], atol=1e-6), name


@pytest.mark.parametrize("how", ["zero2", "zero3"])
def test_max_grad_norm_null_clips_nothing(both, rolled, how):
    """AdamW's first step hides the gradient's size; the second shows it."""
    from tests.distributed.workers import update, weights

    batch, advantages = rolled
    after = {}
    for limit in (None, 0.01):
        worker, local = both(**merged(HOW[how], {"optim": {"max_grad_norm": limit}}))
        for factor in (0.001, 1.0):
            old = worker.score(batch, 1.0, None, False, False).logprobs
            theirs = local.score(batch).logprobs
            norm = update(worker, batch, factor * advantages, old, loss=LossConfig(), lr=LR)["grad_norm"]
            local.update(batch, factor * advantages, theirs, loss=LossConfig())
        assert norm > 0.1
        after[limit] = weights(worker)
        gap = torch.cat([(after[limit][n] - p.detach()).abs().flatten() for n, p in local.model.named_parameters()])
        assert float(gap.mean()) < 2e-2 * LR
    gap = torch.cat([(after[None][n] - after[0.01][n]).abs().flatten() for n in after[None]])
    assert float(gap.mean()) > 0.05 * LR


@pytest.mark.parametrize("how", ["zero2", "zero3"])
def test_a_checkpoint_continues_exactly(both, rolled, tmp_path, how):
    from tests.distributed.workers import policy, update, weights

    batch, advantages = rolled
    worker, local = both(**HOW[how])
    old = local.score(batch).logprobs
    update(worker, batch, advantages, old, loss=LossConfig(), lr=LR)
    (tmp_path / "c").mkdir()
    worker.save(str(tmp_path / "c"))
    assert not [p for p in (tmp_path / "c").rglob("*") if p.suffix in (".pt", ".bin", ".pkl")]
    update(worker, batch, advantages, old, loss=LossConfig(), lr=LR)
    expected = weights(worker)

    worker.load(str(tmp_path / "c"), True)  # a roll-back
    update(worker, batch, advantages, old, loss=LossConfig(), lr=LR)
    assert all(torch.equal(expected[n], w) for n, w in weights(worker).items())

    config = small_config(tmp_path, **merged({"model": {"fast_path": "off"}, "optim": {"weight_decay": 0.1}}, HOW[how]))
    fresh = policy(config, tmp_path / "c" / "model")  # a resume
    fresh.load(str(tmp_path / "c"), False)
    update(fresh, batch, advantages, old, loss=LossConfig(), lr=LR)
    assert all(torch.equal(expected[n], w) for n, w in weights(fresh).items())

    stage = {"openrlhf": {"zero_stage": 2 if how == "zero3" else 3}}
    config = small_config(tmp_path, **merged({"model": {"fast_path": "off"}, "optim": {"weight_decay": 0.1}}, stage))
    other = policy(config, tmp_path / "c" / "model")  # a resume in the other stage
    other.load(str(tmp_path / "c"), False)
    update(other, batch, advantages, old, loss=LossConfig(), lr=LR)
    for name, weight in weights(other).items():
        assert float((weight - expected[name]).abs().mean()) < 2e-2 * LR, name


def test_lora_trains_adapters_and_hands_them_over_as_they_are(rolled, warm_model, tmp_path):
    from transformers import AutoModelForCausalLM

    from tests.distributed.workers import policy, update, weights

    batch, advantages = rolled
    config = small_config(tmp_path, warm_model, model={"lora": {"rank": 4}})
    worker = policy(config, warm_model)
    old = worker.score(batch, 1.0, None, False, False).logprobs
    base = AutoModelForCausalLM.from_pretrained(warm_model, dtype=torch.float32)
    for _ in range(3):
        update(worker, batch, advantages, old, loss=LossConfig(), lr=1e-2)
    new = worker.score(batch, 1.0, None, False, False).logprobs
    assert float((new - old).abs().max()) > 0.01
    assert all(torch.equal(w, dict(base.named_parameters())[n]) for n, w in weights(worker).items())  # never merged
    adapters = dict(worker._named_adapters())
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in adapters)
    scale = config.model.lora.alpha / 4
    with torch.no_grad():
        for name, weight in base.named_parameters():
            prefix = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{prefix}.lora_A.weight" in adapters:
                weight += scale * adapters[f"{prefix}.lora_B.weight"] @ adapters[f"{prefix}.lora_A.weight"]
        logits = base(batch.input_ids[:, :-1], attention_mask=batch.attention_mask[:, :-1].long()).logits
    plain = logits.log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None])[..., 0]
    assert torch.allclose(plain[batch.action_mask], new[batch.action_mask], atol=1e-4)
    reference = worker.score(batch, 1.0, None, False, True).logprobs  # adapters off: the base model
    assert torch.allclose(reference, old, atol=1e-5)

    (tmp_path / "c").mkdir()
    worker.save(str(tmp_path / "c"))
    _merge(config, tmp_path, tmp_path / "c" / "model", tmp_path / "exported")  # agentrl export
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    got = dict(exported.named_parameters())
    assert all(torch.allclose(got[n], w, atol=1e-6) for n, w in base.named_parameters())
    fresh = policy(config, warm_model, str(tmp_path / "c" / "model"))
    fresh.load(str(tmp_path / "c"), False)
    assert torch.equal(fresh.score(batch, 1.0, None, False, False).logprobs, new)


def test_bfloat16_keeps_fp32_weights_for_the_optimiser(rolled, warm_model, tmp_path):
    from tests.distributed.workers import policy, update

    batch, advantages = rolled
    worker = policy(small_config(tmp_path, warm_model, model={"dtype": "bfloat16"}), warm_model)
    assert worker.model.module.dtype == torch.bfloat16
    old = worker.score(batch, 1.0, None, False, False).logprobs
    for _ in range(40):  # steps far below what bf16 can add to a weight
        update(worker, batch, advantages, old, loss=LossConfig(), lr=2e-6)
    master = worker.actor_optim.single_partition_of_fp32_groups[0]
    assert master.dtype == torch.float32
    moved = worker.score(batch, 1.0, None, False, False).logprobs
    assert float((moved - old).abs().max()) > 0


def test_bfloat16_adds_up_micro_batches_in_fp32(rolled, warm_model, tmp_path):
    """The gradient of many micro-batches is as far from the fp32 one as the sum of bf16 gradients in fp64 is."""
    from tests.distributed.workers import policy, update

    batch, advantages = rolled
    config = small_config(
        tmp_path,
        warm_model,
        model={"dtype": "bfloat16"},
        train={"micro_batch_tokens": 1},
        optim={"max_grad_norm": None},
    )
    worker = policy(config, warm_model)
    kept, parts = [], []
    gradients = worker.actor_optim.get_all_grad_tensors  # as `sum_in_fp32` has made it

    def seen(tensors, dtype):
        out = gradients(tensors, dtype)
        kept.append(out)
        parts.append([g.double() for g in out])
        return out

    worker.actor_optim.get_all_grad_tensors = seen
    old = worker.score(batch, 1.0, None, False, False).logprobs
    update(worker, batch, advantages, old, loss=LossConfig(), lr=0.0)
    groups = len(worker.actor_optim.bit16_groups)
    assert len(parts) >= 16 * groups  # micro-batches of one row
    for group in range(groups):
        exact = [sum(same) for same in zip(*parts[group::groups], strict=True)]
        summed = kept[group]  # DeepSpeed adds the later ones to the first
        for a, b in zip(summed, exact, strict=True):
            assert a.dtype == torch.float32
            assert float((a - b).norm()) <= 1e-5 * float(b.norm())
