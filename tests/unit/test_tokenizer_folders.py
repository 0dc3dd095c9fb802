# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the files of a model folder make of its tokenizer."""

import json
import os
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from torch_mi.errors import TokenizerError
from torch_mi.tokens.tokenizer import MITokenizer

ROOT = Path(__file__).resolve().parents[2]
TOKENIZERS = Path(os.environ.get("TORCH_MI_SHARED", ROOT.parent / "shared")) / "data/tokenizers"

pytestmark = pytest.mark.skipif(not TOKENIZERS.is_dir(), reason=f"no test data in {TOKENIZERS}")


def load(name: str) -> MITokenizer:
    return MITokenizer.from_folder(TOKENIZERS / name)


def made(tmp_path: Path, name: str, **config: object) -> MITokenizer:
    shutil.copy(TOKENIZERS / name / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return MITokenizer.from_folder(tmp_path)


def test_bos_is_put_first_where_the_folder_asks_for_it(tmp_path: Path):
    tokenizer = made(tmp_path, "phi-3-mini", bos_token="<s>", add_bos_token=True)
    plain = load("phi-3-mini")
    assert tokenizer.encode("Hello you") == [1, *plain.encode("Hello you")]
    assert tokenizer.encode_raw("Hello you") == plain.encode("Hello you")
    encoding = tokenizer.encode_with_offsets("Hello you")
    assert encoding.offsets == ((0, 0), (0, 5), (5, 9))


def test_bos_is_put_first_in_byte_level_tokenizers_too(tmp_path: Path):
    bos = {"content": "<|endoftext|>", "__type": "AddedToken"}
    tokenizer = made(tmp_path, "gpt-neox-20b", bos_token=bos, add_bos_token=True)
    encoding = tokenizer.encode_with_offsets("Hello you")
    assert encoding.ids == (0, *load("gpt-neox-20b").encode("Hello you"))
    assert encoding.offsets == ((0, 0), (0, 5), (5, 9))


def test_bos_is_put_first_only_once(tmp_path: Path):
    tokenizer = made(tmp_path, "mistral-v3", bos_token="<s>", add_bos_token=True)
    assert tokenizer.encode("Hello") == load("mistral-v3").encode("Hello")
    assert tokenizer.encode("Hello").count(1) == 1


def test_add_bos_token_false_is_what_transformers_makes_of_it(tmp_path: Path):
    for name in ("phi-3-mini", "mistral-v3"):
        tokenizer = made(tmp_path, name, bos_token="<s>", add_bos_token=False)
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        assert tokenizer.encode("Hello") == theirs("Hello").input_ids


def test_bos_is_known_from_what_encoding_adds():
    assert load("mistral-v3").bos_id == 1  # no tokenizer_config.json there
    assert load("gpt2").bos_id is None


def test_eos_is_gathered_from_every_file(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"eos_token_id": 32000, "pad_token_id": 32000}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [32000, 32001, 32007]}')
    tokenizer = made(tmp_path, "phi-3-mini", eos_token="</s>")
    assert tokenizer.eos_ids == (2, 32000, 32001, 32007)
    assert tokenizer.pad_id == 32000


def test_ids_that_do_not_exist_are_no_eos(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"eos_token_id": 999999, "bos_token_id": null}')
    tokenizer = made(tmp_path, "gpt2")
    assert tokenizer.eos_ids == ()
    assert tokenizer.bos_id is None


def test_stored_truncation_and_padding_are_off(tmp_path: Path):
    backend = Tokenizer.from_file(str(TOKENIZERS / "gpt2" / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=8, pad_token="!", pad_id=0)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = MITokenizer.from_folder(tmp_path)
    text = "one two three four five six"
    assert tokenizer.encode(text) == load("gpt2").encode(text)
    assert tokenizer.encode_batch(["a", text]) == [load("gpt2").encode(t) for t in ("a", text)]


def test_tokens_declared_beside_the_vocabulary_are_added(tmp_path: Path):
    extra = {"50257": {"content": "<|im_start|>", "special": True}}
    tokenizer = made(tmp_path, "gpt2", added_tokens_decoder=extra)
    assert tokenizer.encode("<|im_start|>hi") == [50257, 5303]
    assert tokenizer.vocab_size == 50258
    assert tokenizer.is_special(50257)


def test_tokens_declared_under_an_impossible_id_are_refused(tmp_path: Path):
    extra = {"60000": {"content": "<|im_start|>", "special": True}}
    with pytest.raises(TokenizerError, match=r"the id 60000, and tokenizer\.json makes it 50257"):
        made(tmp_path, "gpt2", added_tokens_decoder=extra)


# --- folders that are wrong -----------------------------------------------------------------------


def test_a_folder_without_a_tokenizer_says_what_it_holds(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json; it holds config\.json"):
        MITokenizer.from_folder(tmp_path)
    with pytest.raises(TokenizerError, match="there is no folder"):
        MITokenizer.from_folder(tmp_path / "absent")


@pytest.mark.parametrize("older", ["tokenizer.model", "vocab.json"])
def test_an_older_tokenizer_says_how_to_make_a_new_one(tmp_path: Path, older: str):
    (tmp_path / older).write_text("x")
    with pytest.raises(TokenizerError, match=f"has {older} but no tokenizer.json.*save_pretrained"):
        MITokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("broken", ["{", '{"version": "1.0"}', "[]", ""])
def test_a_broken_tokenizer_names_its_file(tmp_path: Path, broken: str):
    (tmp_path / "tokenizer.json").write_text(broken)
    with pytest.raises(TokenizerError, match=f"failed to read {tmp_path}.tokenizer.json"):
        MITokenizer.from_folder(tmp_path)


def test_broken_settings_name_their_file(tmp_path: Path):
    shutil.copy(TOKENIZERS / "gpt2" / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"a": 1,}')
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json is not valid JSON.*line 1"):
        MITokenizer.from_folder(tmp_path)


# --- other kinds of tokenizer ---------------------------------------------------------------------


def test_word_pieces_read_as_they_stand_in_a_text():
    vocab = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "play": 3, "##ing": 4, "a": 5, "chess": 6}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    backend.add_special_tokens(["[CLS]", "[SEP]", "[UNK]"])
    tokenizer = MITokenizer.from_hf(backend)
    ids = tokenizer.encode("Playing chess")
    assert ids == [1, 3, 4, 6, 2]
    assert tokenizer.to_str_tokens(ids) == ["[CLS]", " play", "ing", " chess", "[SEP]"]
    assert tokenizer.find_token_id("Chess") == 6
    with pytest.raises(TokenizerError, match="the vocabulary lacks 'poker'"):
        tokenizer.find_token_id("poker")
    assert tokenizer.offsets_of([3, 4, 6]).offsets == ((0, 4), (4, 7), (7, 13))


def test_spaces_belong_to_tokens_under_every_post_processor():
    backend = Tokenizer.from_file(str(TOKENIZERS / "gpt-neox-20b/tokenizer.json"))
    end = ("<|endoftext|>", 0)
    template = processors.TemplateProcessing(single=f"{end[0]} $A", special_tokens=[end])
    for steps in (
        processors.Sequence([processors.ByteLevel(trim_offsets=True), template]),
        processors.RobertaProcessing(end, end, trim_offsets=True),
    ):
        backend.post_processor = steps
        encoding = MITokenizer.from_hf(backend).encode_with_offsets("The sun")
        assert list(encoding.ids) == backend.encode("The sun").ids
        assert encoding.offsets[:3] == ((0, 0), (0, 3), (3, 7))
