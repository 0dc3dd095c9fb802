# SPDX-License-Identifier: MIT OR Apache-2.0
"""Quantised safetensors as ordinary weights: each is dequantised, in float32, when asked for.

A checkpoint says how it is quantised in the `quantization_config` of its `config.json`. Whatever
is not quantised in it passes through as it is.
"""

from collections.abc import Callable, Mapping

from torch_mi.errors import ConfigError, ModelError, did_you_mean
from torch_mi.families.rules import Reader
from torch_mi.files.packed import awq, gptq
from torch_mi.files.scaled import STATE, compressed, eight_bits, four_bits, fp8
from torch_mi.files.weights import Derived, Piece, Weights

KEY = "quantization_config"
Method = Callable[[Weights, Reader], dict[str, Piece]]

METHODS: Mapping[str, Method] = {
    "gptq": gptq,
    "awq": awq,
    "fp8": fp8,
    "compressed-tensors": compressed,
    "bitsandbytes": lambda weights, _: four_bits(weights) | eight_bits(weights),
}
"""By `quant_method`."""

LEFTOVERS = (
    ".activation_scale",
    ".input_scale",
    ".weight_format",
    ".weight_shape",
    ".weight_g_idx",
)
"""Tensors beside quantised weights that say nothing more of them."""


def check_method(config: Mapping[str, object]) -> str | None:
    """How a checkpoint is quantised, if it is: one of `METHODS`."""
    settings = config.get(KEY)
    if settings is None:
        return None
    c = Reader(config).objects(KEY).get(KEY, {})
    method = Reader(c, KEY).get(str, "quant_method") or _unnamed(Reader(c, KEY))
    if method not in METHODS:
        raise ConfigError(
            f"config.json says that the checkpoint is quantised by {method!r}, which is not read "
            f"here; {', '.join(METHODS)} are{did_you_mean(method, METHODS)}: load the model it was "
            "made from"
        )
    return method


def dequantised(weights: Weights, config: Mapping[str, object]) -> Weights:
    """The weights of a checkpoint as its config says that they are quantised, if it does."""
    method = check_method(config)
    if method is None:
        return weights
    c = Reader(Reader(config).objects(KEY)[KEY], KEY)
    pieces = METHODS[method](weights, c)
    if not pieces:
        raise ModelError(
            f"config.json says that the checkpoint is quantised by {method}, and none of its "
            "tensors is"
        )
    hidden = {name for piece in pieces.values() for name in piece.stored}
    beside = {name.rpartition(".")[0] for name in pieces}
    for name in weights.shapes():
        at = next((name.index(end) for end in (*LEFTOVERS, STATE) if end in name), None)
        if at is not None and name[:at] in beside:
            hidden.add(name)
    return Derived(weights, pieces, hidden)


def _unnamed(c: Reader) -> str:
    """The method of older bitsandbytes checkpoints, which do not name it."""
    if c.get(bool, "load_in_4bit") or c.get(bool, "load_in_8bit"):
        return "bitsandbytes"
    raise ConfigError(f"config.json has a {KEY} without a quant_method")
