"""From a config to a working job: one's own model, questions and corpus; and what is said where one is wrong."""

import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from agentrl.config import EnvConfig, RunConfig
from agentrl.engines.shared.loading import pick_device
from agentrl.envs.protocol import PROMPT
from agentrl.envs.worlds import make_world
from agentrl.errors import AgentRLError, ConfigError, DataError, ModelError, OutageError, RunError
from agentrl.retriever.building import build_index
from agentrl.retriever.corpus import CorpusReader
from agentrl.retriever.errors import IndexOpenError, RetrieverUnavailable
from agentrl.runs.read import read_evals, read_metrics, read_rollouts
from agentrl.train.build import build_job, environment_maker
from agentrl.train.start import resume_run, train_run
from tests.fakes import save_tiny_model, tiny_model, tiny_tokenizer
from tests.retriever.helpers import server_process
from tests.small import SMALL, merged, small_config, train_until

PEOPLE = ("Ada Rowan", "Bela Orm", "Cato Lind", "Dora Vey")
TOWNS = ("Port Ellis", "Torvik", "Varn", "Hollow")
ROWS = [{"question": f"where was {p} born", "golden_answers": [t, t.upper()]} for p, t in zip(PEOPLE, TOWNS)]
SEARCH, ANSWER = "<search> Ada Rowan </search>", "<answer> Torvik </answer>"  # what the small model was taught to say


