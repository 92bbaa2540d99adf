import datetime
import decimal
import gzip
import json
import math
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.config import DataConfig
from agentrl.data import tasks as data_module
from agentrl.data.tasks import TaskStream, load_tasks, questions_hash, tasks_from_world, unique
from agentrl.errors import DataError
from agentrl.types import Task

ROWS = [
    {"id": "a", "question": "who?", "golden_answers": ["Ada", "Ada Rowan"], "hops": 2},
    {"question": "where?", "golden_answers": ["Port Ellis"]},
]


def write_lines(path, *lines):
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines) + b"\n")
    return path


def load(path, split="train", **options):
    return load_tasks(DataConfig(**{split: str(path)}, **options), split)


def search_r1_rows(n=3):
    """Rows of the shape that Search-R1 released."""
    return [
        {
            "id": "train_0",  # the merged sets number their rows each from 0
            "question": f"question {i}",
            "golden_answers": [f"answer {i}"],
            "data_source": "nq",
            "prompt": [{"role": "user", "content": f"Answer. For example ...\nQuestion: question {i}?\n"}],
            "ability": "fact-reasoning",
            "reward_model": {"ground_truth": {"target": [f"answer {i}"]}, "style": "rule"},
            "extra_info": {"index": i, "split": "train"},
            "metadata": None,
        }
        for i in range(n)
    ]


def test_jsonl(tmp_path):
    tasks = load(write_lines(tmp_path / "q.jsonl", *ROWS))
    assert tasks == [
        Task("a", {"id": "a", "question": "who?", "golden_answers": ["Ada", "Ada Rowan"], "hops": 2}),
        Task("2", {"id": "2", "question": "where?", "golden_answers": ["Port Ellis"]}),
    ]


def test_the_formats_agree(tmp_path):
    expected = load(write_lines(tmp_path / "q.jsonl", *ROWS))
    (tmp_path / "q.json").write_text(json.dumps(ROWS))
    with gzip.open(tmp_path / "q.jsonl.gz", "wb") as f:
        f.write((tmp_path / "q.jsonl").read_bytes())
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "q.parquet")
    for name in ("q.json", "q.jsonl.gz", "q.parquet"):
        assert load(tmp_path / name) == expected, name


@pytest.mark.parametrize("column", ["golden_answers", "answers", "answer"])
@pytest.mark.parametrize(("value", "expected"), [("42", ["42"]), (42, ["42"]), (["x", "y"], ["x", "y"])])
def test_names_and_types_of_answers(tmp_path, column, value, expected):
    [task] = load(write_lines(tmp_path / "q.jsonl", {"question": "?", column: value}))
    assert task.options == {"id": "1", "question": "?", "golden_answers": expected}


def test_search_r1_parquet_works_unchanged(tmp_path):
    pq.write_table(pa.Table.from_pylist(search_r1_rows()), tmp_path / "train.parquet")
    tasks = load(tmp_path / "train.parquet")
    assert [t.options["question"] for t in tasks] == ["question 0", "question 1", "question 2"]
    assert [t.options["golden_answers"] for t in tasks] == [["answer 0"], ["answer 1"], ["answer 2"]]
    assert len({t.id for t in tasks}) == 3
    assert set(tasks[0].options) == {"id", "question", "golden_answers", "data_source"}


