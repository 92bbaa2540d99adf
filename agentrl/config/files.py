"""Config files: YAML in, a checked `RunConfig` out, and where each value came from. No torch.

A file may begin with `extends: OTHER`, a shipped config's name or a path beside it; its keys then replace the other's.
`--set a.b=c` comes last. Mappings are merged key by key, `env.kwargs` included; null empties one. All problems are
reported at once, each with file, line, dotted key and remedy.
"""

from __future__ import annotations

import hashlib
import json
import re
import sysconfig
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from agentrl.config import RunConfig
from agentrl.errors import ConfigError, nearest

DEFAULT = "default"
Key = tuple[str, ...]


@dataclass(frozen=True)
class LoadedConfig:
    """A checked config. `origins` maps each dotted key to `file:line`, `--set` or `default`."""

    config: RunConfig
    origins: dict[str, str]
    path: Path | None = None


class _Entries(dict[str, Any]):
    """A list of parts, as a mapping of "0", "1", ... so that `--set env.1.weight=2` finds one."""


@dataclass
class _Tree:
    """Values as nested dictionaries, and where each key was written."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def put(self, key: Key, value: Any, origin: str) -> None:
        """Set one value. A mapping is merged into the one that is there, key by key; anything else replaces it."""
        at = self.values
        for i, part in enumerate(key[:-1]):
            below = at.get(part)
            if not isinstance(below, dict) or (isinstance(below, _Entries) and not key[i + 1].isdigit()):
                self._forget(key[: i + 1])
                below = at[part] = {}
            at = below
        if value is None and _holds_own_keys(key):
            value = {}
            self._forget(key)
            at[key[-1]] = value
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            if not isinstance(at.get(key[-1]), dict) or isinstance(at[key[-1]], _Entries):
                self._forget(key)
                at[key[-1]] = {}
            if not value:
                self.origins.setdefault(key, origin)
            for name, inner in value.items():
                self.put((*key, name), inner, origin)
            return
        self._forget(key)
        at[key[-1]] = value
        self.origins[key] = origin

    def put_list(self, key: Key, origin: str) -> None:
        """An empty list of parts, whose entries are then put one key at a time, as `(*key, "0", ...)`."""
        self.put(key, None, origin)
        at = self.values
        for part in key[:-1]:
            at = at[part]
        at[key[-1]] = _Entries()

    def finish(self) -> dict[str, Any]:
        """The values as the schema reads them: entries are lists again."""
        env = self.values.get("env")
        if not isinstance(env, _Entries):
            return self.values
        n = sum(1 for _ in takewhile(lambda k: str(k) in env, count()))
        for name in env:
            if int(name) >= n:
                self.problems.append(f"--set env.{name}: there is no such entry; there are {n}, from 0 to {n - 1}")
        return self.values | {"env": [env[str(k)] for k in range(n)]}

    def _forget(self, key: Key) -> None:
        """What was written at `key` and below it is no longer there, and neither is where it was written."""
        self.origins = {k: o for k, o in self.origins.items() if k[: len(key)] != key}


# ------------------------------------------------------------------------------------------------------------- loading


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read a file, or a shipped config by name (`search_tiny`), apply `a.b=c` overrides, and check.

    Raises ConfigError with every problem found.
    """
    path = find_config(source)
    tree = _Tree()
    _read(path, tree, ())
    for text in overrides:
        _override(tree, text)
    tree.values.setdefault("name", path.stem)
    try:
        config = RunConfig.model_validate(tree.finish())
    except ValidationError as error:
        raise ConfigError(tree.problems + _explain(error, tree, path)) from None
    if tree.problems:
        raise ConfigError(tree.problems)
    return LoadedConfig(config, _origins(config, tree), path)


def shipped_configs() -> dict[str, Path]:
    """Name to path of the configs that come with the package."""
    beside = Path(__file__).resolve().parents[2] / "configs"
    installed = Path(sysconfig.get_path("data")) / "share" / "agentrl" / "configs"
    folder = beside if beside.is_dir() else installed
    return {p.stem: p for p in sorted(folder.glob("*.yaml"))}


def find_config(source: str | Path) -> Path:
    """The file that `source` names; ConfigError with the nearest shipped name otherwise."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir() and (path / "config.yaml").is_file():
        return path / "config.yaml"
    shipped = shipped_configs()
    if str(source) in shipped:
        return shipped[str(source)]
    stem = path.stem if path.suffix in (".yaml", ".yml") else str(source)
    hint = nearest(stem, list(shipped)) or f"; shipped are {', '.join(shipped)}"
    raise ConfigError([f"config {str(source)!r} is neither a file nor a shipped config{hint}"])


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-6 as text; people mean a number."""


