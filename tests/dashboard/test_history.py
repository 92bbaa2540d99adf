import json
import math
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.dashboard import history as H
from agentrl.dashboard.history import History, clean_row, columns, nonfinite_steps
from agentrl.dashboard.library import Library
from agentrl.monitors.phases import PhaseClassifier
from agentrl.monitors.stats import Series
from tests.dashboard.runs import COLLAPSE, recorded


def write(run, text):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(text)


def rows(first, last, **more):
    return "".join(
        json.dumps({"step": i, "time": float(i), "reward": i / 100, **more}) + "\n" for i in range(first, last)
    )


def steps(found):
    return [r["step"] for r in found]


@pytest.fixture
def history(tmp_path):
    return History(tmp_path)


def test_reads_what_is_appended(history, tmp_path):
    history.refresh()
    assert history.rows == []
    write(tmp_path, rows(0, 3))
    history.refresh()
    cursor = history.cursor
    write(tmp_path, rows(3, 5))
    history.refresh()
    assert steps(history.rows) == [0, 1, 2, 3, 4]
    assert steps(history.since(cursor)) == [3, 4]
    assert history.since(history.cursor) == []


def test_half_a_line_waits_for_its_end(history, tmp_path):
    whole = rows(0, 1)
    write(tmp_path, whole + '{"step": 1, "rew')
    history.refresh()
    assert steps(history.rows) == [0] and history.partial == 16
    write(tmp_path, 'ard": 0.5}\n')
    history.refresh()
    assert history.rows[1]["reward"] == 0.5 and history.partial == 0


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12))
def test_any_cut_of_the_writes_gives_every_row_once(tmp_path_factory, cuts):
    run = tmp_path_factory.mktemp("run")
    data, history, seen, cursor, at = rows(0, 12), History(run), [], None, 0
    for cut in [*cuts, len(data)]:
        write(run, data[at : at + cut])
        at += cut
        history.refresh()
        seen += steps(history.since(cursor) if cursor else history.rows)
        cursor = history.cursor
    assert seen == list(range(12))


def test_another_file_of_the_same_name_is_noticed(history, tmp_path):
    write(tmp_path, rows(0, 5))
    history.refresh()
    cursor = history.cursor
    (tmp_path / "metrics.jsonl").write_text(rows(0, 9, entropy=1.0))  # longer than the old one
    history.refresh()
    assert history.since(cursor) is None
    assert steps(history.rows) == list(range(9))
    (tmp_path / "metrics.jsonl").unlink()
    history.refresh()
    assert history.rows == [] and history.bands == []


@pytest.mark.parametrize("cursor", ["", "x", "-1.0", "99999.00000000", "10", "10.zz", "1e3.0"])
def test_a_cursor_that_is_none_says_start_again(history, tmp_path, cursor):
    write(tmp_path, rows(0, 5))
    history.refresh()
    assert history.since(cursor) is None


def test_a_resumed_run_replaces_its_steps(history, tmp_path):
    write(tmp_path, rows(0, 10) + rows(6, 8, entropy=1.0))
    history.refresh()
    assert steps(history.rows) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert [r.get("entropy") for r in history.rows] == [None] * 6 + [1.0] * 2
    write(tmp_path, rows(0, 1))
    history.refresh()
    assert steps(history.rows) == [0]


def test_torn_and_foreign_lines_are_counted(history, tmp_path):
    write(tmp_path, '{"step": 0, "re\n[1]\n"x"\nnull\n{"reward": 1}\n{"step": true}\n{"step": "1"}\n\n' + rows(1, 2))
    history.refresh()
    assert steps(history.rows) == [1] and history.unreadable == 7


def test_not_finite_is_none_and_absent_stays_absent():
    line = '{"step": 3, "reward": NaN, "loss": -Infinity, "kl": null, "lr": null, "nonfinite": ["kl"], "a": "x"}'
    row = clean_row(json.loads(line) | {"b": True, "big": 10**400})
    assert row == {"step": 3, "reward": None, "loss": None, "kl": None, "big": None}
    assert nonfinite_steps([row, {"step": 4, "reward": 1.0}]) == {"reward": [3], "loss": [3], "kl": [3], "big": [3]}
    assert columns([row, {"step": 4, "reward": 1.0}])["reward"] == [None, 1.0]


