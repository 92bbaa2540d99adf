"""`agentrl env list | check | play`: the environments' own tools."""

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
    for p in (check, play):
        p.add_argument("env", metavar="ENV", help="id such as agentrl/Search-v0, or module:Namespace/Name-v0")
        p.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="constructor argument, for example topk=5"
        )


def run(args: argparse.Namespace) -> int:
    """One of the three."""
    return {"list": _list, "check": _check, "play": _play}[args.what](args)


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
