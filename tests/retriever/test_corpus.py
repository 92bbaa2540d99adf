import gzip
import json

import pyarrow
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from agentrl.retriever.corpus import CorpusReader, Passage, parse_passage
from agentrl.retriever.errors import CorpusError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def write(path, *lines: str | bytes):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return path


def test_reads_both_shapes_and_skips_blank_lines(tmp_path):
    file = write(
        tmp_path / "corpus.jsonl",
        '{"id": "7", "contents": "\\"Ada \\"L\\"\\"\\nFirst.\\nSecond."}',
        "  ",
        '{"id": 8, "title": "Two\\nlines", "text": "Body", "contents": "as given", "url": null}',
        '{"id": "9", "contents": "No title here.\\nJust text."}',
    )
    assert list(CorpusReader(file)) == [
        Passage("7", 'Ada "L"', "First.\nSecond."),
        Passage("8", "Two lines", "Body", "as given"),
        Passage("9", "", "No title here.\nJust text."),
    ]


def test_reads_gzip_and_reports_the_share_read(tmp_path):
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"id": 1, "title": "t", "text": "x"}\n' * 2))
    reader = CorpusReader(path)
    assert reader.fraction_read == 0
    passages = iter(reader)
    assert next(passages) == Passage("1", "t", "x")
    assert 0 < reader.fraction_read <= 1
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorpusError, match="cannot be read past line"):
        list(CorpusReader(path))


@given(TEXT)
@example('""\ntext')
@example('"T"\ntext')
@example('"T"\r\ntext')
@example('"\ntext')
def test_contents_come_back_exactly(contents):
    if contents.strip() and contents.strip('"\n '):
        passage = parse_passage({"id": "1", "contents": contents})
        assert passage.contents == contents and passage.given is None
        assert parse_passage({"id": "1", "contents": passage.contents}) == passage


@given(TEXT, TEXT, TEXT | st.none())
def test_title_text_and_contents_are_kept_as_they_are(title, text, contents):
    row = {"_id": 1, "title": title, "text": text} | ({} if contents is None else {"contents": contents})
    if not title.strip() and not text.strip():
        with pytest.raises(ValueError, match="empty"):
            parse_passage(row)
        return
    passage = parse_passage(row)
    flat = title.replace("\r", " ").replace("\n", " ")
    assert (passage.id, passage.title, passage.text) == ("1", flat, text)
    assert passage.contents == (contents if contents is not None else f'"{flat}"\n{text}' if flat else text)


def test_a_title_of_null_is_none():
    assert parse_passage({"id": "1", "title": None, "text": "x"}).contents == "x"


def test_a_byte_order_mark_gzip_without_its_name_and_parquet(tmp_path):
    rows = [{"id": "1", "title": "T", "text": "x"}, {"id": "2", "title": None, "text": "y"}]
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    expected = [Passage("1", "T", "x"), Passage("2", "", "y")]
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
    (tmp_path / "zipped.jsonl").write_bytes(gzip.compress(b"\xef\xbb\xbf" + lines))
    parquet.write_table(pyarrow.Table.from_pylist([row | {"other": 5} for row in rows]), tmp_path / "p.parquet")
    for name in ("bom.jsonl", "zipped.jsonl", "p.parquet"):
        reader = CorpusReader(tmp_path / name)
        assert list(reader) == expected
        assert list(reader.read(after_line=1)) == expected[1:] and reader.line == 2
    bad = pyarrow.Table.from_pylist([rows[0], {"id": "3", "title": "t", "text": None}])
    parquet.write_table(bad, tmp_path / "bad.parquet")
    with pytest.raises(CorpusError, match=r"bad\.parquet, row 2: \"text\" must be a string, not null"):
        list(CorpusReader(tmp_path / "bad.parquet"))
    (tmp_path / "half.parquet").write_bytes((tmp_path / "p.parquet").read_bytes()[:-20])
    with pytest.raises(CorpusError, match="not a whole Parquet file"):
        list(CorpusReader(tmp_path / "half.parquet"))


def test_bad_rows_are_skipped_counted_named_and_bounded(tmp_path):
    good = '{"id": "%d", "contents": "x"}'
    file = write(tmp_path / "c.jsonl", "{", *(good % i for i in range(98)), "[]")
    reader = CorpusReader(file, skip_bad=0.02)
    assert len(list(reader)) == 98 and reader.bad == 2
    assert [m.partition(": ")[0].rpartition(", ")[2] for m in reader.first_bad] == ["line 1", "line 100"]
    with pytest.raises(CorpusError, match=r"2 of the first 100 rows are malformed, more than the share 0\.01 .*line 1"):
        list(CorpusReader(file, skip_bad=0.01))
    long = write(tmp_path / "long.jsonl", *(good % i if i % 3 else "{" for i in range(3000)))
    reader = CorpusReader(long, skip_bad=0.1)
    with pytest.raises(CorpusError, match="of the first 1000 rows"):
        list(reader)
    assert len(reader.first_bad) == 5


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "1", "contents": ', "not JSON"),
        ("[1]", "expected a JSON object, found a list"),
        ('{"contents": "x"}', '"id" is missing'),
        ('{"id": true, "contents": "x"}', '"id" must be a string or an integer, not True'),
        ('{"id": "", "contents": "x"}', '"id" must be'),
        ('{"id": "1", "text": "x"}', '"contents" is missing'),
        ('{"id": "1", "title": 5, "text": "x"}', '"title" must be a string, not a number'),
        ('{"id": "1", "title": "t", "text": null}', '"text" must be a string, not null'),
        ('{"id": "1", "title": "t", "text": "x", "contents": 1}', '"contents" must be a string, not a number'),
        ('{"_id": [], "contents": "x"}', '"_id" must be a string or an integer, not []'),
        ('{"id": "1", "contents": 5}', '"contents" must be a string, not a number'),
        ('{"id": "1", "title": " ", "text": "\\n"}', "the passage is empty"),
        ('{"id": "1", "title": "t", "text": "\\ud800 x"}', r"a lone surrogate, \ud800"),
        (b'{"id": "1", "contents": "\xff"}', "not UTF-8 (byte 25)"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_malformed_row_names_file_line_reason_and_remedy(tmp_path, line, reason):
    file = write(tmp_path / "bad.jsonl", '{"id": "0", "contents": "fine"}', line)
    passages = iter(CorpusReader(file))
    assert next(passages).id == "0"
    with pytest.raises(CorpusError) as caught:
        next(passages)
    message = str(caught.value)
    assert f"{file}, line 2: {reason}" in message
    assert "write each line as" in message


@settings(deadline=None, max_examples=50)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | TEXT,
        lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["id", "contents", "title", "text"]) | TEXT, x),
    )
)
def test_any_row_is_a_passage_or_a_value_error(row):
    try:
        passage = parse_passage(json.loads(json.dumps(row)))
    except ValueError:
        return
    assert passage.id and "\n" not in passage.title


def test_missing_file_says_so(tmp_path):
    with pytest.raises(CorpusError, match="no such file; give a corpus as JSONL"):
        CorpusReader(tmp_path / "none.jsonl")
