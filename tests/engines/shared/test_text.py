"""Token ids as text, against the tokenizer's own decoding; what may complete a stop string."""

from hypothesis import given
from hypothesis import strategies as st

from agentrl.engines.shared.text import TokenText
from tests.fakes import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEXT = TokenText(TOKENIZER)
STOP = ("</search>", "</answer>")


@given(st.text(max_size=30), st.sampled_from(["", *STOP, "</search", "search>"]), st.text(max_size=5))
def test_the_token_that_completes_a_stop_string_is_a_candidate_and_is_seen(before, stop, after):
    ids = TOKENIZER.encode(before + stop + after, add_special_tokens=False)
    for n in range(1, len(ids) + 1):
        text, shorter = TOKENIZER.decode(ids[:n]), TOKENIZER.decode(ids[: n - 1])
        if any(s in text for s in STOP):
            assert not any(s in shorter for s in STOP)  # it is the first
            assert ids[n - 1] in TEXT.candidates(STOP) and TEXT.ends_with_stop(ids[:n], STOP)
            return
        assert not TEXT.ends_with_stop(ids[:n], STOP)


def test_special_tokens_are_in_the_text():
    ids = TOKENIZER.encode("a <|im_end|>", add_special_tokens=False)
    assert TEXT.decode(ids) == "a <|im_end|>" and TEXT.decode([]) == ""


def test_ends_that_a_byte_level_vocabulary_spells_otherwise_may_come_from_any_token():
    assert TEXT.candidates(("\n",)) == frozenset(range(len(TOKENIZER)))
    assert len(TEXT.candidates((">",))) < len(TOKENIZER) / 4
