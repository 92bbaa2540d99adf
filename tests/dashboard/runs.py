"""Run directories for the dashboard's tests, written by the run log itself from recorded metrics.

`python -m tests.dashboard.runs FOLDER` makes a folder to look at.
"""

from __future__ import annotations

import csv
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agentrl.config import RunConfig, WorldConfig
from agentrl.monitors import Monitor
from agentrl.runs.files import strict_json
from agentrl.runs.log import RunLog
from agentrl.types import StepRecord

DATA = Path(__file__).parent.parent / "monitors" / "data"
COLLAPSE = "mid_posonly_lr7e-4_mb4x2_s1"  # rises to 0.72, collapses at step 78
HEALTHY = "grpo_lr5e-4_mb2_s0"
START = 1_790_000_000.0  # seconds: the time of a run's first step


def recorded(name: str) -> list[dict[str, float]]:
    """The rows of a recorded run under canonical names."""
    with (DATA / f"{name}.csv").open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)]
    rng = random.Random(0)
    for row in rows:  # the recordings lack these
        valid = row.get("valid_action_ratio", 0.97)
        row["valid_search_ratio"] = round(0.5 * valid + 0.01 * rng.gauss(0, 1), 4)
        row["t_step_s"] = round(1.2 + 0.1 * rng.random(), 4)
    return rows


def config(name: str = "tiny", **changes: Any) -> RunConfig:
    """A valid configuration."""
    return RunConfig(name=name, world=WorldConfig(), **changes)


def make_run(
    root: Path,
    name: str,
    source: str = COLLAPSE,
    *,
    steps: int | None = None,
    every: int = 10,
    status: str = "finished",
    alarms: bool = True,
    config_: RunConfig | None = None,
) -> Path:
    """A finished run of recorded metrics with the alarms that the monitors raise on them, and rollouts.

    Rollouts are stored at every `every`-th step and where there is an alarm.
    """
    rows = recorded(source)[:steps]
    with RunLog.create(root, name, config_ or config(), force=True, argv=["agentrl", "train", "tiny"]) as log:
        monitor = Monitor()
        lines = []
        for row in rows:
            step = int(row["step"])
            metrics = {k: v for k, v in row.items() if k != "step"}
            lines.append({"step": step, "time": START + 1.25 * step, "tokens": 1500 * (step + 1), **metrics})
            raised = monitor.observe(StepRecord(step, metrics, _groups(step))) if alarms else []
            for alarm in raised:
                log.alarm(alarm)
            if every and (raised or step % every == 0):
                log.write_rollouts(step, list(trajectories(step)))
        (log.path / "metrics.jsonl").write_text("".join(strict_json(line) + "\n" for line in lines))
        log.evaluation({"step": 0, "split": "test", "em": 0.21, "n": 200})
        log.evaluation({"step": len(rows), "split": "test", "em": 0.64, "n": 200})
        log.set_status(status, step=len(rows), steps=max(len(rows), 1))  # type: ignore[arg-type]
    return log.path


def _groups(step: int) -> list[dict[str, Any]]:
    return [
        {
            "group_id": f"{step}.0/q{g}",
            "sample_ids": [f"{step}.0/q{g}-{i}" for i in range(4)],
            "delta": -0.02 - 0.01 * g,
            "logprob_correct": -0.3 - 0.1 * g,
            "reward_mean": 0.25 * g,
            "errors": 0,
        }
        for g in range(3)
    ]


PEOPLE = ("Ada Rowan", "Bela Marsh", "Cora Quill")
CITIES = ("Port Ellis", "Varn", "Old Keld")


