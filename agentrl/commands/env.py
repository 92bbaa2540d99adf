"""`agentrl env list | check | play | serve | tasks`: the environments' own tools."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gymnasium

MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Subcommands and their options."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="what is registered", description="List the registered environments.")
    listing.add_argument("--json", action="store_true", help="print the list as JSON, with parameters")
    check = commands.add_parser(
        "check",
        help="test an environment as rollouts will use it",
        description="Test an environment with ordinary and hostile text. Exit code 1 where something is wrong.",
    )
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    play = commands.add_parser("play", help="be the agent", description="Play an episode: each line is one action.")
    play.add_argument("--seed", type=int, default=None, help="which task the environment chooses")
    play.add_argument("--question", help="ask this instead (with --answer)")
    play.add_argument("--answer", action="append", default=[], help="a correct answer; as often as there are")
    serve = commands.add_parser(
        "serve",
        help="serve an environment as OpenEnv does",
        description="Serve an environment to OpenEnv's clients: one session each, over a WebSocket. A bind to another "
        "address than this machine's own needs a secret in AGENTRL_ENV_TOKEN.",
    )
    serve.add_argument("--tasks", action="append", default=[], metavar="[SPLIT=]DATA", help="the tasks of a split "
                       "(default: train), as data.train of a config; else the environment's own")  # fmt: skip
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    serve.add_argument("--name", help="what clients see (default: the id)")
    serve.add_argument("--sessions", type=int, default=512, help="at most so many at once (default: 512)")
    serve.add_argument("--follow-stdin", action="store_true", help="end when standard input ends")
    tasks = commands.add_parser(
        "tasks",
        help="list the tasks of somebody else's environment",
        description="Print the tasks of an environment that lists its own, as rows for data.train of a config.",
    )
    tasks.add_argument("--split", default="train", help="default: train")
    for p in (check, play, serve, tasks):
        p.add_argument("env", metavar="ENV", help="id such as agentrl/Search-v0, or module:Namespace/Name-v0")
        p.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="constructor argument, for example topk=5"
        )


def run(args: argparse.Namespace) -> int:
    """One of the five."""
    return {"list": _list, "check": _check, "play": _play, "serve": _serve, "tasks": _tasks}[args.what](args)


def _list(args: argparse.Namespace) -> int:
    from agentrl.console import color, print_json
    from agentrl.envs import list_envs

    found = list_envs()
    if args.json:
        print_json([e._asdict() for e in found])
        return 0
    for e in found:
        print(f"{color(e.id, 'bold')}  {e.summary}")
        print(color("    " + ", ".join(f"{k}={_short(v)}" for k, v in e.parameters.items()), "dim"))
    return 0


def _check(args: argparse.Namespace) -> int:
    from agentrl.console import color, print_json
    from agentrl.envs.checker import check

    findings = list(dict.fromkeys(check(args.env, **_values(args.set))))
    errors = sum(f.level == "error" for f in findings)
    if args.json:
        print_json({"ok": not errors, "findings": [f._asdict() for f in findings]})
        return 1 if errors else 0
    for f in findings:
        mark, shade = MARKS[f.level]
        print(f"{color(mark, shade)} {f.check:<16} {f.message}")
        if f.remedy:
            print(f"  {'':16} {color('→ ' + f.remedy, shade)}")
    warnings = sum(f.level == "warning" for f in findings)
    print(f"{args.env}: {errors} errors, {warnings} warnings")
    return 1 if errors else 0


def _play(args: argparse.Namespace) -> int:
    from agentrl.envs.play import play
    from agentrl.errors import AgentRLError, ConfigError

    if bool(args.question) != bool(args.answer):
        raise ConfigError(["--question and --answer belong together: the reward needs both"])
    task = {"id": "yours", "question": args.question, "golden_answers": args.answer} if args.question else None
    env = _make(args.env, _values(args.set))
    try:
        play(env, options=task, seed=args.seed)
    except ValueError as error:  # no task, or a search in an environment that was made without a retriever
        raise AgentRLError(f"{args.env}: {error}") from error
    finally:
        env.close()
    return 0


def _serve(args: argparse.Namespace) -> int:
    from functools import partial

    from agentrl.envs import list_envs
    from agentrl.envs.others.serving import Service, serve

    known = {e.id: e for e in list_envs()}
    about = known[args.env].summary if args.env in known else args.env
    name = args.name or args.env.rpartition("/")[2]
    service = Service(name, about, _splits(args.tasks), args.host, args.port, args.sessions, args.follow_stdin)
    serve(partial(_make, args.env, _values(args.set)), service, say=partial(print, flush=True))
    return 0


def _splits(given: list[str]) -> dict[str, list[dict[str, Any]]]:
    """SPLIT=DATA or DATA, which is of the split train."""
    from agentrl.config import DataConfig
    from agentrl.data.tasks import load_tasks

    splits: dict[str, list[dict[str, Any]]] = {}
    for one in given:
        split, equals, data = one.partition("=")
        if not (equals and split.isidentifier()):
            split, data = "train", one
        splits[split] = [t.options for t in load_tasks(DataConfig(train=data), "train")]
    return splits


def _tasks(args: argparse.Namespace) -> int:
    import json

    from agentrl.envs.errors import ToolFailure
    from agentrl.errors import AgentRLError

    env = _make(args.env, _values(args.set))
    try:
        listed = getattr(env.unwrapped, "tasks", None)
        if not callable(listed):
            raise AgentRLError(f"{args.env} lists no tasks of its own; its tasks are the rows of data.train")
        for row in listed(args.split):
            print(json.dumps(row, ensure_ascii=False))
    except ToolFailure as error:
        raise AgentRLError(f"{args.env}: {error}") from error
    finally:
        env.close()
    return 0


def _make(env_id: str, values: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    import gymnasium

    from agentrl.envs import list_envs
    from agentrl.errors import AgentRLError, missing_package, nearest

    known = {e.id: e for e in list_envs()}
    try:
        return gymnasium.make(env_id, disable_env_checker=True, **values)
    except (gymnasium.error.UnregisteredEnv, ModuleNotFoundError) as error:
        if missing := missing_package(env_id, error):
            raise missing from error
        hint = nearest(env_id, list(known)) or f"; there are {', '.join(known)}"
        raise AgentRLError(f"there is no environment {env_id!r} ({error}){hint}") from error
    except (TypeError, ValueError) as error:  # arguments that its constructor does not take
        takes = f"; it takes {', '.join(known[env_id].parameters)}" if env_id in known else ""
        raise AgentRLError(f"{env_id} cannot be made: {error}{takes}") from error


def _values(pairs: list[str]) -> dict[str, Any]:
    """KEY=VALUE pairs, values read as YAML: topk=5, render_mode=ansi."""
    import yaml

    from agentrl.errors import ConfigError

    out = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError([f"--set {pair}: expected KEY=VALUE, for example topk=5"])
        try:
            out[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError([f"--set {pair}: {value!r} is not YAML ({str(error).splitlines()[0]})"]) from error
    return out


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
