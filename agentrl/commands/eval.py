"""`agentrl eval RUN | MODEL CONFIG`: accuracy on held-out questions, as the papers' tables show it.

One greedy response per question gives the accuracy; `--samples N` adds avg@N and unbiased pass@k of sampled responses.
docs/evaluation.md says how intervals are made and what is compared.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentrl.commands.targets import Target
    from agentrl.config import RunConfig
    from agentrl.rollouts.play import EnvPool
    from agentrl.train.build import Job
    from agentrl.train.statistics import SuiteResult, Table
    from agentrl.types import Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("target", metavar="RUN|MODEL", help="a run directory, or a model's folder or hub id")
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="questions and environment; a run brings its own")
    parser.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="RUN|MODEL",
        help="another one, in rows of its own, as often as wanted; of a run the newest checkpoint",
    )
    parser.add_argument(
        "--checkpoint", type=step_or_best, metavar="STEP|best", help="of the first run (default: the newest)"
    )
    parser.add_argument(
        "--samples", type=int, metavar="N", help="also N sampled responses per question (avg@N, pass@k)"
    )
    parser.add_argument("--temperature", type=float, metavar="T", help="of the sampled ones (default: the config's)")
    parser.add_argument(
        "--questions",
        type=int,
        metavar="N",
        help="per test set, a fixed random subset (default: eval.questions, all of a --suite; 0: all)",
    )
    parser.add_argument(
        "--suite",
        action="append",
        default=[],
        metavar="SOURCE",
        help="another test set, as often as wanted: a file, hub id or recipe:NAME; nthr: the five of the NTHR paper; "
        "qa7, qa7:SOURCE: seven question sets of search agents",
    )
    parser.add_argument(
        "--url", metavar="URL", help="the model is behind this OpenAI-compatible server: RUN|MODEL is its name there"
    )
    parser.add_argument(
        "--key-env", metavar="NAME", help="environment variable with the server's key (default: AGENTRL_API_KEY)"
    )
    parser.add_argument(
        "--request-timeout", type=float, metavar="S", help="seconds of one request to the server (default: 300)"
    )
    parser.add_argument(
        "--tool-messages", action="store_true", help="the server gets observations as tool messages, not as the user's"
    )
    parser.add_argument(
        "--results",
        metavar="FOLDER",
        help="of qa7 and --url: keeps each response, so that the same command goes on "
        "after a kill (default: evaluations in the run, or here)",
    )
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="change one value of the config")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="the last line is the result as JSON")
    shape.add_argument("--markdown", action="store_true", help="print a Markdown table")
    shape.add_argument("--csv", action="store_true", help="print the table of qa7 or --url as CSV")


def step_or_best(text: str) -> int | str:
    """What `--checkpoint` takes."""
    if text == "best":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a step nor best") from None


def run(args: argparse.Namespace) -> int:
    """Evaluate and print the table."""
    from agentrl.commands.targets import limits_apart, targets_of
    from agentrl.data.suites import is_qa7
    from agentrl.train.statistics import differences, make_table, render, to_json

    check_arguments(args)
    targets = targets_of(args)  # mistakes are told before anything is played
    if args.url or any(map(is_qa7, args.suite)):
        from agentrl.commands.suite import run_suite

        return run_suite(args, targets)
    if not args.suite:
        _same_questions(targets)
    marks = limits_apart(targets)
    rows: dict[str, list[SuiteResult]] = {}
    asked: dict[str, tuple[int, int]] = {}
    for target in targets:
        label = f"{target.label}*" if target.label in marks else target.label
        found, sizes = _rows(args, target)
        rows |= {f"{label} {row}".strip(): suites for row, suites in found.items()}
        asked = asked or sizes
    made = make_table(rows)
    first = targets[0].label
    apart = {k: v for kind in ("greedy", "T=") for k, v in _differences(rows, first, kind, differences).items()}
    if args.json:
        from agentrl.console import print_json

        models = {t.label: str(t.model or t.config.model.path) for t in targets}
        which: dict[str, Any] = {"models": models} if len(targets) > 1 else {"model": models[""]}
        if marks:
            which["other_limits"] = marks
        if apart:
            which["differences"] = {k: [vars(c) if c else None for c in cells] for k, cells in apart.items()}
        lost = sorted({name for names in made.lost.values() for name in names})
        print_json(which | {"questions": made.sizes, "lost_questions": lost, "results": to_json(rows)})
        return 0
    style = "markdown" if args.markdown else "text"
    print(render(made.suites, made.cells, made.sizes, style))
    if apart:
        print("\n" + render(made.suites, apart, made.sizes, style, head="difference"))
    print("\n" + "\n".join(_notes(targets, rows, made, asked, marks)))
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """ConfigError where a number cannot be meant."""
    from agentrl.errors import ConfigError

    problems = []
    if args.samples is not None and args.samples < 1:
        problems.append(f"--samples {args.samples}: give the number of responses per question, for example 8")
    if args.questions is not None and args.questions < 0:
        problems.append(f"--questions {args.questions}: give a number of questions, or 0 for all")
    t = args.temperature
    if t is not None and not (math.isfinite(t) and t >= 0):
        problems.append(f"--temperature {t:g}: give a number above 0, for example 1.0")
    if t == 0 and (args.samples or 2) > 1:
        problems.append("--temperature 0 gives the same response every time, which the greedy row has: leave it out")
    problems += _of_qa7_and_url(args)
    if problems:
        raise ConfigError(problems)


def _of_qa7_and_url(args: argparse.Namespace) -> list[str]:
    """Options that are of --url, or of it and --suite qa7, where they stand alone."""
    from agentrl.data.suites import is_qa7

    of_url = {
        "--key-env": args.key_env,
        "--request-timeout": args.request_timeout,
        "--tool-messages": args.tool_messages,
    }
    problems = [
        f"{name} is of a server: give its --url, too" for name, value in of_url.items() if value and not args.url
    ]
    if args.request_timeout is not None and not (math.isfinite(args.request_timeout) and args.request_timeout > 0):
        problems.append(f"--request-timeout {args.request_timeout:g}: give a number of seconds above 0")
    if not args.url and not any(map(is_qa7, args.suite)):
        of_both = {"--csv": args.csv, "--results": args.results}
        problems += [f"{name} is of --suite qa7 and of --url: leave it out" for name, value in of_both.items() if value]
    return problems


def _differences(rows: dict[str, list[SuiteResult]], first: str, kind: str, differences: Any) -> dict[str, Any]:
    """Paired differences of rows of one kind (greedy, sampled) to the first target's."""
    own = {name: suites for name, suites in rows.items() if name.rpartition(" ")[2].startswith(kind)}
    base = next(iter(own), None)
    return differences(own, base) if base is not None and len(own) > 1 and base.startswith(first) else {}


