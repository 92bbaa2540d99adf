"""Grading mathematical answers: as text, as numbers, by form, then by math-verify in worker processes.

math-verify stops long computations with signals, which threads cannot use, and sympy can be made to compute for hours:
so it runs in worker processes with a deadline, and a worker that misses it is ended and replaced. Whether workers can
work at all is seen before the first answer is judged by one. The deadline is CPU time of the worker: an answer that
waits for one, or shares a busy machine, loses nothing. Equal pairs are graded once.
"""

from __future__ import annotations

import asyncio
import atexit
import multiprocessing
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as DeadlineError
from dataclasses import dataclass
from typing import Any, Literal

from agentrl.envs.answers import worker
from agentrl.envs.answers.equal import equal
from agentrl.envs.errors import ToolFailure
from agentrl.envs.waiting import uncounted
from agentrl.errors import need

MAX_ANSWER_CHARACTERS = 2_000  # a longer answer is wrong: no exercise has one, and parsing it is an attack on time
DEADLINE_S = 5.0
PATIENCE = 4  # a worker that is still busy after so many deadlines by the clock is ended
START_S = 120.0  # for the first worker process to start
REMEMBERED = 20_000  # pairs whose verdict is kept
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])[ \t\n]{0,9}")
_BRACE = re.compile(r"\\\\(?!boxed|fbox)|\\[{}]|[{}]")  # an escaped character or a brace
_BARE = re.compile(r"[{}]|[\s$]|\\[)\]]")  # what may end the content of a box without braces

Method = Literal["string", "number", "form", "math-verify", "none", "too long", "deadline", "error"]
Pair = tuple[str, tuple[str, ...], float | None, float]  # answer, golden answers, tolerance, deadline


@dataclass(frozen=True)
class Grade:
    """Whether an answer is correct, and what decided it."""

    correct: bool
    method: Method


def last_boxed(text: str) -> tuple[int, int] | None:
    """Character offsets (start, end) of the content of the last box: `\\boxed{5}`, `\\fbox{5}`, `\\boxed 5`.

    Braces are balanced as LaTeX does it: `\\{` and `\\}` are characters. Of several boxes the one that begins last
    counts. Where that one is cut off there is no answer, even if an earlier box is complete: the response took it back,
    or did not come to its end. Linear in the length of `text`, whatever stands in it.
    """
    start = max((match.end() for match in _BOX.finditer(text)), default=None)
    if start is None:
        return None
    if text[start : start + 1] != "{":
        return _bare(text, start)
    depth = 0
    for match in _BRACE.finditer(text, start):
        if match.group() in "{}":
            depth += 1 if match.group() == "{" else -1
            if depth == 0:
                return start + 1, match.start()
    return None


def _bare(text: str, start: int) -> tuple[int, int] | None:
    """What stands behind `\\boxed` without braces: up to a blank or the end of the formula, without punctuation.

    Braces inside belong to it (`\\boxed \\frac{1}{2}`); one that closes more than was opened ends it.
    """
    depth, end = 0, len(text)
    for match in _BARE.finditer(text, start, start + MAX_ANSWER_CHARACTERS + 1):
        token = match.group()
        depth += (token == "{") - (token == "}")
        if depth < 0 or (depth == 0 and token not in ("{", "}")):
            end = match.start()
            break
    content = text[start:end].rstrip(".,;:")
    return (start, start + len(content)) if content and depth <= 0 else None


def grade(
    answer: str | None,
    golden_answers: Sequence[str],
    *,
    deadline_s: float = DEADLINE_S,
    tolerance: float | None = None,
) -> Grade:
    """Grade one extracted answer (the content of the box) against any of the golden answers.

    Never raises for what stands in `answer`: too long, unparsable or too slow to compare is wrong; `method` says which.
    `deadline_s` is the CPU time that a worker may take. `tolerance`, where the data set has one, is absolute.
    Raises ToolFailure where no worker process can be started: then nothing is known about any answer.
    """
    first = at_once(answer, golden_answers, tolerance)
    if isinstance(first, Grade):
        return first
    pair = (first, tuple(golden_answers), tolerance, deadline_s)
    for _ in range(2):
        job = _judged(pair)
        try:
            return _verdict(job.result())
        except Exception as error:
            if (failed := _failed(pair, job, error)) is not None:
                return failed
    return Grade(False, "error")


