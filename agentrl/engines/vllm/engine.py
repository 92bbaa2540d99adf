"""The engine of one process with vLLM in place of the built-in sampler; it trains as `LocalEngine` does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from agentrl.config import RunConfig
from agentrl.engines.kind import Shape
from agentrl.engines.local.engine import LocalEngine
from agentrl.engines.shared.probe import Limit
from agentrl.engines.shared.text import TokenText
from agentrl.engines.vllm.card import CardLock, free_bytes, name_of
from agentrl.engines.vllm.core import Core, Settings
from agentrl.engines.vllm.memory import Split, sequences, split, too_little
from agentrl.engines.vllm.preflight import rank_room
from agentrl.engines.vllm.sampler import CONTINUED, PROMPT, VLLMSampler
from agentrl.engines.vllm.weights import base_weights, with_adapter_files
from agentrl.errors import ConfigError

STATE = "sampler.json"  # beside engine.json in a checkpoint


class VLLMEngine(LocalEngine):
    """See `engines.base.Engine` and the module docstring."""

    def __init__(self, run: RunConfig, model: Any, tokenizer: Any, **options: Any) -> None:
        """`options` are LocalEngine's. ConfigError where memory is short or the card is taken, ModelError where vLLM
        refuses the model.
        """
        self.run = run
        self.core: Core | None = None
        self.lock: CardLock | None = None
        self._base_loaded = False
        super().__init__(model, tokenizer, **options)

    # -------------------------------------------------------------------------------------------------- the sampler

    def _make_sampler(self, text: TokenText, eos_ids: Sequence[int], seed: int) -> Any:  # a BatchSampler elsewhere
        positions = min(self.context_length, max(self.run.rollout.max_context, PROMPT + CONTINUED))
        plan = self._plan()
        card = name_of(self.device)
        self.lock = None if card is None else CardLock(card)
        try:
            self.core = Core(self.model, self._settings(plan, positions, seed))
        except BaseException:
            self._unlock()
            raise
        special = {*self.tokenizer.all_special_ids, *eos_ids}
        weight = self.head.module.weight.shape[0]
        sampler = VLLMSampler(
            self.core,
            self._hand_over,
            text,
            self._logprobs_of_texts,
            ordinary=[i for i in range(min(len(self.tokenizer), weight)) if i not in special],
            limit=Limit(self.config.dtype, self.run.rollout.vllm.sync_tolerance),
            eos_ids=eos_ids,
            seed=seed,
            context_length=positions,
        )
        if plan.sleeps:
            sampler.rest()  # a warm start may train first
        return sampler

    def _plan(self) -> Split:
        """How the memory is split. ConfigError where it is too little for both."""
        device = self.device.type
        held = 4.0 * sum(p.numel() for p in self.model.parameters())
        available = free_bytes(self.device, held)
        if available is None:
            available = float("inf")
        shape = shape_of(self.model, self.context_length)
        if problem := too_little(self.run, shape, device, available):
            raise ConfigError([problem])
        return split(self.run, shape, device, available)

    def _settings(self, plan: Split, positions: int, seed: int) -> Settings:
        v, lora = self.run.rollout.vllm, self.config.lora
        share = 0.5
        if self.device.type == "cuda":
            share = (plan.weights + plan.cache + plan.workspace) / torch.cuda.mem_get_info(self.device)[1]
        return Settings(
            dtype=self.config.dtype,
            positions=positions,
            sequences=sequences(self.run),
            cache_bytes=int(plan.cache),
            seed=seed,
            lora_rank=None if lora is None else rank_room(lora.rank),
            sleep=plan.sleeps,
            prefix_caching=v.prefix_caching,
            enforce_eager=v.enforce_eager,
            memory_share=min(0.99, share),
            trust_remote_code=self.config.trust_remote_code,
        )

    def _hand_over(self) -> None:
        """The trainer's weights into vLLM; with LoRA the base once, and the adapters as adapters."""
        assert self.core is not None
        if self.config.lora is None or not self._base_loaded:
            if missing := self.core.load(base_weights(self.model)):
                raise RuntimeError(
                    f"{len(missing)} of vLLM's parameters got no weight from the trainer's model: {missing[0]}, ..."
                )
            self._base_loaded = not self.core.settings.sleep  # what sleeps forgets
        if self.config.lora is not None:
            with_adapter_files(self.model, self.core.load_adapter)

    @torch.no_grad()
    def _logprobs_of_texts(self, texts: list[list[int]], prompt: int) -> list[list[float]]:
        """log π, at temperature 1, of all tokens after the first `prompt` of each text; texts are equally long."""
        ids = torch.tensor(texts, device=self.device)
        hidden = self.hidden(ids[:, :-1], torch.ones_like(ids[:, :-1]))[:, prompt - 1 :]
        with self._autocast():
            flat, _ = self.head.logprobs(hidden.flatten(0, 1), ids[:, prompt:].flatten())
        return flat.view(len(texts), -1).tolist()

    # ------------------------------------------------------------------------------------------ the trainer's turns

    def before_training(self) -> None:
        """Where memory is short, vLLM gives back what it holds before the model scores or trains."""
        if self.core is not None and self.core.settings.sleep:
            self.sampler.rest()

    # ------------------------------------------------------------------------------------------------------- saving

    def save(self, path: Path) -> None:
        """As LocalEngine, and what a hand-over is compared with."""
        super().save(path)
        (path / STATE).write_text(json.dumps({"first_gap": self.sampler.limit.baseline}))

    def load(self, path: Path) -> None:
        """The inverse of `save`; a checkpoint of a run with another sampler begins a comparison of its own."""
        super().load(path)
        if (path / STATE).is_file():
            self.sampler.limit.baseline = json.loads((path / STATE).read_text())["first_gap"]

    def close(self) -> None:
        """End vLLM, and let others sample on this card."""
        self.sampler.close()
        self._unlock()

    def _unlock(self) -> None:
        if self.lock is not None:
            self.lock.release()
            self.lock = None


def shape_of(model: Any, positions: int) -> Shape:
    """What estimates need to know of a loaded model."""
    text = model.config.get_text_config()
    heads = int(text.num_attention_heads)
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        layers=int(text.num_hidden_layers),
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        hidden=int(text.hidden_size),
        vocabulary=int(text.vocab_size),
        positions=positions,
    )
