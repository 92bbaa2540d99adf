"""Search-R1's multi-turn search protocol as a Gymnasium environment (arXiv 2503.09516).

The action is the model's text of one turn. The first `<search>…</search>` or `<answer>…</answer>` in it counts. What
the retriever returns is data: protocol tags inside it are defused, and no reward ever reads it.

Left out: cutting observations to a number of tokens, and limits on tokens, which need a tokenizer (agentrl.rollouts).
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import gymnasium

from agentrl.envs.errors import ToolFailure
from agentrl.envs.evidence import Evidence, Searches, names_gold
from agentrl.envs.protocol import (
    INVALID,
    MAX_BODY_CHARACTERS,
    PASSAGE,
    PROMPT,
    ParsedAction,
    defuse,
    parse_action,
    passage_format,
    without_thoughts,
)
from agentrl.envs.scoring import Parts, Rewards, exact_match, reads_evidence, weighted
from agentrl.envs.spaces import AnyText
from agentrl.envs.tasks import choose_task, read_task
from agentrl.retriever.base import Hit
from agentrl.retriever.batching import MicroBatcher
from agentrl.retriever.errors import RetrieverError
from agentrl.retriever.opening import open_searcher

__all__ = ["INVALID", "PROMPT", "ParsedAction", "SearchEnv", "defuse", "parse_action"]

Step = tuple[str, float, bool, bool, dict[str, Any]]  # observation, reward, terminated, truncated, info
Hits = Sequence[Hit]


class SearchEnv(gymnasium.Env[str, str]):
    """Questions answered by searching, in Search-R1's protocol: `agentrl/Search-v0`.

    reset(options={"id", "question": str, "golden_answers": [str]}) gives the prompt; without options one of `tasks` is
    drawn. Each step is one turn: a search is answered with passages, an answer ends the episode with reward 1 or 0
    (exact match; `format_reward` for a wrong one), anything else is told the two tags. After `max_turns` turns there is
    one more in which a search is not executed.

    `reward` names another score of an answer (`f1`, `module:attribute`), or several with weights; `format_reward` is
    for answers that then score 0. `correct` in the infos is exact match, whatever the reward. Where the options name
    gold passages (`agentrl.envs.evidence`), the infos have `gold_recall` of a search and `gold_found` of all so far.

    `retriever` is a url, an index folder or an object with `search_batch`. Without a retriever and without `tasks` the
    environment plays the questions of a small made-up encyclopedia.

    `skip_thoughts` ignores tags in closed `<think>` blocks ("I will write <answer> and </answer>"). A closing tag then
    ends no turn, only the model's own end of turn does: for models that think, in chat style.

    All text is a parameter. Released Search-R1 checkpoints saw titles in double quotes and no line break after the last
    passage: passage_template='Doc {rank}(Title: "{title}") {text}\\n', trim=True (no white space around the passages).
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 (as gymnasium.Env declares it)
    example_actions = (
        "<think> who? </think> <search> the founder of that company </search>",
        "<answer> Lisbon </answer>",
    )

    def __init__(
        self,
        *,
        retriever: Any = None,
        tasks: Sequence[dict[str, Any]] = (),
        topk: int = 3,
        max_turns: int = 3,
        prompt_template: str = PROMPT,
        passage_template: str = PASSAGE,
        information_open: str = "\n\n<information>",
        information_close: str = "</information>\n\n",
        trim: bool = False,
        nothing_found: str = "",
        invalid_message: str = INVALID,
        reward: Rewards = "exact_match",
        format_reward: float = 0.0,
        skip_thoughts: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if "{question}" not in prompt_template:
            raise ValueError("prompt_template has no {question}; say where the question goes")
        if topk < 1 or max_turns < 1:
            raise ValueError(f"topk is {topk} and max_turns {max_turns}; both must be 1 or more")
        self.observation_space, self.action_space = AnyText(), AnyText()
        self.render_mode = render_mode
        self._skip_thoughts = skip_thoughts
        self.stop_strings: tuple[str, ...] = () if skip_thoughts else ("</search>", "</answer>")
        self._prompt = tuple(prompt_template.split("{question}", 1))
        self._open, self._close, self._invalid = information_open, information_close, invalid_message
        self._nothing, self._show, self._trim = nothing_found, passage_format(passage_template), trim
        self.topk, self._max_turns, self._format_reward = topk, max_turns, format_reward
        self._tasks = list(tasks)
        self._own_world = retriever is None and not tasks  # its questions; they are searched in its passages
        self.searcher: Any = None if retriever is None else open_searcher(retriever)
        self._batcher: MicroBatcher | None = None
        self._score = weighted(reward, searches=True)
        self._watches = reads_evidence(reward)
        self._searches: Searches | None = None  # where somebody reads them
        self._scored: Parts | None = None  # of the turn's answer, where that was waited for
        self._question = ""
        self._golden: list[str] | None = None
        self._turn = 0
        self._transcript: list[str] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin a question. Raises TaskError where the options are no task."""
        super().reset(seed=seed)
        if not options:
            if not self._tasks:
                self._tasks = own_world()[1] if self._own_world else [DEFAULT_TASK]
            if self._own_world:
                self.searcher = own_world()[0]
            options = choose_task(None, self._tasks, self.np_random)
        elif self._own_world:  # somebody else's question: never searched in the made-up encyclopedia
            self.searcher = self._batcher = None
        question, self._golden = read_task(options)
        self._searches = Searches(options) if self._watches or names_gold(options) else None
        self._question, self._scored, self._turn = question, None, 0
        body = defuse(question if question[-1] == "?" else question + "?")
        opening, closing = self._prompt
        prompt = opening + body + closing
        if self.render_mode is not None:
            self._transcript = [prompt]
        return prompt, {"observation_parts": {"open": opening, "body": body, "close": closing}}

    def step(self, action: str) -> Step:
        """One turn. Raises ToolFailure where the retriever fails; the turn then has not happened."""
        parsed = self.parse(action)
        if not self.needs_search(parsed):
            return self.advance(action, parsed)
        searcher, began = self.needed_searcher(), time.perf_counter()
        try:
            hits = searcher.search_batch([parsed.content], self.topk)[0]
        except RetrieverError as e:
            raise ToolFailure(str(e)) from e
        return self.advance(action, parsed, hits, time.perf_counter() - began)

    async def astep(self, action: str) -> Step:
        """`step`, with retrieval batched over all episodes that search at the same moment."""
        parsed = self.parse(action)
        if not self.needs_search(parsed):
            if parsed.kind == "answer" and self._score.waits:
                given = (parsed.content, self._golden or [], self._evidence(), self._question)
                self._scored = await self._score.later(*given)
            return self.advance(action, parsed)
        if self._batcher is None:
            self._batcher = batcher_of(self.needed_searcher())
        began = time.perf_counter()
        try:
            hits = await self._batcher.search(parsed.content, self.topk)
        except RetrieverError as e:
            raise ToolFailure(str(e)) from e
        return self.advance(action, parsed, hits, time.perf_counter() - began)

    async def areset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """`reset` for an event loop."""
        return self.reset(seed=seed, options=options)

    def render(self) -> str | None:  # type: ignore[override]
        """The episode so far, where render_mode is ansi."""
        return "".join(self._transcript) if self.render_mode == "ansi" else None

    # ------------------------------------------------------------ a step in three parts, for those who batch searches

    def parse(self, action: str) -> ParsedAction:
        """What `action` asks for. Changes nothing; raises ResetNeeded outside an episode."""
        if self._golden is None:
            raise gymnasium.error.ResetNeeded("step() was called before reset(), or after the episode ended")
        return parse_action(without_thoughts(action) if self._skip_thoughts else action)

    def needs_search(self, parsed: ParsedAction) -> bool:
        """Whether this turn executes a search; the final one never does."""
        return parsed.kind == "search" and self._turn < self._max_turns

    def advance(self, action: str, parsed: ParsedAction, hits: Hits | None = None, latency_s: float = 0.0) -> Step:
        """The rest of the step; `hits` are what was found for `parsed.content`, where that needed a search."""
        self._turn += 1
        if self.render_mode is not None:
            self._transcript.append(action)
        if hits is not None:
            return self._found(parsed.content, hits, latency_s)
        if parsed.kind == "answer":
            return self._answered(parsed)
        if self._turn > self._max_turns:  # out of turns, without an answer
            self._golden = None
            return "", 0.0, False, True, {"kind": parsed.kind, "valid": False, "correct": False}
        if self.render_mode is not None:
            self._transcript.append(self._invalid)
        parts = {"open": self._invalid, "body": "", "close": ""}
        return self._invalid, 0.0, False, False, {"kind": "invalid", "valid": False, "observation_parts": parts}

    def needed_searcher(self) -> Any:
        """What searches; ValueError where there is nothing."""
        if self.searcher is None:
            raise ValueError("the environment was made without a retriever; pass retriever=URL, index folder or object")
        return self.searcher

    def parts_of_observation(self, observation: str) -> dict[str, str]:
        """An observation of a stored episode in the parts that `step` would have named, as far as it shows them."""
        if observation.strip() == self._invalid.strip():
            return {"open": observation, "body": "", "close": ""}
        for opening, closing in ((self._open, self._close), (self._open.strip(), self._close.strip())):
            if opening and closing and observation.startswith(opening) and observation.endswith(closing):
                body = observation[len(opening) : len(observation) - len(closing)]
                return {"open": opening, "body": defuse(body), "close": closing}
        return {"open": "", "body": observation, "close": ""}

    # ------------------------------------------------------------------------------------------------------- internal

    def _evidence(self) -> Evidence | None:
        return None if self._searches is None else self._searches.evidence

    def _answered(self, parsed: ParsedAction) -> Step:
        assert self._golden is not None
        correct = exact_match(parsed.content, self._golden) == 1.0
        total, each = self._scored or self._score(parsed.content, self._golden, self._evidence(), self._question)
        self._golden = None
        info = {
            "kind": "answer",
            "valid": True,
            "answer": parsed.content,
            "answer_span": parsed.span,
            "correct": correct,
        }
        if self._score.named:
            info["rewards"] = each
        if self._searches is not None:
            info |= self._searches.at_the_end()
        return "", total or self._format_reward, True, False, info

    def _found(self, query: str, hits: Hits, latency_s: float) -> Step:
        show, shown, retrieved = self._show, [], []
        for passage, _ in hits:
            retrieved.append(passage.id)
            shown.append(show(len(retrieved), passage.title, passage.text))
        body = "".join(shown)[:MAX_BODY_CHARACTERS]
        if self._trim:
            body = body.strip()
        body = defuse(body) or self._nothing  # joined first, so that no tag arises where passages meet
        observation = f"{self._open}{body}{self._close}"
        if self.render_mode is not None:
            self._transcript.append(observation)
        info = {
            "kind": "search",
            "valid": True,
            "query": query,
            "retrieved": retrieved,
            "latency_s": latency_s,
            "observation_parts": {"open": self._open, "body": body, "close": self._close},
        }
        if self._searches is not None:
            info |= self._searches.add(query, hits)
        return observation, 0.0, False, False, info


_batchers: weakref.WeakValueDictionary[int, MicroBatcher] = weakref.WeakValueDictionary()


def batcher_of(searcher: Any) -> MicroBatcher:
    """One batcher per searcher, so that all environments that share a searcher share its batches.

    A batcher keeps its searcher alive, so an id in the table is that of the searcher.
    """
    known = _batchers.get(id(searcher))
    if known is None:
        known = _batchers[id(searcher)] = MicroBatcher(searcher)
    return known


DEFAULT_TASK = {"question": "What is the capital of Portugal?", "golden_answers": ["Lisbon"]}


@lru_cache(maxsize=1)
def own_world() -> tuple[Any, list[dict[str, Any]]]:
    """(index, questions) of the made-up encyclopedia that is played where nothing else is given."""
    from agentrl.envs.worlds.search import SearchWorld
    from agentrl.retriever.bm25 import Bm25Index
    from agentrl.retriever.corpus import Passage

    world = SearchWorld(0, people=24, companies=12, cities=8, regions=6)
    passages = (Passage(p["id"], p["title"], p["text"]) for p in world.passages)
    return Bm25Index.from_passages(passages), world.questions("train")
