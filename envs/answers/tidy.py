"""One way of writing for answers that differ in layout alone. What it leaves equal is equal; no value is changed.

A blank or a spacing command between digits is kept: `2 3` is not 23. `1 234` and `1,234` are 1234, `1, 234` is a pair.
"""

from __future__ import annotations

import re
import unicodedata

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SIGNS = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "÷": "/", "∕": "/", "π": r"\pi ",
        "∞": r"\infty ", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "≈": r"\approx ", "∅": r"\emptyset ",
        "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "°": r"^\circ ", "…": r"\ldots ", "⋯": r"\ldots ",
        "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "％": "%", "∠": r"\angle ",
    }
)  # fmt: skip
_SPELLINGS = (
    (r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|displaystyle|textstyle|limits)(?![a-zA-Z])", ""),
    (r"\\\$|(?<!\\)\\[()\[\]]|\$", " "),
    (r"\{,\}|,\\!", ","),
    (r"\\!", ""),
    (r"(?<!\\)\\(?:[,;:> ]|(?:q?quad|(?:thin|med|thick|en)space)(?![a-zA-Z]))|~|\\[hv]space\*?\{[^{}]*\}", " "),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\(?:varnothing|empty|O)(?![a-zA-Z])|\\\{\s*\\\}", r"\\emptyset"),
    (r"\\leq?(?:slant)?(?![a-zA-Z])|<=", r"\\leq"),
    (r"\\geq?(?:slant)?(?![a-zA-Z])|>=", r"\\geq"),
    (r"\\ne(?![a-zA-Z])|\\not\s*=|!=", r"\\neq"),
    (r"\\lt(?![a-zA-Z])", "<"),
    (r"\\gt(?![a-zA-Z])", ">"),
    (r"\\(?:dots|cdots|dotsc|dotsb|hdots)(?![a-zA-Z])|\.\.\.+", r"\\ldots"),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"),
    (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])", r"^\\circ"),
    (r"(?<!\\)%", r"\\%"),
    (r"\\(frac|sqrt)\s*(\d)\s*(?=[\d{])", r"\\\1{\2}"),
    (r"(\\frac\{[^{}]*\})\s*(\d)", r"\1{\2}"),
    (r"\\sqrt\s*(\d|[a-zA-Z](?![a-zA-Z]))", r"\\sqrt{\1}"),
    (r"\*\*", "^"),
    (r"(?<![\\a-zA-Z])sqrt ?\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"(?<![\\a-zA-Z])(sin|cos|tan|cot|sec|csc|log|ln|exp|pi|infty)(?![a-zA-Z])", r"\\\1 "),
    (r"([\^_])\s*\{\s*([+-]?\d+)\s*\}", r"\1{\2}"),
    (r"([\^_])\s*([+-]?\d+)", r"\1{\2}"),
)
_SPELLINGS_COMPILED = tuple((re.compile(p), r) for p, r in _SPELLINGS)
TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|operatorname|rm)\s*\{([^{}]*)\}"
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{(.*)\}")
_ROOT = re.compile(r"√\s*(\d+(?:\.\d+)?|[a-zA-Z]|\([^()]*\))")
_SUPER, _SUB = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+"), re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_COMMAS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!,?\d)")
_GROUPS = re.compile(r"(?<![\d.,] )(?<![\d.,])\d{1,3}(?: \d{3})+(?! ?[\d/])")
_TIMES_TEN = re.compile(r"(?<=\d) ?(?:\\times|\\cdot|\*|[xX](?= ?10\^)) ?10\^\{([+-]?\d+)\}")
_E = re.compile(r"(?<![A-Za-z\d.])(\d+\.?\d*|\.\d+) ?[eE]([+-]?\d{1,9})(?![\dA-Za-z]|\.\d)")
_REPEATING = re.compile(r"(?<![\d.])(\d*)\.(\d*)(?:\\(?:overline|bar)(?:\{(\d+)\}|(\d))|\((\d+)\))")
_MIXED = re.compile(r"(?<![\w.}^/\\])(\d+)(?:\\frac\{(\d+)\}\{(\d+)\}| (\d+)/(\d+)(?![\d.]))")
_BLANK = re.compile(r"\s+")
_NEEDLESS = re.compile(r"(?<![\da-zA-Z]) | (?![\da-zA-Z])|(?<=\d) (?=[a-zA-Z])|(?<=[A-Za-z]) (?=\d)")
DIGITS_APART = re.compile(r"\d \d")


