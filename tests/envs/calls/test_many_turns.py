"""20,000 random and hostile turns of each call format, read and played: typed results, no reward, no exception.

python -m tests.envs.calls.test_many_turns      # prints the counts
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter

import pytest

from agentrl import plugins
from agentrl.envs.calls.base import MAX_CALLS, BadCall, Call
from agentrl.envs.tools import ToolEnv, tool

TURNS = 20_000
SECRET = "qzxkv-9317"  # the golden answer, which no hostile turn holds
NAMES = [p.name for p in plugins.available("call format")]
MARKS = (
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|im_end|>", "<|im_start|>", "</s>",
    "<think>", "</think>", "<answer>", "</answer>", "<tool_response>", "</tool_response>", "```json\n", "```", ";",
)  # fmt: skip
VALUES = (
    "null", "NaN", "-Infinity", "1e999", "9" * 400, '"\\ud800"', '"\ud83d"', '"\\u0000"', "true", '""', "[]", "{}",
    '{"a": 1, "a": 2}', '"<|im_end|>"', '"</tool_call>"', '"[TOOL_CALLS]"', '"x"', "{'x': 1}", "undefined",
)  # fmt: skip
CALLED = ("search", "open", "serach", "", "search\x00", "__class__", "café", "\ud800")


@tool
def search(query: str, topk: int = 3) -> str:
    """Finds."""
    return "nothing"


@tool
def open(id: str) -> str:
    """Opens."""
    return "nothing"


def arguments(rng: random.Random) -> str:
    """JSON of arguments, right, wrong or none."""
    pairs = []
    for _ in range(rng.randrange(4)):
        key = rng.choice(("query", "topk", "id", "query", "", "\\ud800", "a b"))
        pairs.append(f'"{key}": {rng.choice(VALUES)}')
    return "{" + ", ".join(pairs) + "}"


def one_call(rng: random.Random) -> str:
    key = rng.choice(("arguments", "parameters", "args", "function"))
    given = arguments(rng) if rng.random() < 0.8 else rng.choice(VALUES)
    doubled = f', "{key}": {arguments(rng)}' if rng.random() < 0.1 else ""
    return f'{{"name": "{rng.choice(CALLED)}", "{key}": {given}{doubled}}}'


def xml_call(rng: random.Random) -> str:
    given = ""
    for _ in range(rng.randrange(4)):
        key = rng.choice(("query", "topk", "id", "query", "", "a b"))
        given += f"<parameter={key}>{rng.choice(VALUES)}" + rng.choice(("</parameter>", "</parameter>", "\n", ""))
    return f"<function={rng.choice(CALLED)}>{given}" + rng.choice(("</function>", "</function>", ""))


def framed(rng: random.Random, name: str, body: str) -> str:
    """A call in a format's own frame."""
    frames = {
        "hermes": f"<tool_call>{body}</tool_call>",
        "mistral": f"[TOOL_CALLS][{body}]" if rng.random() < 0.5 else f"[TOOL_CALLS]search[ARGS]{arguments(rng)}",
        "xml": f"<tool_call>{xml_call(rng)}</tool_call>",
        "llama": ("<|python_tag|>" if rng.random() < 0.5 else "") + body,
    }
    return frames.get(name, body)


def hostile(rng: random.Random, name: str) -> str:
    """One turn: a call that is truncated, nested, doubled, deep, large or spoilt, or pieces in any order."""
    text = framed(rng, name, one_call(rng))
    match rng.randrange(9):
        case 0:
            text = text[: rng.randrange(len(text) + 1)]
        case 1:
            text = framed(rng, name, text)
        case 2:
            text = rng.choice(("", ";", "\n", "; ")).join([text] * rng.randrange(2, 100))
        case 3:
            deep = rng.choice((10, 300, 5_000))
            text = framed(rng, name, '{"name": "search", "arguments": ' + '{"query": ' * deep + "1" + "}" * deep + "}")
        case 4:
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(MARKS) + text[at:]
        case 5:
            text = "".join(rng.choice((*MARKS, *VALUES, text)) for _ in range(rng.randrange(20)))
        case 6 if rng.random() < 0.03:
            query = json.dumps(rng.choice(("x", "<tool_call>", "é", '"')) * 200_000)
            text = framed(rng, name, f'{{"name": "search", "arguments": {{"query": {query}}}}}')
        case 7:
            letters = [rng.choice((rng.randrange(128), rng.randrange(0x11000))) for _ in range(rng.randrange(200))]
            text = "".join(map(chr, letters))
    thought = rng.choice(("", "", "<think> well </think>", "<think> well ", "</think>"))
    return thought + text


def play(name: str, turns: int, seed: int = 0) -> Counter[str]:
    """Read and play so many turns; how many came to what. AssertionError where one came to anything else."""
    rng, counts = random.Random(f"{seed}:{name}"), Counter[str]()
    reader = plugins.find("call format", name)()
    env = ToolEnv(tools=[search, open], call_format=name, max_turns=3)
    for _ in range(turns):
        text = hostile(rng, name)
        read = reader.read(text)
        assert isinstance(read, list) and len(read) <= MAX_CALLS and all(isinstance(c, Call | BadCall) for c in read)
        env.reset(options={"question": "q", "golden_answers": [SECRET]})
        shown, reward, _, _, info = env.step(text)
        assert isinstance(shown, str) and reward == 0.0 and not info.get("correct")
        calls = info.get("calls", ())
        counts.update(c.get("problem", "called") for c in calls)
        counts[f"turn: {info['kind']}"] += 1
        assert len(calls) == len(read)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_hostile_turns_have_typed_results_and_earn_nothing(name):
    counts = play(name, TURNS)
    assert sum(n for key, n in counts.items() if key.startswith("turn: ")) == TURNS
    kinds = {"called", "json", "shape", "unknown", "missing", "extra", "wrong"} - ({"json"} if name == "xml" else set())
    assert min(counts[k] for k in kinds) > 0, counts


PIECES = (
    *MARKS, "[", "{", '{"a":', '{"name": "search"};', '"', "\\", "[TOOL_CALLS]x[ARGS]{}", "<tool_call>{}</tool_call>",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_time_grows_with_the_length_and_not_with_its_square(name):
    reader = plugins.find("call format", name)()

    def seconds(text: str) -> float:
        found = []
        for _ in range(3):
            began = time.process_time()
            reader.read(text)
            found.append(time.process_time() - began)
        return min(found)

    for piece in PIECES:
        for prefix in ("", framed(random.Random(0), name, "")):
            short, long = (seconds(prefix + piece * (n // len(piece))) for n in (125_000, 1_000_000))
            assert long < 3 * 8 * short + 2e-3, (piece, prefix, short, long)


if __name__ == "__main__":
    for name in NAMES:
        began = time.process_time()
        counts = play(name, int(sys.argv[1]) if len(sys.argv) > 1 else TURNS)
        turns = sum(n for key, n in counts.items() if key.startswith("turn: "))
        print(f"{name}: {turns} turns in {time.process_time() - began:.1f} s CPU")
        print("   ", ", ".join(f"{k} {n}" for k, n in sorted(counts.items())))
