"""The world of real facts: what is asked is in the passages, held-out countries stay unseen, demonstrations are right."""  # noqa: E501

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter

import gymnasium
import pytest

from agentrl import envs
from agentrl.envs.scoring import exact_match
from agentrl.envs.worlds import make_world
from agentrl.envs.worlds.geography import MORE, GeographyWorld, _plain
from agentrl.retriever.bm25 import Bm25Index
from agentrl.retriever.corpus import Passage


@pytest.fixture(scope="module")
def world():
    return GeographyWorld(0)


@pytest.fixture(scope="module")
def index(world):
    return Bm25Index.from_passages(Passage(p["id"], p["title"], p["text"]) for p in world.passages)


def named(row):
    """The proper names of a row: every run of words between the phrases of questions and steps, as they stand there."""
    told = [
        row["question"],
        *row["golden_answers"],
        *(s.told for s in row["_steps"]),
        *(s.query for s in row["_steps"]),
    ]
    return {_plain(part) for text in told for part in PHRASES.split(text) if part.strip()}


PHRASES = re.compile(
    r"\b(?:What|Which|In|On|With|How|many|people|live|country|city|capital|largest|which|does|do|is|are|has|have|the|The|in|of|"
    r"lies?|or|three-letter|code|currency|continent|belong|to|telephone|numbers|Numbers|begin|web|Web|addresses|end|with|"
    r"internet|domain|time|zone|used|pay|inhabitants|more|area|larger|square|kilometres|covers|for)\b|[?,.] ?$|, "
)


def test_sizes_kinds_and_the_shape_of_a_row(world):
    assert len(world.passages) == 8000 and len({p["id"] for p in world.passages}) == 8000
    for split, least in (("train", 2000), ("test", 1000)):
        rows = world.questions(split)
        kinds = Counter((r["hops"], r["kind"]) for r in rows)
        assert len(rows) > least and set(kinds) == {(1, "chain"), (2, "chain"), (3, "chain"), (2, "comparison")}
        assert all(n > 0.1 * len(rows) for n in kinds.values())
        assert all(set(r) == {"id", "question", "golden_answers", "hops", "kind"} for r in rows)
        assert len({r["question"] for r in rows}) == len({r["id"] for r in rows}) == len(rows)
        assert any(len(r["golden_answers"]) > 1 for r in rows)
        assert all(len(set(r["golden_answers"])) == len(r["golden_answers"]) for r in rows)


def test_splits_share_no_country_and_name_no_place_of_the_other(world):
    assert not set(world.countries["train"]) & set(world.countries["test"])
    of_place = {}  # name -> countries that have a place of this name
    for code, cities in world._of_country.items():
        for name in (world._names[code], *(c["name"] for c in cities)):
            of_place.setdefault(_plain(name), set()).add(code)
    seen = 0
    for split in ("train", "test"):
        mine = set(world.countries[split])
        for row in world._rows[split]:
            for name in named(row):
                if name in of_place and name not in SHARED:
                    seen += 1
                    assert of_place[name] & mine, (name, row)
    assert seen > 5000


SHARED = {
    "republic",
    "asia",
    "dinar",
    "soko",
    "bam",
    "ron",
    "cordoba",
    "man",
    "pen",
    "spain",
}  # words that are places' names, too


@pytest.mark.slow
def test_the_same_seed_gives_the_same_world_in_another_process(world):
    code = (
        "import hashlib, json; from agentrl.envs.worlds.geography import GeographyWorld as G; w = G(0); "
        "print(hashlib.sha256(json.dumps([w.passages, w.questions('train'), w.questions('test')]).encode()).hexdigest())"  # noqa: E501
    )
    mine = hashlib.sha256(json.dumps([world.passages, world.questions("train"), world.questions("test")]).encode())
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert done.stdout.strip() == mine.hexdigest()
    assert GeographyWorld(1).questions("test") != world.questions("test")


@pytest.mark.parametrize("split", ["train", "test"])
def test_following_the_steps_of_a_question_finds_its_answer(world, index, split):
    """Independent of the rows: each step's query must find a passage that says what the step then knows."""
    rows, lost = world._rows[split][:400], Counter()
    for row in rows:
        for step in row["_steps"]:
            found = " ".join(h.passage.title + " " + h.passage.text for h in index.search(step.query, 2))
            words = [
                w for w in re.findall(r"[\w,./+']+", step.told) if w[0].isupper() or w[0].isdigit() or w[0] in ".+"
            ]
            if not all(w.strip(".,").lower() in found.lower() for w in words if w not in ("The", "Numbers", "Web")):
                lost[row["hops"]] += 1
    assert sum(lost.values()) < 0.03 * len(rows), lost


def test_demonstrations_are_correct_when_played(world, index):
    envs.register_envs()
    env = gymnasium.make("agentrl/Search-v0", disable_env_checker=True, retriever=index, **world.env_kwargs)
    rng = random.Random(0)
    rows = [r for kind in ((1, "chain"), (2, "chain"), (3, "chain"), (2, "comparison"))
            for r in [r for r in world.questions("train") if (r["hops"], r["kind"]) == kind][:25]]  # fmt: skip
    for row in rows:
        prompt, *turns = world.demonstration(row, rng)
        assert prompt[0] == env.reset(options=row)[0] and all(mine for _, mine in turns)
        assert len(turns) == row["hops"] + 1
        for text, _ in turns:
            _, reward, ended, _, info = env.step(text)
            assert info["valid"]
        assert ended and reward == 1.0, row


def test_held_out_questions_have_no_demonstration(world):
    with pytest.raises(ValueError, match=r"test-0 is no training question"):
        world.demonstration(world.questions("test")[0], random.Random(0))


def test_the_compared_values_are_apart_and_the_larger_is_the_answer(world):
    for row in [r for r in world._rows["test"] if r["kind"] == "comparison"][:100]:
        values = {}
        for step in row["_steps"]:
            name, number = re.fullmatch(r"(.+) (?:has|covers) ([\d,]+) (?:inhabitants|km²)\.", step.told).groups()
            values[name] = float(number.replace(",", ""))
        small, large = sorted(values.values())
        assert large >= MORE * small * 0.999 and values[row["golden_answers"][0]] == large


@pytest.mark.parametrize(
    ("said", "right"), [("1,542,813", True), ("1542813", True), ("1542814", False), ("1,542", False)]
)
def test_numbers_count_with_and_without_commas(said, right):
    assert exact_match(said, ["1,542,813", "1542813"]) == float(right)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"hops": [4]}, "hops is"), ({"hops": []}, "hops is"), ({"passages": 100}, "passages is 100")],
)
def test_what_cannot_be_made_is_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        make_world("geography", 0, **options)


def test_one_hop_alone_and_no_comparison():
    rows = GeographyWorld(0, hops=[1], comparisons=0.0).questions("train")
    assert {(r["hops"], r["kind"]) for r in rows} == {(1, "chain")} and len(rows) > 500