def write_lines(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus in Search-R1's shape with its index, questions as JSONL and as Search-R1's Parquet, and two models."""
    path = tmp_path_factory.mktemp("own")
    write_lines(
        path / "corpus.jsonl",
        [{"id": str(i), "contents": f'"{p}"\n{p} was born in {t}.'} for i, (p, t) in enumerate(zip(PEOPLE, TOWNS))],
    )
    build_index(CorpusReader(path / "corpus.jsonl"), path / "index")
    write_lines(path / "train.jsonl", ROWS)
    parquet = [
        {
            "data_source": "nq",
            "prompt": [{"role": "user", "content": PROMPT.replace("{question}", row["question"] + "?")}],
            "ability": "fact-reasoning",
            "reward_model": {"ground_truth": {"target": row["golden_answers"]}, "style": "rule"},
            "extra_info": {"index": i, "split": "train"},
        }
        for i, row in enumerate(ROWS)
    ]
    pq.write_table(pa.Table.from_pylist(parquet), path / "train.parquet")
    teach(path / "taught", SEARCH, ANSWER)
    teach(path / "searches", SEARCH)
    return path


def teach(path, *says):
    """A tiny Qwen2 that says one of `says`, whatever it is asked; saved with its tokenizer."""
    tokenizer, model = tiny_tokenizer(), tiny_model(seed=1)
    prompt = PROMPT.replace("{question}", ROWS[0]["question"] + "?")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    found = f"\n\n<information>Doc 1(Title: Ada Rowan) {PEOPLE[0]} was born in {TOWNS[0]}.\n</information>\n\n"
    rows = []
    for first, then in zip(says, reversed(says)):
        pieces = [(prompt, False), (first, True), (found, False), (then, True)]
        encoded = [(tokenizer.encode(text, add_special_tokens=False), said) for text, said in pieces]
        rows.append([(i, i if said else -100) for ids, said in encoded for i in ids])
    length = max(map(len, rows))
    ids, labels = torch.tensor([row + [(0, -100)] * (length - len(row)) for row in rows]).unbind(-1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(70):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def own_config(runs_dir, folder, model="taught", /, **changes):
    """A config of one's own model, questions and index."""
    tree = merged(SMALL, {"world": None, "log": {"runs_dir": str(runs_dir)}})
    tree |= {
        "model": {"path": str(folder / model), "device": "cpu", "threads": 1},
        "data": {"train": str(folder / "train.jsonl")},
        "retriever": {"index": str(folder / "index")},
        "env": {"kwargs": {"topk": 1, "max_turns": 2, "format_reward": 0.1}},
        "rollout": {
            "prompts_per_step": 4,
            "group_size": 4,
            "max_tokens_per_turn": 24,
            "max_observation_tokens": 60,
            "max_context": 900,
        },
    }
    return RunConfig.model_validate(merged(tree, changes))


def refused(config, error, match):
    """`train_run` refuses `config` before it begins: no directory is left, and nothing was there."""
    with pytest.raises(error, match=match) as caught:
        train_run(config, quiet=True)
    assert not (Path(config.log.runs_dir) / "a").exists()
    return str(caught.value)


# ------------------------------------------------------------------------------------- one's own model, data and corpus


@pytest.mark.slow
@pytest.mark.parametrize("style", ["tag", "chat"])
@pytest.mark.parametrize("questions", ["train.jsonl", "train.parquet"])
def test_own_model_questions_and_corpus(tmp_path, folder, style, questions):
    data = {"train": str(folder / questions), "test": str(folder / "train.jsonl")}
    config = own_config(tmp_path, folder, data=data, rollout={"style": style}, eval={"questions": 4})
    done = train_run(config, quiet=True)
    rows = read_metrics(done.run_dir)
    assert [r["step"] for r in rows] == [0, 1] and all(r["failed_rollouts"] == 0 for r in rows)
    assert all(r["mismatch_max"] < 1e-3 for r in rows) and [e["n"] for e in read_evals(done.run_dir)] == [4, 4]
    assert sum(r["valid_search_ratio"] for r in rows) > 0 and any(r["grad_norm"] > 0 for r in rows)

    tokenizer = tiny_tokenizer()
    episodes = read_rollouts(done.run_dir, 0)
    for episode in episodes:
        text = "".join(tokenizer.decode(t["prompt_ids"] + t["action_ids"]) for t in episode["turns"])
        question = episode["task"]["question"].rstrip("?")
        assert f"{question}?" in text and set(episode["task"]["golden_answers"]) & set(TOWNS)
        assert text.startswith("<|im_start|>system\n")  # rollout.prompt is auto and the tokenizer has a template
        for turn in episode["turns"][:-1]:
            if turn["info"]["kind"] == "search":
                assert "was born in" in turn["observation"]
        assert ("<tool_response>" in text) == (style == "chat" and len(episode["turns"]) > 1)
    assert any(u["info"].get("kind") == "search" for e in episodes for u in e["turns"])

    from transformers import AutoModelForCausalLM, AutoTokenizer

    saved = done.run_dir / "checkpoints" / "step-000002" / "model"
    assert AutoTokenizer.from_pretrained(saved).chat_template == tokenizer.chat_template
    model = AutoModelForCausalLM.from_pretrained(saved)
    first = AutoModelForCausalLM.from_pretrained(folder / "taught")
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), first.parameters()))


