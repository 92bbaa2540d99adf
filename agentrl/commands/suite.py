"""`agentrl eval ... --suite qa7`, and whatever is evaluated with `--url`: play, keep each response, print the table.

Every response is kept in a file of its model as it ends; the same command goes on where it was killed. What decides a
response (model, limits, questions, temperature) is in the file's name.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentrl.commands.targets import Target
    from agentrl.config import RunConfig
    from agentrl.data.suites import Suite
    from agentrl.rollouts.play import Episode, Player
    from agentrl.rollouts.served import Server
    from agentrl.train.journal import Journal
    from agentrl.train.suites import Responses
    from agentrl.types import Task, Trajectory

SAY_EVERY_S = 10.0
Kind = tuple[str, int, float]  # what its rows are called, responses a question, temperature


def run_suite(args: argparse.Namespace, targets: list[Target]) -> int:
    """Evaluate and print."""
    from agentrl.commands.targets import limits_apart

    _one_environment_each(targets)
    suite = _suite(args, targets)
    marks = limits_apart(targets)
    rows: dict[str, dict[str, Responses]] = {}
    kept: list[Path] = []
    models: dict[str, str] = {}
    for target in targets:
        played = _Played(args, target, suite)
        label = f"{target.label}*" if target.label in marks else target.label
        rows |= {f"{label} {kind}".strip(): sets for kind, sets in played.run().items()}
        kept.append(played.path)
        models[target.label] = played.model
    _print(args, rows, suite, models, marks, kept)
    return 0


def _one_environment_each(targets: list[Target]) -> None:
    from agentrl.errors import ConfigError

    for target in targets:
        if isinstance(target.config.env, list):
            names = ", ".join(target.config.alone())
            raise ConfigError(
                [
                    f"{target.label or 'the run'} has several environments ({names}), and a suite does not say which "
                    "one plays it: name a config of one environment (agentrl eval RUN/checkpoints/.../model CONFIG)"
                ]
            )


def _suite(args: argparse.Namespace, targets: list[Target]) -> Suite:
    """All question sets that are asked for. Says which questions make their figures doubtful."""
    from agentrl.data.doubts import shared
    from agentrl.data.suites import Suite, is_qa7, load_qa7
    from agentrl.data.tasks import load_tasks
    from agentrl.errors import DataError

    config = targets[0].config
    sets: dict[str, list[Task]] = {}
    broken: list[str] = []
    others: list[str] = []
    for source in dict.fromkeys(args.suite):
        if is_qa7(source):
            found = load_qa7(source, _say)
            sets, broken, others = sets | found.sets, [*broken, *found.broken], [*others, *found.others]
        else:
            data = config.data.model_copy(update={"test": source})
            name = Path(source.removeprefix("recipe:")).stem or source
            sets[source if name in sets else name] = load_tasks(data, "test", _say)
    if not args.suite:
        sets = _held_out(config)
    if not sets:
        raise DataError("there are no test questions: give --suite qa7, --suite FILE, or data.test in the config")
    trained_on = _trained_on(targets)
    for line in (line for name, tasks in sets.items() for line in shared(name, trained_on, tasks)):
        _say(line)
    return Suite(sets, tuple(broken), tuple(others))


def _held_out(config: RunConfig) -> dict[str, list[Task]]:
    from agentrl.data.tasks import load_tasks, tasks_from_world
    from agentrl.train.build import build_world

    if config.world is not None:
        return {"held-out": tasks_from_world(build_world(config), "test")}
    return {Path(config.data.test).stem: load_tasks(config.data, "test", _say)} if config.data.test else {}


def _trained_on(targets: list[Target]) -> list[Task]:
    """The training questions of the runs, where they can be read."""
    from agentrl.data.tasks import load_tasks
    from agentrl.errors import AgentRLError

    out: list[Task] = []
    for path in dict.fromkeys(t.config.data.train for t in targets if t.run is not None and t.config.world is None):
        try:
            out += load_tasks(next(t.config.data for t in targets if t.config.data.train == path), "train", _say)
        except AgentRLError as why:
            _say(f"whether questions of the suite were trained on is not known: {str(why).splitlines()[0]}")
    return out


@dataclass
class _Played:
    """One target: what it is called, where its responses are kept, how it is played."""

    args: argparse.Namespace
    target: Target
    suite: Suite
    server: Server | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        config = self.target.config
        if self.target.served is not None:
            self.server = _server(self.args, config, self.target.served)
        self.model = self.server.model if self.server else str(self.target.model or config.model.path)
        self.kinds: list[Kind] = [("greedy", 1, 0.0)]
        if (samples := self.args.samples or config.eval.samples) > 1:
            t = self.args.temperature or config.eval.temperature or config.rollout.temperature
            self.kinds.append((f"T={t:g}", samples, t))
        self.path = self._path()

    def run(self) -> dict[str, dict[str, Responses]]:
        """Kind -> set -> question -> responses, after playing those that are not there yet."""
        from agentrl.data.tasks import subset
        from agentrl.rollouts.play import episodes_of
        from agentrl.train.journal import Journal

        asked = {name: subset(tasks, self.target.config.eval.questions) for name, tasks in self.suite.sets.items()}
        with Journal(self.path) as journal:
            todo = {
                (kind, name): (episodes_of(tasks, samples, f"{kind}/{name}/"), temperature)
                for kind, samples, temperature in self.kinds
                for name, tasks in asked.items()
            }
            left = sum(len(journal.left(episodes)) for episodes, _ in todo.values())
            whole = sum(len(episodes) for episodes, _ in todo.values())
            if 0 < left < whole:
                _say(f"{self.model}: {whole - left} of {whole} responses are in {self.path}; {left} are left")
            if left:
                self._play(todo, journal)
            return self._gathered(todo, journal)

    def _play(self, todo: Mapping[tuple[str, str], tuple[list[Episode], float]], journal: Journal) -> None:
        from agentrl.train.patience import Patience

        rollout = self.target.config.rollout
        patience = Patience(rollout.outage_wait_s, _say)
        with _player(self.args, self.target, self.server) as player:
            for (kind, name), (episodes, temperature) in todo.items():
                if left := journal.left(episodes):
                    what = f"{name} {kind}"
                    _say(f"{what}: {len(left)} responses, temperature {temperature:g}")
                    note = _Note(journal, what, len(left))
                    patience.play(replace(player, temperature=temperature, ended=note), left, what)

    def _gathered(
        self, todo: Mapping[tuple[str, str], tuple[list[Episode], float]], journal: Journal
    ) -> dict[str, dict[str, Responses]]:
        from agentrl.errors import AgentRLError

        out: dict[str, dict[str, Responses]] = {}
        for (kind, name), (episodes, _) in todo.items():
            found: dict[str, list[Mapping[str, Any]]] = {}
            for e in episodes:
                found.setdefault(e.task.id, []).append(journal.rows[e.sample_id])
            errors = [row["error"] for of in found.values() for row in of]
            if all(errors):
                shown = "; ".join(sorted(set(errors))[:3])
                raise AgentRLError(
                    f"{name}: all {len(errors)} responses failed ({shown}); fix the tool or server, and give the same "
                    "command again"
                )
            out.setdefault(kind, {})[name] = found
        return out

    def _path(self) -> Path:
        from agentrl.commands.targets import limits_of
        from agentrl.data.tasks import questions_hash
        from agentrl.train.journal import key_of

        config, run = self.target.config, self.target.run
        questions = {name: questions_hash(tasks) for name, tasks in self.suite.sets.items()}
        world = config.world.model_dump() if config.world else None
        what: dict[str, Any] = {
            "questions": questions,
            "limits": limits_of(config),
            "world": world,
            "seed": config.seed,
        }
        if self.server is not None:
            what |= {"server": self.server.endpoint, "model": self.model, "tool_messages": self.args.tool_messages}
        else:
            what |= {"model": config.model.model_dump(), "weights": _weights(self.model)}
        folder = Path(self.args.results) if self.args.results else (run or Path()) / "evaluations"
        name = re.sub(r"[^\w.-]+", "-", "-".join(Path(self.model).parts[-2:])).strip("-.") or "model"
        return folder / f"{name[-80:]}-{key_of(what)}.jsonl"


def _weights(model: str) -> list[Any] | None:
    """What tells a model's files from changed ones; None where they are not here."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return None
    files = sorted(p for p in folder.iterdir() if p.is_file())
    return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]


