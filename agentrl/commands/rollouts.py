"""`agentrl rollouts show RUN`: stored episodes as conversations. `export RUN OUT`: as demonstrations."""

from __future__ import annotations

import argparse
import math
from typing import Any

_VALUES = {"logprobs": "log π", "advantages": "advantage", "entropy": "entropy", "nthr_scores": "NTHR", "delta_logprobs": "Δ log π"}  # fmt: skip # noqa: E501


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Subcommands and their options."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    show = commands.add_parser("show", help="print episodes", description="Print episodes as conversations.")
    show.add_argument("run", help="a run directory")
    show.add_argument("--step", type=int, metavar="N", help="of this step (default: the last one stored)")
    show.add_argument(
        "--eval", action="store_true", help="held-out episodes; --step N: of the evaluation after N steps"
    )
    show.add_argument("--worst", type=int, metavar="K", help="the K episodes with the lowest reward")
    show.add_argument("--group", metavar="ID", help="only the responses to one question")
    show.add_argument("--limit", type=int, default=5, metavar="N", help="print N at most (default: 5; 0: all)")
    show.add_argument(
        "--tokens", action="store_true", help="every sampled token with its log-probability and advantage"
    )
    show.add_argument("--json", action="store_true", help="one JSON object per episode")
    show.set_defaults(do=_show)
    export = commands.add_parser(
        "export",
        help="write episodes as demonstrations",
        description="Write stored training episodes as JSONL that warm_start.file takes.",
    )
    export.add_argument("run", help="a run directory")
    export.add_argument("out", help="the JSONL file to write; it must not exist")
    export.add_argument("--correct", action="store_true", help="only correct ones (rejection sampling)")
    export.add_argument("--from-step", type=int, default=0, metavar="N", help="of this step and later ones")
    export.add_argument("--per-question", type=int, metavar="K", help="the first K of each question")
    export.set_defaults(do=_export)


def run(args: argparse.Namespace) -> int:
    """Show or export."""
    done: int = args.do(args)
    return done