def test_corpora_of_both_shapes_are_indexed_by_the_command(tmp_path, folder):
    rows = [{"id": i, "title": p, "text": f"{p} was born in {t}."} for i, (p, t) in enumerate(zip(PEOPLE, TOWNS))]
    write_lines(tmp_path / "corpus.jsonl", rows)
    command = [
        sys.executable,
        "-m",
        "agentrl.retriever",
        "build",
        str(tmp_path / "corpus.jsonl"),
        str(tmp_path / "index"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    found = []
    for index in (folder / "index", tmp_path / "index"):
        job = build_job(own_config(tmp_path, folder, retriever={"index": str(index)}), tmp_path)
        env = job.make_env()
        env.reset(options=job.train_tasks[1].options)
        found.append(env.step("<search> Bela Orm </search>")[0])
    assert found[0] == found[1] and "Bela Orm was born in Torvik." in found[0]


@pytest.mark.slow
def test_a_search_server_gives_the_same_run_as_its_index(tmp_path, folder):
    runs = [train_until(own_config(tmp_path / "index", folder))]
    with server_process(folder / "index") as (url, _):
        runs.append(train_until(own_config(tmp_path / "server", folder, retriever={"index": None, "url": url})))
    actions = [[[t["action_ids"] for t in e["turns"]] for s in (0, 1) for e in read_rollouts(run, s)] for run in runs]
    assert actions[0] == actions[1] and any(len(turns) > 1 for turns in actions[0])


# -------------------------------------------------------------------------------------------------- servers that fail


def test_a_retriever_that_is_down_at_the_start(tmp_path, folder, capsys):
    config = own_config(tmp_path, folder, retriever={"index": None, "url": "http://127.0.0.1:9", "wait_s": 0.3})
    with pytest.raises(RetrieverUnavailable, match=r"waited \d s for the retriever at http://127.0.0.1:9"):
        train_run(config)
    assert "waiting for retriever at http://127.0.0.1:9 (0 s)" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@contextmanager
def server_that_fails(wanted):
    """A search server in Search-R1's wire format that answers 503 where `wanted(number of the request)` is false."""
    numbers = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            self.answer(200, {"status": "ok"})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                numbers.append(len(numbers))
                ok = wanted(numbers[-1])
            passage = {"document": {"id": "1", "contents": '"T"\nfound'}, "score": 1.0}
            self.answer(200, {"result": [[passage]] * len(body["queries"])}) if ok else self.answer(503, {})

        def answer(self, status, value):
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_searches_that_fail_in_the_middle_are_counted_and_the_run_goes_on(tmp_path, folder):
    with server_that_fails(lambda n: n < 1) as url:  # every later search fails, with its retries
        retriever = {"index": None, "url": url, "timeout_s": 30.0, "retries": 1}  # no deadline hides the 503
        rollout = {"outage_wait_s": 0}
        config = own_config(tmp_path, folder, retriever=retriever, rollout=rollout, log={"rollout_groups": -1})
        rows = read_metrics(train_until(config))
    assert [r["step"] for r in rows] == [0, 1]
    step, row = next((r["step"], r) for r in rows if r["failed_rollouts"])
    episodes = read_rollouts(tmp_path / "a", step)
    failed = [e for e in episodes if e["error"]]
    assert 0 < len(failed) == row["failed_rollouts"] < 16  # those that only answer do not need the server
    assert all("answered 503" in e["error"] and e["reward"] is None for e in failed)  # unknown, and not 0
    good = [e for e in episodes if not e["error"]]
    assert row["reward"] == pytest.approx(sum(e["reward"] for e in good) / len(good))
    assert all("advantages" not in turn for e in failed for turn in e["turns"])


@pytest.mark.slow
def test_a_server_that_dies_stops_a_run_that_needs_it_and_a_resume_goes_on(tmp_path, folder):
    """All episodes search here, and the server does not come back in the second that the run waits."""
    env = {"kwargs": {"topk": 1, "max_turns": 2}}
    with server_process(folder / "index") as (url, process):

        def kill(trainer):
            step = trainer.step

            def after_two():
                if trainer.step_number == 2:
                    process.kill()
                    process.wait()
                return step()

            trainer.step = after_two

        retriever = {"index": None, "url": url, "timeout_s": 0.5, "wait_s": 5}
        log = {"checkpoint_every": 1}
        more = {"train": {"steps": 4}, "rollout": {"outage_wait_s": 1.0}, "log": log}
        config = own_config(tmp_path, folder, "searches", retriever=retriever, env=env, **more)
        with pytest.raises(OutageError, match=r"step 2: 16 of 16 episodes lost their tool .*Fix the tool or server"):
            train_until(config, meddle=kill)
    assert len(read_metrics(tmp_path / "a")) == 2
    port = url.rsplit(":", 1)[1]
    with server_process(folder / "index", "--port", port):
        assert resume_run(tmp_path / "a", quiet=True).result.status == "finished"
    assert [r["step"] for r in read_metrics(tmp_path / "a")] == [0, 1, 2, 3]


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        (
            {"model": {"path": "/no/such/model"}},
            ModelError,
            "model.path is '/no/such/model', but there is no such folder",
        ),
        ({"model": {"device": "cuda:7"}}, ModelError, "model.device is cuda:7 but torch .* sees no CUDA device"),
        ({"model": {"lora": {"dropout": 0.1}}}, ModelError, "model.lora.dropout is 0.1; .* set it to 0"),
        ({"model": {"lora": {"targets": ["qq_proj"]}}}, ModelError, "model.lora.targets .*qq_proj"),
        ({"model": {"head": "lmhead"}}, ModelError, "lmhead"),
        (
            {"rollout": {"style": "chat", "prompt": "raw"}},
            ConfigError,
            "rollout.style is chat but rollout.prompt is raw",
        ),
        ({"rollout": {"max_context": 40}}, ConfigError, "smaller than one turn.*set rollout.max_context to at least"),
        ({"rollout": {"max_context": 2000}}, ConfigError, "rollout.max_context = 2000 but .* has 1024 positions"),
        ({"env": {"kwargs": {"topk": 0}}}, ConfigError, r"env.kwargs .*topk = 0.*topk is 0 .*must be 1 or more"),
        ({"env": {"kwargs": {"topk": "many"}}}, ConfigError, "topk = 'many'"),
        (
            {"env": {"kwargs": {"top_k": 3}}},
            ConfigError,
            "env.kwargs.top_k: agentrl/Search-v0 has no such parameter; did you mean 'topk'",
        ),
        ({"env": {"kwargs": {"prompt_template": "hi"}}}, ConfigError, r"prompt_template has no \{question\}"),
        (
            {"env": {"id": "agentrl/Serch-v0"}},
            ConfigError,
            "env.id: there is no environment .*mean 'agentrl/Search-v0'",
        ),
        ({"env": {"id": "nomodule_x:A-v0"}}, ConfigError, "nomodule_x"),
        ({"retriever": {"index": None}}, ConfigError, "no retriever is set: give retriever.url or retriever.index"),
        ({"retriever": {"index": "/no/index"}}, IndexOpenError, "/no/index"),
        ({"data": {"train": "/no/data.jsonl"}}, DataError, "data.train: /no/data.jsonl does not exist"),
    ],
)
def test_what_does_not_work_is_said_before_a_run_begins(tmp_path, folder, changes, error, match):
    refused(own_config(tmp_path, folder, **changes), error, match)


