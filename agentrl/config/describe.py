"""What each key of the configuration is: name, values, default, meaning, as the schema has them. No torch."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from agentrl.config.schema import RunConfig
from agentrl.errors import ConfigError, nearest

_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
_NAMES = {"int": "integer", "float": "number", "str": "text", "bool": "true or false", "NoneType": "null", "Any": "any"}


@dataclass(frozen=True)
class Key:
    """A key, or a part that holds keys (`values` is empty there)."""

    name: str  # dotted
    values: str
    default: Any
    meaning: str

    @property
    def is_part(self) -> bool:
        """Whether it holds keys."""
        return not self.values

    @property
    def shown(self) -> str:
        """The default as one would write it in YAML."""
        return self.default if isinstance(self.default, str) and self.default else json.dumps(self.default)


def keys(model: type[BaseModel] = RunConfig, before: str = "") -> Iterator[Key]:
    """All keys and parts, in the schema's order, a part before its keys."""
    for name, field in model.model_fields.items():
        parts = dict(_parts(field.annotation))
        meaning = field.description or ""
        default = None if field.default is PydanticUndefined else field.default
        if not parts:
            yield Key(before + name, _values(field), default, meaning)
        for suffix, part in parts.items():
            doc = " ".join((part.__doc__ or "").split())
            yield Key(before + name + suffix, "", default if default is None else ..., meaning or doc)
            yield from keys(part, f"{before}{name}{suffix}.")


def explain(name: str) -> list[Key]:
    """The key of this dotted name, or the part with its keys. ConfigError, with the nearest name, for another."""
    every = list(keys())
    found = [k for k in every if k.name == name or k.name.startswith(f"{name}.")]
    if found:
        return found
    ends = [k.name for k in every if k.name.rpartition(".")[2] == name]  # somebody types `lr` for optim.lr
    hint = f"; there is {', '.join(ends)}" if ends else nearest(name, [k.name for k in every])
    raise ConfigError([f"{name!r} is no key of the configuration{hint}"])


def _parts(annotation: Any, suffix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """The models that may stand there, by "" or, in a list, by "[]"."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield suffix, annotation
    for one in get_args(annotation):
        yield from _parts(one, "[]" if get_origin(annotation) is list else suffix)


def _values(field: FieldInfo) -> str:
    """What may be written: a type or a choice, and its bounds."""
    bounds = [f"{word} {bound}" for m in field.metadata for short, word in _BOUNDS.items()
              if (bound := getattr(m, short, None)) is not None]  # fmt: skip
    return ", ".join([_type(field.annotation), *bounds])


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return " | ".join(str(v) for v in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(a) for a in inner)
    if origin is list:
        return f"list of {_type(inner[0])}"
    if origin is tuple:
        return f"list of {len(inner)}: {', '.join(map(_type, inner))}"
    if origin is dict:
        return "mapping"
    return _NAMES.get(getattr(annotation, "__name__", str(annotation)), str(annotation))
