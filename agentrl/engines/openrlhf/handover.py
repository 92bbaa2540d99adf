"""Weights from the policy to vLLM, engines that died started again, and GPUs that both share passed to and fro.

One hand-over at a time, and none in the middle of an update (`lock`). Nothing is sampled in the middle of one:
asynchronous rollouts are paused, with their requests kept, and vLLM drops what it has cached; a new engine gets its
first request after its weights.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from agentrl.config import RunConfig
from agentrl.engines.openrlhf.calls import DEAD, Calls
from agentrl.engines.openrlhf.launch import PROBE_TOKENS, Cluster
from agentrl.engines.openrlhf.router import Router
from agentrl.engines.openrlhf.sync import check, stale_groups
from agentrl.errors import AgentRLError, RunError

TOLERANCE = {"bfloat16": 0.2, "float32": 0.01}  # nats
PING_S = 10.0


class HandOver:
    """Of one cluster. `version` counts the weights that engines were given, `gap` is the last comparison's, in nats."""

    def __init__(
        self,
        config: RunConfig,
        cluster: Cluster,
        calls: Calls,
        router: Router,
        probe_ids: list[int],
        say: Callable[[str], None],
    ) -> None:
        self.config, self.cluster, self.calls, self.router, self.say = config, cluster, calls, router, say
        self.options = config.openrlhf
        self.version = 0
        self.gap = 0.0
        self._probe_ids = probe_ids
        self._restarts = 0
        self._sleeping = False
        self._failed = False
        self.lock = threading.RLock()

    def sync(self, bump: bool = True) -> None:
        """New weights to every engine, dead ones started again; then vLLM is compared with the trainer."""
        with self.lock:
            self._still_in_step()
            for i in self._gone():  # nobody has asked it for a turn since
                if self.router.alive[i]:
                    self.say(f"vLLM engine {i} died: it is started again")
                    self.router.kill(i)
            if not self.revive():
                self._give()
            self.version += int(bump)

    def revive(self) -> bool:
        """Start dead engines again, give all the current weights; whether there were any. RunError after `restarts`."""
        with self.lock:
            dead = [i for i, alive in enumerate(self.router.alive) if not alive]
            if not dead:
                return False
            self._still_in_step()
            c = self.options
            self._restarts += len(dead)
            if self._restarts > c.restarts:
                raise RunError(
                    f"vLLM engines died {self._restarts} times and openrlhf.restarts is {c.restarts}. Look into Ray's "
                    "logs (session_latest/logs of its temporary folder), lower openrlhf.gpu_memory or "
                    "openrlhf.max_sequences if memory was short, then resume the run"
                )
            engines = self.cluster.engines
            for i in dead:
                engines[i] = self.cluster.start_engine(i)
            new = [engines[i] for i in dead]
            self.calls.all(new, "ready", whom="vLLM to load the model again", deadline_s=c.start_timeout_s)
            self._workers("connect", engines, whom="policy workers to connect to vLLM")
            self._give()
            for i in dead:
                self.router.revive(i)
            return True

    def engines_awake(self) -> None:
        """Shared GPUs: the policy makes room and the engines wake, before sampling."""
        if self._sleeping:
            with self.lock:
                if self._sleeping:
                    self._workers("offload", whom="policy workers to make room")
                    self._engines("wake_up")
                    self._sleeping = False

    def policy_awake(self) -> None:
        """Shared GPUs: the engines sleep and the policy takes its state back, before training."""
        if self.options.colocate and not self._sleeping:
            with self.lock:
                self._engines("sleep")
                self._workers("reload", whom="policy workers to load their state")
                self._sleeping = True

    # --------------------------------------------------------------------------------------------------- internal

    def _still_in_step(self) -> None:
        """After a hand-over that failed the ranks may wait for different things: rollouts and training end here."""
        if self._failed:
            raise RunError("a hand-over of weights has failed; resume the run from its last checkpoint")

    def _give(self) -> None:
        shared, pausing = self.options.colocate, self.options.asynchronous
        if shared:
            self.policy_awake()
            self._engines("wake_up", ["weights"])
            self._sleeping = False
        if pausing:
            self._engines("pause_generation")
        try:
            self._broadcast()
            if shared:
                self._workers("offload", whom="policy workers to make room")
                self._engines("wake_up", ["kv_cache"])
        except BaseException:
            self._failed = True
            if pausing:  # whoever waits for a turn is not to wait for ever
                with suppress(Exception):
                    self._engines("resume_generation")
            raise
        if pausing:
            self._engines("resume_generation")
        self._compare()

    def _broadcast(self) -> None:
        try:
            self._workers("broadcast", whom="weights to reach vLLM")
        except AgentRLError:
            raise
        except Exception as error:  # of the connection that weights take, or of vLLM itself
            gone = self._gone()
            if not gone:
                raise
            raise RunError(
                f"vLLM engine {gone[0]} died while it was given new weights; resume the run from its last checkpoint"
            ) from error

    def _gone(self) -> list[int]:
        """Engines that are dead; one that is slow to answer is not."""
        engines = self.cluster.engines
        out = []
        for i, ping in enumerate(self.calls.start(engines, "ready", [()] * len(engines))):
            try:
                ray.get(ping, timeout=PING_S)
            except DEAD:
                out.append(i)
            except GetTimeoutError:
                continue
        return out

    def _compare(self) -> None:
        """vLLM samples a text and sums its weights; the trainer scores and sums. Raises SyncError."""
        tolerance = self.options.sync_tolerance or TOLERANCE[self.config.model.dtype]
        ids = self._probe_ids[: self.cluster.max_length - PROBE_TOKENS]
        parameters = {
            "temperature": 1.0, "max_tokens": PROBE_TOKENS, "ignore_eos": True, "detokenize": False,
            "seed": self.version, "stop_token_ids": None,
        }  # fmt: skip
        turns = self._engines("turn", ids, parameters)
        shards = self._engines("weight_digest")
        digest = self._workers("digest", whom="the policy's sums")[0]
        gap = 0.0
        for i, (out, logprobs, _) in enumerate(turns):
            own = self._workers("probe", ids + out, len(out), whom="the policy's probe")[0]
            gap = max(gap, check(i, self.version, logprobs, own, tolerance, stale_groups(digest, shards[i])))
        self.gap = gap

    def _engines(self, method: str, *arguments: Any) -> list[Any]:
        whom = f"vLLM to {method.replace('_', ' ')}"
        deadline_s = self.options.sync_timeout_s
        return self.calls.all(self.cluster.engines, method, *arguments, whom=whom, deadline_s=deadline_s)

    def _workers(self, method: str, *arguments: Any, whom: str) -> list[Any]:
        deadline_s = self.options.sync_timeout_s
        return self.calls.all(self.cluster.workers, method, *arguments, whom=whom, deadline_s=deadline_s)
