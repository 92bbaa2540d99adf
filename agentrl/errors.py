"""The few error types. `AgentRLError` is for people; everything else that propagates is a bug.

A failure of a tool, a network or an environment inside an episode is *data* (see `rollouts.play`): it is recorded on
the trajectory and counted. A `ToolFailure` is how an environment says so.
"""

from __future__ import annotations

from difflib import get_close_matches


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


class DataError(AgentRLError):
    """A dataset or corpus row is malformed; the message names file and line."""


class ModelError(AgentRLError):
    """A model or tokenizer cannot be loaded or cannot do what the config asks of it."""


class AlgorithmError(AgentRLError, ValueError):
    """Arguments of an algorithm make no sense together."""


class RunError(AgentRLError):
    """A run directory is in use, damaged, or cannot be written."""


class NonFiniteError(AgentRLError):
    """Loss or gradient stayed non-finite for several steps; the batches were dumped and training stopped."""

    exit_code = 3


def nearest(value: str, valid: list[str] | tuple[str, ...]) -> str:
    """`; did you mean 'x'?` for the closest valid name, or an empty string."""
    match = get_close_matches(value, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""