def tidy(answer: str) -> str:
    """The answer in one way of writing, with `\\text{...}` unwrapped. Linear in its length but for a small factor."""
    return _unspaced(_plain_text(spell(answer)))


def spell(answer: str) -> str:
    """The first half of `tidy`: one spelling for each sign; text commands and blanks are still there."""
    text = _ROOT.sub(r"\\sqrt{\1}", answer)
    text = _SUPER.sub(lambda m: "^{" + m.group().translate(_SUPERSCRIPTS) + "}", text)
    text = _SUB.sub(lambda m: "_{" + m.group().translate(_SUBSCRIPTS) + "}", text)
    text = "".join(_fraction(c) for c in text.translate(_SIGNS))
    text = unicodedata.normalize("NFKC", text).strip()
    if box := _BOX.fullmatch(text):
        text = box.group(1)
    for pattern, replacement in _SPELLINGS_COMPILED:
        text = pattern.sub(replacement, text)
    return _BLANK.sub(" ", text).strip()


def _fraction(character: str) -> str:
    """`½` as `\\frac{1}{2}`."""
    if "¼" <= character <= "¾" or "⅐" <= character <= "⅞":
        over, _, under = unicodedata.normalize("NFKC", character).partition("⁄")
        return f"\\frac{{{over}}}{{{under}}}"
    return character


def _plain_text(text: str) -> str:
    """Text commands unwrapped, with a blank where their content would run into a command or a word."""

    def content(match: re.Match[str]) -> str:
        before = text[match.start() - 1 : match.start()]
        return (" " if before.isalpha() else "") + match.group(1) + (" " if match.group(1)[-1:].isalpha() else "")

    for _ in range(3):  # nested ones
        new = TEXT.sub(content, text)
        if new == text:
            break
        text = new
    return _BLANK.sub(" ", text).strip()


def _unspaced(text: str) -> str:
    """Numbers in one way of writing, then no blank but between digits and between letters."""
    text = text.strip(" ,;:").rstrip(".").strip()
    text = re.sub(r"^(?:=|\\approx(?![a-zA-Z])) ?", "", text)
    text = _separators(text)
    text = _NEEDLESS.sub("", text)
    text = _E.sub(r"\1\\times10^{\2}", text)
    text = _TIMES_TEN.sub(r"\\times10^{\1}", text)
    text = _REPEATING.sub(_repeating, text)
    return _MIXED.sub(_mixed, text).strip()


def _separators(text: str) -> str:
    """`1,234` and `1 234` as 1234; inside brackets, and before a blank, a comma separates."""

    def join(match: re.Match[str]) -> str:
        before = text[: match.start()]
        depth = sum(before.count(c) for c in "([") - sum(before.count(c) for c in ")]")
        inside = depth > 0 or before.count(r"\{") > before.count(r"\}")
        return match.group() if inside else match.group().replace(",", "")

    text = _COMMAS.sub(join, text)
    return _GROUPS.sub(lambda m: m.group().replace(" ", ""), text)


def _repeating(match: re.Match[str]) -> str:
    """`0.1\\overline{6}` as `\\frac{15}{90}`."""
    whole, first = match.group(1) or "0", match.group(2)
    period = match.group(3) or match.group(4) or match.group(5)
    over = int(whole + first + period) - int(whole + first)
    return f"\\frac{{{over}}}{{{'9' * len(period)}{'0' * len(first)}}}"


def _mixed(match: re.Match[str]) -> str:
    """`1 1/2` and `1\\frac{1}{2}` as `\\frac{3}{2}`; with an improper fraction it is no mixed number."""
    whole, over, under = (int(g) for g in match.groups() if g is not None)
    if not 0 < over < under:
        return match.group()
    return f"\\frac{{{whole * under + over}}}{{{under}}}"
