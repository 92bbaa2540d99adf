"""Tables over question sets: EM, F1, substring EM with intervals, searches, time, averages, differences. No torch.

EM is the mean of `correct`. docs/evaluation.md says how the intervals are made.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrl.train.statistics import Estimate, average, difference, interval

METRICS = {"em": "EM", "f1": "F1", "substring": "substring EM"}
COLUMNS = {"em": "correct", "f1": "f1", "substring": "substring"}  # in the rows of the journal
Responses = Mapping[str, Sequence[Mapping[str, Any]]]  # question -> its responses, those that failed among them
Group = tuple[str, tuple[str, ...]]  # name of an average, and the sets it is of


@dataclass(frozen=True)
class Scores:
    """One set of one model. A metric is None where the environment names no answers."""

    questions: int  # those counted: each row of the table has a response to them
    failed: int  # responses that failed and are left out, to whatever question of the set
    em: Estimate | None
    f1: Estimate | None
    substring: Estimate | None
    searches: float | None = None  # a question
    seconds: float | None = None  # a question, median
    seconds_p95: float | None = None


Table = dict[str, dict[str, Scores]]  # model -> set or average -> scores


def good(responses: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that did not fail."""
    return [r for r in responses if r["error"] is None]


def counted(rows: Mapping[str, Mapping[str, Responses]]) -> dict[str, list[str]]:
    """Set -> the questions that every model has a response to. ValueError where there is none in a set."""
    out = {}
    for name in next(iter(rows.values())):
        each = [{q for q, found in of[name].items() if good(found)} for of in rows.values()]
        kept = set.intersection(*each)
        if not kept:
            raise ValueError(f"{name}: there is no question that every row has a response for")
        out[name] = [q for q in next(iter(rows.values()))[name] if q in kept]
    return out


def table_of(rows: Mapping[str, Mapping[str, Responses]], groups: Sequence[Group]) -> Table:
    """model -> set -> responses, as scores over the same questions, and the averages of `groups` below.

    An average is left out where one of its sets is not there.
    """
    kept = counted(rows)
    out: Table = {}
    for model, sets in rows.items():
        scores = {name: scores_of(found, kept[name]) for name, found in sets.items()}
        whole = [(title, [scores[n] for n in names]) for title, names in groups if set(names) <= set(scores)]
        out[model] = scores | {title: mean_of(parts) for title, parts in whole}
    return out


def scores_of(responses: Responses, kept: Sequence[str]) -> Scores:
    """The scores of one set over the questions in `kept`."""
    found = [good(responses[q]) for q in kept]
    flat = [r for of in found for r in of]
    seconds = sorted(float(r["seconds"]) for r in flat)

    def estimate(metric: str) -> Estimate | None:
        values = values_of(responses, kept, metric)
        return None if values is None else interval(values, [len(of) for of in found])

    return Scores(
        questions=len(kept),
        failed=sum(len(of) - len(good(of)) for of in responses.values()),
        em=estimate("em"),
        f1=estimate("f1"),
        substring=estimate("substring"),
        searches=sum(r["searches"] for r in flat) / len(flat),
        seconds=statistics.median(seconds),
        seconds_p95=seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))],
    )


def values_of(responses: Responses, kept: Sequence[str], metric: str) -> list[float] | None:
    """The mean of a metric over each question's responses; None where one has no value."""
    values = [[r.get(COLUMNS[metric]) for r in good(responses[q])] for q in kept]
    if any(v is None for of in values for v in of):
        return None
    return [sum(map(float, of)) / len(of) for of in values]  # type: ignore[arg-type]


def mean_of(parts: Sequence[Scores]) -> Scores:
    """The mean over sets, each weighing the same."""
    known = [p.searches for p in parts if p.searches is not None]
    return Scores(
        questions=sum(p.questions for p in parts),
        failed=sum(p.failed for p in parts),
        em=averaged([p.em for p in parts]),
        f1=averaged([p.f1 for p in parts]),
        substring=averaged([p.substring for p in parts]),
        searches=sum(known) / len(known) if len(known) == len(parts) else None,
    )


def averaged(cells: Sequence[Estimate | None]) -> Estimate | None:
    """Their average, or None where one is missing."""
    whole = [c for c in cells if c is not None]
    return average(whole) if len(whole) == len(cells) else None


def differences_of(rows: Mapping[str, Mapping[str, Responses]], groups: Sequence[Group]) -> Table:
    """Each model's difference to the first one, question by question (paired bootstrap), and their averages."""
    kept, (first, *others) = counted(rows), rows
    out: Table = {}
    for model in others:
        cells = {name: apart_of(rows[first][name], rows[model][name], questions) for name, questions in kept.items()}
        whole = [(title, [cells[n] for n in names]) for title, names in groups if set(names) <= set(cells)]
        out[f"{model} − {first}"] = cells | {title: mean_of(parts) for title, parts in whole}
    return out


def apart_of(a: Responses, b: Responses, questions: Sequence[str]) -> Scores:
    """The differences b − a of one set; searches and seconds have none."""

    def estimate(metric: str) -> Estimate | None:
        x, y = values_of(a, questions, metric), values_of(b, questions, metric)
        return None if x is None or y is None else difference(x, y)

    return Scores(len(questions), 0, estimate("em"), estimate("f1"), estimate("substring"))


# ------------------------------------------------------------------------------------------------------------ shown


def render(table: Table, titles: Mapping[str, str], style: str) -> str:
    """Each model's rows below each other; `style` is text, markdown or csv."""
    if style == "csv":
        return _csv(table)
    blocks = []
    for model, scores in table.items():
        body = [[titles.get(name, name), *_cells(s)] for name, s in scores.items()]
        top = [model, "questions", *METRICS.values(), "searches", "seconds"]
        blocks.append(_markdown([top, *body]) if style == "markdown" else _text([top, *body]))
    return "\n\n".join(blocks)


def to_json(table: Table) -> dict[str, Any]:
    """The same as plain JSON, shares in [0, 1]."""

    def plain(scores: Scores) -> dict[str, Any]:
        return {k: vars(v) if isinstance(v, Estimate) else v for k, v in vars(scores).items()}

    return {model: {name: plain(s) for name, s in scores.items()} for model, scores in table.items()}


def _cells(s: Scores) -> list[str]:
    number = ["–" if x is None else f"{x:.2f}" for x in (s.searches, s.seconds)]
    failed = f" ({s.failed} failed)" if s.failed else ""
    return [f"{s.questions}{failed}", *("–" if e is None else str(e) for e in (s.em, s.f1, s.substring)), *number]


def _text(rows: Sequence[Sequence[str]]) -> str:
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, width)).rstrip() for row in rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _csv(table: Table) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    limits = [f"{m}{part}" for m in METRICS for part in ("", "_low", "_high")]
    writer.writerow(["model", "set", "questions", "failed", *limits, "searches", "seconds_median", "seconds_p95"])
    for model, scores in table.items():
        for name, s in scores.items():
            cells = [e for m in METRICS for e in _limits(getattr(s, m))]
            writer.writerow([model, name, s.questions, s.failed, *cells, s.searches, s.seconds, s.seconds_p95])
    return out.getvalue().rstrip("\n")


def _limits(e: Estimate | None) -> list[float | None]:
    return [None, None, None] if e is None else [e.value, e.low, e.high]
