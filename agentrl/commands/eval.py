"""`agentrl eval RUN | MODEL CONFIG`: accuracy on held-out questions, as the papers' tables show it.

One greedy response per question gives the accuracy; `--samples N` adds avg@N and unbiased pass@k of sampled responses.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentrl.config import RunConfig
    from agentrl.rollouts.play import EnvPool
    from agentrl.train.build import Job
    from agentrl.train.statistics import SuiteResult
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
        help="another one, in rows of its own, as often as wanted",
    )
    parser.add_argument("--checkpoint", type=step_or_best, metavar="STEP|best", help="of a run (default: the newest)")
    parser.add_argument(
        "--samples", type=int, metavar="N", help="also N sampled responses per question (avg@N, pass@k)"
    )
    parser.add_argument("--temperature", type=float, metavar="T", help="of the sampled ones (default: the config's)")
    parser.add_argument(
        "--questions", type=int, metavar="N", help="per test set (default: eval.questions, all of a --suite; 0: all)"
    )
    parser.add_argument(
        "--suite",
        action="append",
        default=[],
        metavar="SOURCE",
        help="another test set, as often as wanted: a file, hub id or recipe:NAME; nthr: the five of the NTHR paper",
    )
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="change one value of the config")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="the last line is the result as JSON")
    shape.add_argument("--markdown", action="store_true", help="print a Markdown table")


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
    from agentrl.train.statistics import responses, table, to_json

    targets = dict.fromkeys([args.target, *args.beside])
    known = {target: _what(args, target) for target in targets}  # mistakes are told before anything is played
    if not args.suite:
        _same_questions({target: config for target, (config, _, _) in known.items()})
    rows: dict[str, list[SuiteResult]] = {}
    models: dict[str, str] = {}
    for target, (config, model, run_path) in known.items():
        label = Path(target).name if len(targets) > 1 else ""
        label = target if label in models else label
        models[label] = str(model or config.model.path)
        rows |= {f"{label} {row}".strip(): suites for row, suites in _rows(args, config, model, run_path).items()}
    ks = sorted({2**i for i in range(1, 12)} | {responses(s) for s in rows.values()})
    asked = {s.name: len(s.counts) for s in next(iter(rows.values()))}
    if args.json:
        from agentrl.console import print_json

        which = {"models": models} if len(targets) > 1 else {"model": models[""]}
        print_json(which | {"questions": asked, "results": to_json(rows, ks)})
        return 0
    print(table(rows, ks, "markdown" if args.markdown else "text"))
    failed = sum(s.failed for one in rows.values() for s in one)
    questions = ", ".join(f"{suite} {n}" for suite, n in asked.items())
    print(f"\n{', '.join(models.values())}; questions: {questions}; in brackets: 95 % intervals over questions")
    if failed:
        print(f"{failed} responses failed (tool or network) and are left out")
    return 0


def _same_questions(configs: dict[str, RunConfig]) -> None:
    """Rows of one table are of the same test sets."""
    from agentrl.errors import ConfigError

    sources = {
        t: c.data.test if c.world is None else f"held-out questions of {c.world.kind}" for t, c in configs.items()
    }
    if len(set(sources.values())) > 1:
        what = ", ".join(f"{target} on {source}" for target, source in sources.items())
        raise ConfigError(
            [f"--beside compares on the same questions, and these differ: {what}. Name them with --suite"]
        )


def _rows(
    args: argparse.Namespace, config: RunConfig, model: Path | None, run_path: Path | None
) -> dict[str, list[SuiteResult]]:
    """One greedy row, and one of sampled responses where they are asked for."""
    import tempfile

    from agentrl.rollouts.play import EnvPool
    from agentrl.train.build import build_job, changed_questions

    with tempfile.TemporaryDirectory(prefix="agentrl-eval-") as scratch:
        job = build_job(config, run_path or Path(scratch), model_path=model, say=_say)
        for line in changed_questions(job, run_path) if run_path is not None and args.config is None else ():
            _say(line)
        try:
            suites = _suites(args, job)
            with EnvPool(job.make_env) as pool:
                rows = {"greedy": [_measure(job, pool, name, tasks, 1, 0.0) for name, tasks in suites]}
                if (samples := args.samples or config.eval.samples) > 1:
                    t = args.temperature or config.eval.temperature or config.rollout.temperature
                    rows[f"T={t:g}"] = [_measure(job, pool, name, tasks, samples, t) for name, tasks in suites]
            return rows
        finally:
            job.engine.close()


def _what(args: argparse.Namespace, target: str) -> tuple[RunConfig, Path | None, Path | None]:
    """The config, the folder of the model where it is not the config's, and the run directory."""
    from agentrl.config.files import load_config
    from agentrl.errors import ConfigError, RunError, command, nearest
    from agentrl.runs.checkpoint import checkpoint_at, run_of_checkpoint

    if args.samples is not None and args.samples < 1:
        raise ConfigError([f"--samples {args.samples}: give the number of responses per question, for example 8"])
    path = Path(target).expanduser()
    whole = ["eval.questions=0"] if args.suite else []  # a suite is played whole unless somebody says otherwise
    changes = [*whole, *args.set]
    if args.questions is not None:
        changes.append(f"eval.questions={args.questions}")
    inside = run_of_checkpoint(path)
    if inside is not None and args.checkpoint is None:
        path, args.checkpoint = inside
    if (path / "config.yaml").is_file():
        config = load_config(args.config or path / "config.yaml", changes).config
        return config, checkpoint_at(path, args.checkpoint) / "model", path
    if args.checkpoint is not None:
        raise RunError(f"--checkpoint is for run directories, and {target} is none: it has no config.yaml")
    if args.config is None:
        around = [str(path.parent / p.name) for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise RunError(
            f"{target} is not a run directory{nearest(str(path), around)}; to evaluate a model, say on what: "
            f"{command('eval', target, 'CONFIG')}"
        )
    return load_config(args.config, [*changes, f"model.path={target}"]).config, None, None


def _suites(args: argparse.Namespace, job: Job) -> list[tuple[str, list[Task]]]:
    from agentrl.data.recipes import EVALUATION_SUITES
    from agentrl.data.tasks import load_tasks
    from agentrl.errors import DataError

    nthr = [f"recipe:{name}" for name in EVALUATION_SUITES]
    out = []
    if job.test_tasks and not args.suite:
        source = job.config.data.test if job.config.world is None else "held-out"
        out.append((_short(source or "test"), job.test_tasks))
    sources = [s for given in args.suite for s in (nthr if given == "nthr" else [given])]
    for source in dict.fromkeys(sources):
        data = job.config.data.model_copy(update={"test": source})
        name = _short(source)
        out.append((source if name in {n for n, _ in out} else name, load_tasks(data, "test")))
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
    from agentrl.train.statistics import SuiteResult

    asked = job.config.eval.questions or len(tasks)
    how = job.config.eval.model_copy(update={"samples": samples, "temperature": temperature, "questions": asked})
    config = job.config.model_copy(update={"eval": how})
    _say(f"{name}: {min(asked, len(tasks))} questions x {samples}, temperature {temperature:g}")
    episodes = evaluate(replace(job, config=config), pool, step=0, tasks=tasks).trajectories
    good = [[t for t in episodes[i : i + samples] if t.error is None] for i in range(0, len(episodes), samples)]
    counts = tuple((len(g), sum(t.correct for t in g)) for g in good if g)
    if not counts:
        errors = sorted({t.error for t in episodes if t.error})[:3]
        raise AgentRLError(
            f"{name}: all {len(episodes)} responses failed ({'; '.join(errors)}); mend the tool or server"
        )
    return SuiteResult(name, counts, failed=sum(t.error is not None for t in episodes))


def _say(text: str) -> None:
    print(text, file=sys.stderr)
