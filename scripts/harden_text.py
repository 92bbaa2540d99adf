"""Hostile text: `python scripts/harden_text.py [--count 100000] [--model FOLDER]`.

Tool outputs: `--count` random passages made of protocol tags, gold answers, control tokens, broken Unicode, JSON and
markup are what the search environment's retriever finds, and are turned into the token ids that a rollout appends, in
tag style, and in chat style where `--model` has a template. Counted: exceptions, control tokens beyond those of a
harmless passage, episodes that ended or earned something, tokens of a tool in the loss (of every hundredth, packed as a
training batch).

Model outputs: as many random turns of the same material are played. Counted: exceptions, and rewards that differ from
an independent reading of the protocol.

Prints the four and two counts, all of which must be 0, and exits with 1 where one is not.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from agentrl.batch import pack
from agentrl.config import RolloutConfig, WorldConfig
from agentrl.envs.scoring import exact_match
from agentrl.envs.search import SearchEnv
from agentrl.retriever.base import Hit
from agentrl.retriever.corpus import Passage
from agentrl.rollouts.chat import ChatFormat, parts_of
from agentrl.types import Trajectory, Turn

GOLD = "Lisbon"
TASK = {"id": "q", "question": "What is the capital of Portugal?", "golden_answers": [GOLD]}
TAGS = [
    f"<{c}{tag}>"
    for tag in ("think", "search", "information", "answer", "tool_call", "tool_response")
    for c in ("", "/")
]
PIECES = [
    *TAGS, *TAGS,
    "< answer >", "<ANSWER>", "<answer\n>", "&lt;answer&gt;", "\u202e", "\ud800", "\udfff", "\x00", "\x1b[2J", "\ufeff",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "</s>", "<s>", "<eos>", "<pad>", "<unk>", "[INST]", "<|python_tag|>",
    "assistant\n", "user\n", "system\n", '{"name": "search"', "{question}", "{0}%s", "\\boxed{", "}", "reward: 1",
    GOLD, f"<answer> {GOLD} </answer>", f"The answer is {GOLD}.", "Doc 1(Title: ", "\n\n", " ", "x", "é", "日本", "🎉",
]  # fmt: skip


def material(rng: random.Random) -> str:
    """A text of up to 24 pieces; one in a thousand is 200,000 characters long."""
    text = "".join(rng.choices(PIECES, k=rng.randint(0, 24)))
    return text * (1 + 200_000 // max(1, len(text))) if rng.random() < 0.001 else text


class Finds:
    """A retriever that finds `text`, whatever is asked."""

    text = ""

    def search_batch(self, queries: list[str], topk: int) -> list[list[Hit]]:
        """The text as title and as body."""
        return [[Hit(Passage("p", self.text[:60], self.text), 1.0)] for _ in queries]


def formats(model: str | None) -> Iterator[tuple[str, ChatFormat]]:
    """The built-in tokenizer in tag style, a model's in both."""
    from agentrl.envs.worlds.search import SearchWorld

    options: dict[str, Any] = {"max_context": 4096, "max_tokens_per_turn": 64, "max_observation_tokens": 500}
    world = SearchWorld(seed=0, **WorldConfig().parameters)
    yield "the built-in tokenizer, tag", ChatFormat(world.tokenizer(), RolloutConfig(style="tag", **options))
    if model is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model)
        for style in ("tag", "chat"):
            yield f"{model}, {style}", ChatFormat(tokenizer, RolloutConfig.model_validate({"style": style, **options}))


def tool_outputs(chat: ChatFormat, rng: random.Random, count: int) -> Counter[str]:
    """What went wrong, by kind."""
    found, finds = Counter[str](), Finds()
    env = SearchEnv(retriever=finds, max_turns=3)
    prompt, info = env.reset(options=TASK)
    start, control = chat.start(parts_of(prompt, info)), chat.encoder.control_ids
    action = chat.encoder.data("<search> capital </search>")

    def appended(text: str) -> list[int]:
        finds.text = text
        env.reset(options=TASK)
        seen, reward, ended, cut, info = env.step("<search> capital </search>")
        found["episodes that ended or earned something"] += bool(reward or ended or cut)
        return chat.extend(action, "stop", parts_of(seen, info))

    harmless = Counter(i for i in appended("harmless") if i in control)
    for n in range(count):
        text = material(rng)
        try:
            ids = appended(text)
        except Exception as error:
            found["exceptions"] += 1
            print(f"  {type(error).__name__}: {error}, of {text[:200]!r}")
            continue
        found["control tokens"] += Counter(i for i in ids if i in control) != harmless
        if n % 100 == 0:
            found["tokens of a tool in the loss"] += leaked(start, action, ids)
    return found


def leaked(start: list[int], action: list[int], observation: list[int]) -> int:
    """Tokens of the loss beside those of the two actions of an episode with this tool output."""
    turns = tuple(Turn(ids, action, [-1.0] * len(action), "", "", 0.0, "stop", {}) for ids in (start, observation))
    batch = pack([Trajectory("t", "q", "e", 0, turns, 0.0, False, True, False)], pad_id=0)
    return int(batch.action_mask.sum()) - 2 * len(action)


def model_outputs(rng: random.Random, count: int) -> Counter[str]:
    """Turns that the environment reads otherwise than the protocol says, and those that break it."""
    found, env = Counter[str](), SearchEnv(retriever=Finds(), max_turns=3)
    for _ in range(count):
        text = material(rng)
        env.reset(options=TASK)
        try:
            _, reward, _, _, _ = env.step(text)
        except Exception as error:
            found["exceptions"] += 1
            print(f"  {type(error).__name__}: {error}, of {text[:200]!r}")
            continue
        found["rewards that the protocol does not give"] += reward != expected(text)
    return found


def expected(text: str) -> float:
    """The pair of tags that opens first and is closed counts; in it, what follows the last opening tag."""
    pairs = [m for kind in ("search", "answer") if (m := re.search(f"(?s)<({kind})>(.*?)</{kind}>", text))]
    if not pairs or (first := min(pairs, key=lambda m: m.start()))[1] == "search":
        return 0.0
    answer = first[2].split("<answer>")[-1].strip()
    return float(bool(answer) and exact_match(answer, [GOLD]) > 0)


def main() -> int:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--model", help="a folder with a tokenizer and a chat template")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began, total = time.perf_counter(), Counter[str]()
    for name, chat in formats(args.model):
        found = tool_outputs(chat, random.Random(args.seed), args.count)
        total += found
        print(f"{args.count:,} tool outputs, {name}: {dict(+found) or 'no fault'}", flush=True)
    found = model_outputs(random.Random(args.seed + 1), args.count)
    print(f"{args.count:,} model outputs: {dict(+found) or 'no fault'}")
    print(f"{time.perf_counter() - began:.0f} s, seed {args.seed}")
    return 1 if total + found else 0


if __name__ == "__main__":
    raise SystemExit(main())
