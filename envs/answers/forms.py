"""What is plain in an answer without algebra: its base, its relations, dots, and whether it is a list."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_NUMERAL = re.compile(r"([+-]?)(\d[\dA-Fa-f]{0,400}(?:\.[\dA-Fa-f]{1,400})?)_\{?(\d{1,2}|[a-z]+)\}?")
_WORDS = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()  # noqa: SIM905
_BASES = {word: n for n, word in enumerate(_WORDS, 2)} | {str(n): n for n in range(2, 17)}
_RELATION = re.compile(r"\\(?:neq|leq|geq|nleq|ngeq|nless|ngtr|ll|gg)(?![a-zA-Z])|[<>]")
_PHRASES = (
    (r"(?:is )?(?:at least|not less than|no less than|no fewer than|not fewer than|minimum of) ?(?P<x>.+)", r"\geq"),
    (r"(?:is )?(?:at most|no more than|not more than|not greater than|up to|maximum of) ?(?P<x>.+)", r"\leq"),
    (r"(?:is )?(?:more than|greater than|larger than|above|over) ?(?P<x>.+)", ">"),
    (r"(?:is )?(?:less than|fewer than|smaller than|below|under) ?(?P<x>.+)", "<"),
    (r"(?:is )?(?:not equal to|not|anything but|any(?:thing)? except|all but|except) ?(?P<x>.+)", r"\neq"),
    (r"(?P<x>.+?) ?(?:or|and) (?:more|greater|above|over|larger|higher|up)", r"\geq"),
    (r"(?P<x>.+?) ?(?:or|and) (?:less|fewer|below|under|smaller|lower)", r"\leq"),
)
_PHRASES_COMPILED = tuple((re.compile(p, re.IGNORECASE), sign) for p, sign in _PHRASES)
_AND = re.compile(r"(?<![a-zA-Z])(?:and|or)(?![a-zA-Z])")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\^\\circ")
_PLAIN_POWER = re.compile(r"(?<![\d.])(\d{1,40})\^\{(\d{1,40})\}")
_FACTORIAL = re.compile(r"(?<![\d.])(\d{1,40})!|\((\d{1,40})\)!|\\[dt]?binom\{(\d{1,40})\}")
_LETTERS = re.compile("[A-Za-z]{41}")  # a product of so many names takes the parser minutes
MAX_DIGITS = 20_000
MAX_NESTING = 50
MAX_FACTORIAL = 5_000
_OPEN, _CLOSE = "([{", ")]}"


class Items(NamedTuple):
    """A list: its brackets ("" where it has none) and what stands in it."""

    brackets: str
    items: tuple[str, ...]


def numeral(text: str) -> tuple[str, int | None]:
    """(digits, base) of `101_{2}` or `101_{two}`; (text, None) where there is no base. Base 10 is no base."""
    match = _NUMERAL.fullmatch(text.replace(" ", ""))
    base = _BASES.get(match.group(3)) if match else None
    if match is None or base is None:
        return text, None
    digits = (match.group(1).strip("+") + match.group(2).lstrip("0").upper()) or "0"
    if any(int(d, 16) >= base for d in match.group(2) if d != "."):
        return text, None  # a subscript, but not a base
    return digits, None if base == 10 else base


def radians(text: str) -> str:
    """`30^\\circ` as `(\\frac{30\\pi}{180})`: inside a function the sign of a degree is a factor."""
    return _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)


def too_large(text: str) -> bool:
    """Whether a power or factorial of plain numbers has too many digits (`9^{9^{9}}`), or a parser would take long.

    Nobody's answer needs its value, and computing it is an attack on time. Others still meet the deadline.
    """
    if _depth(text) > MAX_NESTING or _LETTERS.search(text):
        return True
    for _ in range(20):
        match = _PLAIN_POWER.search(text)
        if match is None:
            break
        base, exponent = int(match.group(1)), int(match.group(2))
        digits = exponent * math.log10(max(base, 1))
        if digits > MAX_DIGITS:
            return True
        value = base**exponent if digits < 30 else 10**30
        text = f"{text[: match.start()]}{value}{text[match.end() :]}"
    return any(int(next(filter(None, m.groups()))) > MAX_FACTORIAL for m in _FACTORIAL.finditer(text))


def spelt_relation(text: str) -> str:
    """`5 or more` and `at least 5` as `\\geq5`; any other text as it is."""
    for pattern, sign in _PHRASES_COMPILED:
        if match := pattern.fullmatch(text):
            return sign + match.group("x")
    return text


def relations(text: str) -> tuple[str, ...]:
    """The order relations and inequalities in a text, sorted: `2<x\\leq5` has two. An equals sign is none of them."""
    return tuple(sorted(_RELATION.findall(text)))


def has_dots(text: str) -> bool:
    """Whether something is left out: `1,2,\\ldots,10`."""
    return "\\ldots" in text


def is_set(text: str) -> bool:
    """Whether a text may name a set of numbers: an interval, a union, `\\{...\\}`, `\\mathbb{R}`, `x \\in ...`."""
    return any(
        sign in text for sign in ("\\infty", "\\cup", "\\cap", "\\in", "\\mathbb", "\\setminus", "\\emptyset")
    ) or (text[:1] in ("(", "[") and text[-1:] in (")", "]") and "," in text)


def is_union(text: str) -> bool:
    """Whether commas in a text may stand in an expression of sets."""
    return any(sign in text for sign in ("\\cup", "\\cap", "\\setminus"))


def subject(text: str) -> str | None:
    """The symbol that a relation is about, `x` of `x>5`; None where it leads (`>5`) or more stands there."""
    match = re.match(r"([a-zA-Z])(?=\\|[<>=])", text)
    return match.group(1) if match else None


def sides(text: str) -> list[str]:
    """What stands between the equals signs of one equation or chain; the text alone where it is a list or has none."""
    parts = _split(text)
    return text.split("=") if "=" in text and (parts is None or len(parts) == 1) else [text]


def listed(text: str) -> Items | None:
    """The list that a text is: `1,2`, `1 and 2`, `(1,2)`, `[1,2]`, `\\{1,2\\}`, `\\pm5`; None where it is one thing."""
    brackets, inner = _enclosed(text)
    parts = _split(inner)
    if parts is None or not all(parts):
        return None
    if len(parts) == 1 and inner.count("\\pm") == 1 and "\\mp" not in inner:
        return Items("", (inner.replace("\\pm", "+"), inner.replace("\\pm", "-")))
    if len(parts) == 1 and not brackets:
        return None
    return Items(brackets, tuple(parts))


def _enclosed(text: str) -> tuple[str, str]:
    """(brackets, content) where one pair encloses the whole text; ("", text) elsewhere."""
    for opening, closing in (("\\{", "\\}"), ("(", ")"), ("[", "]"), ("(", "]"), ("[", ")"), ("{", "}")):
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
            inner = text[len(opening) : -len(closing)]
            if _balanced(inner):
                return opening[-1] + closing[-1] if opening != "{" else "{}", inner
    return "", text


def _balanced(text: str) -> bool:
    depth = 0
    for c in text:
        depth += (c in _OPEN) - (c in _CLOSE)
        if depth < 0:
            return False
    return depth == 0


def _depth(text: str) -> int:
    """How deeply brackets nest; one that is never closed counts."""
    depth = deepest = 0
    for c in text:
        depth += (c in _OPEN) - (c in _CLOSE)
        deepest = max(deepest, depth)
    return deepest


def _split(text: str) -> list[str] | None:
    """Parts between commas, semicolons, `and`, `or` outside of all brackets; None where brackets do not balance."""
    if not _balanced(text):
        return None
    depth, start, parts = 0, 0, []
    i = 0
    while i < len(text):
        c = text[i]
        depth += (c in _OPEN) - (c in _CLOSE)
        if depth == 0:
            word = _AND.match(text, i)
            if c in ",;" or word:
                parts.append(text[start:i])
                i = start = word.end() if word else i + 1
                continue
        i += 1
    parts.append(text[start:])
    parts = [p.strip() for p in parts]
    return [p for i, p in enumerate(parts) if p or not 0 < i < len(parts)]  # "1, 2, and 3" has an empty part
