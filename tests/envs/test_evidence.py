"""Gold passages: how tasks name them, what searches find of them, and rewards that read it. In both forms."""

from __future__ import annotations

import asyncio
import json

import pytest

from agentrl.envs.errors import TaskError, ToolFailure
from agentrl.envs.evidence import Evidence, gold_of, stands_in
from agentrl.envs.search import SearchEnv
from agentrl.envs.search_tools import SearchToolsEnv
from agentrl.envs.tools import ToolEnv
from agentrl.retriever.bm25 import Bm25Index
from agentrl.retriever.corpus import Passage
from agentrl.retriever.errors import RetrieverError

PASSAGES = [
    Passage("7", '"Ada  Rowan"', "Ada Rowan was born in Port Ellis."),
    Passage("8", "Port Ellis", "Port Ellis lies in Varn."),
    Passage("9", "Zed", "Zed is a letter."),
]
INDEX = Bm25Index.from_passages(PASSAGES)
TASK = {"question": "Where does Ada Rowan's place lie?", "golden_answers": ["Varn"], "gold_passages": ["7", 8]}


def call(*queries):
    return "".join(
        f"<tool_call>{json.dumps({'name': 'search', 'arguments': {'query': q}})}</tool_call>" for q in queries
    )


def tags(**kwargs):
    return SearchEnv(retriever=INDEX, topk=1, **kwargs), lambda q: f"<search> {q} </search>", "<answer> {} </answer>"


def native(**kwargs):
    return SearchToolsEnv(retriever=INDEX, topk=1, **kwargs), call, "{}"


each_form = pytest.mark.parametrize("form", [tags, native])


@pytest.mark.parametrize(
    "task, gold",
    [
        ({}, set()),
        ({"gold_passages": ["7", 8]}, {"id:7", "id:8"}),
        ({"gold_titles": [' "Ada  Rowan"']}, {"title:ada rowan"}),
        ({"supporting_facts": {"title": ["A", "B", "A"], "sent_id": [0, 1, 2]}}, {"title:a", "title:b"}),
        ({"supporting_facts": [["A", 0], ["B", 3]]}, {"title:a", "title:b"}),
        ({"supporting_facts": {"title": 3}}, set()),  # what others mean by the name
        ({"supporting_facts": ["A sentence.", "Another."]}, set()),
        ({"supporting_facts": "A sentence."}, set()),
    ],
)
def test_gold_passages_as_data_sets_name_them(task, gold):
    assert gold_of(task) == gold


@pytest.mark.parametrize("task", [{"gold_passages": "7"}, {"gold_titles": [None]}])
def test_gold_passages_that_are_no_list_are_refused_by_name(task):
    for env in (tags()[0], native()[0]):
        with pytest.raises(TaskError, match=rf"options\['{next(iter(task))}'\] is .* give a list"):
            env.reset(options=TASK | {"gold_passages": None} | task)


@each_form
def test_each_search_says_what_it_found_and_the_answer_what_all_did(form):
    env, search, answer = form()
    env.reset(options=TASK)
    found = [env.step(search(q))[-1] for q in ("Ada Rowan born", "Zed letter")]
    assert [(i["gold_recall"], i["gold_found"]) for i in found] == [(0.5, 0.5), (0.0, 0.5)]
    info = env.step(answer.format("Varn"))[-1]
    assert info["gold_found"] == 0.5 and "gold_recall" not in info and info["correct"]
    env.reset(options=TASK)  # nothing is left of the episode before
    assert env.step(answer.format("Varn"))[-1]["gold_found"] == 0.0
    env.reset(options={k: v for k, v in TASK.items() if k != "gold_passages"})
    assert not {"gold_recall", "gold_found"} & {*env.step(search("Ada"))[-1], *env.step(answer.format("x"))[-1]}