def trajectories(step: int, text: str | None = None, groups: int = 3, size: int = 4) -> Iterator[dict[str, Any]]:
    """Rows as `agentrl.runs.episodes.rollout_rows` makes them. `text` is put wherever a model or a tool can write."""
    rng = random.Random(step)
    for g in range(groups):
        person, city = PEOPLE[g % 3], CITIES[g % 3]
        for i in range(size):
            correct = (i + g + step) % 3 != 0
            answer = city if correct else CITIES[(g + 1) % 3]
            extra = f" {text} " if text else " "
            search = f"<think> where was {person} born ?{extra}</think> <search> {person} born </search>"
            found = f"<information> Doc 1 (Title: {person}) {person} was born in {city} .{extra}</information>"
            final = f"<think> the passage says{extra}{answer} </think> <answer> {answer} </answer>"
            failed = i == 3 and g == 2
            advantage = 0.8 if correct else -1.1
            turns = [
                turn(rng, f"Question: where was {person} born?{extra}", search, found, advantage, "search", correct),
                turn(rng, found, final, "", advantage, "answer", correct, answer=answer),
            ]
            if failed:
                turns = turns[:1]
                turns[0]["info"]["error"] = text or "retriever: timed out after 10 s"
            yield {
                "sample_id": f"{step}.0/q{g}-{i}",
                "group_id": f"{step}.0/q{g}",
                "env_id": "agentrl/Search-v0",
                "policy_version": step,
                "reward": None if failed else float(correct),
                "correct": correct and not failed,
                "terminated": not failed,
                "truncated": False,
                "error": (text or "retriever: timed out after 10 s") if failed else None,
                "task": {"id": f"q{g}", "question": f"where was {person} born?{extra}", "golden_answers": [city]},
                "turns": turns,
            }


def turn(
    rng: random.Random,
    prompt: str,
    action: str,
    observation: str,
    advantage: float,
    kind: str,
    correct: bool,
    answer: str | None = None,
) -> dict[str, Any]:
    """One turn of words as tokens, with a value per token in every column."""
    words, before = action.split(), prompt.split()
    n = len(words)
    logprobs = [-abs(rng.gauss(0, 0.6)) for _ in range(n)]
    row: dict[str, Any] = {
        "prompt_ids": list(range(len(before))),
        "action_ids": list(range(n)),
        "logprobs": logprobs,
        "action": action,
        "observation": observation,
        "reward": float(correct and kind == "answer"),
        "stop": "stop",
        "info": {"kind": kind, "valid": True, "latency_s": round(0.02 + 0.01 * rng.random(), 4)},
        "answer_span": [n - 3, n - 1] if kind == "answer" else None,
        "policy_version": 0,
        "prompt_tokens": before,
        "action_tokens": words,
        "old_logprobs": [round(v + rng.gauss(0, 0.01), 6) for v in logprobs],
        "advantages": [advantage] * n,
        "entropy": [round(abs(rng.gauss(0, 0.5)), 6) for _ in range(n)],
    }
    if kind == "search":
        row["info"] |= {"query": " ".join(words[-4:-1]), "retrieved": ["p1", "p2", "p3"]}
    else:
        row["info"] |= {"answer": answer, "correct": correct}
    if correct:
        row["delta_logprobs"] = [round(rng.gauss(-0.02, 0.08), 6) for _ in range(n)]
    else:
        row["nthr_scores"] = [round(rng.gauss(0.2, 1.0), 6) for _ in range(n)]
        row["nthr_selected"] = [v > 1 for v in row["nthr_scores"]]
    return row


def long_trajectory(tokens: int = 32_000) -> dict[str, Any]:
    """One trajectory with that many action tokens."""
    row = next(trajectories(0))
    action = "<think> " + " ".join(f"w{i % 997}" for i in range(tokens - 2)) + " </think>"
    row["turns"] = [turn(random.Random(0), "Question: a long one?", action, "", -1.0, "answer", False, "none")]
    return row


def append_rows(run: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows to a run as its writer would."""
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def main(root: Path) -> None:
    """Runs to look at."""
    make_run(root, "collapse-demo")
    make_run(root, "healthy-nthr", HEALTHY)
    make_run(root, "harsh-noclip", "mid_grpo_lr1e-3_mb4x2_noclip_s0", status="failed")
    make_run(root / "sweep", "llds-long", "mid_llds_lr7e-4_mb4x2_long_s3", config_=config(seed=3))
    make_run(root, "just-begun", HEALTHY, steps=7, status="stopped")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
