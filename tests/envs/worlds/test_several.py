"""Several worlds as one: every word of each is known, and each is demonstrated as often as the others."""

import random

import pytest

from agentrl.envs.worlds import make_world
from agentrl.envs.worlds.several import Worlds


@pytest.fixture(scope="module")
def worlds():
    search = make_world("search", 1, people=24, companies=10, cities=8, regions=6)
    return Worlds([search, make_world("arithmetic", 1)])


def test_every_word_of_each_world_is_one_token(worlds):
    tokenizer, rng = worlds.tokenizer(), random.Random(0)
    assert len(tokenizer) == len(worlds.vocabulary) and len(tokenizer) % 16 == 0
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.pad_token_id) == ("<pad>", "<eos>", 0)
    of_each = [one.questions("train") for one in worlds.worlds]
    for segments in [worlds.example(rng, of_each) for _ in range(40)] + [worlds.practice(rng) for _ in range(40)]:
        for text, _ in segments:
            ids = worlds.encode(text)
            assert worlds.vocabulary["<unk>"] not in ids and len(ids) == len(text.split())
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids


def test_each_world_is_demonstrated_as_often_as_the_others(worlds):
    rng, of_each = random.Random(0), [one.questions("train") for one in worlds.worlds]
    shown = [" ".join(text for text, _ in worlds.example(rng, of_each)) for _ in range(400)]
    boxes = sum("of" not in s.split(" ? ")[0].split() for s in shown)
    assert 140 < boxes < 260  # half, within six standard errors: arithmetic of levels 1 and 2 has no word "of"
    assert {row["world"] for row in worlds.questions("test")} == {0, 1}


def test_a_world_is_demonstrated_by_its_share(worlds):
    rng, of_each = random.Random(0), [one.questions("train") for one in worlds.worlds]
    one = Worlds(worlds.worlds, [1.0, 0.0])
    assert all("of" in one.example(rng, of_each)[0][0].split() for _ in range(40))  # questions of search alone
    assert all("of" not in Worlds(worlds.worlds, [0.0, 1.0]).example(rng, of_each)[0][0].split() for _ in range(40))


def test_a_world_without_words_of_its_own_is_refused(worlds):
    with pytest.raises(ValueError, match="GeographyWorld has no vocabulary and specials"):
        Worlds([worlds.worlds[0], type("GeographyWorld", (), {})()])
    with pytest.raises(ValueError, match="SearchToolsWorld has a chat template of its own"):
        Worlds([worlds.worlds[1], make_world("search_tools", 1, people=24, companies=10, cities=8, regions=6)])