@each_form
def test_rewards_read_evidence_each_with_its_weight(form):
    weights = {"exact_match": 1.0, "gold_recall": 0.5, "supported_match": 0.25, "repeated_queries": -0.2}
    env, search, answer = form(reward=weights, max_turns=4)
    env.reset(options=TASK)
    for query in ("Ada Rowan born", "ada rowan, born"):
        env.step(search(query))
    _, reward, *_, info = env.step(answer.format("Varn"))  # true, and in no passage that was found
    assert info["rewards"] == {"exact_match": 1.0, "gold_recall": 0.5, "supported_match": 0.0, "repeated_queries": 0.5}
    assert reward == pytest.approx(1.0 + 0.25 - 0.1)
    env.reset(options=TASK)
    env.step(search("Port Ellis lies"))
    assert env.step(answer.format("varn"))[-1]["rewards"]["supported_match"] == 1.0
    env.reset(options=TASK)
    env.step(search("Port Ellis lies"))
    assert env.step(answer.format("Port Ellis"))[-1]["rewards"]["supported_match"] == 0.0  # found, and wrong


@each_form
def test_a_reward_of_ones_own_gets_the_searches(form):
    seen = []

    def mine(answer, golden_answers, *, evidence):
        seen.append(evidence)
        return 0.5

    env, search, answer = form(reward=mine)
    env.reset(options={k: v for k, v in TASK.items() if k != "gold_passages"})
    env.step(search("Zed letter"))
    assert env.step(answer.format("Zed"))[1] == 0.5
    (evidence,) = seen
    assert evidence.recall is None and evidence.supports("a letter") and not evidence.supports("Varn")
    (made,) = evidence.searches
    assert (made.query, made.found, made.recall, made.repeated) == ("Zed letter", ("9",), None, False)


def test_several_searches_of_a_turn_count_each():
    env = native()[0]
    env.reset(options=TASK)
    info = asyncio.run(env.astep(call("Ada Rowan born", "Zed letter", "Port Ellis lies")))[-1]
    assert info["queries"] == ["Ada Rowan born", "Zed letter", "Port Ellis lies"]
    assert info["gold_recall"] == pytest.approx(1 / 3) and info["gold_found"] == 1.0


def test_opened_documents_count_as_found_and_support_answers():
    class Opens:
        quick = True

        def search_batch(self, queries, topk):
            return INDEX.search_batch(queries, topk)

        def document(self, identifier):
            return next((p for p in PASSAGES if p.id == identifier), None)

    env = SearchToolsEnv(retriever=Opens(), topk=1, reward="supported_match")
    for answered in (True, False):
        env.reset(options=TASK)
        if answered:
            opened = '<tool_call>{"name": "open", "arguments": {"id": " 8 "}}</tool_call>'
            info = env.step(opened)[-1]
            assert info["gold_found"] == 0.5 and "gold_recall" not in info and info["kind"] == "tool"
        assert env.step("Varn")[1] == float(answered)
        assert len(env.evidence().texts) == answered


def test_a_turn_that_has_not_happened_leaves_no_search():
    class Breaks:
        quick = True
        down = True

        def search_batch(self, queries, topk):
            if self.down:
                raise RetrieverError("down")
            return INDEX.search_batch(queries, topk)

    searcher = Breaks()
    env = SearchToolsEnv(retriever=searcher, topk=1)
    env.reset(options=TASK)
    env._own.turn.append(("left over", []))
    with pytest.raises(ToolFailure):
        env.step(call("Ada Rowan born"))
    searcher.down = False
    assert env.step(call("Ada Rowan born"))[-1]["query"] == "Ada Rowan born"
    assert len(env.evidence().searches) == 1


def test_tasks_of_the_environment_s_own_name_gold_passages_too():
    for form in (tags, native):
        env, search, _ = form(tasks=[TASK])
        env.reset(seed=0)
        assert env.step(search("Ada Rowan born"))[-1]["gold_recall"] > 0


def test_evidence_is_refused_where_nothing_searches():
    with pytest.raises(ValueError, match=r"'gold_recall' reads what searches found.*agentrl/Search-v0"):
        ToolEnv(reward={"exact_match": 1.0, "gold_recall": 0.1})


@pytest.mark.parametrize(
    "answer, texts, stands",
    [
        ("Varn", ["It lies in Varn."], True),
        ("the Port  Ellis", ["PORT ELLIS, a town"], True),
        ("12", ["in 1912"], False),
        ("", ["x"], False),
        ("Varn", [], False),
    ],
)
def test_an_answer_stands_in_a_text_word_by_word(answer, texts, stands):
    assert stands_in(answer, texts) is stands and Evidence(texts=tuple(texts)).supports(answer) is stands
