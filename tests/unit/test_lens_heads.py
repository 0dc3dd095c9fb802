# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a head raises is its own share of each logit."""

from pathlib import Path

import pytest

import torch_mi as mi
from torch_mi.analysis.decomposition import logit_attrs
from torch_mi.analysis.lens_heads import HeadLens, head_lens
from torch_mi.testing import tiny


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "falcon", "mixtral", "olmo2"])
def test_readings_are_shares_of_logits(family: str) -> None:
    model = tiny(family)
    found = head_lens(model, "the quick fox", top_k=model.vocab_size, position=4)
    assert len(found.readings) == model.num_layers * model.num_heads
    shares = {
        word: logit_attrs(model, "the quick fox", target=word, position=4).heads()
        for word in ("q", "z")
    }
    for reading in found.readings:
        values = [one.logit for one in reading.raised]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(0, abs=1e-6)
        by = {one.token: one.logit for one in reading.raised}
        wanted = shares["q"] - shares["z"]
        assert by["q"] - by["z"] == pytest.approx(
            float(wanted[reading.layer, reading.head]), abs=1e-5
        )


def test_induction_heads_of_the_demo_model_say_what_came_next(tmp_path: Path) -> None:
    model = mi.MIModel.from_pretrained("demo")
    found = head_lens(model, " cat seven paper Rome dog cat seven paper")
    inducing = {(layer, head) for layer, head, _ in mi.find_heads(model).best(6)}
    saying = {(r.layer, r.head) for r in found.best(8) if r.raised[0].token == " Rome"}
    assert saying & inducing
    assert HeadLens.load(found.save(tmp_path / "h.json")).to_dict() == found.to_dict()
    assert "raises most" in repr(found)
    assert found.plot().data
    assert len(found.to_pandas()) == 5 * len(found.readings)
    with pytest.raises(mi.ModelError, match="top_k=0 is out of range"):
        head_lens(model, "The", top_k=0)