def _server(args: argparse.Namespace, config: RunConfig, name: str) -> Server:
    from agentrl.errors import ConfigError
    from agentrl.rollouts.served import KEY, served_by

    if config.rollout.tools != "text":
        raise ConfigError(
            ["rollout.tools is native, and a model behind --url is played with text: --set rollout.tools=text"]
        )
    return served_by(args.url, name, key_variable=args.key_env or KEY, timeout_s=args.request_timeout or 300.0)


@contextmanager
def _player(args: argparse.Namespace, target: Target, server: Server | None) -> Iterator[Player]:
    """What plays the target's episodes."""
    from agentrl.rollouts.play import EnvPool
    from agentrl.train.build import build_job, build_world, environment_maker

    config = target.config
    with tempfile.TemporaryDirectory(prefix="agentrl-eval-") as scratch:
        folder = target.run or Path(scratch)
        if server is None:
            job = build_job(config, folder, model_path=target.model, say=_say, questions=False)
            try:
                with job.pool() as pool:
                    yield job.player(pool, seed=config.seed, concurrency=config.eval.batch)
            finally:
                job.engine.close()
            return
        make = environment_maker(config, build_world(config), folder, _say)
        with EnvPool(make) as pool:
            try:
                yield _served_player(args, config, pool, server)
            finally:
                pool.run(server.aclose())


