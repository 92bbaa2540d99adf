"""The engine of one process: a Hugging Face causal LM on the CPU or one CUDA GPU.

It samples with a key/value cache over all live conversations, scores with NTHR in the same pass, and updates with
micro-batches by token budget. Small models take a hand-written path (`qwen2.py`, `decoder.py`), checked against the
module when the engine starts; every other model goes through its own module.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from agentrl.algorithms import LossNormalizer, MetricSums
from agentrl.batch import TokenBatch, micro_batches
from agentrl.config import LossConfig, ModelConfig, NTHRConfig, OptimConfig
from agentrl.engines.base import ScoreResult
from agentrl.engines.local import decoder, qwen2
from agentrl.engines.local.cache import Plan, RowCache
from agentrl.engines.local.decoder import FastDecoder
from agentrl.engines.local.qwen2 import FastQwen2
from agentrl.engines.local.sampler import BatchSampler
from agentrl.engines.shared.head import OutputHead
from agentrl.engines.shared.loading import load_weights, pick_device
from agentrl.engines.shared.scoring import GroupScores, score_batch, score_rows
from agentrl.engines.shared.text import TokenText
from agentrl.engines.shared.updates import Update, decay_groups, learning_rate, loss_of_rows, rows_with_gradient
from agentrl.errors import ModelError
from agentrl.types import Sample

# Of log-probabilities, hand-written path against the module. The module's norms are fp32 whatever the rest is: with
# logits of 34 that is 1.5e-5.
FAST_TOLERANCE = 1e-4


class LocalEngine:
    """See `engines.base.Engine`."""

    scores_while_updating = True
    samples_ahead = 0
    needs_first_checkpoint = False

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        config: ModelConfig,
        optim: OptimConfig,
        total_steps: int,
        micro_batch_tokens: int = 8192,
        seed: int = 0,
        keep_reference: bool = False,
        turn_ends: Sequence[int] = (),
    ) -> None:
        self.model, self.tokenizer, self.config, self.optim_config = model, tokenizer, config, optim
        self.device = pick_device(config.device)
        self.micro_batch_tokens = micro_batch_tokens
        self.total_steps = max(1, total_steps)
        torch.set_num_threads(config.threads or torch.get_num_threads())
        text_config = model.config.get_text_config()
        self.context_length = int(getattr(text_config, "max_position_embeddings", 0) or 1_000_000)
        self.n_layers = int(text_config.num_hidden_layers)
        self._windows = sorted({w for w in (getattr(text_config, "sliding_window", None),) if w})
        self.head = OutputHead.find(model, config.head)
        self.base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.fast = self._hand_written()
        self._check_paths()
        self.reference: Any = None
        self.keep_reference = keep_reference
        self.freeze_reference()
        self.optimizer = self._make_optimizer()
        self.updates = 0
        self.lr_scale = 1.0  # the guard's
        self.parameters = sum(p.numel() for p in model.parameters())
        eos = {
            *turn_ends,
            tokenizer.eos_token_id,
            *_as_list(getattr(model.generation_config, "eos_token_id", None)),
        } - {None}
        self.sampler = self._make_sampler(TokenText(tokenizer), sorted(eos), seed)
        self.sync(bump=False)

    # ------------------------------------------------------------------------------------------------------- sampling

    def _make_sampler(self, text: TokenText, eos_ids: Sequence[int], seed: int) -> Any:
        """What `sample` asks; everything that it needs of the engine but this is there."""
        return BatchSampler(
            self._next_logits,
            text,
            eos_ids=eos_ids,
            seed=seed,
            context_length=self.context_length,
            device=self.device,
            dtype=self._dtype,
        )

    @property
    def gpus(self) -> int:
        """GPUs that it uses: one process, one device."""
        return int(self.device.type == "cuda")

    @property
    def policy_version(self) -> int:
        """Number of times the sampler was given new weights."""
        return self.sampler.policy_version

    @property
    def sampled_tokens(self) -> int:
        """Tokens sampled since the engine was made."""
        return self.sampler.sampled_tokens

    async def sample(
        self,
        ids: Sequence[int],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 1.0,
        session: int | None = None,
    ) -> Sample:
        """See `engines.base.Sampler.sample`."""
        return await self.sampler.sample(
            ids, max_tokens=max_tokens, stop=stop, temperature=temperature, session=session
        )

    def release(self, session: int) -> None:
        """See `engines.base.Sampler.release`."""
        self.sampler.release(session)

    def sync(self, bump: bool = True) -> None:
        """Hand the current weights to the sampler and forget what the old ones had cached."""
        if self.fast is not None:
            self.fast.refresh()
        self.sampler.reset(self.policy_version + int(bump))

    @torch.no_grad()
    def _next_logits(self, ids: Tensor, last: Tensor, cache: RowCache, plan: Plan) -> Tensor:
        if self.fast is not None:
            return self.fast.next_logits(ids, last, cache, plan)
        rows = torch.arange(ids.shape[0], device=ids.device)
        with self._autocast():
            out = self._decoder()(
                input_ids=ids,
                attention_mask=self._masks(plan),
                position_ids=plan.position,
                past_key_values=cache.hf_cache(self.n_layers, plan),
                use_cache=True,
            )
            return self.head.logits(out.last_hidden_state[rows, last])

    def _masks(self, plan: Plan) -> Any:
        """The additive mask of a pass; one per layer type for models with sliding windows."""
        mask = plan.mask.to(self._dtype)
        types = set(getattr(self.base.config.get_text_config(), "layer_types", None) or ())
        if not self._windows or (types and "sliding_attention" not in types):
            return mask
        key = torch.arange(plan.length, device=mask.device)
        far = key[None, None, None] <= plan.position[:, None, :, None] - self._windows[0]
        near = mask.masked_fill(far, float("-inf"))
        return {"full_attention": mask, "sliding_attention": near} if types else near

    # -------------------------------------------------------------------------------------------------------- scoring

    def hidden(self, ids: Tensor, attention_mask: Tensor, model: Any = None) -> Tensor:
        """Right-padded ids (B, C) to the input of the output head (B, C, d)."""
        with self._autocast():
            if self.fast is not None and model is None:
                return self.fast.hidden(ids, attention_mask)
            decoder = self._decoder(model)
            return decoder(input_ids=ids, attention_mask=attention_mask, use_cache=False).last_hidden_state

    def logprobs(
        self,
        batch: TokenBatch,
        temperature: float = 1.0,
        *,
        entropy: bool = False,
        entropy_gradient: bool = True,
        model: Any = None,
    ) -> tuple[Tensor, Tensor | None]:
        """log π of the action tokens (B, S), 0 elsewhere, and their entropy when asked; differentiable."""
        hidden = self.hidden(batch.input_ids[:, :-1], batch.attention_mask[:, :-1], model)
        head = self.head if model is None else OutputHead.find(model, self.config.head)
        mask = batch.action_mask
        with self._autocast():
            targets = batch.input_ids[:, 1:][mask]
            flat, spread = head.logprobs(hidden[mask], targets, temperature, entropy, entropy_gradient)
        zero = torch.zeros(mask.shape, device=flat.device)
        return zero.masked_scatter(mask, flat), None if spread is None else zero.masked_scatter(mask, spread)

    def before_training(self) -> None:
        """Called before the model scores or trains: a sampler that holds memory gives it back here."""
        self.sampler.rest()

    @torch.no_grad()
    def score(
        self,
        batch: TokenBatch,
        *,
        temperature: float = 1.0,
        nthr: NTHRConfig | None = None,
        entropy: bool = False,
        reference: bool = False,
    ) -> ScoreResult:
        """See `engines.base.Engine.score`. With NTHR, micro-batches hold whole groups."""
        self.before_training()
        if reference:
            return ScoreResult(self._reference_logprobs(batch, temperature))
        return score_batch(self, batch, temperature, nthr, entropy)

    def freeze_reference(self, saved: Path | None = None) -> None:
        """The policy as it is now, or the model in the folder `saved`, becomes the reference, where one is kept.

        With LoRA the reference is the base model, which never changes.
        """
        if self.keep_reference and self.config.lora is None:
            self.reference = copy.deepcopy(self.model).requires_grad_(False)
            if saved is not None:
                load_weights(self.reference, saved)

    def _reference_logprobs(self, batch: TokenBatch, temperature: float) -> Tensor:
        if not self.keep_reference:
            raise RuntimeError("the engine was made without keep_reference")
        if self.reference is not None:
            return self._in_micro_batches(batch, lambda b: self.logprobs(b, temperature, model=self.reference)[0])
        with self.model.disable_adapter():
            return self._in_micro_batches(batch, lambda b: self.logprobs(b, temperature, model=self.model)[0])

    def _in_micro_batches(self, batch: TokenBatch, f: Any) -> Tensor:
        out = torch.zeros(batch.action_mask.shape)
        for index in micro_batches(batch.lengths(), self.micro_batch_tokens):
            part = f(batch.rows(index).to(self.device)).cpu()
            out[index, : part.shape[1]] = part
        return out

    # ------------------------------------------------------------------------------------------------------- updating

    def update(
        self,
        batch: TokenBatch,
        advantages: Tensor,
        old_logprobs: Tensor,
        *,
        loss: LossConfig,
        temperature: float = 1.0,
        reference_logprobs: Tensor | None = None,
        scores: ScoreResult | None = None,
        nthr: NTHRConfig | None = None,
    ) -> dict[str, float]:
        """See `engines.base.Engine.update`."""
        self.before_training()
        normalizer = LossNormalizer.of(batch.action_mask, correct=batch.correct)
        whole = Update(batch, advantages, old_logprobs, reference_logprobs, loss, normalizer, temperature)
        rows = rows_with_gradient(batch, advantages, loss)
        totals = MetricSums()
        self.model.train(self.config.gradient_checkpointing)
        groups = None
        if scores is not None and nthr is not None:
            groups = GroupScores(self, batch, temperature, nthr, scores)
            rows, parts = groups.micro_batches(rows)
        else:
            parts = [rows[index] for index in micro_batches(batch.lengths()[rows], self.micro_batch_tokens)]
        for index in parts:
            total, metrics = loss_of_rows(self, whole, index, scores, groups)
            total.backward()
            totals.add(metrics)
        self.model.eval()
        if groups is not None:
            groups.finish()
        if scores is not None:
            left = torch.ones(len(batch), dtype=torch.bool).index_fill_(0, rows, False).nonzero()[:, 0]
            score_rows(self, batch, left, temperature, scores)
        return {**totals.result(), **self.optimizer_step()}

    def optimizer_step(self) -> dict[str, float]:
        """Clip, check, step; gradients are consumed. A non-finite gradient skips the step and says so.

        A gradient of zero changes neither weights nor optimiser state; it counts as an update all the same, so that the
        schedule of the learning rate ends where the run does.
        """
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        limit = self.optim_config.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit, foreach=True)
        finite = bool(torch.isfinite(norm))
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr_scale * self.scheduled_lr
            if norm > 0:  # AdamW's momentum and weight decay would move weights without any gradient
                self.optimizer.step()
            self.updates += 1
        self.optimizer.zero_grad(set_to_none=True)
        out = {"grad_norm": float(norm), "lr": self.optimizer.param_groups[0]["lr"]}
        return out if finite else {**out, "nonfinite": 1.0}

    @property
    def scheduled_lr(self) -> float:
        """See `engines.base.Engine`."""
        return learning_rate(self.optim_config, self.updates, self.total_steps)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        o = self.optim_config
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.AdamW(decay_groups(trained, o.weight_decay), lr=o.lr, betas=o.betas, fused=True)

    # --------------------------------------------------------------------------------------------------------- saving

    def save(self, path: Path) -> None:
        """`path/model` in Hugging Face layout, `path/optimizer.safetensors` and `path/engine.json`."""
        self.save_model(path / "model")
        names = {id(p): n for n, p in self.model.named_parameters()}
        tensors = {
            f"{names[id(p)]}|{key}": value.detach().cpu().reshape(-1 if value.dim() == 0 else value.shape).contiguous()
            for p, state in self.optimizer.state.items()
            for key, value in state.items()
        }
        save_file(tensors, str(path / "optimizer.safetensors"))
        state = {"updates": self.updates, "policy_version": self.policy_version}
        (path / "engine.json").write_text(json.dumps(state))

    def save_model(self, path: Path) -> None:
        """Weights and tokenizer alone, for inference."""
        self.model.save_pretrained(path, safe_serialization=True)
        self.tokenizer.save_pretrained(path)

    def load(self, path: Path) -> None:
        """The inverse of `save`: weights, optimiser state and counters, exactly."""
        load_weights(self.model, path / "model")
        parameters = dict(self.model.named_parameters())
        self.optimizer.state.clear()
        for name, value in load_file(str(path / "optimizer.safetensors")).items():
            parameter, key = name.split("|")
            p = parameters[parameter]
            # the count of steps, too: a fused optimiser wants all of its state where the parameter is
            self.optimizer.state[p][key] = (value[0] if key == "step" else value).to(p.device)
        state = json.loads((path / "engine.json").read_text())
        self.updates = state["updates"]
        if self.fast is not None:
            self.fast.refresh()
        self.sampler.reset(state["policy_version"])

    def close(self) -> None:
        """Nothing is held that Python does not free."""

    # ------------------------------------------------------------------------------------------------------- internal

    def _decoder(self, model: Any = None) -> Any:
        model = self.base if model is None else model
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        return model.base_model if model.base_model is not model else model.get_decoder()

    @property
    def _dtype(self) -> torch.dtype:
        """That products are computed in."""
        return torch.bfloat16 if self.config.dtype == "bfloat16" else torch.float32

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.dtype == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    @torch.no_grad()
    def _check_paths(self) -> None:
        """The head found must give the model's own logits, and the hand-written path the module's."""
        generator = torch.Generator().manual_seed(0)
        vocabulary = self.head.module.weight.shape[0]
        ids = torch.randint(0, min(vocabulary, len(self.tokenizer)), (2, 24), generator=generator).to(self.device)
        ones = torch.ones_like(ids)
        fast, self.fast = self.fast, None
        with self._autocast():
            own = self.model(input_ids=ids, attention_mask=ones).logits.float().log_softmax(-1)
            found = self.head.logits(self.hidden(ids, ones)).log_softmax(-1)  # the head in the same precision
        gap = float((own - found).abs().max())
        if not gap <= (0.1 if self.config.dtype == "bfloat16" else 1e-3):
            raise ModelError(
                f"the output head found on {type(self.base).__name__} does not give the model's own log-probabilities "
                f"(off by {gap:.2g} nats): its logits are changed after the head; name the right module with model.head"
            )
        if fast is not None and self._same_function(fast, ids):
            self.fast = fast

    def _hand_written(self) -> FastQwen2 | FastDecoder | None:
        """A path that computes what the model does, where there is one and it is wanted."""
        if self.config.fast_path == "off":
            return None
        if self.config.dtype == "float32" and qwen2.usable(self.model):
            return FastQwen2(self.model)
        return FastDecoder(self.model, self._dtype) if decoder.usable(self.model) else None

    def _same_function(self, fast: FastQwen2 | FastDecoder, ids: Tensor) -> bool:
        """Whether the hand-written path computes what the module does; in fp64, where rounding cannot decide it.

        In fp32 the answer would depend on the weights, and a resumed run could take another path than it began with.
        Layers are alike: the first two are looked at, so that a copy of the model costs little.
        """
        model = copy.copy(self.model)
        model._modules = dict(self.model._modules)
        model.model = copy.copy(self.model.model)
        model.model._modules = dict(self.model.model._modules)
        model.model.layers = self.model.model.layers[:2]
        model = copy.deepcopy(model).double()
        model.config.num_hidden_layers = model.model.config.num_hidden_layers = len(model.model.layers)
        own = model(input_ids=ids).logits.log_softmax(-1)
        found = (type(fast)(model).hidden(ids) @ model.lm_head.weight.t()).log_softmax(-1)
        return float((found - own).abs().max()) < FAST_TOLERANCE


def _as_list(x: Any) -> list[Any]:
    return x if isinstance(x, list) else [x]
