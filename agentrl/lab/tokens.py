"""`lab tokens`: one incorrect response with its tokens coloured by NTHR score (NTHR Fig. 3)."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from agentrl.config import NTHRConfig
from agentrl.console import printable
from agentrl.lab.groups import Group
from agentrl.train.build import Job


@dataclass
class ScoredToken:
    """One token of the response, with the space before it; `score` is None for tokens that the environment wrote."""

    text: str
    score: float | None
    selected: bool


def score_tokens(job: Job, group: Group) -> tuple[list[ScoredToken], float]:
    """Scored tokens of the group's incorrect response with most selected tokens, and the scale of the colours.

    The scale is the largest |score|.
    """
    nthr = NTHRConfig(enabled=True, method="exact", beta=job.config.algorithm.nthr.beta)
    scored = job.engine.score(group.batch, temperature=job.config.rollout.temperature, nthr=nthr)
    assert scored.nthr_scores is not None and scored.nthr_selected is not None
    wrong = [i for i, ok in enumerate(group.batch.correct.tolist()) if not ok]
    row = max(wrong, key=lambda i: int(scored.nthr_selected[i].sum()))  # type: ignore[index]
    ids = group.batch.input_ids[row][group.batch.attention_mask[row]].tolist()
    texts = _texts(job.engine.tokenizer, ids)
    tokens = [ScoredToken(texts[0], None, False)]
    for s, text in enumerate(texts[1:]):
        is_action = bool(group.batch.action_mask[row, s])
        score = float(scored.nthr_scores[row, s]) if is_action else None
        tokens.append(ScoredToken(text, score, bool(scored.nthr_selected[row, s])))
    scale = max((abs(t.score) for t in tokens if t.score is not None), default=1.0) or 1.0
    return tokens, scale


def _texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """Each token's text as it stands after the one before it: words of a word-level tokenizer begin with a space, later
    parts of a word do not."""
    alone = [tokenizer.decode([i]) for i in ids]
    out = alone[:1]
    for before, pair, own in zip(alone, pairwise(ids), alone[1:]):
        both = tokenizer.decode(list(pair))
        out.append(both[len(before) :] if both.startswith(before) and both.endswith(own) else own)
    return out


def _level(score: float, scale: float) -> int:
    """-4 to 4, by the square root, so that small scores are told apart."""
    share = min(1.0, abs(score) / scale) ** 0.5
    return round(4 * share) * (1 if score > 0 else -1)


BLUES, ORANGES = (153, 111, 75, 33), (223, 215, 208, 202)  # xterm: negative and positive, light to strong


def to_terminal(tokens: Sequence[ScoredToken], scale: float, *, color: bool) -> str:
    """Orange: the token's penalty would hurt correct responses; blue: it helps; underlined: NTHR selects it.

    Without colour each selected token is marked as [token|score].
    """
    out = []
    for t in tokens:
        text = printable(t.text)
        if not color:
            word = text.lstrip(" ")
            marked = f"{text[: len(text) - len(word)]}[{word}|{t.score or 0:+.2g}]"
            out.append(marked if t.selected else text)
            continue
        if t.score is None:
            out.append(f"\x1b[2m{text}\x1b[0m")
            continue
        level = _level(t.score, scale)
        shade = "" if level == 0 else f"38;5;{(ORANGES if level > 0 else BLUES)[abs(level) - 1]}"
        codes = ";".join(c for c in (shade, "4" if t.selected else "") if c)
        out.append(f"\x1b[{codes}m{text}\x1b[0m" if codes else text)
    return "".join(out)


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>NTHR scores</title><style>
:root{color-scheme:light dark}body{font:16px/2 ui-sans-serif,system-ui,sans-serif;max-width:60rem;margin:3rem auto;
padding:0 1rem}span{padding:.15em 0;border-radius:3px;white-space:pre-wrap}.env{opacity:.45}
.sel{text-decoration:underline;text-underline-offset:3px}
</style><h1>NTHR scores</h1><p>Orange: penalising this token lowers the likelihood of
correct responses. Blue: it raises it. Underlined: selected, its penalty is softened.
Faint: written by the environment. Hover for the score.</p><p>{body}</p>
"""


def to_html(tokens: Sequence[ScoredToken], scale: float) -> str:
    """A page of its own; token text is escaped."""
    spans = []
    for t in tokens:
        text = html.escape(t.text)
        if t.score is None:
            spans.append(f'<span class="env">{text}</span>')
            continue
        strength = min(1.0, abs(t.score) / scale) ** 0.5 * 0.75
        rgb = "213,94,0" if t.score > 0 else "0,114,178"
        selected = ' class="sel"' if t.selected else ""
        style = f"background:rgba({rgb},{strength:.2f})"
        spans.append(f'<span{selected} style="{style}" title="{t.score:+.5g}">{text}</span>')
    return PAGE.replace("{body}", "".join(spans))