def test_phases_are_those_of_the_classifier(history, tmp_path):
    recordings = recorded(COLLAPSE)
    write(tmp_path, "".join(json.dumps(r | {"step": int(r["step"])}) + "\n" for r in recordings))
    history.refresh()
    classifier, series, said = PhaseClassifier(), {}, []
    for row in recordings:
        for name in ("logprob_correct", "reward", "entropy", "grad_norm", "delta_correct"):
            scale = {"logprob_correct": "neglog", "entropy": "log", "grad_norm": "log"}.get(name, "linear")
            if name in row:
                series.setdefault(name, Series(scale)).push(int(row["step"]), row[name])
        said.append(classifier.observe(int(row["step"]), series).phase)
    assert history.phase == classifier.state
    assert "III" in said
    bands = history.bands  # without gaps or overlaps, over the whole run
    assert bands[0]["from"] == 0 and bands[-1]["to"] == history.rows[-1]["step"]
    assert all(a["to"] + 1 == b["from"] for a, b in pairwise(bands))
    assert list(dict.fromkeys(said)) == list(dict.fromkeys(b["phase"] for b in bands))


def test_a_large_file_is_read_from_its_tail_and_sampled_before(history, tmp_path, monkeypatch):
    monkeypatch.setattr(H, "WHOLE", 100_000)
    monkeypatch.setattr(H, "TAIL", 20_000)
    monkeypatch.setattr(H, "SAMPLES", 50)
    write(tmp_path, rows(0, 5000))
    history.refresh()
    found = steps(history.rows)
    tail = [s for s in found if s >= 4700]
    assert found[0] == 0 and tail == list(range(4700, 5000))
    assert found == sorted(set(found)) and 350 < len(found) < 700
    before = [b - a for a, b in pairwise(found) if b < 4500]
    assert max(before) <= 2 * 5000 / 50  # evenly spread
    assert history.sampled_bytes > 0
    write(tmp_path, rows(5000, 5002))
    history.refresh()
    assert steps(history.rows)[-3:] == [4999, 5000, 5001]


values = st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=4), st.just([1]))


@given(st.dictionaries(st.text(max_size=6), values, max_size=8))
def test_rows_are_always_plain(raw):
    row = clean_row(raw | {"step": 1})
    assert all(v is None or (isinstance(v, float) and math.isfinite(v)) for k, v in row.items() if k != "step")
    json.dumps(row, allow_nan=False)


def test_phases_of_a_long_history_come_in_pieces(history, tmp_path, monkeypatch):
    monkeypatch.setattr(H, "AT_ONCE", 7)
    recordings = recorded(COLLAPSE)
    write(tmp_path, "".join(json.dumps(r | {"step": int(r["step"])}) + "\n" for r in recordings))
    for done in (7, 14, 21):
        history.refresh()
        assert history.classified == done and history.bands[-1]["to"] == done - 1
    history.classify()
    whole = History(tmp_path)
    whole.refresh()
    whole.classify()
    assert history.bands == whole.bands and history.phase == whole.phase


def test_a_rollback_of_the_guard_restarts_the_phases(history, tmp_path):
    recordings = recorded(COLLAPSE)
    (tmp_path / "guard.jsonl").write_text('{"step": 89, "kind": "rollback"}\n{"step": 20, "kind": "protect"}\n')
    write(tmp_path, "".join(json.dumps(r | {"step": int(r["step"])}) + "\n" for r in recordings))
    history.refresh()
    history.classify()
    first = next(b for b in history.bands if b["from"] >= 89)
    assert first["phase"] == "warmup" and first["from"] == 90


def test_large_files_are_looked_through_when_the_server_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("agentrl.dashboard.history.WHOLE", 20_000)
    monkeypatch.setattr("agentrl.dashboard.library.WHOLE", 20_000)
    monkeypatch.setattr("agentrl.dashboard.history.TAIL", 5_000)
    monkeypatch.setattr("agentrl.dashboard.history.BUDGET_S", 0.0)  # nothing is looked at in a request
    for name in ("large", "small"):
        run = tmp_path / name
        run.mkdir()
        (run / "config.yaml").write_text("")
        rows = [{"step": s, "grad_norm": 1e6 if s == 77 else 1.0} for s in range(2000 if name == "large" else 20)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    library = Library(tmp_path)
    assert library.history("large")[0].unseen_bytes
    monkeypatch.setattr("agentrl.dashboard.history.BUDGET_S", 10.0)
    library = Library(tmp_path)
    library.prefetch()
    assert list(library._histories) == ["large"]
    found = library.history("large")[0]
    assert not found.unseen_bytes and max(r["grad_norm"] for r in found.rows) == 1e6


def test_reading_json_with_pyarrow_loads_no_pandas():
    pytest.importorskip("pyarrow")
    code = (
        "import sys, json\nfrom agentrl.dashboard.thin import choose\n"
        "rows = [{'step': i, 'a': 1.5 * i, 'b': i if i % 3 else None, 'c': None} for i in range(50)]\n"
        "kept, _ = choose(''.join(json.dumps(r) + chr(10) for r in rows).encode(), 5)\n"
        "assert 'pyarrow' in sys.modules and 'pandas' not in sys.modules and len(kept) >= 5\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
