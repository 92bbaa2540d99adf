"""One way to name what can be replaced: `find(kind, name)`.

A name is looked up in the built-in table, then taken as `package.module:attribute`, then looked for among the entry
points of installed packages, in the group `agentrl.<kind>` (with underscores: `agentrl.log_source`). Nothing is
imported before it is asked for. Standard library only: everything may import this module, it imports `errors` alone.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any

from agentrl.errors import PluginError, missing_package, nearest

OWN = "built in"  # the origin of what agentrl ships

#: kind -> name -> "module:attribute" of what agentrl ships. docs/extending.md says what each kind is.
BUILTIN: dict[str, dict[str, str]] = {
    "advantage": {
        name: f"agentrl.config.advantages:{name.upper()}"
        for name in (
            "grpo", "pos_only", "rloo", "skew_r", "rloo_k", "grpo_tilde_k", "grpo_k", "dr_grpo", "reinforce",
        )
    },
    "loss": {"clipped": "agentrl.algorithms.losses:clipped"},
    "token weight": {"nthr": "agentrl.algorithms.weights:nthr"},
    "environment": {
        "agentrl/Search-v0": "agentrl.envs.search:SearchEnv",
        "agentrl/Math-v0": "agentrl.envs.math:MathEnv",
        "agentrl/Tools-v0": "agentrl.envs.tags:TagEnv",
        "agentrl/SearchTools-v0": "agentrl.envs.search_tools:SearchToolsEnv",
        "agentrl/ToolCalls-v0": "agentrl.envs.tools:ToolEnv",
        "agentrl/Calculator-v0": "agentrl.envs.calculator:CalculatorEnv",
        "agentrl/Mcp-v0": "agentrl.envs.mcp:McpEnv",
        "agentrl/SkyRLGym-v0": "agentrl.envs.others.env:SkyRLGymEnv",
        "agentrl/Gem-v0": "agentrl.envs.others.env:GemEnv",
        "agentrl/Verifiers-v0": "agentrl.envs.others.env:VerifiersEnv",
        "agentrl/OpenEnv-v0": "agentrl.envs.others.openenv:OpenEnvEnv",
        "agentrl/Trl-v0": "agentrl.envs.others.trl:TrlEnv",
    },
    "reward": {
        "exact_match": "agentrl.envs.scoring:exact_match",
        "f1": "agentrl.envs.scoring:f1",
        "equal": "agentrl.envs.scoring:equal",
        "gold_recall": "agentrl.envs.evidence:gold_recall",
        "supported_match": "agentrl.envs.evidence:supported_match",
        "repeated_queries": "agentrl.envs.evidence:repeated_queries",
        "llm_judge": "agentrl.envs.judge:LLMJudge",
    },
    "call format": {
        "hermes": "agentrl.envs.calls.hermes:Hermes",
        "llama": "agentrl.envs.calls.llama:Llama",
        "mistral": "agentrl.envs.calls.mistral:Mistral",
        "json": "agentrl.envs.calls.plain:PlainJson",
        "xml": "agentrl.envs.calls.xml:Xml",
    },
    "tool": {"calculator": "agentrl.envs.calculator:calculate", "python": "agentrl.envs.sandbox:Python"},
    "index": {
        "bm25": "agentrl.retriever.bm25:Bm25Index",
        "flat": "agentrl.retriever.indexes.flat:FlatIndex",
        "pq": "agentrl.retriever.indexes.pq:PqIndex",
        "hnsw": "agentrl.retriever.indexes.hnsw:HnswIndex",
        "ivf-pq": "agentrl.retriever.indexes.ivf_pq:IvfPqIndex",
        "hybrid": "agentrl.retriever.indexes.hybrid:HybridIndex",
        "qdrant": "agentrl.retriever.indexes.qdrant:QdrantIndex",
        "faiss-file": "agentrl.retriever.indexes.faiss_file:FaissFileIndex",
    },
    "encoder": {
        "onnx": "agentrl.retriever.encoders.onnx_runtime:OnnxEncoder",
        "torch": "agentrl.retriever.encoders.torch_runtime:TorchEncoder",
    },
    "dialect": {
        "search-r1": "agentrl.retriever.dialects.search_r1:SearchR1",
        "rllm": "agentrl.retriever.dialects.rllm:Rllm",
        "gem": "agentrl.retriever.dialects.gem:Gem",
    },
    "log source": {
        "tensorboard": "agentrl.monitors.sources.tensorboard:TensorBoard",
        "wandb": "agentrl.monitors.sources.wandb:Wandb",
        "mlflow": "agentrl.monitors.sources.mlflow:Mlflow",
        "trackio": "agentrl.monitors.sources.trackio:Trackio",
        "parquet": "agentrl.monitors.sources.parquet:Parquet",
        "verl": "agentrl.monitors.sources.verl:Verl",
        "prime_rl": "agentrl.monitors.sources.prime_rl:PrimeRL",
        "nemo_rl": "agentrl.monitors.sources.nemo_rl:NemoRL",
        "areal": "agentrl.monitors.sources.areal:Areal",
        "csv": "agentrl.monitors.sources.table:Csv",
        "csv_folder": "agentrl.monitors.sources.table:CsvFolder",
        "json": "agentrl.monitors.sources.document:Document",
        "jsonl": "agentrl.monitors.sources.jsonl:JsonLines",
        "dicts": "agentrl.monitors.sources.dicts:Dicts",
    },
    "rollout source": {
        "verl": "agentrl.runs.others.verl:Verl",
        "trl": "agentrl.runs.others.trl:Trl",
        "prime_rl": "agentrl.runs.others.prime_rl:TokenExport",
        "verifiers": "agentrl.runs.others.verifiers:Verifiers",
        "slime": "agentrl.runs.others.slime:Slime",
    },
    "monitor rule": {
        "collapse": "agentrl.monitors.collapse:Collapse",
        "death_spiral": "agentrl.monitors.health:DeathSpiral",
        "non_finite": "agentrl.monitors.health:NonFinite",
        "entropy_collapse": "agentrl.monitors.health:EntropyCollapse",
        "reward_hacking": "agentrl.monitors.health:RewardHacking",
        "mismatch": "agentrl.monitors.health:Mismatch",
        "tool_outage": "agentrl.monitors.health:ToolOutage",
        "invalid_actions": "agentrl.monitors.health:InvalidActions",
        "truncation": "agentrl.monitors.health:Truncation",
        "gradient_spike": "agentrl.monitors.health:GradientSpike",
        "no_signal": "agentrl.monitors.health:NoSignal",
        "validation": "agentrl.monitors.health:Validation",
        "source_lost": "agentrl.monitors.heldout:SourceLost",
        "template_collapse": "agentrl.monitors.diversity:TemplateCollapse",
        "same_responses": "agentrl.monitors.diversity:SameResponses",
        "control_tokens": "agentrl.monitors.diversity:ControlTokens",
        "cut_from_start": "agentrl.monitors.starts:cut_from_start",
        "equal_from_start": "agentrl.monitors.starts:equal_from_start",
        "no_reward": "agentrl.monitors.starts:no_reward",
        "no_answer": "agentrl.monitors.starts:no_answer",
        "no_valid_action": "agentrl.monitors.starts:no_valid_action",
        "no_entropy": "agentrl.monitors.starts:no_entropy",
        "no_gradient": "agentrl.monitors.starts:no_gradient",
        "no_learning_rate": "agentrl.monitors.starts:no_learning_rate",
    },
    "sink": {
        "console": "agentrl.monitors.sinks:to_console",
        "file": "agentrl.monitors.sinks:to_file",
        "webhook": "agentrl.monitors.sinks:to_webhook",
        "wandb": "agentrl.monitors.sinks:to_wandb",
        "trackio": "agentrl.monitors.sinks:to_trackio",
    },
    "tracker": {
        "tensorboard": "agentrl.train.trackers:TensorBoardWriter",
        "wandb": "agentrl.train.trackers:WandbWriter",
    },
    "engine": {
        "local": "agentrl.engines.local.kind:ENGINE",
        "openrlhf": "agentrl.engines.openrlhf.kind:ENGINE",
    },
    "world": {
        "search": "agentrl.envs.worlds.search:SearchWorld",
        "search_tools": "agentrl.envs.worlds.search_tools:SearchToolsWorld",
        "arithmetic": "agentrl.envs.worlds.arithmetic:ArithmeticWorld",
        "geography": "agentrl.envs.worlds.geography:GeographyWorld",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Plugin:
    """One name of a kind. `origin` is "built in", or the distribution that brings it."""

    kind: str
    name: str
    target: str  # module:attribute
    origin: str


def group(kind: str) -> str:
    """The entry-point group of a kind."""
    return f"agentrl.{kind.replace(' ', '_')}"


def find(kind: str, name: str) -> Any:
    """The object that `name` stands for. PluginError, with the nearest valid name, where there is none."""
    target = target_of(kind, name)
    try:
        return load(target)
    except PluginError as error:
        raise PluginError(f"{kind} {name!r}: {error}") from error.__cause__


def target_of(kind: str, name: str) -> str:
    """The `module:attribute` that `name` stands for; imports nothing. PluginError where there is none."""
    if problem := problem_with(kind, name):
        raise PluginError(problem)
    target = BUILTIN[kind].get(name)
    if target is None:
        target = name if ":" in name and name not in _installed(kind) else _installed(kind)[name].target
    return target


def load(target: str) -> Any:
    """The object at `module:attribute`. PluginError where it cannot be imported."""
    module, _, attribute = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        if missing := missing_package(target, error):
            raise missing from error
        raise PluginError(f"{target} cannot be imported: {error}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            valid = [n for n in dir(found) if not n.startswith("_")]
            raise PluginError(f"{module} has no {attribute!r}{nearest(part, valid)}")
        found = getattr(found, part)
    return found


def problem_with(kind: str, name: str) -> str | None:
    """Why `find` could not even look for `name`, or None; imports nothing."""
    if name in BUILTIN[kind] or name in _installed(kind):
        return None
    module, colon, attribute = name.partition(":")
    if colon and all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        return None
    hint = unknown(name, [p.name for p in available(kind)])
    return f"there is no {kind} {name!r}{hint} (module:attribute names one of your own)"


def unknown(name: str, valid: list[str]) -> str:
    """The end of a sentence about a name that does not exist: the nearest valid one, or all, or nothing."""
    return nearest(name, valid) or (f"; there are {', '.join(valid)}" if valid else "")


def available(kind: str) -> list[Plugin]:
    """All names of a kind: the built-in ones, then those of installed packages."""
    own = [Plugin(kind, name, target, OWN) for name, target in BUILTIN[kind].items()]
    return own + [p for name, p in _installed(kind).items() if name not in BUILTIN[kind]]


def hidden(kind: str) -> list[Plugin]:
    """Installed plug-ins that are never used, because a built-in one has their name."""
    return [p for name, p in _installed(kind).items() if name in BUILTIN[kind]]


def forget_installed() -> None:
    """Look at the installed packages again; for a process in which one was installed."""
    _installed.cache_clear()


@cache
def _installed(kind: str) -> dict[str, Plugin]:
    from importlib import metadata  # a fifth of the time in which a command starts; most need what is built in alone

    found = sorted(metadata.entry_points(group=group(kind)), key=lambda e: e.name)
    return {e.name: Plugin(kind, e.name, e.value, e.dist.name if e.dist else "?") for e in found}