def test_a_world_that_is_too_small(tmp_path):
    refused(small_config(tmp_path, world={"regions": 4}), ConfigError, r"world: .*'region': 4.*at least 6")


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"question": "?", "golden_answers": []}, r"q\.jsonl:2: golden_answers is empty"),
        ({"question": "", "golden_answers": ["x"]}, r"q\.jsonl:2: question is empty"),
        ("", "4 questions"),  # an empty line is no row
        ("{torn", r"q\.jsonl:2: not JSON"),
        ("[1]", r"q\.jsonl:2: a list where an object"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path, folder, row, match):
    path = write_lines(tmp_path / "q.jsonl", [ROWS[0], row, *ROWS[1:]])
    config = own_config(tmp_path, folder, data={"train": str(path)})
    if row == "":
        assert len(build_job(config, tmp_path).train_tasks) == 4
    else:
        refused(config, DataError, match)


def test_a_tokenizer_without_a_template(tmp_path, folder):
    save_tiny_model(tmp_path / "model", template=None)
    config = own_config(tmp_path, tmp_path, "model", data={"train": str(folder / "train.jsonl")})
    config.retriever.index = str(folder / "index")
    chat = config.model_copy(update={"rollout": config.rollout.model_copy(update={"style": "chat"})})
    refused(
        chat, ModelError, "rollout.style is chat, but the tokenizer of .* has no chat template; set rollout.style: tag"
    )
    assert build_job(config, tmp_path).chat.tool_role is None  # tag style works without


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda p: (p / "config.json").unlink(), "has no config.json; it must be a folder written by save_pretrained"),
        (lambda p: [f.unlink() for f in p.glob("token*")], "no tokenizer could be loaded from model.path"),
        (lambda p: (p / "model.safetensors").unlink(), "no causal LM could be loaded from model.path"),
        (lambda p: (p / "model.safetensors").write_bytes(b"torn"), "no causal LM could be loaded from model.path"),
        (lambda p: (p / "config.json").write_text("{"), "could be loaded from model.path"),
    ],
)
def test_damaged_model_folders(tmp_path, folder, damage, match):
    save_tiny_model(tmp_path / "model")
    damage(tmp_path / "model")
    text = refused(own_config(tmp_path, folder, tmp_path / "model"), ModelError, match)
    assert str(tmp_path / "model") in text and "\n" not in text