def _served_player(args: argparse.Namespace, config: RunConfig, pool: Any, server: Server) -> Player:
    """After one word from the server, so that a wrong key or address is told before anything is played."""
    from agentrl.rollouts.served import ServedPlayer, TextOnly

    handle = pool.take()
    stop = tuple(config.rollout.stop) or handle.stop_strings
    pool.give(handle)
    for line in pool.run(server.prepare(stop, 0.0)):
        _say(f"{server.endpoint}: {line}")
    return ServedPlayer(
        sampler=TextOnly(),
        pool=pool,
        chat=None,
        config=config.rollout,
        seed=config.seed,
        concurrency=config.eval.batch,
        correct_threshold=config.algorithm.correct_threshold,
        server=server,
        role="tool" if args.tool_messages else "user",
    )


@dataclass
class _Note:
    """Keeps each response as it ends, and says now and then how far it is."""

    journal: Journal
    what: str
    whole: int
    done: int = 0
    correct: int = 0
    failed: int = 0
    began: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)

    def __call__(self, episode: Episode, t: Trajectory, seconds: float) -> Trajectory:
        from agentrl.train.journal import response, slim

        self.journal.add(response(episode.task, t, seconds))
        self.done += 1
        self.correct += t.correct and t.error is None
        self.failed += t.error is not None
        now = time.monotonic()
        if now - self.said >= SAY_EVERY_S:
            self.said = now
            rate = self.done / (now - self.began)
            share = self.correct / max(1, self.done - self.failed)
            failed = f", {self.failed} failed" if self.failed else ""
            _say(f"{self.what}: {self.done} of {self.whole}, EM {100 * share:.1f}{failed}, {rate:.2g} responses/s")
        return slim(t)


# ------------------------------------------------------------------------------------------------------------ shown


