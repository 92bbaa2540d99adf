"""The made-up encyclopedia: determinism, disjoint splits, several hops, names of several tokens, demonstrations."""

import hashlib
import json
import random
import re

import gymnasium
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl import envs  # noqa: F401 (registers)
from agentrl.envs.worlds import make_world
from agentrl.envs.worlds import search as search_module
from agentrl.envs.worlds.forms import Tags
from agentrl.envs.worlds.search import RELATIONS, YEARS, Errors, SearchWorld
from agentrl.errors import PluginError
from agentrl.retriever.bm25 import Bm25Index
from agentrl.retriever.corpus import Passage

SMALL = {"people": 18, "companies": 9, "cities": 8, "regions": 6}
BY_ASKED = {r.asked: r for r in RELATIONS}
BY_STATED = {r.stated: r for r in RELATIONS}
PERFECT = Errors(
    think=0, no_search=0, good_query=1, naive_query=0, wrong_name=0, retry=1, quote=1, wrong_copy=0, stop_early=0,
    malformed=0,
)  # fmt: skip


def read_facts(world):
    """(name, relation) -> name, read from the passages' text."""
    facts = {}
    for p in world.passages:
        stated = next(w for w in p["text"].split() if w in BY_STATED)
        head, tail = p["text"].removesuffix(" .").split(f" {stated} ")
        assert head == p["title"]
        facts[head, BY_STATED[stated]] = tail
    return facts


def names_of(world, split):
    return {n for kind, names in world.entities[split].items() if kind != "year" for n in names}


def mentioned(world, text):
    """All names in a text."""
    return {n for n in world.all_names if re.search(rf"(?<!\S){re.escape(n)}(?!\S)", text)}


@pytest.mark.parametrize("hops", [(1,), (1, 2), (2, 4), (1, 2, 3, 4)])
@pytest.mark.parametrize("name_tokens", [1, 3])
def test_answers_follow_from_the_passages(hops, name_tokens):
    world = SearchWorld(1, **SMALL, hops=hops, name_tokens=name_tokens)
    facts = read_facts(world)
    for split in ("train", "test"):
        rows = world.questions(split)
        assert {q["hops"] for q in rows} == set(hops)
        for q in rows:
            *asked, name = q["question"].removesuffix(" ?").split(" of ")
            assert len(asked) == q["hops"]
            for word in reversed(asked):
                name = facts[name, BY_ASKED[word]]
            assert q["golden_answers"] == [name]


def test_every_question_is_asked_once_and_all_are():
    world = SearchWorld(2, **SMALL, hops=(1, 2, 3))
    for split in ("train", "test"):
        rows = world.questions(split)
        assert len({q["question"] for q in rows}) == len({q["id"] for q in rows}) == len(rows)
        count = {kind: len(names) for kind, names in world.entities[split].items()}

        def chains(kind, hops):
            if hops == 0:
                return 1
            return sum(chains(r.tail, hops - 1) for r in RELATIONS if r.head == kind)

        assert len(rows) == sum(count[k] * chains(k, h) for k in ("person", "company", "city") for h in (1, 2, 3))


@pytest.mark.parametrize("name_tokens", [1, 2])
def test_held_out_questions_share_no_entity_with_training_and_demonstrations(name_tokens):
    world = SearchWorld(3, **SMALL, hops=(1, 2, 3), name_tokens=name_tokens)
    train, test = names_of(world, "train"), names_of(world, "test")
    assert not train & test and train | test == set(world.all_names)
    facts = read_facts(world)
    for (head, _), tail in facts.items():
        assert tail in YEARS or (head in train) == (tail in train)
    for split, own in (("train", train), ("test", test)):
        for q in world.questions(split):
            assert mentioned(world, q["question"]) <= own
            assert set(q["golden_answers"]) <= own | set(YEARS)
    rng = random.Random(0)
    for q in world.questions("train")[:60]:
        said = " ".join(text for text, _ in world.demonstration(q, rng))
        assert mentioned(world, said) <= train


