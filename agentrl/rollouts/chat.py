"""Observations to token ids that are only ever appended.

`tag` style: the first prompt, then one raw continuation of actions and observations (Search-R1). `chat` style: every
action is an assistant message, every observation a tool message of the model's own template; only the tokens of the new
message are appended, what came before is never rendered again. What was sampled is never decoded and encoded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any, NamedTuple

from agentrl.config import RolloutConfig
from agentrl.errors import ConfigError, ModelError
from agentrl.rollouts.encode import Piece, TextEncoder
from agentrl.rollouts.template import Frame, prompt_frame, turn_frame
from agentrl.rollouts.tools import results_frame
from agentrl.types import Stop

CACHED_CHARACTERS = 1 << 16  # longer observations are encoded anew each time, to bound the cache's memory


class Parts(NamedTuple):
    """One observation: the protocol's own words around a body that may be hostile."""

    open: str
    body: str
    close: str

    @property
    def text(self) -> str:
        """The whole observation."""
        return self.open + self.body + self.close


def parts_of(observation: str, info: dict[str, Any]) -> Parts:
    """An observation's parts as `info["observation_parts"]` names them; without, all of it is body."""
    named = info.get("observation_parts")
    if named is None:
        return Parts("", observation, "")
    parts = Parts(named["open"], named["body"], named["close"])
    if parts.text != observation:
        raise ValueError(
            "the environment's info['observation_parts'] do not add up to its observation: "
            f"{parts.text[:80]!r} != {observation[:80]!r}"
        )
    return parts


class PromptTooLong(ValueError):
    """A question leaves no room for an action. One row's matter, unlike a context that is too small for any."""