def _print(
    args: argparse.Namespace,
    rows: Mapping[str, Mapping[str, Responses]],
    suite: Suite,
    models: Mapping[str, str],
    marks: Mapping[str, list[str]],
    kept: list[Path],
) -> None:
    from agentrl.console import print_json
    from agentrl.data.suites import QA7
    from agentrl.train.suites import render, table_of, to_json

    groups = _groups(suite)
    table, apart = table_of(rows, groups), _apart(rows, groups)
    if args.json:
        which: dict[str, Any] = {"models": dict(models)} if len(models) > 1 else {"model": next(iter(models.values()))}
        which |= {"differences": to_json(apart)} if apart else {}
        which |= {"other_limits": dict(marks)} if marks else {}
        found = {"broken_rows": suite.broken, "left_out": suite.others, "responses": list(map(str, kept))}
        print_json(which | found | {"results": to_json(table)})
        return
    if args.csv:
        print(render(table | apart, QA7, "csv"))
    else:
        style: Callable[..., str] = partial(render, titles=QA7, style="markdown" if args.markdown else "text")
        print(style(table) + (f"\n\n{style(apart)}" if apart else ""))
    notes = "\n".join(_notes(rows, suite, models, marks, kept))
    print(notes, file=sys.stderr) if args.csv else print(f"\n{notes}")


def _groups(suite: Suite) -> list[tuple[str, tuple[str, ...]]]:
    from agentrl.data.suites import IN_DOMAIN, QA7

    groups = [("average", tuple(suite.sets))] if len(suite.sets) > 1 else []
    if not set(suite.sets) & set(QA7):
        return groups
    out = tuple(name for name in QA7 if name not in IN_DOMAIN)
    return [("in-domain", IN_DOMAIN), ("out-of-domain", out), ("average", tuple(dict.fromkeys([*QA7, *suite.sets])))]


def _apart(rows: Mapping[str, Mapping[str, Responses]], groups: list[tuple[str, tuple[str, ...]]]) -> Any:
    """Differences of the rows of each kind (greedy, sampled) to the first of that kind."""
    from agentrl.train.suites import differences_of

    out: dict[str, Any] = {}
    for kind in dict.fromkeys(name.rpartition(" ")[2] for name in rows):
        own = {name: sets for name, sets in rows.items() if name.rpartition(" ")[2] == kind}
        out |= differences_of(own, groups) if len(own) > 1 else {}
    return out


def _notes(
    rows: Mapping[str, Mapping[str, Responses]],
    suite: Suite,
    models: Mapping[str, str],
    marks: Mapping[str, list[str]],
    kept: list[Path],
) -> list[str]:
    """What stands below the table."""
    from agentrl.data.suites import QA7

    lines = [f"{', '.join(models.values())}; in brackets: 95 % intervals; seconds: median of a question, start to end"]
    asked = {name: len(found) for name, found in next(iter(rows.values())).items()}
    fewer = [f"{name} {n} of {len(suite.sets[name])}" for name, n in asked.items() if n < len(suite.sets[name])]
    if fewer:
        lines.append(f"a fixed random subset of the questions, the same for every model: {', '.join(fewer)}")
    absent = [name for name in QA7 if name not in suite.sets]
    if 0 < len(absent) < len(QA7):
        lines.append(
            f"without {', '.join(absent)}, which the source does not have: averages that need them are left out"
        )
    lines += [f"left out, of no set: {what}" for what in suite.others]
    if suite.broken:
        lines.append(f"{len(suite.broken)} rows are broken and were not asked:")
        lines += [f"  {problem}" for problem in suite.broken[:10]]
        lines += [f"  and {len(suite.broken) - 10} more: --json names them all"] if len(suite.broken) > 10 else []
    errors = [str(r["error"]) for sets in rows.values() for of in sets.values() for q in of.values() for r in q]
    failed = [e for e in errors if e != "None"]
    if failed:
        lines.append(f"{len(failed)} responses failed and are left out ({max(set(failed), key=failed.count)[:200]}); ")
        lines[-1] += "the same command plays them again"
    lines += [f"* {label} was made with {'; '.join(others)}" for label, others in marks.items()]
    return [*lines, f"responses are kept in {', '.join(map(str, kept))}"]


def _say(text: str) -> None:
    print(text, file=sys.stderr)
