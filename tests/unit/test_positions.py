# SPDX-License-Identifier: MIT OR Apache-2.0
"""Characters to tokens and back."""

import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_mi.errors import TokenizerError
from torch_mi.tokens.positions import (
    EncodingWithOffsets,
    PositionConversion,
    TokenWithOffset,
    byte_to_char,
    bytes_to_chars,
    char_spans,
    char_to_byte,
    convert_positions,
)


def encoding(*offsets: tuple[int, int]) -> EncodingWithOffsets:
    return EncodingWithOffsets(
        tuple(range(len(offsets))), tuple(f"t{i}" for i in range(len(offsets))), offsets
    )


FIVE = encoding((0, 3), (3, 4), (4, 7), (7, 8), (8, 11), (11, 12))
EIFFEL = encoding((0, 3), (3, 10), (10, 16), (16, 19), (19, 27), (27, 30), (30, 36))


@pytest.mark.parametrize(("char", "token"), [(0, 0), (3, 1), (4, 2), (8, 4), (11, 5), (100, None)])
def test_a_character_lies_in_one_token(char: int, token: int | None):
    assert FIVE.char_to_token(char) == token


def test_fuzzy_lookup_takes_the_nearest_middle():
    assert FIVE.char_to_token_fuzzy(100) == 5
    assert FIVE.char_to_token_fuzzy(4) == 2
    gap = encoding((0, 2), (6, 8))  # middles 1 and 7: character 4 is equally far from both
    assert gap.char_to_token_fuzzy(4) == 0
    assert gap.char_to_token_fuzzy(5) == 1


def test_fuzzy_lookup_uses_whole_middles():
    gap = encoding((0, 3), (5, 6))  # ⌊1.5⌋ = 1 and 5: character 3 is 2 from both
    assert gap.char_to_token_fuzzy(3) == 0


def test_start_lookup_takes_the_first_token_that_starts_there_or_later():
    assert [FIVE.char_to_token_start(c) for c in (0, 1, 4, 5, 11, 12)] == [0, 1, 2, 3, 5, None]


def test_a_range_takes_every_token_it_touches():
    assert FIVE.char_range_to_tokens(3, 7) == [1, 2]
    assert FIVE.char_range_to_tokens(2, 5) == [0, 1, 2]
    assert FIVE.char_range_to_tokens(12, 20) == []


def test_a_token_has_its_characters():
    assert FIVE.token_to_char_range(2) == (4, 7)
    assert FIVE.token_to_char_range(6) is None
    assert FIVE.token_to_char_range(-1) is None


def test_tokens_come_with_their_offsets():
    assert FIVE.tokens_with_offsets()[1] == TokenWithOffset("t1", 3, 4)
    assert len(FIVE) == 6
    assert not FIVE.is_empty()


def test_zero_width_tokens_answer_for_no_character():
    bos = encoding((0, 0), (1, 4), (4, 6))
    assert bos.char_to_token(0) is None
    assert bos.char_to_token_fuzzy(0) == 1
    assert bos.char_to_token_start(0) == 1
    assert bos.char_range_to_tokens(0, 5) == [1, 2]
    assert bos.token_to_char_range(0) == (0, 0)


def test_only_zero_width_tokens_are_as_good_as_none():
    only = encoding((0, 0))
    assert only.char_to_token_fuzzy(0) is None
    assert convert_positions(only, [0]) == [PositionConversion(0, None, None, exact_match=False)]


def test_spans_label_their_tokens():
    assert EIFFEL.label_spans([("subject", (0, 16)), ("relation", (17, 30))]) == [
        "subject",
        "subject",
        "subject_final",
        "relation",
        "relation",
        "relation_final",
        "other",
    ]


def test_bos_is_labelled_other():
    labels = encoding((0, 0), (0, 3)).label_spans([("subject", (0, 3))])
    assert labels == ["other", "subject_final"]


def test_of_overlapping_spans_the_first_wins():
    labels = encoding((0, 3), (3, 6)).label_spans([("a", (0, 4)), ("b", (0, 6))])
    assert labels == ["a", "a_final"]


def test_a_span_named_twice_has_one_final_token():
    labels = encoding((0, 1), (1, 2), (2, 3)).label_spans([("a", (0, 1)), ("a", (2, 3))])
    assert labels == ["a", "other", "a_final"]


def test_conversions_say_whether_they_are_exact():
    assert convert_positions(FIVE, [4, 100]) == [
        PositionConversion(4, 2, "t2", exact_match=True),
        PositionConversion(100, 5, "t5", exact_match=False),
    ]


def test_an_empty_encoding_converts_to_nothing():
    empty = encoding()
    assert empty.is_empty()
    assert convert_positions(empty, [3]) == [PositionConversion(3, None, None, exact_match=False)]
    assert empty.label_spans([("a", (0, 3))]) == []


def test_unequal_lengths_are_refused():
    with pytest.raises(TokenizerError, match="2 ids, 1 tokens and 1 offsets"):
        EncodingWithOffsets((1, 2), ("a",), ((0, 1),))


@pytest.mark.parametrize("span", [(3, 1), (-1, 2)])
def test_impossible_offsets_are_refused(span: tuple[int, int]):
    with pytest.raises(TokenizerError, match="impossible offsets"):
        EncodingWithOffsets((1,), ("a",), (span,))


def test_bytes_and_characters():
    text = "né😀!"
    assert [char_to_byte(text, c) for c in range(5)] == [0, 1, 3, 7, 8]
    assert [byte_to_char(text, b) for b in range(9)] == [0, 1, 1, 2, 2, 2, 2, 3, 4]


def test_positions_outside_the_text_are_refused():
    with pytest.raises(TokenizerError, match="character 4 is outside a text of 3"):
        char_to_byte("abc", 4)
    with pytest.raises(TokenizerError, match="byte 4 is outside a text of 3"):
        byte_to_char("abc", 4)
    with pytest.raises(TokenizerError, match="byte -1"):
        bytes_to_chars("abc", [0, -1])


def test_byte_spans_become_character_spans():
    text = "né😀!"
    assert char_spans(text, [(0, 0), (0, 3), (3, 7), (7, 8)]) == [(0, 0), (0, 2), (2, 3), (3, 4)]
    assert char_spans(text, [(3, 5), (5, 7)]) == [(2, 3), (2, 3)]  # two halves of one character


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30), st.data())
def test_every_character_survives_the_way_to_bytes_and_back(text: str, data: st.DataObject):
    char = data.draw(st.integers(0, len(text)))
    assert char_to_byte(text, char) == len(text[:char].encode())
    assert byte_to_char(text, char_to_byte(text, char)) == char


@given(st.lists(st.integers(0, 4), max_size=8), st.integers(0, 40))
def test_lookups_agree_with_each_other(widths: list[int], char: int):
    edges = [sum(widths[:i]) for i in range(len(widths) + 1)]
    tiled = encoding(*pairwise(edges))
    exact = tiled.char_to_token(char)
    assert (exact is not None) == (char < edges[-1])
    if exact is not None:
        start, end = tiled.offsets[exact]
        assert start <= char < end
        assert tiled.char_to_token_fuzzy(char) == exact
        assert exact in tiled.char_range_to_tokens(char, char + 1)


def test_positions_need_neither_torch_nor_tokenizers():
    code = (
        "import sys, torch_mi.tokens.positions as p; "
        "print([m for m in ('torch', 'tokenizers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
