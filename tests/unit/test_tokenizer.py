# SPDX-License-Identifier: MIT OR Apache-2.0
"""The tokenizer against transformers, and what it adds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from torch_mi.errors import TokenizerError
from torch_mi.tokens.pieces import readable_bytes, token_bytes
from torch_mi.tokens.tokenizer import MITokenizer

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TORCH_MI_SHARED", ROOT.parent / "shared")) / "data"
FOLDERS = {
    name: DATA / "tokenizers" / name
    for name in ("gpt2", "gpt-neox-20b", "phi-3-mini", "mistral-v3")
} | {"stories260K": DATA / "models/stories260K"}
TEXTS = [
    "",
    "Hello",
    " Hello",
    "  two spaces",
    "   ",
    "tab\tx",
    "line\nline\r\n\n\n",
    "Zażółć gęślą jaźń",
    "日本語テキスト",
    "😀👩‍👩‍👧‍👦 ok ☃",
    "<s> x </s> <|endoftext|> y",
    "[INST] hi [/INST]",
    "<|user|>\n  hi<|end|>",
    "a" * 200,
    "\u00a0no-break",
    "e\u0301 combining",
    "1234567890 3.14",
    "def f(x):\n    return x\n",
    "a literal \ufffd here",
    "\x00\x01",
]

real = pytest.mark.skipif(not DATA.is_dir(), reason=f"no test data in {DATA}")
pytestmark = real


def load(name: str) -> MITokenizer:
    return MITokenizer.from_folder(FOLDERS[name])


@pytest.fixture(scope="module", params=list(FOLDERS))
def folder(request: pytest.FixtureRequest) -> Path:
    return FOLDERS[request.param]


@pytest.fixture(scope="module")
def ours(folder: Path) -> MITokenizer:
    return MITokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def gpt2() -> MITokenizer:
    return load("gpt2")


@pytest.fixture(scope="module")
def phi() -> MITokenizer:
    return load("phi-3-mini")


@pytest.fixture(scope="module")
def stories() -> MITokenizer:
    return load("stories260K")


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_ids_and_text_are_those_of_transformers(
    ours: MITokenizer, theirs: PreTrainedTokenizerFast, text: str
):
    ids = theirs(text).input_ids
    assert ours.encode(text) == ids
    assert ours.encode_raw(text) == theirs(text, add_special_tokens=False).input_ids
    plain = {"clean_up_tokenization_spaces": False}
    assert ours.decode(ids) == theirs.decode(ids, **plain)
    assert ours.decode(ids, skip_special=True) == theirs.decode(
        ids, skip_special_tokens=True, **plain
    )


def test_a_long_text_is_neither_cut_nor_changed(ours: MITokenizer, theirs: PreTrainedTokenizerFast):
    text = (DATA / "text/tinyshakespeare.txt").read_text(encoding="utf-8")[:20_000]
    ids = ours.encode(text)
    assert ids == theirs(text).input_ids
    assert ours.decode(ids, skip_special=True) == text


def test_auto_tokenizer_agrees(stories: MITokenizer):
    theirs = AutoTokenizer.from_pretrained(FOLDERS["stories260K"])
    assert stories.encode_batch(TEXTS) == [theirs(text).input_ids for text in TEXTS]
    assert (stories.bos_id, stories.eos_ids) == (theirs.bos_token_id, (theirs.eos_token_id,))


def test_a_transformers_tokenizer_can_be_taken_over(folder: Path):
    theirs = AutoTokenizer.from_pretrained(folder)
    taken = MITokenizer.from_hf(theirs)
    for text in TEXTS:
        assert taken.encode(text) == theirs(text).input_ids
    if theirs.bos_token_id is not None:  # else it is known from what encoding adds
        assert taken.bos_id == theirs.bos_token_id
    assert taken.pad_id == theirs.pad_token_id
    assert taken.eos_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))
    turns = [{"role": "user", "content": "hi"}]
    expected = (
        theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        if theirs.chat_template
        else None
    )
    assert taken.chat_template("hi") == expected


def test_taking_over_copies():
    backend = Tokenizer.from_file(str(FOLDERS["gpt2"] / "tokenizer.json"))
    backend.enable_truncation(3)
    taken = MITokenizer.from_hf(backend)
    assert len(taken.encode("one two three four five")) == 5
    assert len(backend.encode("one two three four five").ids) == 3


def test_something_else_cannot_be_taken_over():
    with pytest.raises(TokenizerError, match="a dict is not a fast tokenizer"):
        MITokenizer.from_hf({})


def test_vocabulary_counts_added_tokens(ours: MITokenizer, theirs: PreTrainedTokenizerFast):
    assert ours.vocab_size == len(theirs)
    assert repr(ours) == f"MITokenizer({ours.vocab_size} tokens)"


# --- places in the text ---------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_offsets_are_indices_into_the_string(ours: MITokenizer, text: str):
    encoding = ours.encode_with_offsets(text)
    assert list(encoding.ids) == ours.encode(text)
    if ours.decode(ours.encode_raw(text)) != text:
        pytest.skip("this tokenizer changes this text")
    covered = {c for a, b in encoding.offsets for c in range(a, b)}
    assert covered == set(range(len(text)))
    if ours.bos_id is not None and encoding.ids[:1] == (ours.bos_id,) and text[:3] != "<s>":
        assert encoding.offsets[0] == (0, 0)


def test_offsets_of_multi_byte_text(gpt2: MITokenizer):
    encoding = gpt2.encode_raw_with_offsets("né 😀x")
    assert encoding.tokens == ("n", "Ã©", "ĠðŁĺ", "Ģ", "x")
    assert encoding.offsets == ((0, 1), (1, 2), (2, 4), (3, 4), (4, 5))


def test_a_words_token_starts_at_its_space():
    for name in ("gpt2", "gpt-neox-20b", "phi-3-mini"):
        encoding = load(name).encode_raw_with_offsets("The sun")
        assert encoding.offsets == ((0, 3), (3, 7))


def test_bos_lies_nowhere(stories: MITokenizer):
    encoding = stories.encode_with_offsets("Once")
    assert encoding.offsets[0] == (0, 0)
    assert encoding.char_to_token(0) == 1
    assert stories.encode_raw_with_offsets("Once").ids == encoding.ids[1:]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_offsets_without_the_text_are_those_with_it(ours: MITokenizer, text: str):
    known = ours.encode_raw_with_offsets(text)
    if ours.decode(known.ids) != text or "\ufffd" in text:
        pytest.skip("this tokenizer changes this text, or the text looks like lost bytes")
    found = ours.offsets_of(known.ids)
    assert (found.ids, found.tokens) == (known.ids, known.tokens)
    for index, token_id in enumerate(known.ids):
        a, b = known.offsets[index]
        if ours.is_special(token_id):
            assert found.offsets[index] == (a, a)
        elif known.tokens[index] == "▁" and index == 0:
            assert found.offsets[index] == (0, 0)  # a space that decoding takes away again
        else:
            assert found.offsets[index] == (a, b)


def test_offsets_of_special_tokens_are_places_between(stories: MITokenizer):
    ids = [1, *stories.encode_raw("Once upon"), 2]
    text = stories.decode(ids)
    found = stories.offsets_of(ids)
    assert text == "<s> Once upon</s>"
    assert found.offsets[0] == (0, 0)
    assert found.offsets[1][0] == 3
    assert found.offsets[-1] == (13, 13)
    pieces = "".join(text[a:b] for a, b in found.offsets)
    assert pieces == " Once upon"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50256), max_size=12))
def test_any_ids_have_places_in_their_text(ids: list[int]):
    tokenizer = BYTES
    text = tokenizer.decode(ids)
    found = tokenizer.offsets_of(ids)
    assert all(0 <= a <= b <= len(text) for a, b in found.offsets)
    starts = [a for a, _ in found.offsets]
    assert starts == sorted(starts)
    if not any(tokenizer.is_special(i) for i in ids):
        assert {c for a, b in found.offsets for c in range(a, b)} == set(range(len(text)))


BYTES = load("gpt2") if DATA.is_dir() else MITokenizer(Tokenizer(models.BPE()))


# --- tokens that can be read ----------------------------------------------------------------------


def test_tokens_read_as_they_stand_in_a_text(gpt2: MITokenizer, phi: MITokenizer):
    assert gpt2.to_str_tokens(gpt2.encode("Hello, big world\n")) == [
        "Hello",
        ",",
        " big",
        " world",
        "\n",
    ]
    assert phi.to_str_tokens(phi.encode("Hello, big world\n")) == [
        " Hello",
        ",",
        " big",
        " world",
        "\n",
    ]


def test_parts_of_characters_show_their_bytes(gpt2: MITokenizer, phi: MITokenizer):
    assert gpt2.to_str_tokens(gpt2.encode("hi 😀")) == ["hi", " <0xF0><0x9F><0x98>", "<0x80>"]
    assert phi.to_str_tokens(phi.encode("☃")) == [" ", "<0xE2>", "<0x98>", "<0x83>"]


def test_tokens_join_to_the_text(ours: MITokenizer):
    text = "The quick (brown) fox;\n\n  jumps   over 'the' lazy dog's 3.14 ﬁsh: déjà vu."
    ids = ours.encode_raw(text)
    joined = "".join(ours.to_str_tokens(ids)).replace("<0xC3><0xA9>", "é")
    joined = joined.replace("<0xC3><0xA0>", "à").replace("<0xEF><0xAC><0x81>", "ﬁ")
    assert joined.removeprefix(" ") == ours.decode(ids)


def test_special_tokens_read_as_they_are_written(stories: MITokenizer):
    assert stories.to_str_tokens([1, 2]) == ["<s>", "</s>"]
    assert stories.decode_token(1) == "<s>"


def test_a_token_reads_alike_everywhere(phi: MITokenizer):
    paris = phi.find_token_id("Paris")
    assert phi.decode_token(paris) == phi.decode_token(np.int64(paris)) == " Paris"


def test_rows_that_only_the_model_has_are_shown_as_unused(tmp_path: Path):
    shutil.copy(FOLDERS["gpt2"] / "tokenizer.json", tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": 50304}')
    tokenizer = MITokenizer.from_folder(tmp_path)
    assert tokenizer.to_str_tokens([262, 50300]) == [" the", "<unused 50300>"]
    with pytest.raises(TokenizerError, match="no token has the id 50304"):
        tokenizer.decode_token(50304)
    with pytest.raises(TokenizerError, match="no token has the id 50300"):
        tokenizer.decode([50300])


def test_words_without_a_decoder_read_as_they_are():
    tokenizer = MITokenizer.from_folder(DATA / "models/gpt-nano-sort")
    assert tokenizer.to_str_tokens(tokenizer.encode("B A C")) == ["B", "A", "C"]


def test_bytes_of_byte_level_tokens():
    assert token_bytes("Ġthe") == b" the"
    assert token_bytes("<0xF0>") == b"\xf0"
    assert token_bytes("▁the") is None
    assert token_bytes("Ã©Ċ") == "é\n".encode()
    assert readable_bytes(b"\xc3\xa9\xc3") == "é<0xC3>"


# --- ids and words --------------------------------------------------------------------------------


def test_ids_come_in_many_forms(gpt2: MITokenizer):
    for ids in ([262], (262,), 262, torch.tensor([262]), torch.tensor(262), np.array([262])):
        assert gpt2.decode(ids) == " the"
    assert gpt2.decode([]) == ""
    assert gpt2.decode(torch.tensor([], dtype=torch.long)) == ""


@pytest.mark.parametrize("bad", [-1, 50257, 10**12])
def test_ids_out_of_range_are_refused(gpt2: MITokenizer, bad: int):
    message = f"no token has the id {bad}; this tokenizer has 50257 tokens"
    for call in (gpt2.decode, gpt2.to_str_tokens, gpt2.offsets_of):
        with pytest.raises(TokenizerError, match=message):
            call([262, bad])


@pytest.mark.parametrize("bad", [torch.zeros(1, 3, dtype=torch.long), torch.zeros(3)])
def test_tensors_that_are_no_row_of_ids_are_refused(gpt2: MITokenizer, bad: torch.Tensor):
    with pytest.raises(TokenizerError, match="whole numbers in one row"):
        gpt2.decode(bad)


def test_wrong_types_are_refused():
    code = f"""
