import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
        '{"id": 8, "title": "Two\\nlines", "text": "Body", "contents": "ignored", "url": null}',
        '{"id": "9", "contents": "No title here.\\nJust text."}',
    )
    assert list(CorpusReader(file)) == [
        Passage("7", 'Ada "L"', "First.\nSecond."),
        Passage("8", "Two lines", "Body"),
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


@given(TEXT.filter(lambda t: "\n" not in t and "\r" not in t), TEXT)
def test_contents_round_trip(title, text):
    passage = Passage("1", title, text)
    if title.strip() or text.strip():
        assert parse_passage({"id": "1", "contents": passage.contents}) == passage
    else:
        with pytest.raises(ValueError, match="empty"):
            parse_passage({"id": "1", "title": title, "text": text})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "1", "contents": ', "not JSON"),
        ("[1]", "expected a JSON object, found a list"),
        ('{"contents": "x"}', '"id" is missing'),
        ('{"id": true, "contents": "x"}', '"id" must be a string or an integer, not True'),
        ('{"id": "", "contents": "x"}', '"id" must be'),
        ('{"id": "1", "text": "x"}', '"contents" is missing'),
        ('{"id": "1", "title": null, "text": "x"}', '"title" must be a string, not null'),
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
