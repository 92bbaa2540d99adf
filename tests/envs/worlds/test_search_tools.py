"""The made-up encyclopedia with native tool calls: its template, its words, and rollouts token by token."""

import asyncio
import random

import pytest

from agentrl.config.files import load_config
from agentrl.envs.calls.base import Call
from agentrl.envs.calls.hermes import Hermes
from agentrl.envs.search_tools import SearchToolsEnv
from agentrl.envs.worlds import make_world
from agentrl.rollouts.chat import ChatFormat
from agentrl.rollouts.play import EnvPool, Player
from agentrl.rollouts.template import Frame
from agentrl.rollouts.tools import format_of, results_frame, with_tools
from agentrl.types import Task
from tests.envs.worlds.test_search import PERFECT, SMALL
from tests.fakes import ScriptedSampler

CONFIG = load_config("search_tiny_tools").config


@pytest.fixture
def world():
    return make_world("search_tools", 3, **SMALL, hops=(2,))


def env_of(world):
    class Train:
        quick = True

        def search_batch(self, queries, topk):  # what the demonstrator searches
            world._search("")
            return world._index.search_batch(queries, topk)

    return SearchToolsEnv(retriever=Train(), **world.env_kwargs)


def play(world, turns, row):
    tokenizer = world.tokenizer()
    native, schemas = with_tools(lambda: env_of(world), tokenizer, CONFIG.rollout)
    chat = ChatFormat(tokenizer, CONFIG.rollout, schemas)
    with EnvPool(native) as pool:
        sampler = ScriptedSampler(tokenizer, turns)
        [t] = Player(sampler, pool, chat, CONFIG.rollout).collect([Task(row["id"], row)], 1)
    return t


def test_it_is_the_world_of_the_tags_in_other_words(world):
    tags = make_world("search", 3, **SMALL, hops=(2,))
    assert tags.passages == world.passages and tags.questions("test") == world.questions("test")
    row = world.questions("train")[0]
    theirs, ours = (w.demonstration(row, random.Random(1)) for w in (tags, world))
    assert [said for _, said in theirs] == [said for _, said in ours] and theirs != ours


def test_the_template_shows_tools_and_its_calls_are_of_hermes(world):
    tokenizer, schemas = world.tokenizer(), env_of(world).schemas
    assert format_of(tokenizer, schemas).name == "hermes"
    assert results_frame(tokenizer, schemas) == Frame(
        " <eos> <tool> ", " </tool> ", role="tool", between=" </tool> <tool> "
    )
    messages = [{"role": "user", "content": "x"}]
    assert tokenizer.apply_chat_template(messages, tools=schemas, tokenize=False, add_generation_prompt=True) == (
        "<tools> search query open id </tools> <user> x "
    )
    read = Hermes().read(tokenizer.decode(world.encode(world.form.search("born lies"))))
    assert read == [Call("search", {"query": " born lies "})]


def test_demonstrations_and_rollouts_are_the_same_tokens(world):
    rng = random.Random(0)
    for row in world.questions("train")[:5]:
        segments = world.demonstration(row, rng, PERFECT)
        t = play(world, [text for text, said in segments if said], row)
        assert (t.error, t.correct, t.reward, len(t.turns)) == (None, True, 1.0, 3)
        assert [ids for u in t.turns for ids in (u.prompt_ids, u.action_ids)] == [
            world.encode(text) for text, _ in segments
        ]
        assert world.vocabulary["<unk>"] not in [i for u in t.turns for i in u.prompt_ids]


def test_practice_and_imperfect_demonstrations_are_in_the_vocabulary(world):
    rng, unknown = random.Random(0), world.vocabulary["<unk>"]
    train = world.questions("train")
    made = [world.demonstration(rng.choice(train), rng) for _ in range(200)] + [world.practice(rng) for _ in range(20)]
    assert not any(unknown in world.encode(text) for segments in made for text, _ in segments)


def test_control_tokens_in_a_passage_stay_text_and_bad_calls_are_told(world):
    row = world.questions("train")[0]
    t = play(
        world, ['<tool_call> {"name": </tool_call>', "<tool_call> <eos>", "<think> not sure </think> x <eos>"], row
    )
    assert [u.info.get("calls", [{}])[0].get("problem") for u in t.turns] == ["json", "unclosed", None]
    assert t.turns[-1].info["answer"] == "x" and not t.correct
    chat = ChatFormat(world.tokenizer(), CONFIG.rollout, env_of(world).schemas)
    ids = chat.extend([], "stop", None, ["</tool_call> <eos> </tool> <tool_call> born"])
    unknown = world.vocabulary["<unk>"]
    assert ids == world.encode("<eos> <tool>") + [unknown] * 4 + world.encode("born </tool>")


def test_the_ids_and_queries_of_a_call_are_read_without_the_spaces_around_them(world):
    env = env_of(world)
    row = world.questions("train")[0]
    env.reset(options=row)
    *_, info = asyncio.run(env.astep(world.form.search("let born")))
    assert info["query"] == "let born" and info["kind"] == "search" and info["calls"] == [{"tool": "search"}]


def test_the_shipped_config_is_the_tag_form_s_with_another_form():
    tag = load_config("search_tiny").config.model_dump()
    ours = CONFIG.model_dump()
    changed = {(k, j) for k in tag if isinstance(tag[k], dict) for j in tag[k] if tag[k][j] != ours[k][j]}
    assert changed == {("world", "kind"), ("world", "gold"), ("rollout", "style"), ("rollout", "tools")}
