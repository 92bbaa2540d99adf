"""kill -9 at many points of a run: `python scripts/harden_kill.py [--kills 200] [--saves 50]`.

A small run of the built-in search task is made once without disturbance. Then, again and again, the same run is killed
at a seeded point, resumed to its end, and compared with the undisturbed one: every number of metrics.jsonl and
evals.jsonl but times, every token of the stored rollouts, and the bytes of the last checkpoint's model and optimiser.
`--saves` of the kills hit a checkpoint that is being written, at a seeded operation on files; the others a seeded
moment of the whole run. One in four is killed a second time while it resumes. On a CPU with one thread all of it must
be equal, bit for bit.

Prints the kills by kind, how many continued bit for bit, and exits with 1 where one did not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLOCKS = ("time", "seconds", "tokens_per_s", "tool_latency_s")
SETS = [
    "model.threads=1",
    "model.tiny.hidden_size=64",
    "model.tiny.intermediate_size=64",
    "world.people=24",
    "world.companies=10",
    "world.cities=8",
    "world.regions=6",
    "world.hops=[1]",
    "warm_start.lookup_steps=20",
    "warm_start.demonstrations=64",
    "rollout.prompts_per_step=4",
    "rollout.group_size=4",
    "rollout.max_context=160",
    "train.steps=12",
    "train.probe_size=4",
    "eval.questions=8",
    "eval.every=4",
    "log.checkpoint_every=3",
    "log.keep_best=em",
    "log.name=run",
    "algorithm.loss.llds.enabled=true",
]
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate")


def begin(runs: Path) -> None:
    """The run, from nothing."""
    from agentrl.config.files import load_config
    from agentrl.train.start import train_run

    train_run(load_config("search_tiny", [*SETS, f"log.runs_dir={runs}"]).config, quiet=True)


def go_on(runs: Path) -> None:
    """Resume it, unless it came to its end; or begin, where it was killed before it had anything to resume from."""
    from agentrl.runs.checkpoint import list_checkpoints
    from agentrl.runs.read import read_info
    from agentrl.train.start import resume_run

    if list_checkpoints(runs / "run") and read_info(runs / "run").status == "finished":
        return
    if list_checkpoints(runs / "run"):
        resume_run(runs / "run", quiet=True)
    else:
        shutil.rmtree(runs / "run", ignore_errors=True)
        begin(runs)


def fingerprint(run: Path) -> dict[str, str]:
    """What must be equal, by name, as hashes."""
    from agentrl.runs.checkpoint import latest_checkpoint

    found = {name: _rows(run / name) for name in ("metrics.jsonl", "evals.jsonl")}
    found |= {f"rollouts/{p.name}": _rows(p) for p in sorted((run / "rollouts").rglob("*.jsonl"))}
    latest = latest_checkpoint(run)
    assert latest is not None
    for path in sorted(latest[0].rglob("*")):
        if path.is_file() and path.suffix in (".safetensors", ".pt", ".bin"):
            found[str(path.relative_to(latest[0]))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _rows(path: Path) -> str:
    rows = [_without_clocks(json.loads(line)) for line in path.read_text().splitlines()]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in CLOCKS and not (k.startswith("t_") and k.endswith("_s"))}
        return {k: _without_clocks(v) for k, v in kept.items()}
    return [_without_clocks(v) for v in value] if isinstance(value, list) else value


def _trouble(status: int, runs: Path, whole: dict[str, str]) -> str:
    """How the resumed run is not the undisturbed one; empty where it is."""
    if status != 0:
        return f"it did not go on (exit status {status}); {(runs.parent / 'stderr').read_text()[-500:]}"
    found = fingerprint(runs / "run")
    return ", ".join(k for k in {**whole, **found} if whole.get(k) != found.get(k))


def in_child(work: Callable[[], None], kill_after: float | None = None) -> int:
    """Fork, do `work` there, kill it after so many seconds; the exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            with Path(os.environ["HARDEN_STDERR"]).open("w") as sys.stderr:
                sys.stdout = sys.stderr
                work()
            os._exit(0)
        except BaseException as error:
            Path(os.environ["HARDEN_STDERR"]).write_text(f"{type(error).__name__}: {error}")
            os._exit(1)
    if kill_after is not None:
        until = time.monotonic() + kill_after
        while time.monotonic() < until:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return 0  # it was faster than that
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class KilledInSave:
    """Counts a save's changes of files, and kills the process at number `at` of the run; `at` None only counts."""

    def __init__(self, at: int | None) -> None:
        self.at, self.seen, self.inside = at, 0, False

    def install(self) -> None:
        """For the rest of this process."""
        from agentrl.train import trainer

        inner = trainer.save_checkpoint

        def save(*args: Any, **kwargs: Any) -> Any:
            self.inside = True
            try:
                return inner(*args, **kwargs)
            finally:
                self.inside = False

        trainer.save_checkpoint = save
        sys.addaudithook(self._event)

    def _event(self, name: str, args: tuple[Any, ...]) -> None:
        if not self.inside or name not in CHANGES:
            return
        if name == "open" and not (isinstance(args[1], str) and set(args[1]) & set("wax+")):
            return
        self.seen += 1
        if self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def saves(runs: Path) -> int:
    """How many changes of files the saves of a whole run make."""
    read, write = os.pipe()

    def counted() -> None:
        counter = KilledInSave(None)
        counter.install()
        begin(runs)
        os.write(write, str(counter.seen).encode())

    assert in_child(counted) == 0
    return int(os.read(read, 20))


def killed_in_save(runs: Path, at: int) -> Callable[[], None]:
    """`begin`, with the kill."""

    def work() -> None:
        KilledInSave(at).install()
        begin(runs)

    return work


def main() -> int:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--saves", type=int, default=50, help="of the kills, inside a save")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import agentrl.train.start  # noqa: F401  the children are forked from a process that has everything imported

    rng, different, kinds = random.Random(args.seed), [], Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["HARDEN_STDERR"] = str(root / "stderr")
        operations = saves(root / "counted")
        began = time.monotonic()
        assert in_child(lambda: begin(root / "whole")) == 0
        seconds, whole = time.monotonic() - began, fingerprint(root / "whole" / "run")
        for i in range(args.kills):
            runs = root / f"{i}"
            if i < args.saves:
                kind, status = "in a save", in_child(killed_in_save(runs, rng.randint(1, operations)))
            else:
                kind, status = "at a moment", in_child(lambda: begin(runs), rng.uniform(0, seconds))  # noqa: B023
            kinds[kind if status == -signal.SIGKILL else "after its end"] += 1
            if rng.random() < 0.25:
                kinds["again, while resuming"] += in_child(lambda: go_on(runs), rng.uniform(0, seconds / 2)) != 0  # noqa: B023
            if found := _trouble(in_child(lambda: go_on(runs)), runs, whole):  # noqa: B023
                different.append(i)
                print(f"kill {i} ({kind}): {found}", flush=True)
            shutil.rmtree(runs)
    print(", ".join(f"{n} {kind}" for kind, n in kinds.items()) + f"; a save changes files {operations // 4} times")
    print(f"{args.kills - len(different)} of {args.kills} went on bit for bit (seed {args.seed})")
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
