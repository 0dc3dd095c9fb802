# SPDX-License-Identifier: MIT OR Apache-2.0
"""Chats as the text a model was trained on."""

import json
import os
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from torch_mi.errors import TokenizerError
from torch_mi.tokens.tokenizer import MITokenizer

ROOT = Path(__file__).resolve().parents[2]
TOKENIZERS = Path(os.environ.get("TORCH_MI_SHARED", ROOT.parent / "shared")) / "data/tokenizers"

pytestmark = pytest.mark.skipif(not TOKENIZERS.is_dir(), reason=f"no test data in {TOKENIZERS}")


@pytest.fixture(scope="module")
def gpt2() -> MITokenizer:
    return MITokenizer.from_folder(TOKENIZERS / "gpt2")


@pytest.fixture(scope="module")
def phi() -> MITokenizer:
    return MITokenizer.from_folder(TOKENIZERS / "phi-3-mini")


def made(tmp_path: Path, name: str, **config: object) -> MITokenizer:
    shutil.copy(TOKENIZERS / name / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return MITokenizer.from_folder(tmp_path)


TURNS = [
    {"role": "user", "content": "hé <b> 'q'"},
    {"role": "assistant", "content": "yo\n"},
    {"role": "user", "content": "again"},
]


@pytest.mark.parametrize("prompted", [True, False])
def test_chats_read_as_transformers_writes_them(phi: MITokenizer, *, prompted: bool):
    theirs = AutoTokenizer.from_pretrained(TOKENIZERS / "phi-3-mini")
    for turns in (TURNS, TURNS[:1], [{"role": "system", "content": "be good"}, *TURNS]):
        expected = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompted)
        assert phi.chat_template(turns, add_generation_prompt=prompted) == expected


TEMPLATES = [
    "{{ bos_token }}{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}\n"
    "  {{- m.role | upper }}: {{ m['content'] | tojson }}\n{% endfor %}\n"
    "   {% if true %}\nx{% endif %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{{ messages | tojson(indent=2) }}{{ strftime_now('%Y') }}{{ tools is none }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}{{ unset_name }}{{ eos_token }}{% if pad_token is defined %}pad{% endif %}",
]


@pytest.mark.parametrize("template", TEMPLATES, ids=range(len(TEMPLATES)))
def test_templates_have_what_transformers_gives_them(tmp_path: Path, template: str):
    tokenizer = made(
        tmp_path, "phi-3-mini", bos_token="<s>", eos_token="</s>", chat_template=template
    )
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    assert tokenizer.chat_template(TURNS) == expected


def test_a_prompt_is_the_users_turn(phi: MITokenizer):
    assert phi.chat_template("hi") == "<|user|>\nhi<|end|>\n<|assistant|>\n"
    assert phi.chat_template("hi", "be good") == (
        "<|system|>\nbe good<|end|>\n<|user|>\nhi<|end|>\n<|assistant|>\n"
    )


def test_a_model_without_a_template_has_no_chat(gpt2: MITokenizer):
    assert gpt2.chat_template("hi") is None


def test_the_templates_own_file_goes_first(tmp_path: Path):
    (tmp_path / "chat_template.jinja").write_text("file {{ messages[0].content }}")
    tokenizer = made(tmp_path, "gpt2", chat_template="config")
    assert tokenizer.chat_template("hi") == "file hi"


def test_of_several_templates_the_default_is_used(tmp_path: Path):
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert made(tmp_path, "gpt2", chat_template=several).chat_template("hi") == "d"


def test_what_a_template_refuses_is_an_error(tmp_path: Path):
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    )
    tokenizer = made(tmp_path, "gpt2", chat_template=template)
    assert tokenizer.chat_template("hi") == ""
    with pytest.raises(TokenizerError, match="refuses this conversation: no system role"):
        tokenizer.chat_template("hi", "be good")


@pytest.mark.parametrize("template", ["{% for %}", "{{ messages[0].content + 1 }}"])
def test_broken_templates_are_errors(tmp_path: Path, template: str):
    with pytest.raises(TokenizerError, match="the chat template"):
        made(tmp_path, "gpt2", chat_template=template).chat_template("hi")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
    ],
)
def test_templates_cannot_leave_their_sandbox(tmp_path: Path, template: str):
    with pytest.raises(TokenizerError, match="refuses this conversation"):
        made(tmp_path, "gpt2", chat_template=template).chat_template("hi")


def test_messages_need_a_role_and_content(phi: MITokenizer):
    with pytest.raises(TokenizerError, match=r"message 1 needs .* not \['text'\]"):
        phi.chat_template([TURNS[0], {"text": "x"}])


def test_two_system_prompts_are_one_too_many(phi: MITokenizer):
    with pytest.raises(TokenizerError, match="begin with a system message"):
        phi.chat_template([{"role": "system", "content": "a"}], "b")


def test_the_text_of_a_chat_encodes_to_its_turns(phi: MITokenizer):
    text = phi.chat_template("hi")
    assert text is not None
    ids = phi.encode_raw(text)
    assert ids[0] == phi.token_to_id("<|user|>")
    assert phi.token_to_id("<|end|>") in ids