async def agrade(
    answer: str | None,
    golden_answers: Sequence[str],
    *,
    deadline_s: float = DEADLINE_S,
    tolerance: float | None = None,
) -> Grade:
    """`grade` for an event loop. Waiting for a worker counts against nobody's time limit (`agentrl.envs.waiting`)."""
    first = at_once(answer, golden_answers, tolerance)
    if isinstance(first, Grade):
        return first
    pair = (first, tuple(golden_answers), tolerance, deadline_s)
    with uncounted():
        await asyncio.to_thread(_pool)  # the first call starts the workers
        for _ in range(2):
            job = _judged(pair)
            try:
                # shielded: who gives up waiting must not take the verdict from those who ask for the same pair
                return _verdict(await asyncio.shield(asyncio.wrap_future(job)))
            except Exception as error:
                if (failed := _failed(pair, job, error)) is not None:
                    return failed
    return Grade(False, "error")


def at_once(answer: str | None, golden_answers: Sequence[str], tolerance: float | None = None) -> Grade | str:
    """The grade where text, numbers or forms decide it; else the answer, for a worker."""
    if answer is None or not answer.strip():
        return Grade(False, "none")
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return Grade(False, "too long")
    verdicts = [equal(gold, answer, tolerance=tolerance) for gold in golden_answers]
    if right := next((v for v in verdicts if v[0]), None):
        return Grade(True, right[1])
    if all(v[0] is False for v in verdicts):
        return Grade(False, verdicts[-1][1] if verdicts else "none")
    return answer


def grade_response(
    text: str, golden_answers: Sequence[str], *, deadline_s: float = DEADLINE_S, tolerance: float | None = None
) -> Grade:
    """`grade` of the last box of a whole response; no box is "none"."""
    span = last_boxed(text)
    answer = None if span is None else text[slice(*span)]
    return grade(answer, golden_answers, deadline_s=deadline_s, tolerance=tolerance)


_known: OrderedDict[Pair, Future[bool | None]] = OrderedDict()
_known_lock = threading.Lock()


def _judged(pair: Pair) -> Future[bool | None]:
    """The verdict on a pair: one that is known or on its way, else a new job."""
    pool = _pool()
    with _known_lock:
        job = _known.get(pair)
        if job is None:
            answer, golds, tolerance, deadline_s = pair
            arguments = [answer, list(golds), tolerance, deadline_s]
            job = _known[pair] = pool.schedule(_verify, args=arguments, timeout=deadline_s * PATIENCE)
            while len(_known) > REMEMBERED:
                _known.popitem(last=False)
        return job


def _verdict(equal_: bool | None) -> Grade:
    return Grade(False, "deadline") if equal_ is None else Grade(equal_, "math-verify")


def _failed(pair: Pair, job: Future[bool | None], error: Exception) -> Grade | None:
    """The grade where a job has failed; None where it is to be tried again. What is a ToolFailure is raised."""
    from pebble import ProcessExpired

    if isinstance(error, ToolFailure):
        raise error
    if isinstance(error, DeadlineError):
        return Grade(False, "deadline")
    with _known_lock:
        if _known.get(pair) is job:
            del _known[pair]
    # the worker was killed, perhaps from outside; if the answer kills a second one, it is its fault
    return None if isinstance(error, ProcessExpired | CancelledError) else Grade(False, "error")


def _verify(answer: str, golden_answers: list[str], tolerance: float | None, deadline_s: float) -> bool | None:
    """In a worker process."""
    return worker.judge(answer, golden_answers, tolerance, deadline_s)


_lock = threading.Lock()
_workers: Any = None


def _pool() -> Any:
    """One pool per process, made on first use; workers are spawned, because a forked torch process may hang."""
    global _workers
    with _lock:
        if _workers is None or _workers[0] != os.getpid() or not _workers[1].active:
            need("the comparison of mathematical expressions", "math_verify", "pebble")
            from pebble import ProcessPool

            workers = min(4, os.cpu_count() or 1)
            context = multiprocessing.get_context("spawn")
            pool = ProcessPool(max_workers=workers, max_tasks=1000, initializer=worker.prepare, context=context)
            try:
                works = pool.schedule(_verify, args=["x+1", ["1+x"], None, START_S]).result(timeout=START_S)
            except Exception as e:
                works, reason = False, f"{type(e).__name__}: {e}"
            else:
                reason = "math-verify does not find that x+1 is 1+x"
            if not works:
                pool.stop()
                pool.join(timeout=2)
                raise ToolFailure(
                    f"answers cannot be graded: the worker processes do not work ({reason}); a script that grades "
                    'must have its own work under `if __name__ == "__main__":`, and math-verify must be installed'
                )
            _workers = (os.getpid(), pool)
            atexit.register(_stop)
        return _workers[1]


def _stop() -> None:
    global _workers
    if _workers is not None and _workers[0] == os.getpid():
        _workers[1].stop()
        _workers[1].join(timeout=2)
    _workers = None
    with _known_lock:
        _known.clear()
