# SPDX-License-Identifier: MIT OR Apache-2.0
"""Effective attention, what recurrent layers write by source, and their logits taken apart."""

import json
import os
from pathlib import Path
from typing import get_args

import pytest
import torch

import torch_mi as mi
from torch_mi import show
from torch_mi.analysis.attention import attention
from torch_mi.analysis.decomposition import decompose_resid, logit_attrs
from torch_mi.analysis.edges import KnockoutSpec
from torch_mi.analysis.effective import EffectiveAttention, Form, effective_attention
from torch_mi.analysis.knockout import knockout
from torch_mi.analysis.movers import find_movers
from torch_mi.analysis.sources import Sources, SourceShares, source_decomposition
from torch_mi.show.states import state_page
from torch_mi.testing import tiny

P = mi.HookPoint
TEXT = "a cat."
LENGTH = 7
VERSIONS = ("rwkv", "rwkv5", "rwkv6", "rwkv7")
ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("TORCH_MI_SHARED", ROOT / "../shared")) / "data" / "rwkv"


@pytest.mark.parametrize("family", VERSIONS)
def test_forms_of_effective_attention(family: str):
    model = tiny(family)
    some = [2, 0]
    found = {
        form: effective_attention(model, TEXT, layers=1, heads=some, form=form)
        for form in get_args(Form)
    }
    run = model.forward(TEXT, mi.HookSpec().capture(P.RwkvV(1), P.RwkvWkv(1)))
    values, read = (run[point(1)][0][:, some] for point in (P.RwkvV, P.RwkvWkv))
    raw = found["raw"].patterns[0]
    assert found["raw"].layers == (1,)
    assert found["raw"].heads == (2, 0)
    torch.testing.assert_close(
        torch.einsum("hqs,shv->qhv", raw, values), read, atol=2e-5, rtol=1e-4
    )
    positive = raw.clamp(min=0)
    torch.testing.assert_close(
        found["relu_l1"].patterns[0], positive / (positive.sum(-1, keepdim=True) + 1e-10)
    )
    torch.testing.assert_close(found["abs_l1"].patterns[0].sum(-1), torch.ones(2, LENGTH))
    torch.testing.assert_close(
        found["value_weighted"].patterns[0], raw.abs() * values.norm(dim=-1).T[:, None]
    )
    assert not any(each.patterns.triu(1).any() for each in found.values())


def test_channels_are_averaged():
    model = tiny("rwkv")
    whole = effective_attention(model, TEXT)
    each = effective_attention(model, TEXT, heads=range(model.num_heads))
    assert whole.averaged
    assert not each.averaged
    torch.testing.assert_close(whole.patterns[:, 0], each.patterns.mean(1))
    torch.testing.assert_close(whole.patterns.sum(-1), torch.ones(3, 1, LENGTH))
    assert not effective_attention(tiny("rwkv6"), TEXT, layers=0).averaged


@pytest.mark.parametrize("family", VERSIONS)
def test_sources_add_up_to_what_is_written(family: str):
    model = tiny(family)
    found = source_decomposition(model, TEXT, 0)
    for layer in range(model.num_layers):
        found = source_decomposition(model, TEXT, layer, position="all")
        assert found.error < 1e-5 * float(found.whole.abs().max())
        assert found.vectors.shape == (LENGTH, LENGTH + 2, 24)
        assert not found.vectors[:, :LENGTH].norm(dim=-1).triu(1).any(), "nothing from later tokens"
    last = source_decomposition(model, TEXT, model.num_layers - 1)
    torch.testing.assert_close(last.vectors[0], found.vectors[-1])
    bonus, bias = last.vectors[0, -2:].norm(dim=-1)
    assert bool(bonus > 0) is (family != "rwkv")
    assert bool(bias > 0) is (family != "rwkv")
    own = float(last.vectors[0, LENGTH - 1].norm())
    reads_own = family in ("rwkv", "rwkv7")
    assert own > 1e-3 if reads_own else own < 1e-5, "RWKV-5 and 6 read the state before they write"


