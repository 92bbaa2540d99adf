"""`agentrl env new NAME`: a small package of one's own, with an environment that trains at once.

It has an environment with one tool, a reward, questions, the words of a tiny model, a config, a test, and the entry
points by which agentrl finds them once it is installed. Everything in it is meant to be replaced.
"""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

from agentrl.errors import AgentRLError

FILES = {
    "pyproject.toml": '''[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$dashed"
version = "0.1"
dependencies = ["agentrl-search"]

[project.entry-points."agentrl.environment"]
"$name/$title-v0" = "$name.environment:$title"

[project.entry-points."agentrl.reward"]
${name}_reward = "$name.reward:score"

[project.entry-points."agentrl.world"]
$name = "$name.world:World"

[tool.setuptools]
packages = ["$name"]
package-data = {$name = ["*.jsonl"]}
''',
    "README.md": """# $name

    pip install -e .
    agentrl env list                     # $name/$title-v0, from $dashed
    agentrl env check $name/$title-v0    # what training asks of an environment, and an audit of its grader
    agentrl env play $name/$title-v0     # be the agent
    agentrl train train.yaml             # the built-in tiny model, a minute on a CPU
    pytest

Replace the tool in `$name/environment.py`, the score in `$name/reward.py` and the rows of `$name/*.jsonl`. With a model
of your own, `$name/world.py` is not needed: see the end of `train.yaml`.
""",
    "train.yaml": """name: $name
model: {path: "builtin:tiny", device: cpu, tiny: {max_positions: 128}}
world: {kind: $name}                      # the questions, and the words that the tiny model knows
warm_start: {lookup_steps: 0, demonstrations: 400, epochs: 2}
rollout: {prompts_per_step: 8, group_size: 8, max_tokens_per_turn: 8, max_context: 64}
train: {steps: 20}
eval: {questions: 4, every: 10}

# With a model from the Hugging Face hub, in place of model, world and warm_start:
# model: {path: Qwen/Qwen2.5-0.5B-Instruct, dtype: bfloat16}
# data: {train: $name/train.jsonl, test: $name/test.jsonl}
# env: {id: $name/$title-v0}
# rollout: {prompts_per_step: 8, group_size: 8, max_tokens_per_turn: 200, max_context: 2048}
""",
    "$name/__init__.py": '"""An environment for agentrl, a reward, and questions."""\n',
    "$name/environment.py": '''"""Questions that are answered with a tool."""

from __future__ import annotations

from collections.abc import Callable

from agentrl.envs.scoring import Rewards
from agentrl.envs.tags import TagEnv

PROMPT = "write <look> thing </look> or <answer> colour </answer> . {question}"
TASK = {"id": "0", "question": "colour of the apple ?", "golden_answers": ["red"]}
COLOURS = {
    "apple": "red", "grass": "green", "sky": "blue", "coal": "black", "snow": "white", "lemon": "yellow",
    "brick": "red", "leaf": "green", "sea": "blue", "tar": "black", "milk": "white", "sun": "yellow",
}  # fmt: skip


def look(thing: str) -> str:
    """The colour of a thing.

    Raise agentrl.envs.errors.ToolFailure where the tool cannot work: the episode is then played again, or left out.
    """
    return f" {COLOURS.get(thing, 'unknown')} "


class $title(TagEnv):
    """One tool, `<look>`, and an answer. The reward reads the action alone, never what a tool has returned."""

    def __init__(
        self, *, tool: Callable[[str], str] = look, reward: Rewards = "$name.reward:score", max_turns: int = 3
    ) -> None:
        super().__init__(
            tools={"look": tool}, reward=reward, tasks=[TASK], prompt_template=PROMPT, max_turns=max_turns
        )

    @property
    def example_actions(self) -> tuple[str, ...]:
        """What the checker plays: a call of the tool, and the answer of the task above."""
        return "<look> apple </look>", "<answer> red </answer>"
''',
    "$name/reward.py": '''"""The score of an answer, ${name}_reward by name: other environments may take it, too."""

from __future__ import annotations

from collections.abc import Sequence


def score(answer: str, golden_answers: Sequence[str]) -> float:
    """1.0 where the answer is a golden one, else 0.0."""
    return float(answer.strip().lower() in {gold.strip().lower() for gold in golden_answers})
''',
    "$name/world.py": '''"""Questions, words and demonstrations for the built-in tiny model alone."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from agentrl.envs.worlds.vocabulary import word_tokenizer

from $name.environment import COLOURS, PROMPT

HERE = Path(__file__).parent
SPECIALS = ("<pad>", "<eos>", "<unk>", "<look>", "</look>", "<result>", "</result>", "<answer>", "</answer>")


class World:
    """What agentrl asks of a world: see agentrl.envs.worlds.World."""

    env_id = "$name/$title-v0"
    passages: tuple[dict[str, str], ...] = ()

    def __init__(self, seed: int = 0) -> None:
        self.env_kwargs: dict[str, Any] = {}
        self.specials = SPECIALS
        texts = [PROMPT, *COLOURS, *COLOURS.values(), "unknown", "tools:"]
        texts += [row["question"] for split in ("train", "test") for row in self.questions(split)]
        words = dict.fromkeys([*SPECIALS, *(word for text in texts for word in text.split())])
        self.vocabulary = {word: i for i, word in enumerate(words)}

    def questions(self, split: str) -> list[dict[str, Any]]:
        """The rows of train.jsonl or test.jsonl."""
        return [json.loads(line) for line in (HERE / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]

    def tokenizer(self) -> Any:
        """One word, one token."""
        return word_tokenizer(self.vocabulary, SPECIALS)

    def encode(self, text: str) -> list[int]:
        """Ids of a text of these words."""
        return [self.vocabulary.get(word, self.vocabulary["<unk>"]) for word in text.split()]

    def demonstration(self, question: dict[str, Any], rng: random.Random) -> list[tuple[str, bool]]:
        """An episode as (text, whether the model wrote it). Half of them guess, so that there is something to learn."""
        colour = question["golden_answers"][0]
        asked = (PROMPT.format(question=question["question"]), False)
        if rng.random() < 0.5:
            return [asked, (f"<answer> {rng.choice(list(COLOURS.values()))} </answer>", True)]
        call = (f"<look> {question['question'].split()[-2]} </look>", True)
        return [asked, call, (f"<result> {colour} </result>", False), (f"<answer> {colour} </answer>", True)]

    def practice(self, rng: random.Random) -> list[tuple[str, bool]]:
        """Not used: lookup_steps is 0."""
        return []
''',
    "$name/train.jsonl": "".join(
        f'{{"id": "{i}", "question": "colour of the {thing} ?", "golden_answers": ["{colour}"]}}\n'
        for i, (thing, colour) in enumerate(
            (("apple", "red"), ("grass", "green"), ("sky", "blue"), ("coal", "black"), ("snow", "white"),
             ("lemon", "yellow"), ("brick", "red"), ("leaf", "green"))
        )
    ),
    "$name/test.jsonl": "".join(
        f'{{"id": "{i}", "question": "colour of the {thing} ?", "golden_answers": ["{colour}"]}}\n'
        for i, (thing, colour) in enumerate((("sea", "blue"), ("tar", "black"), ("milk", "white"), ("sun", "yellow")))
    ),
    "tests/test_environment.py": '''"""The environment as training will use it."""

import gymnasium
from agentrl import plugins
from agentrl.envs import register_envs
from agentrl.envs.checker import check

ID = "$name/$title-v0"
TASK = {"id": "1", "question": "colour of the sky ?", "golden_answers": ["blue"]}


def test_agentrl_finds_it():
    register_envs()
    assert ID in [p.name for p in plugins.available("environment")]
    assert plugins.find("reward", "${name}_reward")("Blue ", ["blue"]) == 1.0


def test_an_episode():
    env = gymnasium.make(ID)
    prompt, _ = env.reset(options=TASK)
    assert TASK["question"] in prompt
    shown, reward, ended, _, info = env.step("<look> sky </look>")
    assert "blue" in shown and reward == 0 and not ended and info["valid"]
    _, reward, ended, _, info = env.step("<answer> blue </answer>")
    assert reward == 1 and ended and info["correct"]


def test_it_passes_the_checker():
    assert [str(f) for f in check(ID) if f.level == "error"] == []
''',
}  # fmt: skip


def write_package(name: str, folder: Path) -> list[Path]:
    """Write the package `name` into the new folder `folder`; the files. AgentRLError where that cannot be."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        hint = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_0123456789") or "my_env"
        raise AgentRLError(f"{name!r} cannot be a package's name: take lower-case letters, such as {hint}")
    if name in ("agentrl", "gymnasium"):
        raise AgentRLError(f"{name} is another package's name; take one of your own")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AgentRLError(f"{folder} is there already; give another folder with --out, or another name")
    title = "".join(part.capitalize() for part in name.split("_"))
    words = {"name": name, "dashed": name.replace("_", "-"), "title": title}
    written = []
    for path, text in FILES.items():
        file = folder / Template(path).substitute(words)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text if path.endswith(".jsonl") else Template(text).substitute(words), encoding="utf-8")
        written.append(file)
    return written
