"""Reading run directories: what the dashboard, the commands and the lab need. No torch.

The readers tolerate a line that a killed writer has torn; only the writer (`agentrl.runs.log`) repairs files.
"""

from __future__ import annotations

import gzip
import re
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from agentrl.errors import RunError, command, nearest
from agentrl.runs.checkpoint import best_step, list_checkpoints
from agentrl.runs.files import append_line, lock_holder, parse_line, read_json, read_last_lines, read_lines

CONFIG, META, STATUS, LOCK = "config.yaml", "meta.json", "status.json", "run.lock"
METRICS, EVALS, ALARMS, ROLLOUTS = "metrics.jsonl", "evals.jsonl", "alarms.jsonl", "rollouts"
GUARD = "guard.jsonl"
_ROLLOUT_FILE = re.compile(r"(step|eval)-(\d{6,})\.jsonl\.gz")


def read_metrics(path: str | Path, tail: int | None = None) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl in the order they were written; only the last `tail` where given."""
    file = Path(path) / METRICS
    return read_lines(file) if tail is None else read_last_lines(file, tail)


def read_evals(path: str | Path) -> list[dict[str, Any]]:
    """Rows of evals.jsonl."""
    return read_lines(Path(path) / EVALS)


def beats_best(path: str | Path, metric: str, value: float) -> bool:
    """Whether a held-out `value` is larger than the one of the best checkpoint; True where there is none yet."""
    step = best_step(Path(path))
    if step is None:
        return True
    rows = [row[metric] for row in read_evals(path) if row.get("step") == step and row.get(metric) is not None]
    return not rows or value > float(rows[-1])


def read_guard(path: str | Path) -> list[dict[str, Any]]:
    """What the guard did, in order."""
    return read_lines(Path(path) / GUARD)


def read_alarms(path: str | Path) -> list[dict[str, Any]]:
    """Alarms in the order they were raised, `acknowledged` filled in from the lines that say so."""
    rows = read_lines(Path(path) / ALARMS)
    acknowledged = {row.get("id"): row["acknowledged"] for row in rows if "rule" not in row and "acknowledged" in row}
    return [
        row | {"acknowledged": acknowledged.get(row.get("id"), row.get("acknowledged", False))}
        for row in rows
        if "rule" in row
    ]


def acknowledge(path: str | Path, alarm_id: str, acknowledged: bool = True) -> None:
    """Note that somebody has seen an alarm; works beside a running writer. RunError for an id that is not there."""
    ids = [str(row.get("id")) for row in read_alarms(path)]
    if alarm_id not in ids:
        raise RunError(f"{path} has no alarm {alarm_id!r}{nearest(alarm_id, ids)}")
    append_line(Path(path) / ALARMS, {"id": alarm_id, "acknowledged": acknowledged, "time": round(time.time(), 3)})


def rollout_steps(path: str | Path, kind: Literal["step", "eval"] = "step") -> list[int]:
    """Steps whose trajectories were stored, ascending."""
    return sorted(step for k, step, _ in rollout_files(Path(path)) if k == kind)


def read_rollouts(path: str | Path, step: int, kind: Literal["step", "eval"] = "step") -> list[dict[str, Any]]:
    """Trajectories of one step (or of the evaluation after `step` steps). RunError where they were not stored."""
    file = Path(path) / ROLLOUTS / f"{kind}-{step:06d}.jsonl.gz"
    try:
        data = gzip.decompress(file.read_bytes())
    except FileNotFoundError:
        steps = rollout_steps(path, kind)
        known = f"stored are {steps[0]} to {steps[-1]}" if steps else "none are stored"
        raise RunError(f"{path} has no rollouts of {kind} {step}: {known}") from None
    except (OSError, EOFError) as error:
        raise RunError(f"{file} is damaged ({error}); other steps are not affected") from error
    rows = [row for row in map(parse_line, data.split(b"\n")) if row is not None]
    return with_grades(rows, read_grades(path, step, kind))


def grades_file(path: str | Path, step: int, kind: str = "step") -> Path:
    """Beside a step's rollouts: what other graders say of them."""
    return Path(path) / ROLLOUTS / f"{kind}-{step:06d}.grades.json"


def read_grades(path: str | Path, step: int, kind: str = "step") -> dict[str, dict[str, float | None]]:
    """Grader -> sample id -> its number, None where it failed. Empty where nothing was graded again."""
    found = read_json(grades_file(path, step, kind))
    return {name: values for name, values in found.items() if isinstance(values, dict)}


def with_grades(rows: list[dict[str, Any]], grades: dict[str, dict[str, float | None]]) -> list[dict[str, Any]]:
    """The rows, `grades` added to those that were graded."""
    for row in rows if grades else ():
        told = {name: values[row["sample_id"]] for name, values in grades.items() if row.get("sample_id") in values}
        if told:
            row["grades"] = told
    return rows


def iter_rollouts(path: str | Path, step: int, kind: str = "step") -> Iterator[dict[str, Any]]:
    """The same one at a time, so that a large step needs little memory. RunError where the file is damaged."""
    file = Path(path) / ROLLOUTS / f"{kind}-{step:06d}.jsonl.gz"
    grades = read_grades(path, step, kind)
    try:
        with gzip.open(file, "rb") as lines:
            for line in lines:
                if (row := parse_line(line)) is not None:
                    yield from with_grades([row], grades)
    except FileNotFoundError:
        return
    except (OSError, EOFError, zlib.error) as error:
        raise RunError(f"{file} is damaged ({error}); other steps are not affected") from error