class ChatFormat:
    """Turns observations into the token ids to append. Deterministic; keeps a small cache of encodings."""

    def __init__(self, tokenizer: Any, config: RolloutConfig, schemas: list[dict[str, Any]] | None = None) -> None:
        """`schemas` are of tools that are called natively (`agentrl.rollouts.tools`).

        Raises ModelError where the tokenizer or its template cannot do what `config` asks, ConfigError on a context
        that is smaller than one turn.
        """
        self.tokenizer = tokenizer
        self.config = config
        self.encoder = TextEncoder(tokenizer)
        template = getattr(tokenizer, "chat_template", None) is not None
        if config.style == "chat" and config.prompt == "raw":
            raise ConfigError(
                ["rollout.style is chat but rollout.prompt is raw: set rollout.prompt: auto, or rollout.style: tag"]
            )
        if not template and (config.style == "chat" or config.prompt == "chat"):
            key = "style" if config.style == "chat" else "prompt"
            raise ModelError(
                f"rollout.{key} is chat, but the tokenizer of {tokenizer.name_or_path!r} has no chat template; set "
                "rollout.style: tag and rollout.prompt: raw, or add a chat_template.jinja beside its tokenizer.json"
            )
        templated = template and config.prompt != "raw"
        self._first = prompt_frame(tokenizer, schemas) if templated else Frame("", "")
        self._turn = Frame("", "")
        if config.style == "chat":
            self._turn = turn_frame(tokenizer) if schemas is None else results_frame(tokenizer, schemas)
        self._bos = [] if templated else self._leading_tokens()
        self._end = self._end_of_action(self._turn)
        self._template_end = self._end or (self._end_of_action(_frame_or_none(tokenizer)) if templated else ())
        self.native = schemas is not None
        self._results = lru_cache(maxsize=64)(self._encode_results)
        self._cached = lru_cache(maxsize=1024)(self._encode)
        self._check_room(len(self._bos) + len(self.encoder.join([(self._first.before + self._first.after, True)])))

    @property
    def tool_role(self) -> str | None:
        """The role of observations in chat style: tool, or user where the template has no tool messages."""
        return self._turn.role if self.config.style == "chat" else None

    def start(self, parts: Parts) -> list[int]:
        """Token ids of the first prompt, which is never cut.

        Raises PromptTooLong where the question leaves no room for an action of `max_tokens_per_turn`, and ConfigError
        where the prompt would not even without its question.
        """
        return list(self._ids(True, parts)[0])

    def extend(self, action_ids: Sequence[int], stop: Stop, parts: Parts, results: Sequence[str] = ()) -> list[int]:
        """Token ids to append after an action: end of the assistant's turn, the observation, the generation prompt.

        The body is cut so that the observation stays within `max_observation_tokens`; `open` and `close` survive. Where
        the action already ends with the template's end-of-turn token, that is not repeated. `stop` tells how the
        action ended; the ids say the same more exactly, so it is not read. `results` are the results of a turn's native
        calls, a message each, which share the limit in equal parts and stand in place of `parts`.
        """
        ids = self._results(tuple(results))[0] if self.native and results else self._ids(False, parts)[0]
        said = next((k for k in range(len(self._end), 0, -1) if tuple(action_ids[-k:]) == self._end[:k]), 0)
        return list(ids[said:])

    def turn_ends(self) -> list[int]:
        """Control tokens each of which ends a turn, the usual one first: the template's, then the tokenizer's own."""
        own = self.tokenizer.eos_token_id
        return list(dict.fromkeys([*self._template_end[:1], *([] if own is None else [own])]))

    def shown(self, parts: Parts, results: Sequence[str] = ()) -> str:
        """The text of an observation as the model sees it, after the cut."""
        return (self._results(tuple(results)) if self.native and results else self._ids(False, parts))[1]

    def spoken(self, text: str) -> str:
        """An action as the environment reads it: with native tools, where a turn may be an answer, without its end."""
        if not self.native:
            return text
        while end := next((t for t in self.tokenizer.all_special_tokens if text.endswith(t)), None):
            text = text[: -len(end)]
        return text

    def _ids(self, first: bool, parts: Parts) -> tuple[tuple[int, ...], str]:
        if len(parts.body) + len(parts.open) + len(parts.close) > CACHED_CHARACTERS:
            return self._encode(first, *parts)
        return self._cached(first, *parts)

    def _encode(self, first: bool, open: str, body: str, close: str) -> tuple[tuple[int, ...], str]:
        """(ids, text after the cut) of one observation in its frame."""
        frame = self._first if first else self._turn
        open, body, close = _stripped(Parts(open, body, close), frame)
        join = self.encoder.join
        pieces = [(frame.before + open, True), (body, False), (close + frame.after, True)]
        if first:
            return self._prompt(pieces), open + body + close

        budget = max(0, self.config.max_observation_tokens - len(join([(open, True)])) - len(join([(close, True)])))
        head, tail = join(pieces[:1]), join(pieces[2:])
        cut_ids: list[int] | None = None
        if len(body) > 8 * budget + 64:  # long: see whether it must be cut before encoding all of it
            ids, over = self.encoder.cut(body, budget)
            cut_ids = ids if over else None
        if cut_ids is None:
            whole = join(pieces)
            if len(whole) <= len(head) + budget + len(tail):
                return tuple(whole), open + body + close
            cut_ids = self.encoder.cut(body, budget)[0]
        return (*head, *cut_ids, *tail), open + self.tokenizer.decode(cut_ids) + close

    def _encode_results(self, results: tuple[str, ...]) -> tuple[tuple[int, ...], str]:
        """(ids, text after the cut) of the results of one turn's native calls."""
        frame, limit = self._turn, self.config.max_observation_tokens // len(results)
        pieces: list[Piece] = [(frame.before, True)]
        texts = []
        for result in results:
            ids, over = self.encoder.cut(_stripped(Parts("", result, ""), frame).body, limit)
            texts.append(self.tokenizer.decode(ids) if over else result)
            pieces += [(_stripped(Parts("", texts[-1], ""), frame).body, False), (frame.between, True)]
        pieces[-1] = (frame.after, True)
        return tuple(self.encoder.join(pieces)), "\n".join(texts)

    def _prompt(self, pieces: list[Piece]) -> tuple[int, ...]:
        """The first prompt's ids; a body that cannot fit is not encoded beyond what shows that."""
        config, body = self.config, pieces[1][0]
        self._check_room(len(self._bos) + len(self.encoder.join([pieces[0], pieces[2]], first=not self._bos)))
        over = len(body) > 8 * config.max_context + 64 and self.encoder.cut(body, config.max_context)[1]
        ids = [] if over else [*self._bos, *self.encoder.join(pieces, first=True)]
        if over or len(ids) + config.max_tokens_per_turn > config.max_context:
            raise PromptTooLong(
                f"the prompt has {f'over {config.max_context}' if over else len(ids)} tokens and an action may take "
                f"{config.max_tokens_per_turn}, but rollout.max_context is {config.max_context}"
            )
        return tuple(ids)

    def _check_room(self, prompt_tokens: int) -> None:
        config = self.config
        need = prompt_tokens + 1 + config.max_tokens_per_turn
        if need > config.max_context:
            raise ConfigError(
                [
                    f"rollout.max_context is {config.max_context}, smaller than one turn: the prompt without its "
                    f"question has {prompt_tokens} tokens and an action may take max_tokens_per_turn = "
                    f"{config.max_tokens_per_turn}; set rollout.max_context to at least {2 * need}, or shorten the "
                    "prompt"
                ]
            )

    def _leading_tokens(self) -> list[int]:
        """What the tokenizer puts before a raw text by itself: a beginning-of-text token, or nothing."""
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        for i in range(len(full) - len(plain) + 1):
            if full[i : i + len(plain)] == plain:
                return list(full[:i])
        return []

    def _end_of_action(self, turn: Frame) -> tuple[int, ...]:
        """The control tokens with which the template ends an assistant message; the model may have said them."""
        ids = self.encoder.join([(turn.before, True)])
        return tuple(takewhile(self.encoder.control_ids.__contains__, ids))


def _frame_or_none(tokenizer: Any) -> Frame:
    """What ends an assistant's message, for a raw continuation of a templated prompt; nothing where it varies."""
    try:
        return turn_frame(tokenizer)
    except ModelError:
        return Frame("", "")


def _stripped(parts: Parts, frame: Frame) -> Parts:
    """The parts as the template would strip them: white space at the outer ends only."""
    open, body, close = parts
    if frame.left:
        open = open.lstrip()
        body = body if open else body.lstrip()
        close = close if open or body else close.lstrip()
    if frame.right:
        close = close.rstrip()
        body = body if close else body.rstrip()
        open = open if close or body else open.rstrip()
    return Parts(open, body, close)
