"""Parquet, on files that pyarrow and pandas-like writers make."""

import pytest

from agentrl import errors
from agentrl.errors import MissingPackageError, RunError
from agentrl.monitors.sources import open_source
from agentrl.monitors.watcher import watch

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet as pq  # noqa: E402


def table(n, **columns):
    return pa.table({"step": list(range(n)), "reward": [0.1 * i for i in range(n)], **columns})


def test_rows_are_read_with_missing_nan_and_text(tmp_path):
    file = tmp_path / "history.data"  # by content, not by name
    pq.write_table(
        table(3, entropy=[0.5, None, float("nan")], note=["a", "b", "0.25"], ok=[True, False, None]),
        file,
        row_group_size=2,
    )
    source = open_source(file)
    rows = source.poll(final=True)
    assert source.kind == "Parquet" and [r.step for r in rows] == [0, 1, 2]
    assert rows[0].values == {"step": 0.0, "reward": 0.0, "entropy": 0.5}
    assert "entropy" not in rows[1].values and rows[2].values["note"] == 0.25
    assert rows[2].values["entropy"] != rows[2].values["entropy"]
    assert source.poll(final=True) == []


def test_a_rewritten_file_gives_its_new_rows_only(tmp_path):
    file = tmp_path / "m.parquet"
    pq.write_table(table(3), file)
    source = open_source(file)
    assert len(source.poll()) == 3
    pq.write_table(table(5), file)
    assert [r.step for r in source.poll()] == [3, 4]


def test_a_cut_file_is_an_error_that_says_so(tmp_path):
    file = tmp_path / "m.parquet"
    pq.write_table(table(50), file)
    file.write_bytes(file.read_bytes()[:-20])
    source = open_source(file)
    assert source.poll() == [] and source.problems
    with pytest.raises(RunError, match="cannot be read as Parquet"):
        source.poll(final=True)


def test_without_pyarrow_the_line_to_type_is_named(tmp_path, monkeypatch):
    file = tmp_path / "m.parquet"
    pq.write_table(table(3), file)
    monkeypatch.setattr(errors, "installed", lambda module: module != "pyarrow")
    with pytest.raises(MissingPackageError, match=r"reading Parquet needs pyarrow: pip install '.*\[train\]'"):
        open_source(file)


def test_watch_reads_it(tmp_path, capsys):
    file = tmp_path / "m.parquet"
    pq.write_table(table(30), file)
    assert watch(str(file), columns=[], once=True) == 0
    assert "Parquet, 30 steps" in capsys.readouterr().err