def _export(args: argparse.Namespace) -> int:
    """One line an episode. Training episodes alone: what is held out is not to be learned from."""
    from collections import Counter
    from pathlib import Path

    from agentrl.errors import ConfigError, RunError
    from agentrl.runs.files import strict_json, writing
    from agentrl.runs.read import find_run, read_rollouts, rollout_steps

    if args.per_question is not None and args.per_question < 1:
        raise ConfigError([f"--per-question {args.per_question}: give 1 or more, or leave it out"])
    path, out = find_run(args.run), Path(args.out).expanduser()
    if out.exists():
        raise RunError(f"{out} is there already, and is not written over: name another file")
    steps = [n for n in rollout_steps(path, "step") if n >= args.from_step]
    if not steps:
        later = f" from step {args.from_step} on" if args.from_step else ""
        raise RunError(f"{path} has no stored training episodes{later}")
    lines, seen, questions = [], 0, Counter[str]()
    for step in steps:
        for row in read_rollouts(path, step, "step"):
            if row.get("error") or not row.get("turns"):
                continue
            seen += 1
            question = str((row.get("task") or {}).get("question"))
            full = args.per_question is not None and questions[question] >= args.per_question
            if (row.get("correct") or not args.correct) and not full:
                questions[question] += 1
                lines.append(strict_json(_demonstration(row)))
    if not lines:
        kind = "correct" if args.correct else "whole"
        raise RunError(f"{path}: of {seen} stored episodes none is {kind}: no file was written")
    with writing(out), out.open("x", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    print(f"{out}: {len(lines)} of {seen} stored episodes, of {len(questions)} questions; warm_start.file takes it")
    return 0


def _demonstration(row: dict[str, Any]) -> dict[str, Any]:
    """A stored episode as a line of demonstrations: its question, and its turns with their exact tokens."""
    names = ("action", "observation", "action_ids", "prompt_ids")
    turns = [{k: turn[k] for k in names if turn.get(k) is not None} for turn in row["turns"]]
    return {**(row.get("task") or {}), "turns": turns, "reward": row.get("reward"), "sample_id": row["sample_id"]}


def _show(args: argparse.Namespace) -> int:
    """Choose and print."""
    from agentrl.console import print_json
    from agentrl.errors import RunError, command, nearest
    from agentrl.runs.read import find_run, read_rollouts, rollout_steps

    path, kind = find_run(args.run), "eval" if args.eval else "step"
    steps = rollout_steps(path, kind)  # type: ignore[arg-type]
    if not steps:
        what = "evaluation" if args.eval else "training step"
        raise RunError(
            f"{path} has no stored episodes of any {what} yet; `{command('runs', path.parent)}` shows how far it is"
        )
    step = steps[-1] if args.step is None else args.step
    rows = read_rollouts(path, step, kind)  # type: ignore[arg-type]
    if args.group is not None:
        groups = sorted({str(r["group_id"]) for r in rows})
        rows = [r for r in rows if str(r["group_id"]) == args.group]
        if not rows:
            raise RunError(f"step {step} has no group {args.group!r}{nearest(args.group, groups)}; it has {groups[:8]}")
    limit = args.limit or len(rows) if args.worst is None else args.worst
    shown = rows[:limit] if args.worst is None else sorted(rows, key=_badness)[:limit]
    if args.json:
        for row in shown:
            print_json(row)
        return 0
    what = f"evaluation after {step} steps" if args.eval else f"step {step}"
    print(f"{path}, {what}: {len(shown)} of {len(rows)} episodes\n")
    for row in shown:
        print(conversation(row, tokens=args.tokens))
    return 0


def conversation(row: dict[str, Any], *, tokens: bool = False) -> str:
    """One episode for a terminal: the question, the model's turns, and what the tools said, dimmed."""
    from agentrl.console import color, printable

    task = row.get("task") or {}
    if row.get("error"):
        verdict = color(f"failed: {printable(str(row['error']))}", "yellow")
    else:
        verdict = color("correct", "green") if row["correct"] else color("wrong", "red")
        verdict += f", reward {row['reward']:g}" + (", truncated" if row.get("truncated") else "")
    lines = [f"{color('── ' + printable(str(row['sample_id'])), 'bold')}  {verdict}"]
    if task.get("question"):
        lines.append(f"{color('question', 'cyan')}  {printable(str(task['question']))}")
    if task.get("golden_answers") is not None:
        lines.append(f"{color('expected', 'cyan')}  {printable(' | '.join(map(str, task['golden_answers'])))}")
    for turn in row["turns"]:
        cut = "  (cut at the token limit)" if turn.get("stop") == "length" else ""
        lines.append(f"{color('   model', 'green')}  {_indented(printable(turn['action'].strip()))}{cut}")
        if tokens and turn.get("action_tokens"):
            lines.append(_token_table(turn))
        if turn["observation"].strip():
            said = _indented(printable(turn["observation"].strip()))
            lines.append("\n".join(color(line, "dim") for line in f"    tool  {said}".split("\n")))
    return "\n".join(lines) + "\n"


def _badness(row: dict[str, Any]) -> tuple[bool, float]:
    """Lowest reward first; failed episodes, which have none, last."""
    reward = row.get("reward")
    known = isinstance(reward, int | float) and math.isfinite(reward) and not row.get("error")
    return (not known, float(reward) if known and reward is not None else 0.0)


def _indented(text: str) -> str:
    return text.replace("\n", "\n" + " " * 10)


def _token_table(turn: dict[str, Any]) -> str:
    from agentrl.console import printable, table

    names = [k for k in _VALUES if turn.get(k)]
    rows = [["token", *(_VALUES[k] for k in names)]]
    for i, token in enumerate(turn["action_tokens"]):
        cells = [turn[k][i] if i < len(turn[k]) else None for k in names]
        token = "<no token>" if token is None else token  # stored by an earlier version
        rows.append([printable(token).replace("\n", "\\n"), *("" if c is None else f"{c:.3f}" for c in cells)])
    return "\n".join(" " * 10 + line for line in table(rows).split("\n"))