from torch_mi.errors import TokenizerError
from torch_mi.tokens.tokenizer import MITokenizer
t = MITokenizer.from_folder({str(FOLDERS["stories260K"])!r})
calls = [lambda: t.encode(3), lambda: t.encode(["a"]), lambda: t.encode_raw(b"a"),
         lambda: t.decode("abc"), lambda: t.decode([1.5]), lambda: t.decode(None),
         lambda: t.decode([True]), lambda: t.find_token_id(5), lambda: t.encode_batch("text")]
for call in calls:
    try:
        call()
    except TokenizerError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines() == [
        "text must be a str, not a int",
        "text must be a str, not a list",
        "text must be a str, not a bytes",
        "a token id is a whole number, not 'a'",
        "a token id is a whole number, not 1.5",
        "a token id is a whole number, not None",
        "a token id is a whole number, not True",
        "text must be a str, not a int",
        "encode_batch takes a list of texts; encode takes one text",
    ]


def test_text_that_is_no_unicode_is_refused(gpt2: MITokenizer):
    with pytest.raises(TokenizerError, match="lone surrogate at character 1"):
        gpt2.encode("a\ud800")


def test_a_word_is_found_with_its_space_first(gpt2: MITokenizer, phi: MITokenizer):
    for tokenizer in (gpt2, phi):
        word = tokenizer.find_token_id("Paris")
        assert tokenizer.decode_token(word) == " Paris"
        assert tokenizer.find_token_id(" Paris") == word


