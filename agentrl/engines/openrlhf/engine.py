"""The engine that the training loop sees. The model lives in other processes; every wait for them has a deadline.

A vLLM engine that dies or hangs loses nothing: a turn is asked for with its whole context, so another engine takes it,
and the dead one is started again with the current weights. A policy worker that dies takes its part of the optimiser
state with it: the run ends with an error that says how to resume.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError
from torch import Tensor

from agentrl.algorithms import LossNormalizer, MetricSums
from agentrl.batch import TokenBatch
from agentrl.config import LossConfig, NTHRConfig, RunConfig
from agentrl.engines.base import ScoreResult
from agentrl.engines.local.engine import learning_rate, rows_with_gradient
from agentrl.engines.local.sampler import TokenText
from agentrl.engines.local.scoring import nthr_metrics
from agentrl.engines.openrlhf import preflight
from agentrl.engines.openrlhf.launch import PROBE_TOKENS, Cluster, start_ray
from agentrl.engines.openrlhf.policy import UpdatePart
from agentrl.engines.openrlhf.router import Router
from agentrl.engines.openrlhf.sync import check, stale_groups
from agentrl.engines.openrlhf.watchdog import Watchdog
from agentrl.errors import AgentRLError, RunError
from agentrl.types import Sample

TOLERANCE = {"bfloat16": 0.2, "float32": 0.01}  # nats
DEAD = (ActorDiedError, RayActorError, ActorUnavailableError)


class OpenRLHFEngine:
    """See `engines.base.Engine`."""

    scores_while_updating = False

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
    ) -> None:
        """Start everything. `model_path` is a Hugging Face folder or hub id, `adapter` a saved LoRA adapter.

        `reference_path` is the frozen policy of a KL term. Raises ConfigError for what can be known before.
        """
        self.config, self.tokenizer, self.say = config, tokenizer, say
        self.total_steps = max(1, total_steps)
        self.updates = 0
        self.lr_scale = 1.0  # the guard's
        self._sampled = 0
        self.sync_gap = 0.0  # nats, at the last hand-over
        self.reference: Any = None  # it is a worker's: the run has nothing to keep
        self._version = 0
        self._restarts = 0
        self._loaded_from = model_path
        self._hand_over = threading.RLock()  # one at a time: new weights, or a new engine
        self._sleeping = False
        cpu = preflight.on_cpu(config)
        self.device = torch.device("cpu" if cpu else "cuda")
        preflight.check(config, cpu=cpu, model_path=model_path)
        self.context_length, self._eos = _about(model_path, config, tokenizer)
        self.text = TokenText(tokenizer)
        self.router = Router(config.openrlhf.engines)
        self._probe_ids = tokenizer.encode("What is known about it?", add_special_tokens=False) or [self._eos[0]]
        self.watchdog = Watchdog(say, config.openrlhf.warn_after_s)
        self.watchdog.start()
        self._own_ray = False
        self._own_ray = start_ray(config, cpu=cpu)
        c = config.openrlhf
        start = time.perf_counter()
        try:
            self.cluster = Cluster(
                config, cpu=cpu, model_path=model_path, reference_path=reference_path or model_path,
                positions=self.context_length,
            )  # fmt: skip
            cluster = self.cluster
            self._get([e.ready.remote() for e in cluster.engines], "vLLM to load the model", c.start_timeout_s)
            args = (cluster.arguments, cluster.settings)
            started = [
                w.start.remote(*args, model_path, None if adapter is None else str(adapter), cluster.engines)
                for w in cluster.workers
            ]
            self.parameters = self._get(started, "the policy workers to load the model", c.start_timeout_s)[0]
            started = [w.start.remote(*args, cluster.reference_path) for w in cluster.references]
            self._get(started, "the reference workers to load the model", c.start_timeout_s)
            self.sync(bump=False)
        except BaseException:
            self.close()
            raise
        say(
            f"{c.workers} policy workers (ZeRO-{c.zero_stage}) and {c.engines} vLLM engines ready after "
            f"{time.perf_counter() - start:.0f} s; vLLM and trainer agree to {self.sync_gap:.1g} nats"
        )

    # ------------------------------------------------------------------------------------------------------- sampling

    @property
    def policy_version(self) -> int:
        """Number of times the engines were given new weights."""
        return self._version

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
        if not ids or max_tokens < 1:
            raise ValueError(
                f"sample() got {len(ids)} context tokens and max_tokens={max_tokens}; both must be positive"
            )
        if len(ids) + max_tokens > self.cluster.max_length:
            raise AgentRLError(
                f"{len(ids)} context tokens + max_tokens {max_tokens} exceed the engines' {self.cluster.max_length}; "
                "raise rollout.max_context"
            )
        self._engines_awake()
        key = f"{self.config.seed}:{self._version}:{session}:{len(ids)}".encode()
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
                await asyncio.to_thread(self._revive)
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
        with self.watchdog.wait("an episode", f"a turn of vLLM engine {engine}", deadline):
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

    def _revive(self) -> None:
        """Start dead engines again with the current weights. RunError after `openrlhf.restarts`."""
        with self._hand_over:
            dead = [i for i, alive in enumerate(self.router.alive) if not alive]
            if not dead:
                return
            c = self.config.openrlhf
            self._restarts += len(dead)
            if self._restarts > c.restarts:
                raise RunError(
                    f"vLLM engines died {self._restarts} times and openrlhf.restarts is {c.restarts}. Look into Ray's "
                    "logs (/tmp/ray/session_latest/logs), lower openrlhf.gpu_memory or openrlhf.max_sequences if "
                    "memory was short, then resume the run"
                )
            for i in dead:
                self.cluster.engines[i] = self.cluster.start_engine(i)
            engines = self.cluster.engines
            self._get([engines[i].ready.remote() for i in dead], "vLLM to load the model again", c.start_timeout_s)
            connecting = [w.connect.remote(engines) for w in self.cluster.workers]
            self._get(connecting, "policy workers to connect to vLLM", c.sync_timeout_s)
            for i in dead:
                self.router.revive(i)
            self._broadcast()

    # --------------------------------------------------------------------------------------------------- hand-over

    def sync(self, bump: bool = True) -> None:
        """New weights to every engine, dead ones started again; then vLLM is compared with the trainer."""
        with self._hand_over:
            self._revive()
            self._broadcast()
            self._version += int(bump)

    def _broadcast(self) -> None:
        c, cluster = self.config.openrlhf, self.cluster
        if c.colocate:
            self._policy_awake()
            self._all_engines("wake_up", ["weights"])
            self._sleeping = False
        busy = any(self.router.load)
        if busy:
            self._all_engines("pause_generation")
        self._get([w.broadcast.remote() for w in cluster.workers], "weights to reach vLLM", c.sync_timeout_s)
        if c.colocate:
            self._get([w.offload.remote() for w in cluster.workers], "policy workers to make room", c.sync_timeout_s)
            self._all_engines("wake_up", ["kv_cache"])
        if busy:
            self._all_engines("resume_generation")
        self._compare()

    def _compare(self) -> None:
        """vLLM samples a text and sums its weights; the trainer scores and sums. Raises SyncError."""
        c, cluster = self.config.openrlhf, self.cluster
        tolerance = c.sync_tolerance or TOLERANCE[self.config.model.dtype]
        ids = self._probe_ids[: cluster.max_length - PROBE_TOKENS]
        parameters = {
            "temperature": 1.0, "max_tokens": PROBE_TOKENS, "ignore_eos": True, "detokenize": False,
            "seed": self._version, "stop_token_ids": None,
        }  # fmt: skip
        turns = self._get([e.turn.remote(ids, parameters) for e in cluster.engines], "vLLM's probe", c.sync_timeout_s)
        shards = self._get([e.weight_digest.remote() for e in cluster.engines], "vLLM's sums", c.sync_timeout_s)
        digest = self._get([w.digest.remote() for w in cluster.workers], "the policy's sums", c.sync_timeout_s)[0]
        gap = 0.0
        for i, (out, logprobs, _) in enumerate(turns):
            probing = [w.probe.remote(ids + out, len(out)) for w in cluster.workers]
            own = self._get(probing, "the policy's probe", c.sync_timeout_s)[0]
            gap = max(gap, check(i, self._version, logprobs, own, tolerance, stale_groups(digest, shards[i])))
        self.sync_gap = gap

    def _all_engines(self, method: str, *args: Any) -> None:
        calls = [getattr(e, method).remote(*args) for e in self.cluster.engines]
        self._get(calls, f"vLLM to {method.replace('_', ' ')}", self.config.openrlhf.sync_timeout_s)

    def _engines_awake(self) -> None:
        """Shared GPUs: the policy makes room and the engines wake, before sampling."""
        if self._sleeping:
            with self._hand_over:
                if self._sleeping:
                    deadline = self.config.openrlhf.sync_timeout_s
                    self._get(
                        [w.offload.remote() for w in self.cluster.workers], "policy workers to make room", deadline
                    )
                    self._all_engines("wake_up")
                    self._sleeping = False

    def _policy_awake(self) -> None:
        """Shared GPUs: the engines sleep and the policy takes its state back, before training."""
        if self.config.openrlhf.colocate and not self._sleeping:
            self._all_engines("sleep")
            deadline = self.config.openrlhf.sync_timeout_s
            self._get([w.reload.remote() for w in self.cluster.workers], "policy workers to load their state", deadline)
            self._sleeping = True

    # -------------------------------------------------------------------------------------------- scoring, updating

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
        self._policy_awake()
        workers = self.cluster.references if reference and self.cluster.references else self.cluster.workers
        parts = _share_groups(batch, len(workers))
        calls = [
            w.score.remote(batch.rows(i) if len(i) else None, temperature, nthr, entropy, reference)
            for w, i in zip(workers, parts)
        ]
        results = self._get(calls, "policy workers to score", self.config.openrlhf.step_timeout_s)
        out = _merge(batch, parts, results)
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
    ) -> dict[str, float]:
        """See `engines.base.Engine.update`."""
        assert scores is None, "scores_while_updating is off"
        self._policy_awake()
        lr = self.lr_scale * learning_rate(self.config.optim, self.updates, self.total_steps)
        empty = UpdatePart(
            None, None, None, None, loss, LossNormalizer.of(batch.action_mask, correct=batch.correct), temperature, lr
        )  # fmt: skip
        rows = rows_with_gradient(batch, advantages, loss)
        calls = []
        for worker, share in zip(self.cluster.workers, _balance(batch.lengths()[rows], len(self.cluster.workers))):
            index = rows[share]
            part = empty
            if len(index):
                some = batch.rows(index)
                S = some.action_mask.shape[1]
                part = replace(
                    empty,
                    batch=some,
                    advantages=advantages[index, :S],
                    old_logprobs=old_logprobs[index, :S],
                    reference_logprobs=None if reference_logprobs is None else reference_logprobs[index, :S],
                )
            calls.append(worker.update.remote(part))
        results = self._get(calls, "policy workers to update", self.config.openrlhf.step_timeout_s)
        totals = MetricSums()
        for sums, _ in results:
            for metrics in sums:
                totals.add(metrics)
        stepped = results[0][1]
        self.updates += "nonfinite" not in stepped
        return {**totals.result(), **stepped}

    # --------------------------------------------------------------------------------------------------------- saving

    def save(self, path: Path) -> None:
        """`path/model` in Hugging Face layout, one file of optimiser state per worker, and `path/engine.json`.

        The workers write: `path` must be on a file system that all nodes share.
        """
        self._policy_awake()
        path = path.absolute()
        calls = [w.save.remote(str(path)) for w in self.cluster.workers]
        self._get(calls, "policy workers to save", self.config.openrlhf.step_timeout_s)
        self.tokenizer.save_pretrained(path / "model")
        c = self.config.openrlhf
        state = {
            "updates": self.updates, "policy_version": self._version, "engine": "openrlhf",
            "workers": c.workers, "zero_stage": c.zero_stage,
        }  # fmt: skip
        (path / "engine.json").write_text(json.dumps(state))

    def save_model(self, path: Path) -> None:
        """Weights and tokenizer alone, for inference."""
        self._policy_awake()
        calls = [w.save_weights.remote(str(path.absolute())) for w in self.cluster.workers]
        self._get(calls, "policy workers to save", self.config.openrlhf.step_timeout_s)
        self.tokenizer.save_pretrained(path)

    def load(self, path: Path) -> None:
        """The inverse of `save`; as many workers and the same ZeRO stage as saved."""
        self._policy_awake()
        path = path.absolute()
        state = json.loads((path / "engine.json").read_text())
        weights = self._loaded_from != str(path / "model") or self.updates > 0
        calls = [w.load.remote(str(path), weights) for w in self.cluster.workers]
        self._get(calls, "policy workers to load a checkpoint", self.config.openrlhf.step_timeout_s)
        self.updates, self._version = state["updates"], state["policy_version"]
        self.sync(bump=False)

    def freeze_reference(self, saved: Path | None = None) -> None:
        """The reference workers hold what they were started with; nothing to do."""

    def close(self) -> None:
        """Kill the actors; shut Ray down if it was started here."""
        self.watchdog.close()
        if hasattr(self, "cluster"):
            self.cluster.close()
        if self._own_ray:
            ray.shutdown()

    # ------------------------------------------------------------------------------------------------------- waiting

    def _get(self, references: list[Any], whom: str, deadline_s: float) -> list[Any]:
        """Results of calls, in their order; the first failure is raised at once. RunError with what to do."""
        end = time.monotonic() + deadline_s
        waiting = list(references)
        with self.watchdog.wait("the training loop", whom, deadline_s):
            while waiting:
                ready, waiting = ray.wait(waiting, timeout=max(0.0, end - time.monotonic()))
                if not ready:
                    others = "; ".join(self.watchdog.waits())
                    raise RunError(
                        f"waited {deadline_s:g} s for {whom}. All waits now: {others}. A worker hangs or the deadline "
                        "is too short (openrlhf.*_timeout_s): resume the run from its last checkpoint"
                    )
                try:
                    ray.get(ready)
                except DEAD as error:
                    raise RunError(
                        f"a worker died while the training loop waited for {whom}: "
                        f"{str(error).strip().splitlines()[0]} Resume the run from its last checkpoint; Ray's logs are "
                        "in /tmp/ray/session_latest/logs"
                    ) from error
                except RayTaskError as error:
                    cause = error.as_instanceof_cause()
                    if isinstance(error.cause, AgentRLError):
                        raise error.cause from None
                    if isinstance(error.cause, DEAD):
                        raise RunError(
                            f"a vLLM engine died while the training loop waited for {whom}; resume the run from its "
                            "last checkpoint"
                        ) from error
                    raise cause from None
            try:
                return ray.get(references, timeout=60.0)
            except GetTimeoutError as error:
                raise RunError(f"results of {whom} do not arrive from Ray's object store; resume the run") from error


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


def _balance(lengths: Tensor, parts: int) -> list[Tensor]:
    """Rows to `parts` workers with about as many tokens each: the longest first, to whom has least."""
    total, shares = [0] * parts, [[] for _ in range(parts)]  # type: ignore[var-annotated]
    for i in torch.argsort(lengths, descending=True, stable=True).tolist():
        to = total.index(min(total))
        shares[to].append(i)
        total[to] += int(lengths[i])
    return [torch.tensor(sorted(s), dtype=torch.int64) for s in shares]


def _share_groups(batch: TokenBatch, parts: int) -> list[Tensor]:
    """Rows to `parts` workers, whole groups."""
    ids, slot = torch.unique(batch.group_ids, return_inverse=True)
    tokens = torch.zeros(len(ids), dtype=torch.int64).index_add_(0, slot, batch.lengths())
    return [torch.isin(slot, groups).nonzero()[:, 0] for groups in _balance(tokens, parts)]


def _merge(batch: TokenBatch, parts: list[Tensor], results: list[ScoreResult | None]) -> ScoreResult:
    """Results of the workers' rows as one of the whole batch."""
    shape = batch.action_mask.shape
    out = ScoreResult(torch.zeros(shape))
    pairs = [(i, r) for i, r in zip(parts, results) if r is not None]
    first = pairs[0][1]
    fill = {"logprobs": 0.0, "entropy": 0.0, "nthr_scores": 0.0, "nthr_selected": False, "nthr_factor": 1.0}
    for name, empty in fill.items():
        if getattr(first, name) is None:
            continue
        whole = torch.full(shape, empty, dtype=getattr(first, name).dtype)
        for index, result in pairs:
            part = getattr(result, name)
            whole[index, : part.shape[1]] = part
        setattr(out, name, whole)
    if first.gwhes is not None:
        out.gwhes = {group: value for _, r in pairs for group, value in (r.gwhes or {}).items()}
    agreements = [r.metrics["nthr_agreement"] for _, r in pairs if "nthr_agreement" in r.metrics]
    if agreements:
        out.metrics["nthr_agreement"] = sum(agreements) / len(agreements)
    return out
