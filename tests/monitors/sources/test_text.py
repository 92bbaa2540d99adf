import json
import math

from hypothesis import given
from hypothesis import strategies as st

from agentrl.monitors.sources.document import Document as TrainerState
from agentrl.monitors.sources.jsonl import JsonLines
from agentrl.monitors.sources.table import Csv


def append(file, text):
    with open(file, "a") as handle:
        handle.write(text)


def test_jsonl_grows_and_a_torn_line_waits(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "rew')
    source = JsonLines(file)
    assert [(r.step, r.values["reward"]) for r in source.poll()] == [(1, 0.5)]
    assert source.poll() == []
    append(file, 'ard": 0.6}\n')
    assert [(r.step, r.values["reward"]) for r in source.poll()] == [(2, 0.6)]


def test_an_unfinished_last_line_is_taken_only_at_the_end(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text('{"step": 1, "reward": 0.5}')
    source = JsonLines(file)
    assert source.poll() == []
    assert source.poll(final=True)[0].step == 1
    assert source.poll(final=True) == []


def test_what_is_no_metric_is_counted_not_raised(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text('not json\n[1, 2]\n\n{"step": 3, "x": NaN, "y": null, "z": "NaN", "t": "text"}\n{"a": ' + "[" * 50)
    source = JsonLines(file)
    rows = source.poll(final=True)
    assert [r.step for r in rows] == [3]
    assert math.isnan(rows[0].values["x"]) and math.isnan(rows[0].values["z"])
    assert "y" not in rows[0].values and "t" not in rows[0].values
    assert source.problems == {"line is not JSON": 2, "line is not a JSON object": 1}


def test_verls_nested_rows(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text(json.dumps({"step": 4, "data": {"critic/score/mean": 0.3}}) + "\n")
    row = JsonLines(file).poll()[0]
    assert row.step == 4 and row.values["data/critic/score/mean"] == 0.3


def test_a_rotated_file_is_read_from_its_start(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text("".join(f'{{"step": {i}, "reward": 0.5}}\n' for i in range(10)))
    source = JsonLines(file)
    assert len(source.poll()) == 10
    file.write_text('{"step": 0, "reward": 0.1}\n')
    assert [r.step for r in source.poll()] == [0]
    assert "truncated or replaced" in next(iter(source.problems))
    file.unlink()
    assert source.poll() == []


@given(st.lists(st.text(max_size=40), max_size=20), st.integers(0, 400))
def test_any_text_in_any_pieces_never_raises(lines, cut):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        for kind, name in ((JsonLines, "a.jsonl"), (Csv, "a.csv")):
            file = Path(folder) / name
            data = "\n".join(lines).encode("utf-8", "replace")
            file.write_bytes(data[:cut])
            source = kind(file)
            source.poll()
            file.write_bytes(data)
            source.poll()
            source.poll(final=True)


def test_csv_with_missing_cells_nan_and_a_repeated_header(tmp_path):
    file = tmp_path / "m.csv"
    file.write_text("step,reward,entropy\n1,0.5,\n2,nan,0.3\nstep,reward,kl\n3,0.7,0.01\n4,0.8")
    source = Csv(file)
    rows = source.poll()
    assert [r.step for r in rows] == [1, 2, 3]
    assert rows[0].values == {"step": 1.0, "reward": 0.5}
    assert math.isnan(rows[1].values["reward"])
    assert rows[2].values["kl"] == 0.01
    append(file, ",0.02\n5,1,2,3\n")
    assert [(r.step, r.values) for r in source.poll()] == [(4, {"step": 4.0, "reward": 0.8, "kl": 0.02})]
    assert source.problems == {"row has more cells than the header": 1}


def test_trainer_state_is_read_again_when_rewritten(tmp_path):
    file = tmp_path / "trainer_state.json"
    file.write_text('{"log_history": [{"step": 1, "rew')
    source = TrainerState(file)
    assert source.poll() == [] and source.problems
    file.write_text(json.dumps({"log_history": [{"step": 1, "reward": 0.1}]}))
    assert [r.step for r in source.poll()] == [1]
    assert source.poll() == []
    history = [{"step": 1, "reward": 0.1}, {"step": 2, "reward": 0.2, "note": "x"}]
    file.write_text(json.dumps({"log_history": history}))
    assert [r.step for r in source.poll()] == [2]


def test_a_large_file_comes_in_parts_that_fit_the_memory(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text("".join(f'{{"step": {n}, "reward": 0.5, "note": "{"x" * 40}"}}\n' for n in range(1000)))
    source = JsonLines(file)
    source._tail.chunk = 4096
    parts = []
    while rows := source.poll(final=True):
        parts.append([r.step for r in rows])
    assert len(parts) > 10 and max(map(len, parts)) < 100
    assert [n for part in parts for n in part] == list(range(1000))
