"""Tokens and their scores: whose they are, and that hostile text stays text."""

import re
from dataclasses import replace
from html.parser import HTMLParser

from agentrl.config import NTHRConfig
from agentrl.lab.tokens import ScoredToken, _texts, score_tokens, to_html, to_terminal

TOKENS = [
    ScoredToken("prompt", None, False),
    ScoredToken(" <b>", 2.0, True),
    ScoredToken("x\x1b[31m", -2.0, False),
    ScoredToken(" none", 0.0, False),
]


def most_selected(group, scored):
    wrong = [i for i, t in enumerate(group.trajectories) if not t.correct]
    counts = [int(n) for n in scored.nthr_selected[wrong].sum(1)]
    return wrong[counts.index(max(counts))]


def test_the_tokens_are_those_of_an_incorrect_response(lab):
    job, groups = lab
    group = groups[0]
    scored = job.engine.score(group.batch, nthr=NTHRConfig(enabled=True, method="exact"))
    row = most_selected(group, scored)
    tokens, scale = score_tokens(job, group)
    assert len(tokens) == int(group.batch.attention_mask[row].sum())
    mine = [t.score for t in tokens if t.score is not None]
    assert mine == scored.nthr_scores[row][group.batch.action_mask[row]].tolist()
    assert len(mine) == group.trajectories[row].action_tokens and scale == max(map(abs, mine))
    assert sum(t.selected for t in tokens) == int(scored.nthr_selected[row].sum()) > 0


def test_texts_join_to_what_the_model_saw(lab):
    job, groups = lab
    batch, tokenizer = groups[0].batch, job.engine.tokenizer
    row = most_selected(groups[0], job.engine.score(batch, nthr=NTHRConfig(enabled=True, method="exact")))
    tokens, _ = score_tokens(job, groups[0])
    assert "".join(t.text for t in tokens) == tokenizer.decode(batch.input_ids[row][batch.attention_mask[row]].tolist())


def test_parts_of_words_are_not_pulled_apart():
    class Pieces:  # a SentencePiece-like decoder: the mark of a new word is dropped at the beginning
        words = ("▁like", "li", "hood", "▁is")

        def decode(self, ids):
            return "".join(self.words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert _texts(Pieces(), [0, 1, 2, 3]) == ["like", "li", "hood", " is"]


def test_the_runs_threshold_is_used(lab):
    job, groups = lab
    config = job.config.model_copy(deep=True)
    config.algorithm.nthr.beta = float("-inf")
    tokens, _ = score_tokens(replace(job, config=config), groups[0])
    assert all(t.selected for t in tokens if t.score is not None)


def test_the_terminal_shows_sign_and_selection():
    plain = to_terminal(TOKENS, 2.0, color=False)
    assert "\x1b" not in plain and "prompt [<b>|+2]x" in plain and "prompt" in plain
    shown = to_terminal(TOKENS, 2.0, color=True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown) == "prompt <b>x\\x1b[31m none"
    assert "\x1b[38;5;202;4m <b>" in shown and "\x1b[38;5;33mx" in shown


class Spans(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.tags = [], set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "span":
            self.found.append(dict(attributes))


def test_the_page_escapes_what_the_model_wrote():
    page = to_html([*TOKENS, ScoredToken("</span><script>alert(1)</script>", 1.0, False)], 2.0)
    reader = Spans()
    reader.feed(page)
    assert "script" not in reader.tags and "b" not in reader.tags and len(reader.found) == 5
    assert reader.found[1]["class"] == "sel" and reader.found[1]["title"] == "+2" and reader.found[0]["class"] == "env"
