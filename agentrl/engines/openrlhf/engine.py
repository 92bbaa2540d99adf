"""The engine that the training loop sees. The model lives in other processes; every wait for them has a deadline.

A vLLM engine that dies or hangs loses nothing: a turn is asked for with its whole context, so another engine takes it,
and the dead one is started again with the current weights. A policy worker that dies takes its part of the optimiser
state with it: the run ends with an error that says how to resume.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from agentrl.algorithms import LossNormalizer, MetricSums
from agentrl.batch import TokenBatch
from agentrl.config import LossConfig, NTHRConfig, RunConfig
from agentrl.engines.base import ScoreResult, check_request
from agentrl.engines.openrlhf import preflight
from agentrl.engines.openrlhf.calls import DEAD, Calls
from agentrl.engines.openrlhf.handover import HandOver
from agentrl.engines.openrlhf.launch import Cluster, start_ray
from agentrl.engines.openrlhf.router import Router
from agentrl.engines.openrlhf.sharing import balance, cut, merge, share_groups
from agentrl.engines.openrlhf.watchdog import Watchdog
from agentrl.engines.shared.scoring import nthr_metrics
from agentrl.engines.shared.text import TokenText
from agentrl.engines.shared.updates import Update, has_gradient, learning_rate, rows_with_gradient
from agentrl.types import Sample


class OpenRLHFEngine:
    """See `engines.base.Engine`."""

    scores_while_updating = False
    needs_first_checkpoint = True
    reference: Any = None  # it is a worker's: the run has nothing to keep

    def __init__(
        self,
        config: RunConfig,
        tokenizer: Any,
        *,
        model_path: str,
        adapter: Path | None = None,
        reference_path: str | None = None,
        total_steps: int,
        say: Callable[[str], None] = print,
        turn_ends: Sequence[int] = (),
    ) -> None:
        """Start everything. `model_path` is a Hugging Face folder or hub id, `adapter` a saved LoRA adapter.

        `reference_path` is the frozen policy of a KL term. Raises ConfigError for what can be known before.
        """
        self.config, self.tokenizer, self.say = config, tokenizer, say
        self.total_steps = max(1, total_steps)
        self.updates = 0
        self.lr_scale = 1.0  # the guard's
        self._sampled = 0
        self._loaded_from = model_path
        cpu = preflight.on_cpu(config)
        self.device = torch.device("cpu" if cpu else "cuda")
        preflight.check(config, cpu=cpu, model_path=model_path)
        self.context_length, own = _about(model_path, config, tokenizer)
        self._eos = sorted({*own, *turn_ends})
        self.text = TokenText(tokenizer)
        c = config.openrlhf
        self.router = Router(c.engines)
        self.calls = Calls(Watchdog(say, c.warn_after_s))
        self.calls.watchdog.start()
        self._own_ray = False
        start = time.perf_counter()
        try:
            self._own_ray = start_ray(config, cpu=cpu)
            self.cluster = Cluster(
                config, cpu=cpu, model_path=model_path, reference_path=reference_path or model_path,
                positions=self.context_length,
            )  # fmt: skip
            probe = tokenizer.encode("What is known about it?", add_special_tokens=False) or [self._eos[0]]
            self.handover = HandOver(config, self.cluster, self.calls, self.router, probe, say)
            self._load(model_path, adapter)
            self.handover.sync(bump=False)
        except BaseException:
            self.close()
            raise
        say(
            f"{c.workers} policy workers (ZeRO-{c.zero_stage}) and {c.engines} vLLM engines ready after "
            f"{time.perf_counter() - start:.0f} s{self._agreement()}"
        )

    def _agreement(self) -> str:
        gap = self.handover.gap
        return "" if gap is None else f"; vLLM and trainer are {gap:.1g} nats apart on average"

    def _load(self, model_path: str, adapter: Path | None) -> None:
        cluster, deadline_s = self.cluster, self.config.openrlhf.start_timeout_s
        given = (cluster.arguments, cluster.settings)
        path = None if adapter is None else str(adapter)
        self.calls.all(cluster.engines, "ready", whom="vLLM to load the model", deadline_s=deadline_s)
        self.handover.engines_to_bed()
        self.parameters = self.calls.all(
            cluster.workers, "start", *given, model_path, path, cluster.engines,
            whom="the policy workers to load the model", deadline_s=deadline_s,
        )[0]  # fmt: skip
        self.calls.all(
            cluster.references, "start", *given, cluster.reference_path,
            whom="the reference workers to load the model", deadline_s=deadline_s,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------------- sampling

    @property
    def gpus(self) -> int:
        """GPUs of the policy's workers and of vLLM; 0 on a CPU."""
        return self.config.openrlhf.gpus if self.device.type == "cuda" else 0

    @property
    def policy_version(self) -> int:
        """Number of times the engines were given new weights."""
        return self.handover.version

    @property
    def samples_ahead(self) -> int:
        """See `engines.base.Engine`."""
        c = self.config.openrlhf
        return c.staleness if c.asynchronous else 0

    @property
    def sampled_tokens(self) -> int:
        """Tokens sampled since the engine was made."""
        return self._sampled

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
        check_request(ids, max_tokens, self.cluster.max_length)
        if not self.handover.ready_to_sample:
            await asyncio.to_thread(self.handover.engines_awake)
        key = f"{self.config.seed}:{self.policy_version}:{session}:{len(ids)}".encode()
        parameters = {
            "temperature": temperature,
            "max_tokens": max_tokens,
            "stop": list(stop) or None,
            "stop_token_ids": self._eos,
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "detokenize": bool(stop),
            "seed": int.from_bytes(blake2b(key, digest_size=4).digest()),
        }
        while True:
            engine = self.router.take(session)
            if engine is None:
                await asyncio.to_thread(self.handover.revive)
                continue
            try:
                out, logprobs, ended = await self._turn(engine, list(ids), parameters)
            except (TimeoutError, *DEAD) as error:
                self._bury(engine, error)
                continue
            finally:
                self.router.give(engine)
            break
        self._sampled += len(out)
        spoken = out[:-1] if out[-1] in self._eos else out
        return Sample(out, logprobs, self.text.decode(spoken), "stop" if ended else "length")

    def release(self, session: int) -> None:
        """See `engines.base.Sampler.release`; vLLM forgets the least recently used by itself."""
        self.router.release(session)

    async def _turn(self, engine: int, ids: list[int], parameters: dict[str, Any]) -> Any:
        handle, deadline = self.cluster.engines[engine], self.config.openrlhf.sample_timeout_s
        reference = handle.turn.remote(ids, parameters)
        with self.calls.watchdog.wait("an episode", f"a turn of vLLM engine {engine}", deadline):
            try:
                return await asyncio.wait_for(asyncio.wrap_future(reference.future()), deadline)
            except (asyncio.CancelledError, TimeoutError):
                with suppress(Exception):
                    ray.cancel(reference)
                raise

    def _bury(self, engine: int, error: BaseException) -> None:
        """An engine is dead, or hangs and is killed; its conversations go on elsewhere."""
        if not self.router.alive[engine]:
            return
        self.router.kill(engine)
        limit = self.config.openrlhf.sample_timeout_s
        why = (
            f"has not answered within openrlhf.sample_timeout_s = {limit:g} s"
            if isinstance(error, TimeoutError)
            else "died"
        )
        self.say(f"vLLM engine {engine} {why}: its turns are asked for again, and it is started again")
        with suppress(Exception):
            ray.kill(self.cluster.engines[engine])

    def sync(self) -> None:
        """See `HandOver.sync`."""
        self.handover.sync()

    # -------------------------------------------------------------------------------------------- scoring, updating

    @property
    def scheduled_lr(self) -> float:
        """See `engines.base.Engine`."""
        return learning_rate(self.config.optim, self.updates, self.total_steps)

    def score(
        self,
        batch: TokenBatch,
        *,
        temperature: float = 1.0,
        nthr: NTHRConfig | None = None,
        entropy: bool = False,
        reference: bool = False,
    ) -> ScoreResult:
        """See `engines.base.Engine.score`. A group goes to one worker as a whole."""
        self.handover.policy_awake()
        frozen = reference and bool(self.cluster.references)
        workers = self.cluster.references if frozen else self.cluster.workers
        parts = share_groups(batch, len(workers))
        given = [(batch.rows(i) if len(i) else None, temperature, nthr, entropy, reference) for i in parts]
        results = self._each(workers, "score", given, f"{'reference' if frozen else 'policy'} workers to score")
        out = merge(batch, parts, results)
        if nthr is not None:
            out.metrics |= nthr_metrics(batch, out)
        return out

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
        assert scores is None, "scores_while_updating is off"
        self.handover.policy_awake()
        lr = self.lr_scale * self.scheduled_lr
        if not has_gradient(advantages, loss):  # see LocalEngine.optimizer_step
            self.updates += 1
            return {"grad_norm": 0.0, "lr": lr}
        normalizer = LossNormalizer.of(batch.action_mask, correct=batch.correct)
        whole = Update(batch, advantages, old_logprobs, reference_logprobs, loss, normalizer, temperature)
        rows = rows_with_gradient(batch, advantages, loss)
        shares = balance(batch.lengths()[rows], len(self.cluster.workers))
        parts = [(cut(whole, rows[share]), lr) for share in shares]
        with self.handover.lock:  # a new engine is given weights that stand still, and compared with them
            results = self._each(self.cluster.workers, "update", parts, "policy workers to update")
        totals = MetricSums()
        for sums, _ in results:
            for metrics in sums:
                totals.add(metrics)
        stepped = results[0][1]
        self.updates += "nonfinite" not in stepped
        return {**totals.result(), **stepped}

    def _each(self, workers: Sequence[Any], method: str, given: Sequence[tuple[Any, ...]], whom: str) -> list[Any]:
        return self.calls.results(self.calls.start(workers, method, given), whom, self.config.openrlhf.step_timeout_s)

    # --------------------------------------------------------------------------------------------------------- saving

    def save(self, path: Path) -> None:
        """`path/model` in Hugging Face layout, one file of optimiser state per worker, and `path/engine.json`.

        The workers write: `path` must be on a file system that all nodes share.
        """
        self._policy("save", str(path.absolute()), whom="policy workers to save")
        self.tokenizer.save_pretrained(path / "model")
        c = self.config.openrlhf
        state = {
            "updates": self.updates, "policy_version": self.policy_version, "engine": "openrlhf",
            "workers": c.workers, "zero_stage": c.zero_stage, "probe_baseline": self.handover.limit.baseline,
        }  # fmt: skip
        (path / "engine.json").write_text(json.dumps(state))

    def save_model(self, path: Path) -> None:
        """Weights and tokenizer alone, for inference."""
        self._policy("save_weights", str(path.absolute()), whom="policy workers to save")
        self.tokenizer.save_pretrained(path)

    def load(self, path: Path) -> None:
        """The inverse of `save`, by any number of workers and in either ZeRO stage."""
        path = path.absolute()
        state = json.loads((path / "engine.json").read_text())
        weights = self._loaded_from != str(path / "model") or self.updates > 0
        with self.handover.lock:
            self._policy("load", str(path), weights, whom="policy workers to load a checkpoint")
            self.updates, self.handover.version = state["updates"], state["policy_version"]
            self.handover.limit.baseline = state.get("probe_baseline", self.handover.limit.baseline)
            self.handover.sync(bump=False)

    def _policy(self, method: str, *arguments: Any, whom: str) -> None:
        self.handover.policy_awake()
        deadline_s = self.config.openrlhf.step_timeout_s
        self.calls.all(self.cluster.workers, method, *arguments, whom=whom, deadline_s=deadline_s)

    def freeze_reference(self, saved: Path | None = None) -> None:
        """The reference workers hold what they were started with; nothing to do."""

    def close(self) -> None:
        """Kill the actors; shut Ray down if it was started here."""
        self.calls.watchdog.close()
        if hasattr(self, "cluster"):
            self.cluster.close()
        if self._own_ray:
            ray.shutdown()


def _about(model_path: str, config: RunConfig, tokenizer: Any) -> tuple[int, list[int]]:
    """Positions of the model, and the ids that end a turn."""
    from transformers import AutoConfig, GenerationConfig

    trust = config.model.trust_remote_code
    text = AutoConfig.from_pretrained(model_path, trust_remote_code=trust).get_text_config()
    eos = {tokenizer.eos_token_id}
    with suppress(OSError):
        found = GenerationConfig.from_pretrained(model_path).eos_token_id
        eos |= set(found if isinstance(found, list) else [found])
    return int(getattr(text, "max_position_embeddings", 0) or 1_000_000), sorted(eos - {None})
