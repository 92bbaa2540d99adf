"""`agentrl rollouts show RUN`: stored episodes as conversations; `grade` them anew; `export` them as demonstrations."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

_VALUES = {"logprobs": "log π", "advantages": "advantage", "entropy": "entropy", "nthr_scores": "NTHR", "delta_logprobs": "Δ log π"}  # fmt: skip # noqa: E501


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Subcommands and their options."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    show = commands.add_parser("show", help="print episodes", description="Print episodes as conversations.")
    _which(show)
    show.add_argument("--worst", type=int, metavar="K", help="the K episodes with the lowest reward")
    show.add_argument("--best", type=int, metavar="K", help="the K episodes with the highest reward")
    show.add_argument("--group", metavar="ID", help="only the responses to one question")
    show.add_argument(
        "--prompt", metavar="TEXT", help="of one prompt (its id, or a part of the question), of all steps"
    )
    show.add_argument("--search", metavar="TEXT", help="those in which this is said, of all steps")
    show.add_argument("--limit", type=int, default=5, metavar="N", help="print N at most (default: 5; 0: all)")
    show.add_argument(
        "--tokens", action="store_true", help="every sampled token with its log-probability and advantage"
    )
    show.add_argument("--json", action="store_true", help="one JSON object per episode")
    show.set_defaults(do=_show)
    about = "Grade stored episodes again; what they got is kept beside it, and the dashboard shows both."
    grade = commands.add_parser("grade", help="grade episodes again with a reward of your own", description=about)
    _which(grade)
    grade.add_argument(
        "--grader",
        required=True,
        metavar="NAME",
        help="a reward: exact_match, f1, equal, or module:function of (answer, golden answers[, row])",
    )
    grade.set_defaults(do=_grade)
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


def _which(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run directory")
    parser.add_argument(
        "--step", type=int, metavar="N", help="of this step (default: the last one stored; to grade or search: all)"
    )
    parser.add_argument(
        "--eval", action="store_true", help="held-out episodes; --step N: of the evaluation after N steps"
    )


def run(args: argparse.Namespace) -> int:
    """What the subcommand does."""
    do: Callable[[argparse.Namespace], int] = args.do
    return do(args)


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
    from agentrl.console import print_json
    from agentrl.errors import RunError, nearest
    from agentrl.runs.read import read_rollouts

    path, kind, steps = _stored(args)
    if args.prompt is not None or args.search is not None:
        rows, what = _found(args, path, kind, steps)
    else:
        step = steps[-1] if args.step is None else args.step
        rows = read_rollouts(path, step, kind)  # type: ignore[arg-type]
        what = f"evaluation after {step} steps" if args.eval else f"step {step}"
    if args.group is not None:
        groups = sorted({str(r["group_id"]) for r in rows})
        rows = [r for r in rows if str(r["group_id"]) == args.group]
        if not rows:
            raise RunError(f"{what} has no group {args.group!r}{nearest(args.group, groups)}; it has {groups[:8]}")
    shown = _ranked(rows, args.worst, args.best, args.limit)
    if args.json:
        for row in shown:
            print_json(row)
        return 0
    print(f"{path}, {what}: {len(shown)} of {len(rows)} episodes\n")
    for row in shown:
        print(conversation(row, tokens=args.tokens))
    return 0


def _stored(args: argparse.Namespace) -> tuple[Path, str, list[int]]:
    """The run, the kind of its rollouts that is asked for, and the steps that have them. RunError where none has."""
    from agentrl.errors import RunError, command
    from agentrl.runs.read import find_run, rollout_steps

    path, kind = find_run(args.run), "eval" if args.eval else "step"
    steps = rollout_steps(path, kind)  # type: ignore[arg-type]
    if not steps:
        what = "evaluation" if args.eval else "training step"
        raise RunError(
            f"{path} has no stored episodes of any {what} yet; `{command('runs', path.parent)}` shows how far it is"
        )
    return path, kind, steps


def _found(args: argparse.Namespace, path: Path, kind: str, steps: list[int]) -> tuple[list[dict[str, Any]], str]:
    from agentrl.runs.read import search_rollouts

    where = steps if args.step is None else [args.step]
    hits = search_rollouts(path, where, kind, text=args.search or "", prompt=args.prompt)
    rows = [row | {"step": step} for step, row in hits if row is not None]
    return rows, "all stored steps" if args.step is None else f"step {args.step}"


def _ranked(rows: list[dict[str, Any]], worst: int | None, best: int | None, limit: int) -> list[dict[str, Any]]:
    """The first `limit` (0: all), or those with the lowest or the highest reward; an unknown reward comes last."""
    if worst is not None:
        return sorted(rows, key=_badness)[:worst]
    if best is not None:
        return sorted(rows, key=lambda row: (_badness(row)[0], -_badness(row)[1]))[:best]
    return rows[: limit or len(rows)]


def _grade(args: argparse.Namespace) -> int:
    """Exit code 1 where the grader failed on an episode."""
    from agentrl.console import printable
    from agentrl.runs.grade import grade_step

    path, kind, steps = _stored(args)
    failed = 0
    for step in steps if args.step is None else [args.step]:
        told = grade_step(path, step, kind, args.grader)
        failed += told.failed
        print(printable(f"{'evaluation after' if args.eval else 'step'} {step}: {told}"))
    return 1 if failed else 0


def conversation(row: dict[str, Any], *, tokens: bool = False) -> str:
    """One episode for a terminal: the question, the model's turns, and what the tools said, dimmed."""
    from agentrl.console import color, printable

    task = row.get("task") or {}
    if row.get("error"):
        verdict = color(f"failed: {printable(str(row['error']))}", "yellow")
    else:
        said = {True: color("correct", "green"), False: color("wrong", "red"), None: "not judged"}
        verdict = said[None if row.get("correct") is None else bool(row["correct"])]
        reward = row.get("reward")
        verdict += f", reward {reward:g}" if isinstance(reward, int | float) else ""
        verdict += ", truncated" if row.get("truncated") else ""
    verdict += f", step {row['step']}" if "step" in row else ""
    for name, grade in (row.get("grades") or {}).items():
        verdict += f", {printable(name)} {'failed' if grade is None else f'{grade:g}'}"
    lines = [f"{color('── ' + printable(str(row['sample_id'])), 'bold')}  {verdict}"]
    if task.get("question"):
        lines.append(f"{color('question', 'cyan')}  {printable(str(task['question']))}")
    if task.get("golden_answers") is not None:
        lines.append(f"{color('expected', 'cyan')}  {printable(' | '.join(map(str, task['golden_answers'])))}")
    for turn in row["turns"]:
        cut = "  (cut at the token limit)" if turn.get("stop") == "length" else ""
        lines.append(f"{color('   model', 'green')}  {_indented(printable(str(turn['action'] or '').strip()))}{cut}")
        if tokens and turn.get("action_tokens"):
            lines.append(_token_table(turn))
        if (turn["observation"] or "").strip():
            tool = _indented(printable(turn["observation"].strip()))
            lines.append("\n".join(color(line, "dim") for line in f"    tool  {tool}".split("\n")))
    return "\n".join(lines) + "\n"


def _badness(row: dict[str, Any]) -> tuple[bool, float]:
    """Lowest reward first (the advantage, where no reward is stored); failed episodes, which have none, last."""
    reward = row.get("reward") if row.get("reward") is not None else row.get("advantage")
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
