"""The question and the gold answers of one row of a data set, in the forms that people store them in. No torch.

Besides a column of each: rows as Search-R1 and verl write them (`prompt`, `reward_model.ground_truth`), a list written
as a text (JSON's, Python's or numpy's), whole numbers in a float column, and what a table has where nothing is.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.data.values import as_plain
from agentrl.errors import DataError, nearest

ANSWER_COLUMNS = ("golden_answers", "answers", "answer")
TARGET = "reward_model.ground_truth"
#: What verl's preparation scripts write around a problem: the environment says itself how it is to be answered.
AROUND = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: $Answer "  # noqa: E501
    "(without quotes) where $Answer is the answer to the problem.",
    'Remember to put your answer on its own line after "Answer:".',
    "Let's think step by step and output the final answer within \\boxed{}.",
    'Let\'s think step by step and output the final answer after "####".',
)
_TEXT = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_LIST = re.compile(rf"(?:array\()?\[\s*({_TEXT}(?:[\s,]+{_TEXT})*)\s*,?\s*\](?:,\s*dtype=\w+\))?", re.DOTALL)
_ITEM = re.compile(_TEXT, re.DOTALL)


def nothing(value: Any) -> bool:
    """Whether a table has nothing there: null, or the NaN of pandas."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def question_of(row: Mapping[str, Any]) -> str:
    """The question. DataError where there is none."""
    extra = unpacked(row.get("extra_info"))
    question = row.get("question")
    if nothing(question) and isinstance(extra, Mapping):
        question = extra.get("question")
    if nothing(question):
        question = _of_prompt(unpacked(row.get("prompt")))
    if question is None:
        raise DataError(missing("question", row))
    if not isinstance(question, str):
        raise DataError(f"question is a {type(question).__name__}, not text: {question!r}")
    if not question.strip():
        raise DataError("question is empty")
    return question


def _of_prompt(prompt: Any) -> str | None:
    """What a prompt asks: the text after "Question:" where it says so (Search-R1), else all but instructions."""
    last = prompt[-1] if isinstance(prompt, Sequence) and not isinstance(prompt, str) and prompt else prompt
    text = last.get("content") if isinstance(last, Mapping) else last
    if not isinstance(text, str) or not text:
        return None
    _, marker, question = text.rpartition("Question:")
    if marker:
        return question.strip()
    for around in AROUND:
        text = text.replace(around, "")
    return text.strip()


def answers_of(row: Mapping[str, Any]) -> list[str]:
    """The gold answers, each a text that is not empty. DataError where there is none."""
    name, value = _found(row)
    if nothing(value):
        raise DataError(missing("golden_answers", row))
    answers = texts(value) if isinstance(value, str) else value
    answers = list(answers) if isinstance(answers, list | tuple) else [answers]
    plain = [as_plain(a) if isinstance(a, decimal.Decimal | datetime.date | datetime.time) else a for a in answers]
    found = []
    for a in plain:
        if isinstance(a, bool) or not (a is None or isinstance(a, str | int | float)):
            raise DataError(f"{name} holds a {type(a).__name__} where text belongs: {a!r}")
        if isinstance(a, float) and math.isinf(a):
            raise DataError(f"{name} is {a}, which no answer can be")
        if not nothing(a):
            found.append(str(int(a)) if isinstance(a, float) and a.is_integer() and abs(a) < 2**53 else str(a))
    found = [a for a in found if a.strip()]
    if not found:
        raise DataError(f"{name} is empty: no action could ever be right; remove the row or give it an answer")
    return found


def _found(row: Mapping[str, Any]) -> tuple[str, Any]:
    """Where the answers stand, and what stands there. verl's rows may have a worked solution as `answer` beside."""
    model = unpacked(row.get("reward_model"))
    truth = unpacked(model.get("ground_truth")) if isinstance(model, Mapping) else None
    if isinstance(truth, Mapping):
        truth = truth.get("target")
    columns = [(ANSWER_COLUMNS[0], row.get(ANSWER_COLUMNS[0])), (TARGET, truth)]
    columns += [(name, row.get(name)) for name in ANSWER_COLUMNS[1:]]
    return next(((name, value) for name, value in columns if not nothing(value)), ("", None))


def missing(wanted: str, row: Mapping[str, Any]) -> str:
    """What is said where a column is not there, or has nothing in this row."""
    names = [str(k) for k in row]
    known = ANSWER_COLUMNS if wanted in ANSWER_COLUMNS else (wanted,)
    empty = [k for k in (*known, "reward_model") if k in names and (k != "reward_model" or wanted != "question")]
    if empty:
        return f"{empty[0]} has no value in this row (null or NaN)" if empty[0] != "reward_model" else (
            f"{TARGET} has no value in this row"
        )  # fmt: skip
    return f"no column {wanted}{nearest(wanted, names)}; its columns are {', '.join(names) or 'none'}"


def texts(value: str) -> list[str] | str:
    """A list of texts that was stored as a text, as a list; every other text as it is.

    A list of numbers stays a text: "[0, 1]" is an interval as often as two answers. DataError for numpy's shortened
    print, which has lost answers.
    """
    text = value.strip()
    if not text.endswith(("]", ")")) or not text.startswith(("[", "array(")):
        return value
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        found = _LIST.fullmatch(text)
        if found is None:
            if re.search(r"""['"]\s*\.\.\.\s*['"]""", text):
                raise DataError(
                    f"golden_answers is a shortened print of a list, {text[:60]!r}: answers are lost"
                ) from None
            return value
        return [_unquoted(item) for item in _ITEM.findall(found[1])]
    return items if isinstance(items, list) and items and all(isinstance(i, str) for i in items) else value


def _unquoted(item: str) -> str:
    return re.sub(r"\\(.)", r"\1", item[1:-1])


def unpacked(value: Any) -> Any:
    """A JSON object or list that was stored as a text; everything else as it is."""
    if isinstance(value, str) and value.strip()[:1] in ("{", "["):
        try:
            inner = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return inner if isinstance(inner, Mapping) or _messages(inner) else value
    return value


def _messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) for m in value)