@pytest.mark.parametrize("family", ["rwkv", "rwkv7"])
def test_a_knocked_out_source_writes_nothing(family: str):
    """In the first layer, whose other activations do not move, as long as norms are held."""
    model = tiny(family)
    share = source_decomposition(model, TEXT, 0).vectors[0, 3]
    spec = mi.HookSpec().capture(P.AttnOut(0), P.RwkvNormScale(0) if family != "rwkv" else P.Embed)
    plain = model.forward(TEXT, spec)
    weights = effective_attention(model, TEXT, layers=0, heads=range(model.num_heads)).patterns[0]
    hooks = mi.HookSpec().capture(P.AttnOut(0))
    put = -weights[None, :, -1:, 3:4]
    if family == "rwkv":
        hooks.intervene(P.RwkvEffectiveAttn(0), mi.Add(put, at=mi.At(query=[-1], key=[3])))
    else:
        hooks.intervene(P.RwkvNormScale(0), mi.Replace(plain[P.RwkvNormScale(0)]))
        hooks.intervene(P.RwkvEffectiveAttn(0), mi.Add(put, at=mi.At(query=[-1], key=[3])))
    without = model.forward(TEXT, hooks)[P.AttnOut(0)][0, -1]
    torch.testing.assert_close(plain[P.AttnOut(0)][0, -1] - without, share, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("family", ["rwkv", "rwkv6", "rwkv7"])
def test_shares_of_a_logit(family: str):
    model = tiny(family)
    attrs = logit_attrs(model, TEXT, target="a", versus="b", split=(), position="all")
    for layer in (0, 2):
        found = source_decomposition(model, TEXT, layer, position="all")
        shares = found.toward_logit(model, "a", "b")
        i = next(i for i, t in enumerate(attrs.terms) if (t.kind, t.layer) == ("attention", layer))
        torch.testing.assert_close(shares.values.sum(1), attrs.values[i], atol=1e-5, rtol=1e-4)
    along = found.toward(found.whole[-1], "itself")
    length = float(found.whole[-1].square().sum())
    assert float(along.values[-1].sum()) == pytest.approx(length, rel=1e-5)
    assert abs(along.best(1)[0][1]) == float(along.values[-1].abs().max())
    with pytest.raises(mi.ModelError, match=r"a direction here is \[24\], not \[3\]"):
        found.toward(torch.ones(3))


@pytest.mark.parametrize("family", VERSIONS)
def test_streams_and_logits_come_apart(family: str):
    model = tiny(family)
    for split in ((), "neurons") if family == "rwkv" else ("heads", ["heads", "neurons"]):
        assert decompose_resid(model, TEXT, split=split, position="all").error < 1e-5
    found = mi.attribute(model, TEXT, target="a", versus="b")
    assert found.error < 1e-5
    heads = {"rwkv": 1}.get(family, model.num_heads)
    assert found.heads().shape == (3, heads)
    assert found.plot().data
    assert ("time mixing" if family == "rwkv" else "H0") in show.text(found)
    if family == "rwkv":
        with pytest.raises(mi.ModelError, match="no heads of more than a channel each"):
            logit_attrs(model, TEXT, target="a", split="heads")


def test_results_keep(tmp_path: Path):
    model = tiny("rwkv7")
    weights = effective_attention(model, TEXT, form="abs_l1")
    found = source_decomposition(model, TEXT, 1, position="all")
    shares = found.toward_logit(model, "a")
    for result in (weights, found, shares):
        again = type(result).load(result.save(tmp_path / "r.json"))
        assert json.dumps(again.to_dict()) == json.dumps(result.to_dict())
        assert result.plot().data
    loaded = EffectiveAttention.load(weights.save(tmp_path / "w.json"))
    assert loaded.kind == "abs_l1"
    assert "effective attention of ." in show.text(weights)
    assert "what layer 1 writes to ., by source" in show.text(found)
    assert "what layer 1 adds to a, by source" in show.text(shares)
    assert len(list(found.to_pandas().index)) == LENGTH * (LENGTH + 2)
    for kind in (Sources, SourceShares, EffectiveAttention):
        with pytest.raises(mi.MIError, match="broken"):
            kind.from_dict({"format": kind.form})


def test_signed_weights_are_drawn_around_zero():
    figure = effective_attention(tiny("rwkv7"), TEXT, layers=0, heads=1).plot()
    drawn = figure.to_dict()["data"][0]
    assert drawn["zmin"] == -drawn["zmax"] < 0
    plain = attention(tiny("llama"), TEXT, layers=0, heads=1).plot()
    assert plain.to_dict()["data"][0]["zmin"] == 0


def test_what_is_of_attention_alone_says_so():
    model = tiny("rwkv6")
    with pytest.raises(mi.ModelError, match="no attention heads to score; effective_attention"):
        mi.find_heads(model)
    with pytest.raises(mi.ModelError, match="no attention patterns; effective_attention"):
        attention(model, TEXT)
    with pytest.raises(mi.ModelError, match="no attention patterns; effective_attention"):
        find_movers(model, TEXT, target="a", versus="b")
    with pytest.raises(mi.InterventionError, match=r"no attention whose edges .*analysis\.states"):
        knockout(model, TEXT, KnockoutSpec().edge(3, 1))
    for ask in (
        lambda: effective_attention(tiny("llama"), TEXT),
        lambda: source_decomposition(tiny("llama"), TEXT, 0),
    ):
        with pytest.raises(mi.ModelError, match="has no recurrent state"):
            ask()
    with pytest.raises(mi.ModelError, match="layer 3 is out of range"):
        source_decomposition(model, TEXT, 3)
    with pytest.raises(mi.ModelError, match="heads=9 is out of range"):
        effective_attention(model, TEXT, heads=9)


@pytest.mark.parametrize(
    "name", ["rwkv4-tiny-660k", "rwkv5.2-tiny-730k", "rwkv6-tiny-3m-deq5_1", "rwkv7-tiny-834k"]
)
def test_trained_models(name: str):
    if not (REAL / name).is_dir():
        pytest.skip(f"there is no model in {REAL / name}")
    model = mi.MIModel.from_pretrained(REAL / name)
    ids = torch.arange(5, 25)[None] % model.vocab_size
    layer = model.num_layers - 1
    found = source_decomposition(model, ids, layer, position="all")
    assert found.error < 1e-5 * float(found.whole.abs().max())
    shares = mi.attribute(model, ids, target=7)
    assert shares.error < 1e-4
    mixed = sum(
        s.value
        for s in shares.shares
        if s.layer == layer and s.kind in ("head", "attention", "attention bias")
    )
    assert float(found.toward_logit(model, 7).values[-1].sum()) == pytest.approx(mixed, abs=1e-4)


def test_a_page_of_states():
    from torch_mi.analysis.state_norms import state_norms  # noqa: PLC0415 - beside its use
    from torch_mi.analysis.states import state_sweep  # noqa: PLC0415

    model = tiny("rwkv")
    swept = state_sweep(model, TEXT, mi.kl(), positions=[2, 3])
    title, _, sections = state_page(
        state_norms(model, TEXT), effective_attention(model, TEXT), swept
    )
    assert title == "Recurrent state · tiny:rwkv"
    assert [s.title for s in sections][:2] == ["Norms over time", "Effective attention"]