def _notes(
    targets: list[Target],
    rows: dict[str, list[SuiteResult]],
    made: Table,
    asked: dict[str, tuple[int, int]],
    marks: dict[str, list[str]],
) -> list[str]:
    """What stands below the table."""
    models = ", ".join(str(t.model or t.config.model.path) for t in targets)
    questions = ", ".join(f"{name} {made.sizes[name]}{_of(made.sizes[name], *asked[name])}" for name in made.sizes)
    lines = [f"{models}; questions: {questions}; in brackets: 95 % intervals over questions and responses"]
    if any(wanted < whole for wanted, whole in asked.values()):
        lines.append("questions are a fixed random subset, the same for every run and model")
    if failed := sum(s.failed for one in rows.values() for s in one):
        lines.append(f"{failed} responses failed (tool or network) and are left out")
    for (row, suite), names in made.lost.items():
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        lines.append(f"{suite}: {row} lost all responses to {len(names)} questions, which no row counts: {shown}")
    for label, others in marks.items():
        lines.append(f"* {label} was made with {'; '.join(others)}")
    return lines


def _of(counted: int, asked: int, whole: int) -> str:
    return "" if counted == whole else f" of {whole}" if counted == asked else f" of {asked} asked of {whole}"


def _same_questions(targets: list[Target]) -> None:
    """Rows of one table are of the same test sets."""
    from agentrl.errors import ConfigError

    sources = {t.label: ", ".join(str(_held_out(one)) for one in t.config.alone().values()) for t in targets}
    if len(set(sources.values())) > 1:
        what = ", ".join(f"{target} on {source}" for target, source in sources.items())
        raise ConfigError(
            [f"--beside compares on the same questions, and these differ: {what}. Name them with --suite"]
        )


def _held_out(config: RunConfig) -> str | None:
    return config.data.test if config.world is None else f"held-out questions of {config.world.kind}"


