"""What `agentrl eval` is asked to evaluate: runs, models, models behind a server; and what makes two incomparable."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentrl.config import RunConfig

SUITE_CONFIG = "search_r1_grpo_3b"  # environment and limits of the seven sets, for a model that brings no config


@dataclass(frozen=True)
class Target:
    """One run or model to evaluate: its rows in the table are called after `label`."""

    label: str
    config: RunConfig
    model: Path | None  # where it is not the config's
    run: Path | None
    served: str | None = None  # its name at the server of --url; "" is the only one there


def targets_of(args: argparse.Namespace) -> list[Target]:
    """The first with `--checkpoint`, the others with their newest. The same run twice has the step in its name."""
    given = [args.target, *args.beside]
    found = [_found(args, t, args.checkpoint if i == 0 else None) for i, t in enumerate(given)]
    if len(found) == 1:
        return [Target("", *found[0])]
    whole = [Path(t).expanduser().resolve() for t in given]
    names = [Path(t).name for t in given]
    for i, (_, model, *_) in enumerate(found):
        if whole.count(whole[i]) > 1 and model is not None:
            names[i] += f" {model.parent.name}"
    labels = [name if names.count(name) == 1 else given[i] for i, name in enumerate(names)]
    again: Counter[str] = Counter()
    targets = []
    for label, one in zip(labels, found):
        again[label] += 1
        if again[label] == 1:  # exactly the same model twice is one row
            targets.append(Target(label, *one))
    return targets if len(targets) > 1 else [Target("", *found[0])]


Found = tuple["RunConfig", Path | None, Path | None, str | None]


def _found(args: argparse.Namespace, target: str, checkpoint: int | str | None) -> Found:
    """Config, folder of the model where it is not the config's, run directory, name at the server."""
    if args.url and (target == args.target or not Path(target).expanduser().exists()):
        return _served(args, target, checkpoint)
    return (*_what(args, target, checkpoint), None)


def _suite_config() -> str:
    say = f"environment and limits are those of {SUITE_CONFIG}, since no CONFIG is given"
    print(f"{say}; --set retriever.url=... or retriever.index=... says where passages are", file=sys.stderr)
    return SUITE_CONFIG


def _changes(args: argparse.Namespace) -> list[str]:
    whole = ["eval.questions=0"] if args.suite else []  # a suite is played whole unless somebody says otherwise
    asked = [] if args.questions is None else [f"eval.questions={args.questions}"]
    return [*whole, *args.set, *asked]


def _served(args: argparse.Namespace, target: str, checkpoint: int | str | None) -> Found:
    """A model behind --url; of a run directory the environment and limits are taken, and not its weights."""
    from agentrl.config.files import load_config
    from agentrl.errors import RunError

    if checkpoint is not None:
        raise RunError("--checkpoint is for a run's own weights, and --url says that a server has them: leave out one")
    own = Path(target).expanduser() / "config.yaml"
    config = load_config(args.config or (own if own.is_file() else _suite_config()), _changes(args)).config
    return config, None, None, "" if own.is_file() else target


def _what(
    args: argparse.Namespace, target: str, checkpoint: int | str | None
) -> tuple[RunConfig, Path | None, Path | None]:
    """The config, the folder of the model where it is not the config's, and the run directory."""
    from agentrl.config.files import load_config
    from agentrl.data.suites import is_qa7
    from agentrl.errors import RunError, command, nearest
    from agentrl.runs.checkpoint import checkpoint_at, run_of_checkpoint

    path, changes = Path(target).expanduser(), _changes(args)
    inside = run_of_checkpoint(path)
    if inside is not None and checkpoint is None:
        path, checkpoint = inside
    if (path / "config.yaml").is_file():
        config = load_config(args.config or path / "config.yaml", changes).config
        return config, checkpoint_at(path, checkpoint) / "model", path
    if checkpoint is not None:
        raise RunError(f"--checkpoint is for run directories, and {target} is none: it has no config.yaml")
    source = args.config
    if source is None and any(map(is_qa7, args.suite)) and (path.is_dir() or not path.parent.is_dir()):
        source = _suite_config()
    if source is None:
        around = [str(path.parent / p.name) for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise RunError(
            f"{target} is not a run directory{nearest(str(path), around)}; to evaluate a model, say on what: "
            f"{command('eval', target, 'CONFIG')}"
        )
    return load_config(source, [*changes, f"model.path={target}"]).config, None, None


def limits_apart(targets: list[Target]) -> dict[str, list[str]]:
    """Label -> the settings in which a target differs from the first one, so that its figures are of another task."""
    first = limits_of(targets[0].config)
    out = {}
    for target in targets[1:]:
        own = limits_of(target.config)
        keys = [k for k in sorted(first.keys() | own.keys()) if first.get(k) != own.get(k)]
        if keys:
            out[target.label] = [f"{k} {_shown(own.get(k))}, not {_shown(first.get(k))}" for k in keys]
    return out


def _shown(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 40 else text[:39] + "…"


def limits_of(config: RunConfig) -> dict[str, Any]:
    """What decides how hard a question is and what is correct: environment, prompt, limits, grader."""
    skipped = ("prompts_per_step", "group_size", "concurrency", "temperature")
    out = {f"rollout.{k}": v for k, v in config.rollout.model_dump().items() if k not in skipped}
    out["algorithm.correct_threshold"] = config.algorithm.correct_threshold
    if isinstance(config.env, list):
        return out | {"env": [entry.model_dump() for entry in config.env]}
    out |= {f"env.kwargs.{k}": v for k, v in config.env.kwargs.items()} | {"env.id": config.env.id}
    return out | {f"retriever.{k}": getattr(config.retriever, k) for k in ("url", "index")}
