"""`agentrl env list | check | play | new | serve | tasks`: the environments' own tools."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gymnasium

    from agentrl.envs.checker import Finding

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
    new = commands.add_parser(
        "new",
        help="a package of your own",
        description="Write a small package with an environment, a reward, questions, a config and a test; it trains.",
    )
    new.add_argument("name", metavar="NAME", help="of the package: lower-case letters and _, for example my_env")
    new.add_argument("--out", metavar="FOLDER", help="where it is written (default: ./NAME)")
    for p in (check, play, serve, tasks):
        what = "id such as agentrl/Search-v0, or module:Namespace/Name-v0"
        what += "; or a config, all of whose environments are tested" if p is check else ""
        p.add_argument("env", metavar="ENV", help=what)
        p.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="constructor argument, for example topk=5"
        )


def run(args: argparse.Namespace) -> int:
    """One of the six."""
    run_of = {"list": _list, "check": _check, "play": _play, "new": _new, "serve": _serve, "tasks": _tasks}
    return run_of[args.what](args)


def _list(args: argparse.Namespace) -> int:
    from agentrl.console import color, print_json
    from agentrl.envs import list_envs

    found = list_envs()
    if args.json:
        print_json([e._asdict() for e in found])
        return 0
    for e in found:
        print(f"{color(e.id, 'bold')}  {e.summary} {color('(' + e.origin + ')', 'dim')}")
        print(color("    " + ", ".join(f"{k}={_short(v)}" for k, v in e.parameters.items()), "dim"))
    return 0


def _check(args: argparse.Namespace) -> int:
    from agentrl.console import print_json

    found = _checked(args)
    errors = sum(f.level == "error" for findings in found.values() for f in findings)
    if args.json:
        rows = [f._asdict() | ({"environment": name} if name else {}) for name, fs in found.items() for f in fs]
        print_json({"ok": not errors, "findings": rows})
        return 1 if errors else 0
    for name, findings in found.items():
        _print_findings(f"{args.env}, {name}" if name else args.env, findings)
    return 1 if errors else 0


def _checked(args: argparse.Namespace) -> dict[str, list[Finding]]:
    """The findings of an environment, or by name those of each environment of a config."""
    from agentrl.envs.checker import check, check_env

    if not _is_config(args.env):
        return {"": list(dict.fromkeys(check(args.env, **_values(args.set))))}
    from tempfile import TemporaryDirectory

    from agentrl.config.files import load_config
    from agentrl.errors import need

    need("checking the environments of a config", "torch", "transformers")
    from agentrl.train.build import about, build_world, environment_maker

    config = load_config(args.env, args.set).config
    out = {}
    with TemporaryDirectory(prefix="agentrl-env-check-") as folder:
        for name, one in config.alone().items():
            with about(name):
                make = environment_maker(one, build_world(one), Path(folder) / name, lambda line: None)
                out[name] = list(dict.fromkeys(check_env(make)))
    return out


def _is_config(name: str) -> bool:
    """Whether a file or a shipped config is named, and no environment."""
    from agentrl.config.files import shipped_configs

    return name.endswith((".yaml", ".yml")) or name in shipped_configs()


def _print_findings(what: str, findings: list[Finding]) -> None:
    from agentrl.console import color

    for f in findings:
        mark, shade = MARKS[f.level]
        print(f"{color(mark, shade)} {f.check:<16} {f.message}")
        if f.remedy:
            print(f"  {'':16} {color('→ ' + f.remedy, shade)}")
    levels = [f.level for f in findings]
    print(f"{what}: {levels.count('error')} errors, {levels.count('warning')} warnings")


def _new(args: argparse.Namespace) -> int:
    from agentrl.commands.env_new import write_package

    folder = Path(args.out or args.name).expanduser()
    for path in write_package(args.name, folder):
        print(path)
    print(f"next: cd {folder} && pip install -e . && agentrl train train.yaml")
    return 0


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
    from agentrl.envs import NotRegistered, list_envs, made_or_told
    from agentrl.errors import AgentRLError

    known = {e.id: e for e in list_envs()}
    try:
        return made_or_told(env_id, values)
    except NotRegistered as error:
        raise AgentRLError(str(error)) from error
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