def _rows(args: argparse.Namespace, target: Target) -> tuple[dict[str, list[SuiteResult]], dict[str, tuple[int, int]]]:
    """One greedy row, and one of sampled responses where they are asked for; (asked, there are) per test set."""
    import tempfile

    from agentrl.train.build import build_job, changed_questions
    from agentrl.train.corpus import changed_corpus

    config = target.config
    with tempfile.TemporaryDirectory(prefix="agentrl-eval-") as scratch:
        job = build_job(config, target.run or Path(scratch), model_path=target.model, say=_say)
        if target.run is not None and args.config is None:
            for line in (*changed_questions(job, target.run), *changed_corpus(job.make_env, target.run)):
                _say(line)
        try:
            suites = _suites(args, job)
            with job.pool() as pool:
                rows = {"greedy": [_measure(job, pool, name, tasks, 1, 0.0) for name, tasks in suites]}
                if (samples := args.samples or config.eval.samples) > 1:
                    t = args.temperature or config.eval.temperature or config.rollout.temperature
                    rows[f"T={t:g}"] = [_measure(job, pool, name, tasks, samples, t) for name, tasks in suites]
            sizes = {name: (min(config.eval.questions or len(tasks), len(tasks)), len(tasks)) for name, tasks in suites}
            return rows, sizes
        finally:
            job.engine.close()


def _suites(args: argparse.Namespace, job: Job) -> list[tuple[str, list[Task]]]:
    """(name, all its questions) of each test set. Says which questions make their figures doubtful."""
    from agentrl.data.doubts import duplicates, same_files, shared
    from agentrl.data.recipes import EVALUATION_SUITES
    from agentrl.data.tasks import load_tasks
    from agentrl.errors import ConfigError, DataError

    nthr = [f"recipe:{name}" for name in EVALUATION_SUITES]
    out = []
    if job.sources and args.suite:
        raise ConfigError(
            [
                f"--suite: the run has several environments ({', '.join(job.sources)}), and a suite does not say which "
                "plays it: evaluate it with a config of one environment (agentrl eval RUN/checkpoints/.../model CONFIG)"
            ]
        )
    for name, source_of in job.sources.items():
        if source_of.test_tasks:
            out.append((name, source_of.test_tasks))
    if job.test_tasks and not args.suite and not job.sources:
        source = job.config.data.test if job.config.world is None else "held-out"
        out.append((_short(source or "test"), job.test_tasks))
    sources = list(dict.fromkeys(s for given in args.suite for s in (nthr if given == "nthr" else [given])))
    for source in sources:
        data = job.config.data.model_copy(update={"test": source})
        name = _short(source)
        name = source if name in {n for n, _ in out} else name
        out.append((name, load_tasks(data, "test")))
        for line in [*duplicates(name, out[-1][1]), *shared(name, job.train_tasks, out[-1][1])]:
            _say(line)
    for line in same_files({f"--suite {s}": s for s in sources}):
        _say(line)
    if not out:
        raise DataError("there are no test questions: set data.test in the config, or give --suite FILE")
    return out


def _short(source: str) -> str:
    return Path(source.removeprefix("recipe:")).stem or source


def _measure(job: Job, pool: EnvPool, name: str, tasks: list[Task], samples: int, temperature: float) -> SuiteResult:
    """Play and count. AgentRLError where nothing could be played."""
    from dataclasses import replace

    from agentrl.errors import AgentRLError
    from agentrl.train.evaluate import evaluate
    from agentrl.train.patience import Patience
    from agentrl.train.statistics import SuiteResult

    asked = job.config.eval.questions or len(tasks)
    how = job.config.eval.model_copy(update={"samples": samples, "temperature": temperature, "questions": asked})
    config = job.config.model_copy(update={"eval": how})
    _say(f"{name}: {min(asked, len(tasks))} questions x {samples}, temperature {temperature:g}")
    job = replace(job, config=config)
    own = tasks is job.test_tasks  # so that a run is evaluated again on the questions of its training
    asked_of = job.held_out(name) if name in job.sources else None if own else tasks
    patience = Patience(config.rollout.outage_wait_s, _say)
    result = evaluate(job, pool, step=0, tasks=asked_of, patience=patience, what=name)
    episodes = result.trajectories
    of = [[t for t in episodes[i : i + samples] if t.error is None] for i in range(0, len(episodes), samples)]
    counts = tuple((len(g), sum(t.correct for t in g)) for g in of)
    if not any(n for n, _ in counts):
        errors = sorted({t.error for t in episodes if t.error})[:3]
        raise AgentRLError(
            f"{name}: all {len(episodes)} responses failed ({'; '.join(errors)}); fix the tool or server"
        )
    if cut := result.summary.get("cut_share"):
        _say(f"{name}: {cut:.0%} of the responses end at rollout.max_tokens_per_turn = {_limit(config)}")
    ids = tuple(t.id for t in result.tasks)
    return SuiteResult(name, counts, sum(t.error is not None for t in episodes), samples, ids)


def _limit(config: RunConfig) -> int:
    return config.rollout.max_tokens_per_turn


def _say(text: str) -> None:
    print(text, file=sys.stderr)
