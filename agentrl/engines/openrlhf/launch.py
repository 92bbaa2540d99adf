"""Ray, placement groups and actors: everything that is started, in one place."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import grpc
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from agentrl.config import RunConfig
from agentrl.engines.openrlhf import cpu as cpu_shim
from agentrl.engines.openrlhf import preflight
from agentrl.engines.openrlhf.arguments import openrlhf_arguments
from agentrl.engines.openrlhf.environment import worker_environment
from agentrl.engines.openrlhf.placement import keeps_reference, vllm_rank
from agentrl.engines.openrlhf.sync import PROBE_TOKENS
from agentrl.errors import ConfigError, RunError

cpu_shim.before_import()
from openrlhf.trainer.ray.launcher import RayActorGroup  # noqa: E402
from openrlhf.trainer.ray.utils import get_bundle_indices  # noqa: E402

cpu_shim.after_import()

from agentrl.engines.openrlhf.policy import AgentPolicy, AgentReference, WorkerSettings  # noqa: E402
from agentrl.engines.openrlhf.rollout import AgentRollout  # noqa: E402

SHARED = 0.2  # of a GPU, for each of several processes on it
PLACE_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 10.0


def start_ray(config: RunConfig, *, cpu: bool) -> bool:
    """Join the configured cluster or start a local one on the loopback device; whether one was started.

    Raises ConfigError where it is too small and RunError where it cannot be joined.
    """
    c = config.openrlhf
    environment = worker_environment(os.environ, cpu=cpu, own=cpu_shim.set_here)
    address = preflight.cluster_address(config)
    common: dict[str, Any] = {
        "runtime_env": {"env_vars": environment},
        "log_to_driver": bool(os.environ.get("AGENTRL_DEBUG")),
        "logging_level": logging.ERROR,
        "ignore_reinit_error": True,
    }
    started = address is None and not ray.is_initialized()
    if address is not None and not ray.is_initialized():
        _answers_as_ray(address)
    try:
        if started:
            memory = None if c.object_store_gb is None else int(c.object_store_gb * 1e9)
            os.environ.update(cpu_shim.ENVIRONMENT if cpu else {})  # Ray's own processes inherit it
            ray.init(
                num_cpus=max(os.cpu_count() or 1, 2 * c.gpus + 2),
                num_gpus=c.gpus if cpu else None,
                object_store_memory=memory,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                **common,
            )
        elif not ray.is_initialized():
            ray.init(address=address, **common)
    except Exception as error:  # Ray raises a plain Exception where its processes do not come up in time
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = "a local Ray cannot be started" if started else f"the Ray cluster at {address!r} cannot be joined"
        raise RunError(
            f"{where}: {why} A machine that does much else may be too slow for it (Ray waits 30 s): try again, or "
            "start a head once with `ray start --head` and set openrlhf.ray_address"
        ) from error
    problems = preflight.resources(config, ray.cluster_resources())
    if problems:
        if started:
            ray.shutdown()
        raise ConfigError(problems)
    return started


def _answers_as_ray(address: str) -> None:
    """RunError where something else listens there: Ray itself would try for minutes, then end this process."""
    if ":" not in address or os.environ.get("RAY_USE_TLS", "0") != "0":  # "auto": Ray looks on this machine
        return
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:  # as Ray's own
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            check(b"", timeout=ANSWER_TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise RunError(
                    f"{address} does not answer as a Ray cluster within {ANSWER_TIMEOUT_S:g} s ({error.code().name}): "
                    "openrlhf.ray_address or RAY_ADDRESS is that of another server, or its head has died; "
                    "`ray start --head` prints the right one"
                ) from error


class Cluster:
    """The actors of one run."""

    def __init__(self, config: RunConfig, *, cpu: bool, model_path: str, reference_path: str, positions: int) -> None:
        self.config, self.cpu, self.model_path, self.reference_path = config, cpu, model_path, reference_path
        c = config.openrlhf
        self.max_length = min(positions, config.rollout.max_context + PROBE_TOKENS)
        self.arguments = openrlhf_arguments(config, cpu=cpu)
        self.settings = WorkerSettings(
            model=config.model,
            micro_batch_tokens=config.train.micro_batch_tokens,
            packing=c.packing,
            zero_stage=c.zero_stage,
            timeout_s=c.step_timeout_s,
            sharing=c.gpus_per_node if c.adam_offload and "OMP_NUM_THREADS" not in os.environ else None,
        )
        self.groups: list[Any] = []
        self.reference: Any = None
        try:
            self.policy_place = self._reserve(c.workers, "policy workers")
            self.engine_place = (
                self.policy_place if c.colocate else self._reserve(c.engines * c.tensor_parallel, "vLLM")
            )
            shares = c.colocate or keeps_reference(config)
            self.policy = self._group(AgentPolicy, SHARED if shares else 1)
            if keeps_reference(config):
                self.reference = self._group(AgentReference, SHARED)
            self.engines = [self.start_engine(i) for i in range(c.engines)]
        except BaseException:
            self.close()
            raise

    @property
    def workers(self) -> list[Any]:
        """Actor handles of the policy, by rank."""
        return self.policy._actor_handlers

    @property
    def references(self) -> list[Any]:
        """Actor handles of the frozen policy, by rank; empty where there is none."""
        return [] if self.reference is None else self.reference._actor_handlers

    def start_engine(self, index: int) -> Any:
        """A vLLM actor; it loads the model while this returns."""
        c, config = self.config.openrlhf, self.config
        one = c.tensor_parallel == 1
        bundles = None if one else get_bundle_indices(self.engine_place, index, c.tensor_parallel)
        gpus = (SHARED if c.colocate else 1) if one else 0
        arguments: dict[str, Any] = {
            "model": self.model_path,
            "revision": config.model.revision,
            "trust_remote_code": config.model.trust_remote_code,
            "dtype": config.model.dtype,
            "worker_extension_cls": "agentrl.engines.openrlhf.vllm_worker.AgentVLLMWorker",
            "tensor_parallel_size": c.tensor_parallel,
            "distributed_executor_backend": "uni" if one else "ray",
            "seed": config.seed + index,
            "max_model_len": self.max_length,
            "max_num_seqs": c.max_sequences,
            "enable_prefix_caching": c.prefix_caching,
            "enforce_eager": c.enforce_eager or self.cpu,
            "gpu_memory_utilization": min(c.gpu_memory, 0.2) if self.cpu else c.gpu_memory,
            "enable_sleep_mode": c.colocate,
            "logprobs_mode": "processed_logprobs",  # of the distribution sampled from
            "max_logprobs": 1,
            "disable_log_stats": True,
            "full_determinism": False,
            "bundle_indices": bundles,
            "num_gpus": SHARED if c.colocate else 1,
        }
        if config.model.lora is not None:
            arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": vllm_rank(config.model.lora.rank)}
        if self.cpu:  # a prefill in parts with a seed ends vLLM there: a CPU generator has no offset to set back
            arguments["enable_chunked_prefill"] = False
        place = PlacementGroupSchedulingStrategy(
            placement_group=self.engine_place,
            placement_group_capture_child_tasks=True,
            placement_group_bundle_index=bundles[0] if bundles else index,
        )
        options = ray.remote(AgentRollout).options(num_cpus=gpus, num_gpus=gpus, scheduling_strategy=place)
        return options.remote(**arguments)

    def close(self) -> None:
        """Kill the actors and free their places."""
        handles = [*getattr(self, "engines", []), *(h for g in self.groups for h in g._actor_handlers)]
        for handle in handles:
            _quietly(ray.kill, handle)
        for name in ("policy_place", "engine_place"):
            if hasattr(self, name):
                _quietly(remove_placement_group, getattr(self, name))

    def _group(self, actor: type, gpus: float) -> Any:
        c = self.config.openrlhf
        group = RayActorGroup(
            c.nodes, c.gpus_per_node, ray.remote(actor), pg=self.policy_place, num_gpus_per_actor=gpus
        )
        self.groups.append(group)
        return group

    def _reserve(self, bundles: int, what: str) -> Any:
        place = placement_group([{"GPU": 1, "CPU": 1} for _ in range(bundles)], strategy="PACK")
        ready, _ = ray.wait([place.ready()], timeout=PLACE_TIMEOUT_S)
        if not ready:
            _quietly(remove_placement_group, place)
            free = ray.available_resources()
            raise RunError(
                f"Ray has not given {bundles} GPU{'s'[: bundles > 1]} to {what} within {PLACE_TIMEOUT_S:g} s; free "
                f"now: {free.get('GPU', 0):g} GPUs, {free.get('CPU', 0):g} CPUs. Wait for the cluster's other jobs, or "
                "lower openrlhf.gpus_per_node or openrlhf.engines"
            )
        return place


def _quietly(function: Callable[[Any], None], argument: Any) -> None:
    try:
        function(argument)
    except Exception:
        logging.getLogger(__name__).debug("while closing", exc_info=True)
