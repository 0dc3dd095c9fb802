# SPDX-License-Identifier: MIT OR Apache-2.0
"""Models of hand-written configs: how they begin, that they learn, and that they are kept whole."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inline_snapshot import snapshot
from torch import Tensor
from torch.nn.functional import cross_entropy

import torch_mi as mi
from torch_mi.config.activation import Activation
from torch_mi.config.parts import (
    Alibi,
    BlockLayout,
    Embedding,
    Experts,
    Head,
    Latent,
    Learned,
    NormType,
    Over,
    QkNorm,
    Scoring,
)
from torch_mi.config.rope import DynamicNtk, Linear, Llama3, LongRope, Rope, Yarn
from torch_mi.config.saving import config_from_json, config_to_json
from torch_mi.families import FAMILIES
from torch_mi.hooks.point import HookPoint
from torch_mi.manifest import fingerprint
from torch_mi.testing import tiny

# beartype looks at a random item of a list, in strategies too; that decides no example
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

toy = mi.TransformerConfig.toy
CFG = toy(vocab_size=20, num_layers=2, hidden_size=24)


def said(make: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(mi.MIError) as caught:
        make(*args, **kwargs)
    return str(caught.value)


class TestConfig:
    def test_what_is_not_said_is_as_in_gpt2(self) -> None:
        cfg = toy(vocab_size=7, num_layers=2)
        assert cfg.embedding == Embedding(learned=Learned(64))
        assert (cfg.hidden_size, cfg.num_attention_heads, cfg.num_kv_heads) == (64, 4, 4)
        assert (cfg.head_dim, cfg.intermediate_size) == (16, 256)
        assert (cfg.norm_type, cfg.layout) == (NormType.Layer, BlockLayout.Pre)
        assert cfg.attn_scales == (0.25, 0.25)
        assert (cfg.ropes, cfg.windows, cfg.alibi) == ((None, None), (None, None), None)
        assert cfg.output_vocab_size == 7
        assert (cfg.causal, cfg.tie_word_embeddings, cfg.gated_mlp) == (True, False, False)

    def test_what_is_said(self) -> None:
        cfg = toy(
            vocab_size=7,
            positions="rotary",
            norm_type="absent",
            activation="relu",
            layout=BlockLayout.Parallel,
            intermediate_size=0,
            output_vocab_size=3,
            biases=False,
            num_kv_heads=2,
        )
        assert cfg.ropes == (Rope(10000.0, 16),)
        assert cfg.embedding.learned is None
        assert (cfg.norm_type, cfg.activation) == (NormType.Absent, Activation.Relu)
        assert cfg.attention_only
        assert cfg.head == Head(vocab_size=3)
        assert [cfg.qkv_bias, cfg.o_proj_bias, cfg.mlp_bias] == [False] * 3
        assert toy(vocab_size=7, positions="alibi").alibi == Alibi()

    def test_what_cannot_be(self) -> None:
        assert said(toy, vocab_size=7, norm_type="layr") == snapshot(
            "'layr' is no NormType; there are rms, rms_float, rms_plus_one, rms_bare, layer, "
            "layer_gain, layer_bare, absent; did you mean 'layer'?"
        )
        assert said(toy, vocab_size=7, positions="rotory") == snapshot(
            "positions='rotory' is none of learned, rotary, alibi, none; did you mean 'rotary'?"
        )
        assert said(toy, vocab_size=7, num_attention_heads=3) == snapshot(
            "3 attention heads cannot share a width of 64 evenly; give head_dim"
        )
        assert said(toy, vocab_size=7, num_layers=0) == snapshot("num_layers = 0 is not positive")
        assert said(toy, vocab_size=7, num_layers=-1) == snapshot("num_layers = -1 is not positive")
        assert said(toy, vocab_size=7, output_vocab_size=0) == snapshot(
            "0 logits: there must be some"
        )
        assert said(toy, vocab_size=7, max_position_embeddings=0) == snapshot(
            "a table of 0 learned positions that begin at row 0"
        )
        assert said(toy, vocab_size=7, positions="rotary", head_dim=5) == snapshot(
            "5 rotary dimensions: an even number above zero is needed"
        )
        assert said(toy, vocab_size=7, output_vocab_size=3, tie_word_embeddings=True) == snapshot(
            "a tied unembedding has 7 logits, not 3"
        )
        assert said(toy, vocab_size=7, head_dim=0) == snapshot("head_dim = 0 is not positive")


class TestBeginning:
    def test_one_seed_one_model(self) -> None:
        first, again = (mi.MIModel.from_config(CFG, seed=3) for _ in range(2))
        assert first.fingerprint == again.fingerprint
        assert first.fingerprint != mi.MIModel.from_config(CFG).fingerprint
        half = mi.MIModel.from_config(CFG, seed=3, device="cpu", dtype=torch.bfloat16)
        rounded = ((name, p.bfloat16()) for name, p in first.backend.named_parameters())
        assert half.fingerprint == fingerprint(rounded)

    def test_nothing_else_is_drawn_from(self) -> None:
        before = torch.get_rng_state()
        mi.MIModel.from_config(CFG)
        assert torch.equal(before, torch.get_rng_state())

    @pytest.mark.parametrize("norm", NormType)
    def test_how_it_begins(self, norm: NormType) -> None:
        cfg = replace(CFG, norm_type=norm, qk_norm=QkNorm(norm, Over.EachHead), hidden_size=100)
        model = mi.MIModel.from_config(cfg)
        for name, value in model.backend.named_parameters():
            if "norm" in name:
                one = name.endswith("weight") and norm is not NormType.RmsPlusOne
                assert (value == float(one)).all(), name
            elif name.endswith("bias"):
                assert (value == 0).all(), name
            else:
                assert abs(float(value.detach().std()) - 0.08) < 0.006, name

    def test_how_it_is_shown(self) -> None:
        cfg = toy(vocab_size=9, output_vocab_size=2, hidden_size=8, num_attention_heads=2)
        model = mi.MIModel.from_config(cfg, device="cpu")
        assert repr(model) == snapshot(
            "<MIModel 'toy' (torch_mi): 1 layers, d_model 8, 2 heads, vocabulary 9 and 2 "
            "logits, 0.0 M parameters, float32 on cpu>"
        )
        assert said(mi.MIModel.from_config, {"hidden_size": 3}) == snapshot(
            "from_config takes a TransformerConfig, not a dict; TransformerConfig.toy(...) "
            "makes one"
        )
        assert "cannot hold a model" in said(mi.MIModel.from_config, cfg, dtype=torch.int8)

    def test_it_reads_text_with_a_tokenizer(self) -> None:
        tokenizer = tiny("llama").tokenizer
        cfg = toy(vocab_size=tokenizer.vocab_size)
        model = mi.MIModel.from_config(cfg, tokenizer=tokenizer)
        assert model.forward("a cat").output.shape == (1, 6, tokenizer.vocab_size)


def copying(rows: int, seed: int) -> Tensor:
    """Random tokens, a mark, and the same tokens again [rows, 9]."""
    dice = torch.Generator().manual_seed(seed)
    once = torch.randint(0, 10, (rows, 4), generator=dice)
    return torch.cat([once, torch.full((rows, 1), 10), once], 1)


class TestTraining:
    def test_a_layer_of_attention_learns_to_copy(self) -> None:
        """One layer of attention alone, learned positions: it copies what it saw, 5 back."""
        cfg = toy(
            vocab_size=11, num_layers=1, hidden_size=32, intermediate_size=0, norm_type="absent",
            num_attention_heads=2, max_position_embeddings=9,
        )  # fmt: skip
        model = mi.MIModel.from_config(cfg, device="cpu")
        steps = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
        watching = mi.HookSpec().capture(HookPoint.AttnPattern)
        looked = list[float]()
        for step in range(150):
            tokens = copying(64, step)
            cache = model.forward(tokens, watching if step % 50 == 0 else None, grad=True)
            loss = cross_entropy(cache.output[:, 4:-1].flatten(0, 1), tokens[:, 5:].flatten())
            if step % 50 == 0:
                looked.append(float(back(cache[HookPoint.AttnPattern(0)].detach())))
            steps.zero_grad()
            loss.backward()
            steps.step()
        tokens = copying(200, 1000)
        cache = model.forward(tokens, watching)
        right = (cache.output[:, 4:-1].argmax(-1) == tokens[:, 5:]).float().mean()
        assert right > 0.99
        looked.append(float(back(cache[HookPoint.AttnPattern(0)])))
        assert looked[0] < 0.2
        assert looked[-1] > 0.9
        blind = mi.HookSpec().intervene(HookPoint.AttnZ(0), mi.Zero())
        guess = model.forward(tokens, blind).output[:, 4:-1].argmax(-1)
        assert (guess == tokens[:, 5:]).float().mean() < 0.2

    def test_edits_hold_while_training(self) -> None:
        """A head that is taken away learns nothing, and the others do."""
        model = mi.MIModel.from_config(CFG, device="cpu")
        before = {name: p.detach().clone() for name, p in model.backend.named_parameters()}
        gone = mi.HookSpec().intervene(HookPoint.AttnZ(1), mi.Zero(at=mi.At(head=2)))
        steps = torch.optim.SGD(model.parameters(), lr=0.1)
        tokens = copying(4, 0)
        cross_entropy(
            model.forward(tokens, gone, grad=True).output[:, :-1].flatten(0, 1),
            tokens[:, 1:].flatten(),
        ).backward()
        steps.step()
        after = dict(model.backend.named_parameters())
        changed = (after["blocks.1.attn.v.weight"] != before["blocks.1.attn.v.weight"]).any(1)
        assert changed.unflatten(0, (4, 6)).any(1).tolist() == [True, True, False, True]

    def test_what_was_loaded_can_be_trained(self, tmp_path: Path) -> None:
        model = mi.MIModel.from_config(CFG, device="cpu")
        again = mi.MIModel.from_pretrained(model.save(tmp_path / "m"), device="cpu")
        assert all(p.requires_grad for p in again.parameters())
        again.forward(copying(2, 0), grad=True).output.sum().backward()
        assert all(p.grad is not None for p in again.parameters())


def back(pattern: Tensor) -> Tensor:
    """The attention that the best head pays to four tokens back, once the copy has begun."""
    queries = torch.arange(4, 8)
    return pattern[:, :, queries, queries - 4].mean((0, 2)).max()


SCALINGS = [
    None,
    Linear(2.0),
    DynamicNtk(2.0, 32),
    Yarn(4.0, 32, 1.1, 32.0, 1.0, truncate=False),
    Llama3(8.0, 1.0, 4.0, 16),
    LongRope((1.0, 1.5), (2.0, 3.0), 16, 1.2),
]


@st.composite
def configs(draw: st.DrawFn) -> mi.TransformerConfig:
    """Any config: every kind of part, and numbers that decimal fractions do not hit."""
    layers, real = draw(st.integers(1, 3)), st.floats(1e-6, 1e6)
    cfg = toy(vocab_size=9, num_layers=layers, hidden_size=16, causal=draw(st.booleans()))
    rope = Rope(draw(real), 4, draw(st.sampled_from(SCALINGS)), interleaved=draw(st.booleans()))
    experts = Experts(layers=(True,) * layers, count=4, chosen=2, width=3, scoring=Scoring.Sigmoid)
    latent = Latent(query_rank=None, kv_rank=4, nope_dim=2, rope_dim=4, value_dim=3)
    widths: dict[str, Any] = {"latent": latent, "head_dim": 6}
    if draw(st.booleans()):
        return replace(cfg, **widths, ropes=(rope,) * layers)
    return replace(
        cfg,
        norm_type=draw(st.sampled_from(NormType)),
        norm_eps=draw(real),
        layout=draw(st.sampled_from(BlockLayout)),
        activation=draw(st.sampled_from(Activation)),
        ropes=tuple(draw(st.sampled_from([rope, None])) for _ in range(layers)),
        windows=tuple(draw(st.sampled_from([None, 3])) for _ in range(layers)),
        attn_scales=tuple(draw(real) for _ in range(layers)),
        alibi=draw(st.sampled_from([None, Alibi(4.0, scaled=True)])),
        qk_norm=draw(st.sampled_from([None, QkNorm(NormType.Rms, Over.Whole)])),
        clip_qkv=draw(st.none() | real),
        residual_scale=draw(st.none() | real),
        embedding=Embedding(draw(st.none() | real), draw(st.sampled_from([None, Learned(8, 2)]))),
        head=Head(draw(st.booleans()), draw(st.none() | real), draw(st.none() | real), 5),
        experts=draw(st.sampled_from([None, experts])),
    )


class TestKeeping:
    @settings(max_examples=60)
    @given(configs())
    def test_every_config_is_read_as_it_was_written(self, cfg: mi.TransformerConfig) -> None:
        said = json.loads(json.dumps(config_to_json(cfg), allow_nan=False))
        assert config_from_json(said) == cfg
        assert set(said) == {field.name for field in fields(cfg)}

    @pytest.mark.parametrize("family", sorted(FAMILIES))
    def test_a_model_of_any_family_is_kept(self, family: str, tmp_path: Path) -> None:
        model = tiny(family)
        again = mi.MIModel.from_pretrained(model.save(tmp_path / "model"), device="cpu")
        assert again.config == model.config
        assert again.fingerprint == model.fingerprint
        assert again.num_parameters == model.num_parameters
        tokens = model.encode("a b")
        assert torch.equal(again.encode("a b"), tokens)
        kept = dict(again.backend.named_parameters())
        for name, value in model.backend.named_parameters():
            assert torch.equal(kept[name], value)
        # where weights lie in memory may decide how they are multiplied
        found, wanted = again.forward(tokens).output, model.forward(tokens).output
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)

    def test_the_packaged_model_is_kept_with_its_tokens(self, tmp_path: Path) -> None:
        model = mi.MIModel.from_pretrained("demo", device="cpu")
        again = mi.MIModel.from_pretrained(model.save(tmp_path / "model"), device="cpu")
        prompt = "The capital of France is"
        assert again.generate(prompt).rows == model.generate(prompt).rows
        assert again.origin.eos_ids == model.origin.eos_ids
        assert again.tokenizer.bos_id == model.tokenizer.bos_id
        assert again.tokenizer.eos_ids == model.tokenizer.eos_ids

    def test_an_older_one_is_replaced_and_nothing_else(self, tmp_path: Path) -> None:
        text = tiny("llama")
        folder = text.save(tmp_path / "model")
        model = mi.MIModel.from_config(CFG, seed=1, device="cpu")
        assert model.save(folder) == folder
        again = mi.MIModel.from_pretrained(folder, device="cpu")
        assert again.fingerprint == model.fingerprint
        assert not again.has_tokenizer
        (folder / "notes.txt").write_text("mine", encoding="utf-8")
        assert "holds other files" in said(model.save, folder)
        (tmp_path / "theirs").mkdir()
        (tmp_path / "theirs" / "config.json").write_text(
            '{"model_type": "llama"}', encoding="utf-8"
        )
        assert "holds other files" in said(model.save, tmp_path / "theirs")

    def test_broken_folders_say_what_is_wrong(self, tmp_path: Path) -> None:
        folder = mi.MIModel.from_config(CFG, device="cpu").save(tmp_path / "model")
        path = folder / "config.json"
        raw = json.loads(path.read_text(encoding="utf-8"))

        def read(**more: object) -> str:
            written = {**raw, "transformer": {**raw["transformer"], **more}}
            path.write_text(json.dumps(written), encoding="utf-8")
            return said(mi.MIModel.from_pretrained, folder)

        assert read(hidden=3) == snapshot("the config has no 'hidden'; did you mean 'hidden_size'?")
        assert read(hidden_size="many") == snapshot(
            "the config's hidden_size is 'many', not a whole number"
        )
        assert read(hidden_size=True) == snapshot(
            "the config's hidden_size is True, not a whole number"
        )
        assert read(causal=1) == snapshot("the config's causal is 1, not true or false")
        assert read(norm_type="layr") == snapshot(
            "'layr' is no NormType; there are rms, rms_float, rms_plus_one, rms_bare, layer, "
            "layer_gain, layer_bare, absent; did you mean 'layer'?"
        )
        assert read(ropes=None) == snapshot("the config's ropes is None, not a list")
        assert read(ropes=[None]) == snapshot("1 ropes for 2 layers")
        assert read(ropes=[{"kind": "Rop"}, None]) == snapshot(
            "the config's ropes[0] is {'kind': 'Rop'}, not of the kind Rope"
        )
        assert read(
            ropes=[{"kind": "Rope", "theta": 1.0, "dim": 2, "scaling": 3}, None]
        ) == snapshot(
            "the config's ropes[0]'s scaling is 3, not of the kind Linear or DynamicNtk or "
            "Yarn or Llama3 or LongRope"
        )
        assert read(embedding={"kind": "Embedding", "scale": "x"}) == snapshot(
            "the config's embedding's scale is 'x', not a number"
        )
        assert read(head={"kind": "Head", "temperature": 2}) == snapshot(
            "the config's head has no 'temperature'"
        )
        assert read(hidden_size=12) == snapshot(
            "tokens.weight has shape [20, 24] in the checkpoint; config.json makes it [20, 12]"
        )
        path.write_text(json.dumps({**raw, "format": 2}), encoding="utf-8")
        assert said(mi.MIModel.from_pretrained, folder) == snapshot(
            "config.json has format = 2; only 1 is known here"
        )
        path.write_text(json.dumps({**raw, "stray": 2}), encoding="utf-8")
        assert said(mi.MIModel.from_pretrained, folder) == snapshot(
            "config.json: torch_mi has no use for stray"
        )
        path.write_text(json.dumps({**raw, "transformer": None}), encoding="utf-8")
        assert said(mi.MIModel.from_pretrained, folder) == snapshot(
            "config.json has no object 'transformer'"
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=200)
@given(st.sampled_from([f.name for f in fields(CFG)]), JSON)
def test_any_wrong_entry_is_an_error_or_a_config(name: str, value: object) -> None:
    written = {**config_to_json(CFG), name: value}
    try:
        assert isinstance(config_from_json(written), mi.TransformerConfig)
    except mi.ConfigError:
        return


class TestOtherLogits:
    """A model whose logits stand for something else than its tokens."""

    MODEL = mi.MIModel.from_config(toy(vocab_size=97, output_vocab_size=3), device="cpu")
    READS = mi.MIModel(MODEL.backend, tiny("llama").tokenizer)

    def test_logits_are_counted(self) -> None:
        assert self.MODEL.forward([1, 2]).output.shape == (1, 2, 3)
        assert self.MODEL.unembedding_vector(2).shape == (64,)
        assert said(self.MODEL.unembedding_vector, 3) == snapshot(
            "token id 3 is out of range: 0 … 2"
        )
        assert self.MODEL.embedding_vector(96).shape == (64,)
        assert said(self.READS.unembedding_vector, "a") == snapshot(
            "3 logits, none for a word: 'a' must be a number"
        )
        assert self.READS.embedding_vector("a").shape == (64,)

    def test_analyses_name_logits_by_number(self) -> None:
        found = mi.logit_lens(self.READS, "abc", top_k=3, target=1)
        assert {p.token for p in found.readings[0].predictions} == {"0", "1", "2"}
        assert found.target == (1, "1")
        assert said(mi.logit_lens, self.READS, "abc", top_k=4) == snapshot(
            "top_k=4 is out of range: 1 … 3"
        )
        shares = mi.attribute(self.READS, "abc", target=1, versus=2)
        assert (shares.target, shares.versus) == ("1", "2")
        grid = mi.patch(self.READS, "abc", "abd", at="resid_pre", metric=mi.logit_diff(1, 2))
        assert grid.values.shape == (1, 4)

    def test_it_does_not_continue_texts(self) -> None:
        assert said(self.MODEL.generate, [1, 2]) == snapshot(
            "this model's 3 logits do not stand for its 97 tokens: it cannot continue a text"
        )


class TestLookingAhead:
    """A model that looks both ways has no prefixes."""

    MODEL = mi.MIModel.from_config(toy(vocab_size=20, causal=False), device="cpu")

    def test_a_run_follows_no_prefix(self) -> None:
        assert said(self.MODEL.forward, [1, 2], after=mi.Prefix()) == snapshot(
            "this model looks ahead, so that what comes later changes what came before: its "
            "runs follow no prefix and leave none; run the whole text"
        )

    def test_generation_never_carries_over(self) -> None:
        found = self.MODEL.generate([1, 2, 3], max_new_tokens=5)
        assert not found.used_cache
        tokens = [1, 2, 3]
        for _ in range(5):
            tokens.append(int(self.MODEL.forward(tokens).output[0, -1].argmax()))
        assert found.tokens == tokens[3:]
        assert "follow no prefix" in said(self.MODEL.generate, [1, 2], use_cache=True)

    def test_a_later_token_changes_an_earlier_position(self) -> None:
        first, second = (self.MODEL.forward([1, 2, last]).output[0, 0] for last in (3, 4))
        assert not torch.equal(first, second)

    def test_chance_is_the_same_for_every_query(self) -> None:
        assert mi.find_heads(self.MODEL, length=8).chance == 1 / 16


def test_positions_beyond_the_table_are_an_error() -> None:
    model = mi.MIModel.from_config(toy(vocab_size=9, max_position_embeddings=4), device="cpu")
    assert model.forward([1, 2, 3, 4]).output.shape == (1, 4, 9)
    assert said(model.forward, [1, 2, 3, 4, 5]) == snapshot(
        "position 4 is beyond this model's 4 learned positions; use a shorter text"
    )