def test_search_r1_rows_with_the_prompt_only(tmp_path):
    rows = [{k: r[k] for k in ("data_source", "prompt", "reward_model", "extra_info")} for r in search_r1_rows(2)]
    rows[1]["extra_info"]["question"] = "from the extra info"
    tasks = load(write_lines(tmp_path / "q.jsonl", *rows))
    assert [(t.id, t.options["question"]) for t in tasks] == [("0", "question 0?"), ("1", "from the extra info")]
    assert tasks[0].options["golden_answers"] == ["answer 0"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{broken", r"q\.jsonl:3: not JSON"),
        (b'{"question": "\xff"}', r"q\.jsonl:3: not UTF-8"),
        (["a", "list"], r"q\.jsonl:3: a list where an object"),
        ({"question": "", "golden_answers": ["x"]}, r"q\.jsonl:3: question is empty"),
        ({"question": 7, "golden_answers": ["x"]}, r"q\.jsonl:3: question is a int"),
        ({"question": "?", "golden_answers": []}, r"q\.jsonl:3: golden_answers is empty"),
        ({"question": "?", "golden_answers": [" ", ""]}, r"q\.jsonl:3: golden_answers is empty"),
        ({"question": "?", "golden_answers": [None]}, r"q\.jsonl:3: golden_answers is empty"),
        ({"question": "?", "golden_answer": "x"}, r"did you mean 'golden_answer'.*columns are question, golden_answer"),
        ({"questions": "?", "golden_answers": "x"}, r"no column question; did you mean 'questions'"),
        ({"prompt": [{"role": "user", "content": ""}], "answer": "x"}, r"no column question"),
        ({"question": "?", "reward_model": {"style": "rule"}}, r"reward_model.ground_truth has no value in this row"),
    ],
)
def test_malformed_rows_are_named_by_file_and_line(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        load(write_lines(tmp_path / "q.jsonl", ROWS[0], b"", line, ROWS[1]))


def test_several_malformed_rows_are_reported_at_once(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", b"x", ROWS[0], {}, *[{}] * 10)
    with pytest.raises(DataError) as caught:
        load(path)
    lines = str(caught.value).splitlines()
    assert [x.split(": ")[0].rsplit(":", 1)[-1] for x in lines[:-1]] == ["1", "3", "4", "5", "6"]
    assert lines[-1] == "the rows after these were not checked"


def test_a_damaged_archive_names_the_line(tmp_path):
    whole = gzip.compress(b"".join(json.dumps(ROWS[1]).encode() + b"\n" for _ in range(5)))
    (tmp_path / "q.jsonl.gz").write_bytes(whole[:-12])
    with pytest.raises(DataError, match=r"q\.jsonl\.gz:\d: cannot be read"):
        load(tmp_path / "q.jsonl.gz")


def test_other_damaged_files(tmp_path):
    (tmp_path / "q.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"q\.parquet: cannot be read as Parquet"):
        load(tmp_path / "q.parquet")
    (tmp_path / "q.json").write_text('{"a": 1}\n{"b": 2}')
    with pytest.raises(DataError, match=r"name it \.jsonl"):
        load(tmp_path / "q.json")
    (tmp_path / "q.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="a dict where a list"):
        load(tmp_path / "q.json")
    (tmp_path / "q.txt").write_text("hi")
    with pytest.raises(DataError, match=r"not from \.txt"):
        load(tmp_path / "q.txt")


def test_empty_and_missing_sets(tmp_path):
    (tmp_path / "q.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"data\.train: .*q\.jsonl has no rows"):
        load(tmp_path / "q.jsonl")
    with pytest.raises(DataError, match=r"p\.jsonl does not exist; did you mean 'q\.jsonl'"):
        load(tmp_path / "p.jsonl")
    with pytest.raises(DataError, match=r"data\.test is not set"):
        load_tasks(DataConfig(train="x"), "test")
    with pytest.raises(DataError, match=r"recipe:nothing, which is no recipe"):
        load("recipe:nothing")


def test_a_byte_order_mark_and_blank_lines_are_no_rows(tmp_path):
    (tmp_path / "q.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS[1]).encode() + b"\n\n \n")
    assert len(load(tmp_path / "q.jsonl")) == 1


def test_limit_stops_before_later_rows_are_read(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", *ROWS, b"broken")
    assert len(load(path, limit=2)) == 2


def test_folders_are_read_by_split(tmp_path):
    write_lines(tmp_path / "train-00000.jsonl", ROWS[0])
    write_lines(tmp_path / "train-00001.jsonl", ROWS[1])
    (tmp_path / "test").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS[1:]), tmp_path / "test" / "data.parquet")
    assert [t.options["question"] for t in load(tmp_path)] == ["who?", "where?"]
    assert [t.options["question"] for t in load(tmp_path, "test")] == ["where?"]
    assert len(load(tmp_path / "test", "test")) == 1
    with pytest.raises(DataError, match=r"begins with 'dev'; it has .*train-00000\.jsonl.*data\.test_split"):
        load(tmp_path, "test", test_split="dev")


def test_ids_are_unique_and_have_no_slash(tmp_path):
    rows = [{**ROWS[1], "id": x} for x in ("nq/1", "nq/1", 3, 3)]
    tasks = load(write_lines(tmp_path / "q.jsonl", *rows))
    assert [t.id for t in tasks] == ["nq_1", "nq_1#2", "3", "3#2"]


def test_a_doubled_id_is_never_that_of_another_row(tmp_path):
    """`a#2` is what a second `a` would be called, and a row is really called so."""
    rows = [{**ROWS[1], "id": x} for x in ("a", "a", "a#2", "a", "b/c", "b_c", "a#2")]
    tasks = load(write_lines(tmp_path / "q.jsonl", *rows))
    assert [t.id for t in tasks] == ["a", "a#3", "a#2", "a#4", "b_c", "b_c#2", "a#2#2"]


@given(st.lists(st.text("a#2./_", max_size=4)))
def test_ids_are_unique_whatever_they_are(ids):
    tasks = unique([Task(id, {"n": i}) for i, id in enumerate(ids)])
    assert len({t.id for t in tasks}) == len(ids) and [t.options["n"] for t in tasks] == list(range(len(ids)))
    first = {id: i for i, id in reversed(list(enumerate(ids)))}
    assert all(tasks[i].id == id for id, i in first.items())


def odd_table(n=3):
    """Types that Parquet has and JSON lacks."""
    day = datetime.date(2024, 1, 1)
    return pa.table(
        {
            "id": [f"p{i}" for i in range(n)],
            "question": [f"what is {i}?" for i in range(n)],
            "golden_answers": pa.array([decimal.Decimal("1.50")] * n, pa.decimal128(5, 2)),
            "asked_on": pa.array([day] * n, pa.date32()),
            "stamp": pa.array([1704067200000000001] * n, pa.timestamp("ns", tz="UTC")),
            "far": pa.array([400_000_000_000] * n, pa.timestamp("s")),  # the year 14645
            "clock": pa.array([datetime.time(7, 8)] * n, pa.time64("us")),
            "took": pa.array([datetime.timedelta(seconds=5)] * n, pa.duration("s")),
            "price": pa.array([decimal.Decimal("9.99")] * n, pa.decimal128(5, 2)),
            "blob": pa.array([b"\x00\xff"] * n, pa.binary()),
            "image": pa.array([{"bytes": b"\x89PNG", "path": "a.png"}] * n),
            "days": pa.array([[day, None]] * n, pa.list_(pa.date32())),
            "pairs": pa.array([[("k", 1)]] * n, pa.map_(pa.string(), pa.int64())),
        }
    )


def test_columns_of_types_that_json_lacks_are_text_or_left_out_with_a_line(tmp_path):
    pq.write_table(odd_table(), tmp_path / "q.parquet")
    said = []
    tasks = load_tasks(DataConfig(train=str(tmp_path / "q.parquet")), "train", said.append)
    options = tasks[1].options
    assert json.loads(json.dumps(options)) == options
    stamp, far = options.pop("stamp"), options.pop("far")
    assert stamp.startswith("2024-01-01") and stamp.endswith("00001+00:00") and far.startswith("14645-")
    assert options == {
        "id": "p1", "question": "what is 1?", "golden_answers": ["1.50"], "asked_on": "2024-01-01", "clock": "07:08:00",
        "took": "0:00:05", "price": "9.99", "days": ["2024-01-01", None], "pairs": [["k", 1]],
    }  # fmt: skip
    assert said == ["data.train: columns that can be no text are left out: blob (bytes), image (bytes)"]


def test_images_of_the_hub_are_left_out(monkeypatch, capsys):
    import datasets
    from PIL import Image

    rows = [{"question": "?", "answer": "a", "picture": Image.new("RGB", (1, 1)), "id": math.nan}] * 2
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, split: rows)
    tasks = load("owner/name")
    assert [t.options for t in tasks] == [{"id": str(n), "question": "?", "golden_answers": ["a"]} for n in (1, 2)]
    assert "picture (Image)" in capsys.readouterr().err


def test_the_hash_sees_every_change_of_a_question():
    tasks = [Task("1", {"question": "a", "golden_answers": ["x"]}), Task("2", {"question": "b", "when": "2024"})]
    same = [Task("1", {"golden_answers": ["x"], "question": "a"}), Task("2", {"when": "2024", "question": "b"})]
    assert questions_hash(tasks) == questions_hash(same)
    others = [tasks[::-1], tasks[:1], [tasks[0], Task("2", {"question": "b", "when": "2025"})],
              [Task("3", tasks[0].options), tasks[1]]]  # fmt: skip
    assert len({questions_hash(t) for t in [tasks, *others]}) == 5


def test_hub_sets_go_through_datasets(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, subset, split):
        asked.append((name, subset, split))
        if name == "owner/missing":
            raise ConnectionError("no\nway")
        return datasets.Dataset.from_list(search_r1_rows())

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load("owner/name")) == 3
    assert len(load("owner/name:part", "test", test_split="dev")) == 3
    assert asked == [("owner/name", None, "train"), ("owner/name", "part", "dev")]
    with pytest.raises(DataError, match=r"owner/missing \(split 'train'\) .* no way\. Check .*data\.train_split"):
        load("owner/missing")


def test_recipes_are_sources_too(monkeypatch):
    monkeypatch.setitem(data_module.RECIPES, "sums", lambda split: [{"question": f"{split} 1 + 1", "answer": 2}])
    [task] = load("recipe:sums")
    assert task.options["question"] == "train 1 + 1"
    with pytest.raises(DataError, match="did you mean 'sums'"):
        load("recipe:sum")


def test_tasks_from_world():
    class World:
        def questions(self, split):
            return [{"id": "q1", "question": "who?", "golden_answers": ["a"], "hops": 1}] if split == "train" else []

    [task] = tasks_from_world(World(), "train")
    assert task == Task("q1", {"id": "q1", "question": "who?", "golden_answers": ["a"], "hops": 1})
    with pytest.raises(DataError, match="no test questions"):
        tasks_from_world(World(), "test")


TASKS = [Task(str(i), {}) for i in range(7)]


def test_every_epoch_is_a_new_order_of_all_tasks():
    stream = TaskStream(TASKS, seed=3)
    epochs = [[t.id for t in stream.take(7)] for _ in range(4)]
    assert all(sorted(e) == [str(i) for i in range(7)] for e in epochs)
    assert len({tuple(e) for e in epochs}) == 4


def test_the_stream_depends_on_the_seed_alone():
    random.seed(1)
    first = TaskStream(TASKS, seed=3).take(30)
    random.seed(2)
    assert TaskStream(TASKS, seed=3).take(30) == first
    assert TaskStream(TASKS, seed=4).take(30) != first


@pytest.mark.parametrize("taken", [0, 3, 7, 8, 20])
def test_a_resumed_stream_goes_on_where_it_stood(taken):
    stream = TaskStream(TASKS, seed=3)
    stream.take(taken)
    state = json.loads(json.dumps(stream.state_dict()))
    rest = stream.take(25)
    resumed = TaskStream(TASKS, seed=99)
    resumed.load_state_dict(state)
    assert resumed.take(25) == rest


def test_a_stream_refuses_another_set():
    state = TaskStream(TASKS, seed=0).state_dict()
    with pytest.raises(DataError, match="set of 7 questions, this one has 6"):
        TaskStream(TASKS[:6], seed=0).load_state_dict(state)
    with pytest.raises(DataError, match="no questions"):
        TaskStream([], seed=0)
