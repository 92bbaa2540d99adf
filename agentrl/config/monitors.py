"""The monitors' part of the configuration. No torch."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from agentrl import plugins
from agentrl.config.base import Part
from agentrl.errors import AgentRLError
from agentrl.monitors.thresholds import Thresholds


class MonitorsConfig(Part):
    """What the monitors judge by (docs/alarms.md)."""

    thresholds: dict[str, Any] = Field(
        {}, description="thresholds by name, for example clip_share: 0.05; docs/alarms.md lists them"
    )
    rules: list[str] = Field([], description="further monitor rules: installed plug-ins, or module:attribute")

    @field_validator("thresholds")
    @classmethod
    def _known(cls, values: dict[str, Any]) -> dict[str, Any]:
        try:
            Thresholds().changed(values)
        except AgentRLError as error:
            raise ValueError(str(error)) from None
        return values

    @field_validator("rules")
    @classmethod
    def _rules(cls, names: list[str]) -> list[str]:
        built_in = plugins.BUILTIN["monitor rule"]
        problems = [plugins.problem_with("monitor rule", n) for n in names if n not in built_in]
        problems += [f"monitor rule {n!r} is built in and runs always: drop it" for n in names if n in built_in]
        if found := [p for p in problems if p]:
            raise ValueError("\n".join(found))
        return names

    def limits(self) -> Thresholds:
        """The whole tree of thresholds."""
        return Thresholds().changed(self.thresholds)
