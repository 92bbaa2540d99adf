"""What all parts of the configuration are made of. No torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from agentrl import plugins

PositiveInt = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """Base of all parts: unknown keys and NaN or infinite numbers are errors; values are checked on assignment, too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


def plugin_name(kind: str) -> AfterValidator:
    """A name of `agentrl.plugins`, for an annotation: ValueError with the nearest one where nothing has this name."""

    def check(name: str) -> str:
        if problem := plugins.problem_with(kind, name):
            raise ValueError(problem)
        return name

    return AfterValidator(check)