class _Dumper(yaml.SafeDumper):
    """Puts quotes around texts that `_Loader` would read as numbers."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Unicode's own line breaks come back as a plain one unless they are escaped, which only double quotes can do."""
    style = '"' if any(c in text for c in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _read(path: Path, tree: _Tree, seen: tuple[Path, ...]) -> None:
    if path.resolve() in seen:
        raise ConfigError([f"{path}: extends leads back to itself; remove one of the extends lines"])
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path} cannot be read: {error}"]) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"{path} is not YAML: {' '.join(str(error).split())}"]) from None
    if node is None:
        return
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError([f"{path}:{node.start_mark.line + 1}: a config is a mapping of keys to values"])
    for name, value in node.value:
        if name.value == "extends":
            if not isinstance(value, yaml.ScalarNode) or not str(value.value).strip():
                line = value.start_mark.line + 1
                raise ConfigError(
                    [
                        f"{path}:{line}: extends takes one name or path, not {_kind(value)}; "
                        "let the other file extend the next"
                    ]
                )
            beside = path.parent / str(value.value)
            _read(beside if beside.is_file() else find_config(str(value.value)), tree, (*seen, path.resolve()))
    _walk(node, (), tree, path)


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "a mapping" if isinstance(node, yaml.MappingNode) else "nothing"


def _walk(node: yaml.MappingNode, prefix: Key, tree: _Tree, path: Path) -> None:
    lines: dict[str, int] = {}
    for name_node, value_node in node.value:
        name, line = str(name_node.value), name_node.start_mark.line + 1
        key = (*prefix, name)
        if name in lines:
            tree.problems.append(
                f"{path}:{line}: {'.'.join(key)} is written twice (first in line {lines[name]}); keep one"
            )
            continue
        lines[name] = line
        if key == ("extends",):
            continue
        if isinstance(value_node, yaml.MappingNode) and not _is_free(key):
            if not value_node.value:
                tree.put(key, {}, f"{path}:{line}")
            _walk(value_node, key, tree, path)
        elif _is_list_of_parts(value_node, key):
            tree.put_list(key, f"{path}:{line}")
            for i, entry in enumerate(value_node.value):
                tree.put((*key, str(i)), {}, f"{path}:{entry.start_mark.line + 1}")
                _walk(entry, (*key, str(i)), tree, path)
        else:
            loader = _Loader("")
            try:
                value = loader.construct_document(value_node)
            except yaml.YAMLError as error:
                tree.problems.append(f"{path}:{line}: {'.'.join(key)}: {' '.join(str(error).split())}")
                continue
            if _holds_itself(value):
                tree.problems.append(f"{path}:{line}: {'.'.join(key)} holds itself (a YAML anchor): write it out")
                continue
            tree.put(key, value, f"{path}:{line}")


def _is_list_of_parts(node: yaml.Node, key: Key) -> bool:
    """Whether `node` is a list of mappings where the schema may have a list of parts (env)."""
    if not isinstance(node, yaml.SequenceNode) or not all(isinstance(n, yaml.MappingNode) for n in node.value):
        return False
    return bool(node.value) and _schema_at((*key, "0")) is not None


def _override(tree: _Tree, text: str) -> None:
    name, equals, raw = text.partition("=")
    if not equals or not name.strip():
        tree.problems.append(f"--set {text!r} has no '='; write --set optim.lr=3e-4")
        return
    try:
        value = yaml.load(raw, _Loader) if raw.strip() else None
    except yaml.YAMLError as error:
        tree.problems.append(f"--set {text!r}: the value is not YAML ({' '.join(str(error).split())})")
        return
    if _holds_itself(value):
        tree.problems.append(f"--set {text!r}: the value holds itself (a YAML anchor): write it out")
        return
    tree.put(tuple(name.strip().split(".")), value, "--set")


def _holds_itself(value: Any, above: tuple[int, ...] = ()) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return id(value) in above or any(_holds_itself(v, (*above, id(value))) for v in inner)


# -------------------------------------------------------------------------------------------------- the schema's tree


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The part that an annotation like `LoraConfig | None` allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in typing.get_args(annotation):
        if (found := _model_of(inner)) is not None:
            return found
    return None


def _schema_at(key: Key) -> type[BaseModel] | None:
    """The part of the schema whose fields are `key`'s children; None where `key` is a value."""
    model: type[BaseModel] | None = RunConfig
    entry: type[BaseModel] | None = None  # what a list at this place holds
    for part in key:
        if entry is not None and part.isdigit():
            model, entry = entry, None
            continue
        info = model.model_fields.get(part) if model is not None else None
        model = _model_of(info.annotation) if info is not None else None
        entry = _entry_of(info.annotation) if info is not None else None
    return model


def _entry_of(annotation: Any) -> type[BaseModel] | None:
    """The part that the entries of a list are, where an annotation allows a list of parts."""
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is list:
        return _model_of(inner[0])
    return next((found for one in inner if (found := _entry_of(one)) is not None), None)