@pytest.mark.parametrize("parameters", [{}, {"hops": (1, 2, 3), "name_tokens": 2}])
def test_the_seed_determines_everything(parameters):
    def digest(seed):
        world = SearchWorld(seed, **SMALL, **parameters)
        rng = random.Random(5)
        train = world.questions("train")
        made = [world.passages, train, world.questions("test"), world.vocabulary]
        made += [world.demonstration(q, rng) for q in train[:20]] + [world.practice(rng) for _ in range(5)]
        return hashlib.sha256(json.dumps(made).encode()).hexdigest()

    assert digest(7) == digest(7) != digest(8)


def test_gold_passages_are_those_of_the_chain():
    world, plain = (SearchWorld(7, **SMALL, hops=(2,), gold=gold) for gold in (True, False))
    text = {p["id"]: p["text"] for p in world.passages}
    for q, same in zip(world.questions("test"), plain.questions("test"), strict=True):
        first, second = (text[i].split() for i in q["gold_passages"])
        assert first[0] in q["question"] and second[0] == first[2] and [second[2]] == q["golden_answers"]
        assert same == {k: v for k, v in q.items() if k != "gold_passages"}


def test_the_order_in_which_splits_are_asked_for_changes_nothing():
    one, two = SearchWorld(4, **SMALL), SearchWorld(4, **SMALL)
    train = one.questions("train")
    assert one.questions("test") == two.questions("test") and two.questions("train") == train


def test_many_questions_are_sampled(monkeypatch):
    world = SearchWorld(5, **SMALL, hops=(1, 2, 3, 4))
    every = {q["question"]: q["golden_answers"] for q in world.questions("train")}
    monkeypatch.setattr(search_module, "MAX_QUESTIONS", 100)
    rows = SearchWorld(5, **SMALL, hops=(1, 2, 3, 4)).questions("train")
    assert len(rows) == len({q["question"] for q in rows}) == 100 < len(every)
    assert all(every[q["question"]] == q["golden_answers"] for q in rows)
    assert rows == SearchWorld(5, **SMALL, hops=(1, 2, 3, 4)).questions("train")
    assert {q["id"] for q in rows} == {f"train-{i}" for i in range(100)}


@given(
    people=st.integers(6, 60),
    companies=st.integers(6, 30),
    cities=st.integers(6, 30),
    regions=st.integers(6, 20),
    name_tokens=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_sizes_and_names(people, companies, cities, regions, name_tokens, seed):
    sizes = {"people": people, "companies": companies, "cities": cities, "regions": regions}
    world = SearchWorld(seed, **sizes, name_tokens=name_tokens)
    assert len(world.passages) == len({p["id"] for p in world.passages}) == 4 * people + 3 * companies + 2 * cities
    assert len(world.all_names) == len(set(world.all_names)) == sum(sizes.values())
    assert {len(n.split()) for n in world.all_names} == {name_tokens}
    assert not set(world.name_words) & {w for r in RELATIONS for w in (r.asked, r.stated)}
    for p in world.passages:
        assert world.vocabulary["<unk>"] not in world.encode(p["text"])


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"people": 30_000}, "at most 100000 are supported"),
        ({"cities": 5}, "each kind needs at least 6"),
        ({"hops": ()}, r"hops is \[\]"),
        ({"hops": (1, 5)}, r"hops is \[1, 5\]; each must be 1 to 4"),
        ({"name_tokens": 0}, "name_tokens is 0"),
        ({"name_tokens": 5}, "it must be 1 to 4"),
    ],
)
def test_parameters_that_make_no_world(parameters, reason):
    with pytest.raises(ValueError, match=reason):
        SearchWorld(0, **parameters)


def test_worlds_are_made_by_name():
    assert make_world("search", 3, **SMALL, levels=[1]).passages == SearchWorld(3, **SMALL).passages
    with pytest.raises(PluginError, match="no world 'serch'; did you mean 'search'"):
        make_world("serch", 0)


