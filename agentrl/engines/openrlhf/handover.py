"""Weights from the policy to vLLM, engines that died started again, and GPUs that both share passed to and fro.

One hand-over at a time, and none in the middle of an update (`lock`). Nothing is sampled in the middle of one:
asynchronous rollouts are paused, with their requests kept, and vLLM drops what it has cached; a new engine gets its
first request after its weights.

On shared GPUs only one side is there at a time. The engines sleep as soon as they have loaded, before the policy is
built, and weights are handed over when the next sample is asked for: once a step, however often the policy is scored
in between. The policy's optimiser goes to main memory before an engine wakes or is started again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from agentrl.config import RunConfig
from agentrl.engines.openrlhf.calls import DEAD, Calls
from agentrl.engines.openrlhf.launch import Cluster
from agentrl.engines.openrlhf.router import Router
from agentrl.engines.openrlhf.sync import (
    PROBE_TEXTS,
    PROBE_TOKENS,
    Digest,
    Limit,
    gap_error,
    mean_gap,
    stale_error,
    stale_groups,
)
from agentrl.errors import AgentRLError, RunError

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
        self.gap: float | None = None  # None: not yet compared
        self.limit = Limit(config.model.dtype, self.options.sync_tolerance)
        self._probe_ids = probe_ids
        self._restarts = 0
        self._asleep = False  # the engines, on shared GPUs
        self._offloaded = self.options.colocate  # the policy's optimiser; OpenRLHF begins with it in main memory
        self._sent: Digest = {}  # of the last broadcast
        self._due = False  # the engines' weights are not the policy's, or forgotten in their sleep
        self._failed = False
        self.lock = threading.RLock()

    def sync(self, bump: bool = True) -> None:
        """New weights for every engine, dead ones started again; then vLLM is compared with the trainer.

        On shared GPUs it is done at the next sample.
        """
        with self.lock:
            self._still_in_step()
            if self.options.colocate:
                self._due = True
            else:
                self._bury_the_dead()
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
            self._make_room()
            engines = self.cluster.engines
            for i in dead:
                engines[i] = self.cluster.start_engine(i)
            new = [engines[i] for i in dead]
            self.calls.all(new, "ready", whom="vLLM to load the model again", deadline_s=c.start_timeout_s)
            if self._asleep:  # all of them in one state
                self._sleep(new)
            self._workers("connect", engines, whom="policy workers to connect to vLLM")
            self._give()
            for i in dead:
                self.router.revive(i)
            return True

    def engines_to_bed(self) -> None:
        """Shared GPUs: the engines have loaded, and the policy is about to be built."""
        if self.options.colocate:
            self._sleep(self.cluster.engines)
            self._asleep = self._due = True

    @property
    def ready_to_sample(self) -> bool:
        """Whether the engines are awake with the current weights."""
        return not (self._asleep or self._due)

    def engines_awake(self) -> None:
        """Before sampling, where not `ready_to_sample`: the policy makes room, the engines wake or are given weights.

        To be called from a thread: it takes as long as a hand-over.
        """
        with self.lock:
            if self.ready_to_sample:
                return
            self._still_in_step()
            self._bury_the_dead()
            if self.revive():
                return
            if self._due:
                self._give()
                return
            self._make_room()
            self._engines("wake_up")
            self._asleep = False

    def policy_awake(self) -> None:
        """Shared GPUs: the engines sleep and the policy takes its state back, before training."""
        if not self.options.colocate or (self._asleep and not self._offloaded):
            return
        with self.lock:
            if not self._asleep:
                self._bury_the_dead()
                living = [e for e, alive in zip(self.cluster.engines, self.router.alive, strict=True) if alive]
                self._sleep(living)
                self._asleep = True
            if self._offloaded:
                self._workers("reload", whom="policy workers to load their state")
                self._offloaded = False

    # --------------------------------------------------------------------------------------------------- internal

    def _still_in_step(self) -> None:
        """After a hand-over that failed the ranks may wait for different things: rollouts and training end here."""
        if self._failed:
            raise RunError("a hand-over of weights has failed; resume the run from its last checkpoint")

    def _make_room(self) -> None:
        """Shared GPUs: the policy's optimiser goes to main memory."""
        if self.options.colocate and not self._offloaded:
            self._workers("offload", whom="policy workers to make room")
            self._offloaded = True

    def _sleep(self, engines: Sequence[Any]) -> None:
        """The engines forget what they will be given again; with LoRA they keep the base model, in main memory."""
        level = 2 if self.config.model.lora is None else 1
        deadline_s = self.options.sync_timeout_s
        self.calls.all(engines, "sleep", level, whom="vLLM to sleep", deadline_s=deadline_s)
        if level == 2:
            self._due = True

    def _give(self) -> None:
        pausing = self.options.asynchronous
        try:
            self._make_room()
            if self._asleep:
                self._engines("wake_up", ["weights"])
            if pausing:
                self._engines("pause_generation")
            self._sent = self._broadcast()
            if self._asleep:
                self._engines("wake_up", ["kv_cache"])
                self._asleep = False
        except BaseException:
            self._failed = True
            if pausing:  # whoever waits for a turn is not to wait for ever
                with suppress(Exception):
                    self._engines("resume_generation")
            raise
        if pausing:
            self._engines("resume_generation")
        self._compare()
        self._due = False

    def _broadcast(self) -> Digest:
        """The digest of what was sent."""
        try:
            return self._workers("broadcast", whom="weights to reach vLLM")[0]
        except AgentRLError:
            raise
        except Exception as error:  # of the connection that weights take, or of vLLM itself
            gone = self._gone()
            if not gone:
                raise
            raise RunError(
                f"vLLM engine {gone[0]} died while it was given new weights; resume the run from its last checkpoint"
            ) from error

    def _bury_the_dead(self) -> None:
        """Engines that nobody has asked for a turn since they died, asleep ones too."""
        for i in self._gone():
            if self.router.alive[i]:
                self.say(f"vLLM engine {i} died: it is started again")
                self.router.kill(i)

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
        """The engines' weights with what was sent, then texts that they sample with what the trainer says of them.

        SyncError where a parameter differs, or where two probes with different seeds are too far apart.
        """
        for i, shards in enumerate(self._engines("weight_digest")):
            if stale := stale_groups(self._sent, shards):
                raise stale_error(i, self.version, stale)
        gaps = self._probe(seed=2 * self.version)
        if max(gaps) > self.limit.nats:
            again = self._probe(seed=2 * self.version + 1)
            for i, gap in enumerate(again):
                if min(gap, gaps[i]) > self.limit.nats:
                    raise gap_error(i, self.version, gap, self.limit)
            gaps = again
        self.gap = max(gaps)
        self.limit.learn(sum(gaps) / len(gaps))

    def _probe(self, seed: int) -> list[float]:
        """The mean gap of every engine."""
        engines = self.cluster.engines
        room = self.cluster.max_length
        ids = self._probe_ids[: max(1, room - PROBE_TOKENS)]
        parameters = [
            {
                "temperature": 1.0, "max_tokens": min(PROBE_TOKENS, room - len(ids)), "ignore_eos": True,
                "detokenize": False, "seed": PROBE_TEXTS * seed + k, "stop_token_ids": None,
            }
            for k in range(PROBE_TEXTS)
        ]  # fmt: skip
        asked = [self.calls.start(engines, "turn", [(ids, p)] * len(engines)) for p in parameters]
        order = [asked[k][i] for i in range(len(engines)) for k in range(PROBE_TEXTS)]
        turns = self.calls.results(order, "vLLM to sample a probe", self.options.sync_timeout_s)
        texts, last = [ids + out for out, _, _ in turns], [len(out) for out, _, _ in turns]
        own = self._workers("probe", texts, last, whom="the policy's probe")[0]
        said = [logprobs for _, logprobs, _ in turns]
        parts = [slice(i * PROBE_TEXTS, (i + 1) * PROBE_TEXTS) for i in range(len(engines))]
        return [mean_gap(said[part], own[part]) for part in parts]

    def _engines(self, method: str, *arguments: Any) -> list[Any]:
        whom = f"vLLM to {method.replace('_', ' ')}"
        deadline_s = self.options.sync_timeout_s
        return self.calls.all(self.cluster.engines, method, *arguments, whom=whom, deadline_s=deadline_s)

    def _workers(self, method: str, *arguments: Any, whom: str) -> list[Any]:
        deadline_s = self.options.sync_timeout_s
        return self.calls.all(self.cluster.workers, method, *arguments, whom=whom, deadline_s=deadline_s)