def search_rollouts(
    path: str | Path, steps: Iterable[int], kind: str = "step", *, text: str = "", prompt: str | None = None
) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Step and row of the rollouts of `steps` that hold `text` and are of `prompt`; (step, None) after each step.

    `text`: in the question, answers, turns, error or id, in any case. `prompt`: the id of a row's task, or a text that
    its question holds. A damaged step is passed over.
    """
    wanted = text.casefold()
    for step in steps:
        try:
            for row in iter_rollouts(path, step, kind):
                if of_prompt(row, prompt) and (not wanted or wanted in text_of(row).casefold()):
                    yield step, row
        except RunError:
            pass
        yield step, None


def of_prompt(row: Mapping[str, Any], prompt: str | None) -> bool:
    """See `search_rollouts`."""
    task = row["task"] if isinstance(row.get("task"), dict) else {}
    return prompt is None or str(task.get("id")) == prompt or prompt.casefold() in str(task.get("question")).casefold()


def text_of(row: Mapping[str, Any]) -> str:
    """All that is said in a rollout."""
    task = row["task"] if isinstance(row.get("task"), dict) else {}
    turns = row["turns"] if isinstance(row.get("turns"), list) else []
    said = [str(t.get(k) or "") for t in turns if isinstance(t, dict) for k in ("action", "observation")]
    golden = task.get("golden_answers")
    expected = [str(g) for g in golden] if isinstance(golden, list) else []
    return "\n".join(
        [str(row.get("sample_id")), str(task.get("question") or ""), *expected, *said, str(row.get("error") or "")]
    )


def read_eval_rollouts(path: str | Path, step: int | None = None) -> list[dict[str, Any]]:
    """Trajectories of the last evaluation, or of the one after `step` steps; empty where none was stored."""
    steps = rollout_steps(path, "eval")
    if not steps:
        return []
    return read_rollouts(path, steps[-1] if step is None else step, "eval")


@dataclass(frozen=True)
class RunInfo:
    """A run as a list shows it. `status` is "stopped" for one that says "running" while its process is gone."""

    path: Path
    name: str
    status: str
    step: int
    steps: int | None
    updated: float
    message: str
    metrics: dict[str, Any] = field(default_factory=dict)  # the last row of metrics.jsonl
    lost: bool = False  # its process is gone without having said so


def read_info(path: str | Path) -> RunInfo:
    """State of one run, whatever is missing or torn."""
    path = Path(path)
    row = read_json(path / STATUS)
    status, message = str(row.get("status", "unknown")), str(row.get("message") or "")
    lost = status == "running" and lock_holder(path / LOCK) is None
    if lost:
        status, message = "stopped", f"its process is gone; {how_to_go_on(path)}"
    last = read_metrics(path, tail=1)
    step, steps = row.get("step"), row.get("steps")
    done = int(last[0].get("step", -1)) + 1 if last else 0  # status.json is not rewritten at every step
    return RunInfo(
        path=path,
        name=path.name,
        status=status,
        step=max(done, step if isinstance(step, int) else 0),
        steps=steps if isinstance(steps, int) else None,
        updated=float((last[0].get("time") if last else None) or row.get("updated") or 0.0),
        message=message,
        metrics=last[0] if last else {},
        lost=lost,
    )


def how_to_go_on(path: str | Path) -> str:
    """The command that goes on with a run: `resume` where it has a checkpoint, and else the one that starts again.

    It names the place where the run is now: none is kept in the run, which may be moved.
    """
    path = Path(path)
    imported = read_json(path / META).get("imported")
    if isinstance(imported, dict):
        how = "import" if str(imported.get("kind", "")).startswith("rollouts") else "watch"
        return command(how, imported.get("source", "LOG"), "--to", path)
    if list_checkpoints(path):
        return command("resume", path)
    into = ("--set", f"log.runs_dir={path.parent}", "--set", f"log.name={path.name}")
    return command("train", path / CONFIG, *into, "--force")


def list_runs(runs_dir: str | Path) -> list[RunInfo]:
    """Every run directory directly under `runs_dir`, the most recently updated first."""
    folder = Path(runs_dir)
    found = folder.iterdir() if folder.is_dir() else ()
    runs = [read_info(p) for p in found if not p.name.startswith(".") and p.is_dir() and is_run(p)]
    return sorted(runs, key=lambda r: (-r.updated, r.name))


def is_run(path: Path) -> bool:
    """Whether `path` is a run directory."""
    return (path / STATUS).is_file() or (path / CONFIG).is_file()


def find_run(path: str | Path) -> Path:
    """`path`, if it is a run directory; RunError with the nearest name otherwise."""
    path = Path(path).expanduser()
    if (path / CONFIG).is_file() or isinstance(read_json(path / META).get("imported"), dict):
        return path
    if not path.is_dir():
        around = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise RunError(f"{path} does not exist{nearest(path.name, around)}; a run is a folder like runs/NAME")
    raise RunError(f"{path} is not a run directory: it has no {CONFIG}")


def rollout_files(path: Path) -> Iterator[tuple[str, int, Path]]:
    """Kind ("step" or "eval"), step and path of every stored rollout file."""
    folder = path / ROLLOUTS
    for file in folder.iterdir() if folder.is_dir() else ():
        if m := _ROLLOUT_FILE.fullmatch(file.name):
            yield m[1], int(m[2]), file