def environment(world):
    index = Bm25Index.from_passages([Passage(p["id"], p["title"], p["text"]) for p in world.passages])
    return gymnasium.make(world.env_id, disable_env_checker=True, retriever=index, **world.env_kwargs)


@pytest.mark.parametrize("parameters", [{}, {"name_tokens": 2, "hops": (1, 2, 3)}])
def test_perfect_demonstrations_earn_the_reward_in_the_real_environment(parameters):
    world = SearchWorld(6, **{"people": 30, "companies": 15, "cities": 12, "regions": 8} | parameters)
    env, rng = environment(world), random.Random(0)
    earned = []
    for q in [q for q in world.questions("train") if q["hops"] <= 2][:40]:
        segments = world.demonstration(q, rng, PERFECT)
        observation, _ = env.reset(options=q)
        assert segments[0] == (observation, False)
        assert [is_action for _, is_action in segments] == [i % 2 == 1 for i in range(len(segments))]
        for action, _ in segments[1::2]:
            _, reward, terminated, *_ = env.step(action)
        assert terminated
        earned.append(reward)
    assert sum(earned) / len(earned) > 0.9  # a search may fail to show the passage among those of the same words


def test_demonstrations_show_what_the_environment_would_show():
    """The training world alone is searched, so passages may differ; everything around them may not."""
    world = SearchWorld(7, **SMALL)
    env, rng = environment(world), random.Random(1)
    for q in world.questions("train")[:30]:
        segments = world.demonstration(q, rng)
        env.reset(options=q)
        for (action, _), (shown, _) in zip(segments[1::2], segments[2::2]):
            observation = env.step(action)[0]
            for text in (observation, shown):
                assert re.fullmatch(r"<information> (nothing |(doc [^<]* \. )+)</information>", text)


def test_demonstrations_are_imperfect_and_of_training_questions_only():
    world, rng = SearchWorld(8, **SMALL), random.Random(2)
    rows = world.questions("train")
    said = [(q, world.demonstration(q, rng)) for q in rows * 3]
    right = [s[-1][0].endswith(f"<answer> {q['golden_answers'][0]} </answer>") for q, s in said]
    assert 0.1 < sum(right) / len(right) < 0.8
    assert any(s[-1][0].endswith("<eos>") for _, s in said)
    with pytest.raises(ValueError, match=r"test-0 is a held-out question"):
        world.demonstration(world.questions("test")[0], rng)


def test_practice_is_of_facts_that_are_not_in_the_corpus():
    world, rng = SearchWorld(9, **SMALL), random.Random(3)
    true = {p["text"] for p in world.passages}
    for _ in range(50):
        segments = world.practice(rng)
        shown = re.findall(r"doc ((?:\S+ )+?\.) ", segments[0][0])
        assert len(shown) == 5 and sum(text in true for text in shown) <= 1  # chance alone makes one true
        answers = re.findall(r"<answer> (.+?) </answer>", " ".join(t for t, _ in segments))
        assert all(any(text.endswith(f" {a} .") for text in shown) for a in answers)


def test_the_tokenizer_has_one_token_for_each_word():
    world = SearchWorld(10, **SMALL, name_tokens=2)
    tokenizer = world.tokenizer()
    for q in world.questions("train")[:20]:
        ids = tokenizer.encode(q["question"], add_special_tokens=False)
        assert ids == world.encode(q["question"]) and len(ids) == len(q["question"].split())
    assert [tokenizer.convert_tokens_to_ids(t) for t in Tags.specials] == list(range(len(Tags.specials)))
    assert len(tokenizer) == len(world.vocabulary) and len(world.vocabulary) % 16 == 0
    assert tokenizer.decode(tokenizer.encode("<search> born </search>")) == "<search> born </search>"


def test_files_hold_the_passages_and_the_questions(tmp_path):
    world = SearchWorld(11, **SMALL)
    world.save_corpus(tmp_path / "corpus.jsonl")
    world.save_questions(tmp_path / "test.jsonl", "test")
    for name, rows in (("corpus", world.passages), ("test", world.questions("test"))):
        assert [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()] == rows