def test_a_word_is_found_bare_if_it_never_follows_a_space(gpt2: MITokenizer):
    assert gpt2.decode_token(gpt2.find_token_id("ebra")) == "ebra"
    with pytest.raises(TokenizerError, match="' ebra' is not one token but 2"):
        gpt2.find_token_id(" ebra")


def test_a_word_of_several_tokens_names_them(gpt2: MITokenizer):
    with pytest.raises(TokenizerError, match=r"'zebra' is not one token but 2: \['z', 'ebra'\]"):
        gpt2.find_token_id("zebra")
    with pytest.raises(TokenizerError, match="an empty word"):
        gpt2.find_token_id("")


def test_a_digit_that_never_follows_a_space_is_pointed_to(phi: MITokenizer):
    with pytest.raises(TokenizerError, match="the piece '5' with no space before it is 29945"):
        phi.find_token_id("5")


def test_an_unknown_word_is_not_the_unknown_token():
    tokenizer = MITokenizer.from_folder(DATA / "models/gpt-nano-sort")
    assert tokenizer.find_token_id("C") == tokenizer.token_to_id("C")
    assert tokenizer.find_token_id("A") == tokenizer.token_to_id("A")
    with pytest.raises(TokenizerError, match="the vocabulary lacks 'Z', which would be read as"):
        tokenizer.find_token_id("Z")


def test_vocabulary_spellings_are_found(gpt2: MITokenizer):
    assert gpt2.token_to_id("Ġthe") == 262
    assert gpt2.token_to_id("no such token") is None


def test_special_tokens_are_known(phi: MITokenizer):
    assert phi.is_special(32000)
    assert not phi.is_special(29871)
    assert phi.pad_id == 32000
