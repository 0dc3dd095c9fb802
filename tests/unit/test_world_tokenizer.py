# SPDX-License-Identifier: MIT OR Apache-2.0
"""The World models' tokenizer, and token ids that are byte values."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import torch_mi as mi
from torch_mi.errors import TokenizerError
from torch_mi.families.world import END_OF_TEXT, VOCABULARY, VOCABULARY_AT
from torch_mi.generate import stream
from torch_mi.tokens.pieces import shared_spans
from torch_mi.tokens.single_bytes import byte_vocabulary
from torch_mi.tokens.tokenizer import MITokenizer
from torch_mi.tokens.vocabulary_file import read_vocabulary_file, vocabulary_text

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TORCH_MI_SHARED", ROOT.parent / "shared")) / "data"
WORLD = DATA / "tokenizers/rwkv-world"

real = pytest.mark.skipif(not WORLD.is_dir(), reason=f"no test data in {WORLD}")

EXAMPLES = {
    "Hello": [33155],
    "The capital of France is": [6699, 51128, 4706, 44312, 4600],
    " Paris": [37138],
    "\n\n": [261],
    "\r\n": [263],
    "你好，世界": [10464, 11685, 19137, 10267, 14610],
    "🙂": [3319, 2417],
    "naïve café": [2059, 27698, 37946],
    "Eiffel Tower": [70, 25740, 109, 37480],
    "def fibonacci(n):\n    ": [7334, 21676, 41943, 41, 111, 501, 28352],
    "User: hi\n\nAssistant:": [24281, 59, 4571, 261, 5585, 41693, 59],
}

WORDS = {
    257: b" a",
    258: b" ab",
    259: b" abcd",
    260: b"abc",
    261: b"\n\n",
    262: "é".encode(),
    263: b"\xf0\x9f",
    264: b"\x99\x82!",
    265: " é日".encode()[:-1],
    300: b"'\"\\",
}
SMALL = {**{byte + 1: bytes([byte]) for byte in range(256)}, **WORDS}
"""All bytes and a few more: some end inside characters, some begin as others do."""


def put(folder: Path, tokens: Mapping[int, bytes] = SMALL, **config: object) -> Path:
    """A folder with a vocabulary, and with settings if there are any."""
    (folder / "rwkv_vocab_small.txt").write_text(vocabulary_text(tokens), encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def greedy(text: str, tokens: Mapping[int, bytes]) -> list[int]:
    """The longest token that fits, found by looking at all of them."""
    raw, ids = text.encode(), list[int]()
    while raw:
        fitting = [i for i, token in tokens.items() if raw.startswith(token)]
        ids.append(max(fitting, key=lambda i: len(tokens[i])))
        raw = raw[len(tokens[ids[-1]]) :]
    return ids


@pytest.fixture(scope="module")
def world() -> MITokenizer:
    return MITokenizer.from_folder(WORLD)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> MITokenizer:
    return MITokenizer.from_folder(put(tmp_path_factory.mktemp("small")))


BYTES = MITokenizer(byte_vocabulary())

texts = st.text(max_size=40) | st.text("abcd é日🙂!\n'\"\\", max_size=40)


# --- the true vocabulary --------------------------------------------------------------------------


@real
@pytest.mark.parametrize(("text", "ids"), EXAMPLES.items())
def test_known_texts_have_their_known_ids(world: MITokenizer, text: str, ids: list[int]):
    assert world.encode(text) == world.encode_raw(text) == ids
    assert world.decode(ids) == text


@real
def test_every_reference_encoding_is_reproduced(world: MITokenizer):
    known = json.loads((WORLD / "reference_encodings.json").read_text(encoding="utf-8"))
    assert len(known) > 50
    for entry in known:
        assert world.encode(entry["text"]) == entry["ids"]
        assert world.decode(entry["ids"]) == entry["text"]


@real
def test_what_the_vocabulary_is(world: MITokenizer):
    assert world.vocab_size == 65530
    assert (world.bos_id, world.eos_ids, world.pad_id) == (0, (0,), 0)
    assert [world.token_to_id(world.decode_token(i)) for i in (0, 33, 241, 33155)] == [
        *(0, 33, 241, 33155)
    ]
    assert world.to_str_tokens([0, 241, 65530, 65535]) == [
        *(END_OF_TEXT, "<0xF0>", "<unused 65530>", "<unused 65535>")
    ]


@real
@settings(max_examples=60)
@given(st.text(max_size=60))
@example("  " * 70 + "\n" * 30)
def test_any_text_comes_back(world: MITokenizer, text: str):
    assert world.decode(world.encode(text)) == text


@real
def test_the_file_is_written_as_it_was(world: MITokenizer, tmp_path: Path):
    world.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [VOCABULARY, "tokenizer_config.json"]
    theirs = (WORLD / VOCABULARY).read_bytes()
    assert (tmp_path / VOCABULARY).read_bytes() == theirs
    lines = theirs.replace(b"\n", b"\r\n")  # as the authors ship it
    assert hashlib.sha256(lines).hexdigest().startswith("8324476023347dec2964625ccb2075c8")


# --- the longest token that fits ------------------------------------------------------------------


@given(texts)
@example(" abcabcd abcd ab")
@example("🙂!é日 é日")
def test_the_longest_token_is_taken(small: MITokenizer, text: str):
    ids = small.encode(text)
    assert ids == greedy(text, SMALL)
    assert small.decode(ids) == text


@given(texts)
def test_offsets_cover_the_text(small: MITokenizer, text: str):
    encoding = small.encode_with_offsets(text)
    assert encoding == small.offsets_of(encoding.ids)
    assert {c for a, b in encoding.offsets for c in range(a, b)} == set(range(len(text)))
    assert all(a < b for a, b in encoding.offsets)
    for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        assert SMALL[token_id] in text[start:end].encode()  # whole characters around the token
        inner = text[start + 1 : end - 1].encode()
        assert inner in SMALL[token_id]


@given(st.lists(st.integers(1, 264), max_size=30))
@example([241, 160, 242])
@example([263, 264, 227, 66, 240, 192, 190])
def test_any_ids_are_a_text_with_offsets(small: MITokenizer, ids: list[int]):
    raw = b"".join(SMALL[i] for i in ids)
    text = small.decode(ids)
    assert text == raw.decode(errors="replace")
    spans = small.offsets_of(ids).offsets
    assert all(a < b for a, b in spans)
    assert {c for a, b in spans for c in range(a, b)} == set(range(len(text)))
    for byte, (start, end) in enumerate(shared_spans(raw, [1] * len(raw))):
        assert end == start + 1
        assert text[start] in ("\ufffd", raw[byte : byte + 1].decode(errors="replace")) or (
            raw[byte : byte + 1] in [text[start].encode()[i : i + 1] for i in range(4)]
        )


def test_a_split_character_belongs_to_each_of_its_tokens(small: MITokenizer):
    encoding = small.encode_with_offsets("a🙂!")
    assert encoding.ids == (98, 263, 264)
    assert encoding.tokens == ("a", "<0xF0><0x9F>", "<0x99><0x82>!")
    assert encoding.offsets == ((0, 1), (1, 2), (1, 3))
    assert encoding.char_range_to_tokens(1, 2) == [1, 2]
    assert small.to_str_tokens([263, 264, 265]) == [
        "<0xF0><0x9F>",
        "<0x99><0x82>!",
        " é<0xE6><0x97>",
    ]
    assert [small.token_to_id(token) for token in encoding.tokens] == [98, 263, 264]


def test_words_are_found_with_a_space_first(small: MITokenizer):
    assert small.find_token_id("ab") == 258
    assert small.find_token_id("abc") == 260
    with pytest.raises(TokenizerError, match="'abba' is not one token but 4"):
        small.find_token_id("abba")


def test_bytes_without_a_token_are_an_error_that_says_where(tmp_path: Path):
    few = {1: b"a", 2: b"ab", 3: b"bcd"}
    tokenizer = MITokenizer.from_folder(put(tmp_path, few))
    assert tokenizer.encode("aaba") == [1, 2, 1]
    with pytest.raises(TokenizerError, match="begins with byte 0x64, which is byte 3 of the text"):
        tokenizer.encode("aabd")
    with pytest.raises(TokenizerError, match="byte 0x63, which is byte 31 of the text"):
        tokenizer.encode(f"a{END_OF_TEXT}c")
    with pytest.raises(TokenizerError, match="lone surrogate at character 1"):
        tokenizer.encode("a\ud800")


# --- what ends a text -----------------------------------------------------------------------------


def test_the_end_of_a_text_can_be_written_out(small: MITokenizer):
    text = f"a{END_OF_TEXT}é"
    assert small.encode(text) == [98, 0, 262]
    assert small.decode([98, 0, 262]) == text
    assert small.decode([98, 0, 262], skip_special=True) == "aé"
    assert small.is_special(0)
    assert small.offsets_of([98, 0, 262]).offsets == ((0, 1), (1, 1), (len(text) - 1, len(text)))


def test_the_folders_of_the_hub_are_understood(tmp_path: Path):
    """As published: two newlines end a turn; transformers would make them token 65530."""
    end = {"content": END_OF_TEXT, "special": True}
    turn = {"content": "\n\n", "special": True}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 259, 65530]}')
    put(
        tmp_path,
        auto_map={"AutoTokenizer": ["hf_rwkv_tokenizer.RwkvTokenizer", None]},
        tokenizer_class="RwkvTokenizer",
        added_tokens_decoder={"0": end, "65530": turn},
        bos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        eos_token="\n\n",
        chat_template="{{ bos_token }}{{ messages[0].content }}",
    )
    (tmp_path / "hf_rwkv_tokenizer.py").write_text("raise SystemExit('this was run')")
    tokenizer = MITokenizer.from_folder(tmp_path)
    assert tokenizer.eos_ids == (261, 0, 259)
    assert (tokenizer.bos_id, tokenizer.pad_id) == (0, 0)
    assert tokenizer.encode("a\n\n\n\n") == [98, 261, 261]
    assert not tokenizer.is_special(261)
    assert tokenizer.decode([261, 0], skip_special=True) == "\n\n"
    chat = tokenizer.chat_template("abc")
    assert chat is not None
    assert tokenizer.encode_raw(chat) == [0, 260]


def test_tokens_may_be_added_past_the_vocabulary(tmp_path: Path):
    added = {"301": {"content": "<|im|>", "special": True}, "0": "<s>", "257": {"content": " a"}}
    extra = {"content": "<|im|>x", "special": False}
    put(tmp_path, added_tokens_decoder={**added, "302": extra}, bos_token="<s>", add_bos_token=True)
    tokenizer = MITokenizer.from_folder(tmp_path)
    assert tokenizer.vocab_size == 303
    assert tokenizer.encode("<|im|>x<|im|> ab") == [0, 302, 301, 258]
    assert tokenizer.encode_with_offsets("é<|im|>a").offsets == ((0, 0), (0, 1), (1, 7), (7, 8))
    assert [tokenizer.is_special(i) for i in (0, 257, 301, 302)] == [True, False, True, False]
    again_at = tmp_path / "again"
    tokenizer.save(again_at)
    again = MITokenizer.from_folder(again_at)
    assert again.encode("<|im|>x<|im|> ab") == [0, 302, 301, 258]
    assert [again.is_special(i) for i in (0, 257, 301, 302)] == [True, False, True, False]
    assert (again.bos_id, again.eos_ids, again.vocab_size) == (0, (0,), 303)


def test_tokens_of_the_vocabulary_may_be_declared_special(tmp_path: Path):
    declared = {"260": {"content": "abc", "special": True}}
    tokenizer = MITokenizer.from_folder(put(tmp_path, added_tokens_decoder=declared))
    tokenizer.save(tmp_path / "again")
    for each in (tokenizer, MITokenizer.from_folder(tmp_path / "again")):
        assert each.is_special(260)
        assert each.encode(" abcabc") == [258, 100, 260]  # the longest still comes first


@pytest.mark.parametrize(
    ("token_id", "entry", "message"),
    [
        ("258", {"content": "new"}, "gives 'new' the id 258, which is ' ab' in the vocabulary"),
        ("301", {"content": "new", "lstrip": True}, "'new' take in or keep off what stands beside"),
    ],
)
def test_impossible_added_tokens_are_refused(
    tmp_path: Path, token_id: str, entry: dict[str, object], message: str
):
    put(tmp_path, added_tokens_decoder={token_id: entry})
    with pytest.raises(TokenizerError, match=message):
        MITokenizer.from_folder(tmp_path)


# --- files ----------------------------------------------------------------------------------------


def test_literals_are_read_as_python_writes_them(tmp_path: Path):
    path = tmp_path / VOCABULARY
    literals = {
        r"'\xe9'": "é".encode(),
        r"b'\xe9'": b"\xe9",
        r'''b"it's"''': b"it's",
        r'''"it's \"so\""''': b'it\'s "so"',
        r"'\t\n\r\\\0\a\b\f\v'": b"\t\n\r\\\0\a\b\f\v",
        r"'\u4f60\U0001f642'": "你🙂".encode(),
        "' a b '": b" a b ",
        "'\u2028'": "\u2028".encode(),
    }
    lines = [f"{i} {literal} {len(raw)}" for i, (literal, raw) in enumerate(literals.items(), 5)]
    path.write_bytes("\r\n".join(lines).encode())
    assert read_vocabulary_file(path) == dict(enumerate(literals.values(), 5))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("2 'b'", "a line is '<id> <Python literal> <length in bytes>'"),
        ("", "a line is"),
        ("x 'b' 1", "a line is"),
        ("-2 'b' 1", "a line is"),
        ("2 'b' one", "a line is"),
        ("2 b 1", "between the numbers stands one literal"),
        ("2 'b' 'c' 2", "one literal"),
        ("2 ('b') 1", "one literal"),
        ("2 'b 1", "one literal"),
        ("2 r'b' 1", "one literal"),
        ("2 f'{b}' 1", "one literal"),
        ("2 __import__('os') 1", "one literal"),
        (r"2 '\d' 2", "one literal"),
        (r"2 '\777' 2", "one literal"),
        (r"2 b'\u0041' 1", "one literal"),
        ("2 b'é' 2", "one literal"),
        ("2 'é' 1", "the literal is 2 bytes long, not 1"),
        ("2 '' 0", "the literal is empty"),
        (r"2 '\ud800' 3", "surrogates not allowed"),
        (r"2 '\Uffffffff' 4", "illegal Unicode character"),
        ("0 'b' 1", "token 0 is the end of a text"),
        ("1 'b' 1", "token 1 is 'a' already"),
        ("2 b'a' 1", "these bytes are token 1 already"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, problem: str):
    path = tmp_path / VOCABULARY
    path.write_text(f"1 'a' 1\n{line}\n3 'c' 1\n", encoding="utf-8")
    named = f"{path}, line 2, {line!r}: "
    with pytest.raises(TokenizerError, match=f"{re.escape(named)}.*{re.escape(problem)}"):
        MITokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"), [(b"", "holds no tokens"), (b"1 '\xff' 1\n", "cannot read .*utf-8")]
)
def test_a_file_that_is_no_vocabulary_is_named(tmp_path: Path, content: bytes, problem: str):
    (tmp_path / VOCABULARY).write_bytes(content)
    with pytest.raises(TokenizerError, match=problem) as caught:
        MITokenizer.from_folder(tmp_path)
    assert VOCABULARY in str(caught.value)


def test_the_vocabulary_comes_before_a_conversion_of_it(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text('{"0": "not what tokenizers writes"}')
    assert MITokenizer.from_folder(put(tmp_path)).encode(" ab") == [258]
    (tmp_path / VOCABULARY).write_text("1 'a' 1\n")
    with pytest.raises(
        TokenizerError, match=f"several vocabularies: rwkv_vocab_small.txt, {VOCABULARY}"
    ):
        MITokenizer.from_folder(tmp_path)


def test_what_is_saved_last_is_what_is_read(tmp_path: Path, small: MITokenizer):
    small.save(tmp_path)
    assert MITokenizer.from_folder(tmp_path).encode("abc") == [260]
    MITokenizer(byte_vocabulary()).save(tmp_path)
    assert MITokenizer.from_folder(tmp_path).encode("abc") == [97, 98, 99]
    small.save(tmp_path)
    assert MITokenizer.from_folder(tmp_path).encode("abc") == [260]


def test_a_folder_without_the_vocabulary_says_which_file_it_needs(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "rwkv7", "vocab_size": 65536}')
    wanted = f"no tokenizer.json.*put {VOCABULARY} there, from {VOCABULARY_AT} on the Hub"
    with pytest.raises(TokenizerError, match=wanted):
        MITokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=f"failed to read.*put {VOCABULARY} there"):
        MITokenizer.from_folder(tmp_path)
    for other in ({"model_type": "llama", "vocab_size": 65536}, {"model_type": "rwkv"}):
        (tmp_path / "tokenizer.json").unlink(missing_ok=True)
        with pytest.raises(TokenizerError) as caught:
            MITokenizer.from_folder(tmp_path, other)
        assert VOCABULARY not in str(caught.value)


# --- in a model -----------------------------------------------------------------------------------


def toy(tokenizer: MITokenizer) -> mi.MIModel:
    cfg = mi.TransformerConfig.toy(
        vocab_size=301, hidden_size=16, num_attention_heads=1, intermediate_size=0
    )
    return mi.MIModel.from_config(cfg, tokenizer=tokenizer, device="cpu")


def speaking(tokenizer: MITokenizer, ids: list[int]) -> mi.MIModel:
    """A model that says these ids one after the other."""
    model = toy(tokenizer)
    parameters = dict(model.backend.named_parameters())
    with torch.no_grad():
        for name, value in parameters.items():
            if not name.startswith("norm"):
                value.zero_()
        for axis, (now, following) in enumerate(pairwise(ids)):
            parameters["tokens.weight"][now, axis] = 1.0
            parameters["head.weight"][following, axis] = 1.0
    return model


def test_a_stream_holds_characters_back_until_they_are_whole(small: MITokenizer):
    said = [98, 263, 154, 131, 262, 231, 152, 166, 34]
    assert small.decode(said) == "a🙂é日!"
    pieces = list(stream(speaking(small, said), "a", max_new_tokens=8))
    assert pieces == ["🙂", "é", "日", "!"]
    broken = speaking(small, [98, 263, 154])
    assert list(stream(broken, "a", max_new_tokens=2)) == ["\ufffd"]


def test_edits_find_their_positions_by_text(small: MITokenizer):
    model = toy(small)
    assert model.to_str_tokens("é abcd🙂") == ["é", " abcd", "<0xF0><0x9F>", "<0x99>", "<0x82>"]
    for text, positions in (("abcd", [1]), ("🙂", [2, 3, 4])):
        spec = mi.HookSpec().intervene("hook_embed", mi.Zero(at=mi.At(pos=mi.Span(text))))
        spec.capture("hook_embed")
        gone = (model.forward("é abcd🙂", spec)["hook_embed"][0] == 0).all(-1)
        assert gone.nonzero().flatten().tolist() == positions


def test_a_model_is_saved_with_it_and_again(small: MITokenizer, tmp_path: Path):
    model = toy(small)
    folder = model.save(tmp_path / "m")
    again = mi.MIModel.from_pretrained(model.save(folder), device="cpu")
    assert again.to_str_tokens("é abcd") == ["é", " abcd"]
    assert again.tokenizer.eos_ids == (0,)


# --- bytes ----------------------------------------------------------------------------------------


@given(texts)
def test_ids_may_be_byte_values(text: str):
    assert BYTES.encode(text) == BYTES.encode_raw(text) == list(text.encode())
    assert BYTES.decode(list(text.encode())) == text
    encoding = BYTES.encode_with_offsets(text)
    places = [i for i, char in enumerate(text) for _ in char.encode()]
    assert encoding.offsets == tuple((i, i + 1) for i in places)


def test_bytes_read_as_what_they_are(tmp_path: Path):
    assert BYTES.vocab_size == 256
    assert (BYTES.bos_id, BYTES.eos_ids, BYTES.pad_id) == (None, (), None)
    assert BYTES.to_str_tokens("é a".encode()) == ["<0xC3>", "<0xA9>", " ", "a"]
    assert BYTES.find_token_id("a") == 97
    BYTES.save(tmp_path)
    assert MITokenizer.from_folder(tmp_path).encode("é") == [0xC3, 0xA9]


def test_a_folder_may_say_that_ids_are_bytes(tmp_path: Path):
    config = {"model_type": "rwkv7", "vocab_size": 256}
    with pytest.raises(
        TokenizerError, match=r'are byte values, tokenizer_note.json with {"type": "by'
    ):
        MITokenizer.from_folder(tmp_path, config)
    note = tmp_path / "tokenizer_note.json"
    note.write_text('{"type": "bytes", "note": "token id == byte value"}')
    assert MITokenizer.from_folder(tmp_path, config).encode('"in') == [34, 105, 110]
    note.write_text('{"type": "letters"}')
    with pytest.raises(TokenizerError, match="has the type 'letters'; 'bytes' is the only one"):
        MITokenizer.from_folder(tmp_path)


@pytest.mark.skipif(not (DATA / "rwkv").is_dir(), reason=f"no test data in {DATA / 'rwkv'}")
def test_the_small_trained_models_read_bytes():
    for folder in sorted((DATA / "rwkv").iterdir()):
        assert MITokenizer.from_folder(folder).encode('"in') == [34, 105, 110]