def test_a_hub_id_that_cannot_be_fetched(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = own_config(tmp_path, folder, model={"path": "nobody/nothing-1b"})
    refused(config, ModelError, "no tokenizer could be loaded from model.path = 'nobody/nothing-1b'")


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_everything_that_is_refused_exits_with_2():
    assert {e.exit_code for e in (ConfigError([]), DataError(), ModelError(), RunError(), AgentRLError())} == {2}


# ---------------------------------------------------------------------------------------------------------------- parts


def test_the_world_is_made_from_the_runs_seed_unless_it_has_its_own(tmp_path):
    def questions(**changes):
        job = build_job(small_config(tmp_path, **changes), tmp_path / str(changes))
        return [t.options["question"] for t in job.train_tasks]

    assert questions(seed=1) == questions(seed=1) != questions(seed=2)
    assert questions(seed=1, world={"seed": 5}) == questions(seed=2, world={"seed": 5})
    world = make_world("search", 5, **{k: v for k, v in SMALL["world"].items()})
    assert questions(world={"seed": 5}) == [q["question"] for q in world.questions("train")]


def test_the_index_of_a_world_is_built_once(tmp_path):
    build_job(small_config(tmp_path), tmp_path)
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "index").rglob("*")}
    build_job(small_config(tmp_path), tmp_path)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "index").rglob("*")} == made


def test_an_environment_of_ones_own_needs_no_retriever(tmp_path, folder):
    config = own_config(tmp_path, folder, retriever={"index": None})
    config.env = EnvConfig(id="agentrl/Math-v0")
    job = build_job(config, tmp_path)
    assert job.make_env().spec.id == "agentrl/Math-v0" and job.test_tasks == []


def test_a_parameter_that_the_environment_does_not_have_is_named_with_the_nearest(tmp_path):
    config = small_config(tmp_path, env={"kwargs": {"prompt": "Q: {question}", "topk": 2}})
    with pytest.raises(ConfigError) as error:
        build_job(config, tmp_path)
    assert error.value.problems == [
        "env.kwargs.prompt: agentrl/Search-v0 has no such parameter; did you mean 'prompt_template'?"
    ]


def test_a_sandbox_that_cannot_be_had_is_refused_before_anything_is_played(monkeypatch, tmp_path):
    from agentrl.envs import sandbox

    monkeypatch.setattr(sandbox, "missing_isolation", lambda: "cannot be shut in: no namespaces")
    env = {"id": "agentrl/ToolCalls-v0", "kwargs": {"tools": ["python"]}}
    config = RunConfig.model_validate({"model": {"path": "x"}, "data": {"train": "y"}, "env": env})
    with pytest.raises(ConfigError, match="cannot be shut in: no namespaces"):
        environment_maker(config, None, tmp_path)
