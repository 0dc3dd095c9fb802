# SPDX-License-Identifier: MIT OR Apache-2.0
"""LoRA adapters written by PEFT, merged here and by PEFT."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from tests.gguf_writer import build, write
from torch_mi.errors import ConfigError, FileError, MIError, ModelError
from torch_mi.files.adapters import read_adapter
from torch_mi.files.checkpoint import Checkpoint
from torch_mi.model import MIModel

pytestmark = [  # what PEFT says of itself and of what it is asked to do here
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'. .* have invalid shape"),
    pytest.mark.filterwarnings("ignore:Model .*`tie_word_embeddings=True`"),
]
TOKENS = torch.randint(4, 97, (2, 12), generator=torch.Generator().manual_seed(1))
LINEAR = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def adapt(folder: Path, name: str, changes: dict[str, Any] | None = None, **settings: Any) -> Any:
    """A base model and an adapter of it, both saved; the PEFT model is given back."""
    depth = "n_layer" if name == "gpt2" else "num_hidden_layers"
    base = build(name, {depth: 2, **(changes or {})})
    base.save_pretrained(folder / "base")
    torch.manual_seed(2)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.requires_grad:  # PEFT begins at zero
                value.add_(0.1 * torch.randn(value.shape))
            assert key
    model.save_pretrained(str(folder / "adapter"))
    return model.eval()


def same_as_merged(folder: Path, model: Any) -> MIModel:
    """Ours against what PEFT merges, and against what it computes unmerged."""
    apart = logits_of(model)
    plain = MIModel.from_pretrained(folder / "base")
    mine = MIModel.from_pretrained(folder / "base", adapter=folder / "adapter")
    merged = model.merge_and_unload()
    wanted = logits_of(merged)
    found = mine.forward(TOKENS).output
    assert (found - wanted).abs().max() < 1e-5
    assert (found - apart).abs().max() < 1e-4
    assert (found - plain.forward(TOKENS).output).abs().max() > 1e-3
    with Checkpoint(folder / "base") as weights:
        together = read_adapter(folder / "adapter").merge(weights)
        theirs = merged.state_dict()
        for name in together.shapes():
            assert torch.equal(together.tensor(name), theirs[name]), name
    return mine


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"r": 4, "lora_alpha": 32, "use_rslora": True},
        {
            "rank_pattern": {"v_proj": 2, r"layers\.1\..*down_proj": 5},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 3, "^model.layers.1.mlp.up_proj": 64},
        },
        {"layers_to_transform": [1]},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"init_lora_weights": "gaussian"},
    ],
)
def test_merged_weights_are_those_of_peft(settings: dict[str, Any], tmp_path: Path):
    changes = {"attention_bias": True, "mlp_bias": True}
    model = adapt(tmp_path, "llama", changes, target_modules=LINEAR, **settings)
    same_as_merged(tmp_path, model)


def test_conv1d_weights_lie_the_other_way_round(tmp_path: Path):
    targets = ["c_attn", "c_proj", "c_fc"]
    model = adapt(tmp_path, "gpt2", target_modules=targets, fan_in_fan_out=True, bias="all")
    mine = same_as_merged(tmp_path, model)
    assert mine.origin.model_id.startswith("base + ")
    assert mine.origin.folder is None


def test_embeddings_and_modules_saved_whole(tmp_path: Path):
    targets = ["q_proj", "embed_tokens"]
    model = adapt(tmp_path / "a", "llama", target_modules=targets)
    same_as_merged(tmp_path / "a", model)
    model = adapt(tmp_path / "b", "llama", target_modules=["q_proj"], modules_to_save=["lm_head"])
    same_as_merged(tmp_path / "b", model)
    save = ["lm_head", "embed_tokens"]
    model = adapt(tmp_path / "c", "llama", target_modules=["q_proj"], modules_to_save=save)
    same_as_merged(tmp_path / "c", model)
    model = adapt(tmp_path / "d", "llama", target_modules=["lm_head", "k_proj"])
    same_as_merged(tmp_path / "d", model)


@pytest.mark.parametrize("save", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
def test_a_tied_model_is_untied_where_the_adapter_does(save: list[str], tmp_path: Path):
    settings = {"target_modules": ["q_proj"], "modules_to_save": save}
    model = adapt(tmp_path, "qwen2", {"tie_word_embeddings": True}, **settings)
    apart = logits_of(model)
    mine = MIModel.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter")
    assert not mine.config.tie_word_embeddings
    assert (mine.forward(TOKENS).output - apart).abs().max() < 1e-4


def test_a_change_to_a_tied_unembedding_is_refused(tmp_path: Path):
    adapt(tmp_path, "qwen2", {"tie_word_embeddings": True}, target_modules=["lm_head"])
    with pytest.raises(ModelError, match=r"lm_head\.weight, .*its unembedding is the embedding"):
        MIModel.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter")


@pytest.mark.parametrize(("name", "targets"), [("llama", LINEAR), ("gpt2", ["c_attn", "c_fc"])])
def test_dora_is_peft_s(name: str, targets: list[str], tmp_path: Path):
    turned = name == "gpt2"
    model = adapt(tmp_path, name, target_modules=targets, use_dora=True, fan_in_fan_out=turned)
    mine = MIModel.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter")
    assert (mine.forward(TOKENS).output - logits_of(model)).abs().max() < 1e-4
    wanted = logits_of(model.merge_and_unload())
    assert (mine.forward(TOKENS).output - wanted).abs().max() < 1e-5


def test_an_adapter_of_the_bare_model_fits_the_one_with_a_head(tmp_path: Path):
    base = build("qwen2", {"num_hidden_layers": 2, "tie_word_embeddings": False})
    base.save_pretrained(tmp_path / "base")
    bare = AutoModel.from_pretrained(tmp_path / "base", attn_implementation="eager")
    model = get_peft_model(bare, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(str(tmp_path / "adapter"))
    mine = MIModel.from_pretrained(tmp_path / "base", adapter=str(tmp_path / "adapter"))
    with torch.no_grad():
        wanted = base.lm_head(model.eval()(TOKENS).last_hidden_state)
    assert (mine.forward(TOKENS).output - wanted).abs().max() < 1e-4


def test_an_adapter_goes_into_a_gguf_file(tmp_path: Path):
    model = adapt(tmp_path, "llama", target_modules=LINEAR)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")
    write(tmp_path / "m.gguf", base, "llama")
    mine = MIModel.from_pretrained(tmp_path / "m.gguf", adapter=tmp_path / "adapter")
    assert (mine.forward(TOKENS).output - logits_of(model)).abs().max() < 1e-4


def test_older_adapters_are_pickles_of_tensors(tmp_path: Path):
    model = adapt(tmp_path, "llama", target_modules=["q_proj"])
    path = tmp_path / "adapter/adapter_model.safetensors"
    torch.save(load_file(path), tmp_path / "adapter/adapter_model.bin")
    path.unlink()
    same_as_merged(tmp_path, model)


def test_an_adapter_for_another_model_names_tensor_and_shapes(tmp_path: Path):
    adapt(tmp_path / "a", "llama", target_modules=["q_proj", "up_proj"])
    adapt(tmp_path / "b", "llama", {"hidden_size": 32}, target_modules=["up_proj"])
    adapt(tmp_path / "c", "gpt2", target_modules=["c_attn"], fan_in_fan_out=True)
    message = r"layers\.0\.mlp\.up_proj has \[96, 8\] times \[8, 32\].*up_proj\.weight \[96, 64\]"
    with pytest.raises(ModelError, match=message):
        MIModel.from_pretrained(tmp_path / "a/base", adapter=tmp_path / "b/adapter")
    with pytest.raises(ModelError, match=r"c_attn\.weight, which the base model does not have"):
        MIModel.from_pretrained(tmp_path / "a/base", adapter=tmp_path / "c/adapter")
    deep = {"num_hidden_layers": 3}
    adapt(tmp_path / "d", "llama", deep, target_modules=["q_proj"])
    with pytest.raises(ModelError, match=r"layers\.2\.self_attn\.q_proj\.weight.*did you mean"):
        MIModel.from_pretrained(tmp_path / "a/base", adapter=tmp_path / "d/adapter")


def test_other_kinds_of_adapter_are_refused_by_name(tmp_path: Path):
    base = build("llama", {"num_hidden_layers": 1})
    base.save_pretrained(tmp_path / "base")
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    scales = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    for kind, config in {"PROMPT_TUNING": prompts, "IA3": scales}.items():
        folder = tmp_path / kind
        fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        get_peft_model(fresh, config).save_pretrained(str(folder))
        with pytest.raises(ConfigError, match=f"of type {kind} is not read here, LORA is"):
            MIModel.from_pretrained(tmp_path / "base", adapter=folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_replication": [[0, 1]]}, "a LoRA with layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"alpha_pattern": {"(": 2}}, "is no pattern"),
        ({"alpha_pattern": {"q_proj": "x"}}, "q_proj = 'x' where a number"),
        ({"lora_alpha": None}, "lacks 'lora_alpha'"),
        ({"peft_type": None}, "type unnamed"),
    ],
)
def test_settings_that_are_not_read_here(change: dict[str, Any], message: str, tmp_path: Path):
    adapt(tmp_path, "llama", target_modules=["q_proj"])
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=message):
        read_adapter(tmp_path / "adapter")


def test_broken_adapters(tmp_path: Path):
    adapt(tmp_path, "llama", target_modules=["q_proj"])
    folder, base = tmp_path / "adapter", tmp_path / "base"
    path = folder / "adapter_model.safetensors"
    whole = load_file(path)
    first = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({**whole, "base_model.model.prompt_embeddings": torch.ones(2)}, path)
    with pytest.raises(ModelError, match="prompt_embeddings, which is no part of a LoRA"):
        read_adapter(folder)
    save_file({n: t for n, t in whole.items() if n != f"{first}.lora_B.weight"}, path)
    with pytest.raises(ModelError, match=r"lacks .*q_proj\.lora_B\.weight"):
        MIModel.from_pretrained(base, adapter=folder)
    save_file({n: t for n, t in whole.items() if n != f"{first}.lora_A.weight"}, path)
    with pytest.raises(ModelError, match=r"q_proj\.lora_B\.weight but no lora_A\.weight"):
        MIModel.from_pretrained(base, adapter=folder)


def test_folders_that_hold_no_whole_adapter(tmp_path: Path):
    adapt(tmp_path, "llama", target_modules=["q_proj"])
    folder, base = tmp_path / "adapter", tmp_path / "base"
    (folder / "config.json").write_text((base / "config.json").read_text())
    with pytest.raises(FileError, match="load its base model with adapter=this folder"):
        MIModel.from_pretrained(folder)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FileError, match="adapter_model"):
        MIModel.from_pretrained(base, adapter=folder)
    path.unlink()
    with pytest.raises(FileError, match="neither adapter_model"):
        MIModel.from_pretrained(base, adapter=folder)
    with pytest.raises(FileError, match="no adapter_config"):
        MIModel.from_pretrained(base, adapter=base)
    with pytest.raises(FileError, match="there is no folder"):
        MIModel.from_pretrained(base, adapter=tmp_path / "absent")
    with pytest.raises(ModelError, match="no base model in a random one"):
        MIModel.from_pretrained("tiny:llama", adapter=folder)
    with pytest.raises(MIError):
        MIModel.from_pretrained(base, adapter="")