def _is_free(key: Key) -> bool:
    """Whether `key` holds a dictionary of the user's own keys (env.kwargs)."""
    parent = _schema_at(key[:-1])
    info = parent.model_fields.get(key[-1]) if parent is not None else None
    return info is not None and _model_of(info.annotation) is None


def _holds_own_keys(key: Key) -> bool:
    """Whether the schema has a mapping at `key` whose keys are the user's (env.kwargs)."""
    parent = _schema_at(key[:-1])
    info = parent.model_fields.get(key[-1]) if parent is not None else None
    return info is not None and typing.get_origin(info.annotation) is dict


def _explain(error: ValidationError, tree: _Tree, path: Path) -> list[str]:
    """One line per wrong key; the alternatives of a union become one line."""
    messages: dict[Key, list[str]] = {}
    for e in error.errors(include_url=False):
        key = _known_part(_without_form(tuple(str(x) for x in e["loc"])))
        for message in _message(e, key):
            if message not in messages.setdefault(key, []):
                messages[key].append(message)
    out = []
    for key, found in messages.items():
        where = _where(key, tree, path)
        name = ".".join(key)
        if len(found) > 1 and not all(":" in m or ";" in m for m in found):
            found = [" or ".join([m.rpartition(", but is ")[0] for m in found[:-1]] + found[-1:])]
        out += [f"{where}: {name}: {m}" if name else f"{_where(_first_word(m), tree, path)}: {m}" for m in found]
    return out


def _first_word(message: str) -> Key:
    """The key that a rule over the whole config speaks of first; none where it begins with another word."""
    key = tuple(message.partition(" ")[0].rstrip(":").split("."))
    return key if key[0] in RunConfig.model_fields else ()


def _without_form(loc: Key) -> Key:
    """`loc` without the form in which env is written."""
    return (*loc[:1], *loc[2:]) if loc[:1] == ("env",) and loc[1:2] in (("mapping",), ("list",)) else loc


def _known_part(loc: Key) -> Key:
    """`loc` up to the key it speaks of; pydantic appends the names of a union's alternatives."""
    for i in range(len(loc)):
        if _schema_at(loc[:i]) is None:
            return loc[:i]
    return loc


def _message(e: ErrorDetails, key: Key) -> list[str]:
    if e["type"] == "extra_forbidden":
        schema = _schema_at(key[:-1])
        valid = list(schema.model_fields) if schema is not None else []
        return [f"no such key{nearest(key[-1], valid) or '; valid here: ' + ', '.join(valid)}"]
    if e["type"] == "value_error":
        return str(e["ctx"]["error"]).split("\n")
    text = e["msg"].replace("Input should be ", "should be ").split(", unable to ")[0]
    return [f"{text}, but is {e['input']!r}"]


def _where(key: Key, tree: _Tree, path: Path) -> str:
    for n in range(len(key), 0, -1):
        below = [o for k, o in tree.origins.items() if k[:n] == key[:n]]
        if below:
            return below[0]
    return str(path)


def _origins(config: RunConfig, tree: _Tree) -> dict[str, str]:
    """Where each value was written; of a mapping of the user's own keys, all the places that its keys come from."""
    out = {}
    for key in _leaves(config):
        below = dict.fromkeys(o for k, o in tree.origins.items() if k[: len(key)] == key)
        out[".".join(key)] = ", ".join(below) or DEFAULT
    return out


def _leaves(part: BaseModel, prefix: Key = ()) -> list[Key]:
    out: list[Key] = []
    for name in type(part).model_fields:
        value, key = getattr(part, name), (*prefix, name)
        if isinstance(value, list) and value and all(isinstance(v, BaseModel) for v in value):
            out += [leaf for i, v in enumerate(value) for leaf in _leaves(v, (*key, str(i)))]
        else:
            out += _leaves(value, key) if isinstance(value, BaseModel) else [key]
    return out


# -------------------------------------------------------------------------------------------------------------- writing


def plain(value: Any) -> Any:
    """Tuples as lists, all the way down: what YAML can hold."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def to_yaml(config: RunConfig) -> str:
    """The whole config as YAML that `load_config` reads back to an equal one."""
    return yaml.dump(plain(config.model_dump()), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def config_hash(config: RunConfig) -> str:
    """SHA-256 of the whole config; the order of keys does not matter."""
    text = json.dumps(_ordered(plain(config.model_dump())), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _ordered(value: Any) -> Any:
    """The same with all keys in order, whatever their types are."""
    if isinstance(value, dict):
        return {k: _ordered(value[k]) for k in sorted(value, key=lambda k: (str(k), type(k).__name__))}
    return [_ordered(v) for v in value] if isinstance(value, list) else value


def value_at(config: RunConfig, dotted: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in dotted.split("."):
        value = value[int(part)] if isinstance(value, list) else getattr(value, part)
    return value
