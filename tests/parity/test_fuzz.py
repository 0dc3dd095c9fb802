# SPDX-License-Identifier: MIT OR Apache-2.0
"""Any `config.json` at all is refused with an `MIError`, or makes a model that runs."""

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_mi import testing
from torch_mi.backends.transformer import Transformer, parameter_shapes
from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ConfigError, MIError
from torch_mi.families import FAMILIES, read_config
from torch_mi.families.auto import infer
from torch_mi.families.names import placement
from torch_mi.model import MIModel

# beartype looks at a random item of a list, in strategies too; that decides no example
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

Raw = dict[str, Any]

SMALL_ENOUGH = 200_000
"""Parameters of a model that is run."""

HUGE = st.sampled_from([10**6, 2**31, 2**40, 10**12, 2**63, 10**40, 10**400])
NUMBERS = (
    st.integers(-3, 70)
    | HUGE
    | HUGE.map(lambda n: -n)
    | st.sampled_from([0.0, -0.0, 0.5, 1e-300, 1e300, math.nan, math.inf, -math.inf])
    | st.floats()
)
WORDS = st.sampled_from(
    ["", "silu", "gelu", "relu", "yarn", "linear", "default", "llama3", "longrope", "dynamic"]
) | st.text(max_size=6)
SCALARS = st.none() | st.booleans() | NUMBERS | WORDS
KINDS = st.sampled_from(
    ["full_attention", "sliding_attention", "attention", "chunked", "", None, 3]
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
ROPES = st.dictionaries(
    st.sampled_from(
        """
        type rope_type factor rope_theta original_max_position_embeddings low_freq_factor
        high_freq_factor beta_fast beta_slow mscale mscale_all_dim attention_factor truncate
        short_factor long_factor partial_rotary_factor full_attention sliding_attention
        """.split()  # noqa: SIM905 - easier to read
    ),
    SCALARS | st.lists(NUMBERS, max_size=6) | st.dictionaries(WORDS, SCALARS, max_size=3),
    max_size=6,
)
VALUES = JUNK | ROPES | st.lists(KINDS, min_size=3, max_size=3) | st.lists(NUMBERS, max_size=4)


def tiny_raw(family: str) -> Raw:
    of = FAMILIES[family]
    return {"model_type": family, **testing.COMMON, **of.respelt(of.tiny)}


def keys_of(family: str) -> list[str]:
    """Every key that a family's rules look at, that is fixed, and a few that nobody knows."""
    of = FAMILIES[family]
    general = ["rope_scaling", "rope_parameters", "layer_types", "sliding_window", "mystery", "π"]
    own = [key for key in of.fixed if key != "model_type"]
    return sorted({*tiny_raw(family), *own, *of.aliases, *general} - {"model_type"})


@st.composite
def configs(draw: st.DrawFn, family: str) -> Raw:
    """A good config with some of its keys spoilt."""
    raw = tiny_raw(family)
    changes = draw(
        st.dictionaries(st.sampled_from(keys_of(family)), VALUES, min_size=1, max_size=3)
    )
    dropped = draw(st.lists(st.sampled_from(sorted(raw)), max_size=1))
    raw |= changes
    return {key: value for key, value in raw.items() if key not in dropped or key == "model_type"}


def sizes_match(raw: Mapping[str, object], cfg: TransformerConfig) -> None:
    """What counts things is what the config said."""
    of = FAMILIES[str(raw["model_type"])]
    said = of.respelt(raw)
    for key, ours in {
        "hidden_size": cfg.hidden_size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_attention_heads,
        "vocab_size": cfg.vocab_size,
    }.items():
        assert type(said[key]) is int
        assert said[key] == ours
    assert len(cfg.ropes) == len(cfg.windows) == len(cfg.attn_scales) == cfg.num_layers
    numbers = [cfg.norm_eps, *cfg.attn_scales, cfg.embedding_scale, cfg.head.scale]
    assert all(math.isfinite(number) for number in numbers if number is not None)


def runs(cfg: TransformerConfig) -> None:
    """Whether a model of this config computes logits of the right shape."""
    torch.manual_seed(0)
    model = MIModel(Transformer(cfg).eval())
    logits = model.forward(torch.zeros(1, 2, dtype=torch.long)).output
    assert logits.shape == (1, 2, cfg.output_vocab_size)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_config_is_refused_or_runs(family: str) -> None:
    @given(configs(family))
    @settings(max_examples=25)
    def hold(raw: Raw) -> None:
        try:
            cfg = read_config(raw)[1]
            sizes_match(raw, cfg)
            if cfg.num_layers > 20:  # more take long to count
                return
            shapes = parameter_shapes(cfg)
        except MIError:
            return
        if sum(math.prod(shape) for shape in shapes.values()) < SMALL_ENOUGH:
            runs(cfg)

    hold()


@settings(max_examples=150)
@given(
    st.dictionaries(st.sampled_from(["model_type", "hidden_size", "architectures"]) | WORDS, JUNK)
)
def test_junk_is_refused(raw: Raw) -> None:
    with pytest.raises(MIError):
        read_config(raw)


@settings(max_examples=25)
@given(configs("llama"))
def test_unknown_types_are_refused_or_have_the_sizes_they_say(raw: Raw) -> None:
    family, cfg = read_config(tiny_raw("llama"))
    shapes: dict[str, tuple[int, ...]] = {}
    for ours, shape in parameter_shapes(cfg).items():
        place = placement(ours, shape, cfg, family.sources)
        shapes |= dict.fromkeys(place.theirs, tuple(place.stored))

    def measured(found: TransformerConfig, stored: object) -> Mapping[str, tuple[int, ...]]:
        if found.num_layers > len(shapes):
            raise ConfigError(f"too many layers for {type(stored).__name__}")
        return parameter_shapes(found)

    found = infer({**raw, "model_type": "zebra"}, shapes, measured)
    assert (found.config is None) == bool(found.issues)
    if found.config is not None:
        assert found.config.hidden_size == cfg.hidden_size
        assert found.config.num_layers == cfg.num_layers
        assert found.config.vocab_size == cfg.vocab_size


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
def test_numbers_that_are_none_are_refused(text: str) -> None:
    raw = {**tiny_raw("llama"), "rms_norm_eps": json.loads(text)}
    with pytest.raises(ConfigError, match=r"rms_norm_eps = .*, not a number"):
        read_config(raw)


@pytest.mark.parametrize(
    "key",
    [
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "vocab_size",
        "head_dim",
        "intermediate_size",
    ],
)
@pytest.mark.parametrize("size", [10**12, 10**30])
def test_absurd_sizes_are_refused_at_once(key: str, size: int) -> None:
    with pytest.raises(ConfigError, match=r"beyond|cannot share|does not fit|is more than"):
        parameter_shapes(read_config({**tiny_raw("llama"), key: size})[1])
