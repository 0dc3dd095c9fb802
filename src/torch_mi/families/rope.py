# SPDX-License-Identifier: MIT OR Apache-2.0
"""Reading rotary embedding, spelt the old way (`rope_scaling`) or the new (`rope_parameters`)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

from torch_mi.config.rope import (
    DynamicNtk,
    Linear,
    Llama3,
    LongRope,
    Rope,
    RopeScaling,
    Yarn,
)
from torch_mi.errors import ConfigError, did_you_mean
from torch_mi.families.rules import HEAD_DIM, LAYER_KINDS, WHOLE, WINDOWED, Reader, Rule

INERT = frozenset(["finetuned", "mrope_section"])
"""Rotary keys that change nothing: on text, the three parts of an mrope position agree."""


@dataclass(frozen=True)
class Lengths:
    """What the kinds of scaling measure themselves by."""

    dim: int
    context: int
    """How many positions the model saw before its reach was extended."""
    longest: int
    """`max_position_embeddings`."""


def plain(r: Reader, lengths: Lengths) -> None:
    """No scaling at all."""


def linear(r: Reader, lengths: Lengths) -> Linear:  # noqa: ARG001
    """Positions divided by a factor."""
    return Linear(positive(r, "factor"))


def dynamic(r: Reader, lengths: Lengths) -> DynamicNtk:
    """A base that grows with the run."""
    return DynamicNtk(positive(r, "factor"), lengths.longest)


def yarn(r: Reader, lengths: Lengths) -> Yarn:
    """YaRN; how much scores are sharpened follows from the factor unless it is given."""
    factor = r.get(float, "factor")
    factor = lengths.longest / lengths.context if factor is None else positive(r, "factor")
    sharpen = r.get(float, "attention_factor")
    mscale, all_dim = r.get(float, "mscale"), r.get(float, "mscale_all_dim")
    if sharpen is None and mscale and all_dim:
        sharpen = yarn_sharpening(factor, mscale) / yarn_sharpening(factor, all_dim)
    elif sharpen is None:
        sharpen = yarn_sharpening(factor, 1.0)
    return Yarn(
        factor=factor,
        context=lengths.context,
        attention_factor=sharpen,
        beta_fast=r.get(float, "beta_fast") or 32.0,
        beta_slow=r.get(float, "beta_slow") or 1.0,
        truncate=r.get(bool, "truncate") is not False,
    )


def yarn_sharpening(factor: float, mscale: float) -> float:
    """The paper's temperature, on sines and cosines."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def llama3(r: Reader, lengths: Lengths) -> Llama3:
    """Llama 3.1's blend."""
    low, high = positive(r, "low_freq_factor"), positive(r, "high_freq_factor")
    if high == low:
        raise ConfigError(f"{r.name}: low_freq_factor and high_freq_factor are both {low}")
    return Llama3(positive(r, "factor"), low, high, lengths.context)


def longrope(r: Reader, lengths: Lengths) -> LongRope:
    """One divisor per frequency; the factor is how much longer runs became unless it is given."""
    short, long = r.numbers("short_factor"), r.numbers("long_factor")
    for key, factors in {"short_factor": short, "long_factor": long}.items():
        if len(factors) != lengths.dim // 2:
            raise ConfigError(
                f"{r.name}: {key} has {len(factors)} entries, "
                f"but {lengths.dim} rotary dimensions need {lengths.dim // 2}"
            )
    factor = r.get(float, "factor")
    factor = lengths.longest / lengths.context if factor is None else factor
    scale = r.get(float, "attention_factor")
    if scale is None:
        grown = math.log(factor) / math.log(lengths.context) if factor > 1 else 0.0
        scale = math.sqrt(1 + grown)
    return LongRope(short, long, lengths.context, scale)


Scaling = Callable[[Reader, Lengths], RopeScaling | None]

SCALINGS: dict[str, Scaling] = {
    "default": plain,
    "linear": linear,
    "dynamic": dynamic,
    "yarn": yarn,
    "llama3": llama3,
    "longrope": longrope,
}


@dataclass(frozen=True)
class RopeRule:
    """How one family reads its rotary embedding."""

    longest: int
    """`max_position_embeddings` where the config does not say."""
    head_dim: Rule = HEAD_DIM
    kinds: Mapping[str, Scaling] = field(default_factory=lambda: {**SCALINGS, "mrope": plain})
    partial: bool = False
    """Whether a part of each head can be left unturned."""
    context: int | None = None
    """The original context where the config's top level does not say."""
    interleaved: bool = False
    """Whether neighbouring dimensions turn together."""
    part: float = 1.0
    """How much of each head turns where the config does not say."""
    theta: float = 10_000.0
    """The base where the config does not say."""
    base: str = "rope_theta"
    """What the base is called at the config's top level."""
    share: str = "partial_rotary_factor"
    """What the part that turns is called there."""

    def __call__(self, c: Reader) -> Rope:
        sections = flatten(c) or [Reader({}, c.name)]
        ropes = [self.read(c, section) for section in sections]
        for rope, section in zip(ropes, sections, strict=True):
            if rope != ropes[0]:
                raise ConfigError(
                    f"{sections[0].name} and {section.name} disagree; layers that turn "
                    f"differently are not modelled: {ropes[0]} and {rope}"
                )
        return ropes[0]

    def read(self, c: Reader, r: Reader) -> Rope:
        """One rotary embedding, by one object and what the top level adds to it."""
        theta = first_number("rope_theta", first_number(self.base, self.theta, c), r)
        top = first_number(self.share, self.part, c)
        part = first_number("partial_rotary_factor", top, r)
        if part != 1.0 and not self.partial:
            raise ConfigError(
                f"{r.name}: this model_type turns whole heads; "
                f"partial_rotary_factor = {part} is not modelled"
            )
        longest = c.get(int, "max_position_embeddings") or self.longest
        dim = int(cast("int", self.head_dim(c)) * part)
        lengths = Lengths(dim, self.original_context(c, r, longest), longest)
        older, newer = r.get(str, "type"), r.get(str, "rope_type")
        kind = newer or older or "default"
        if kind not in self.kinds:
            raise ConfigError(
                f"{r.name}: rotary embedding of type {kind!r} is not modelled; "
                f"known are {', '.join(self.kinds)}{did_you_mean(kind, self.kinds)}"
            )
        if self.kinds[kind] is not plain and lengths.context <= 1:
            raise ConfigError(f"{r.name}: a context of {lengths.context} cannot be extended")
        scaling = self.kinds[kind](r, lengths)
        r.refuse_unread(INERT, f"rotary embedding of type {kind!r}")
        return Rope(theta, dim, scaling, self.interleaved)

    def original_context(self, c: Reader, r: Reader, longest: int) -> int:
        """The top level has precedence, as in transformers."""
        key = "original_max_position_embeddings"
        top, nested = c.get(int, key), r.get(int, key)
        if top is None and self.context is not None and nested not in {None, self.context}:
            raise ConfigError(
                f"{r.name} has {key} = {nested}, but this model_type reads it from the top level "
                f"only, where it is absent and counts as {self.context}"
            )
        said = (top, self.context, nested, longest)
        return next(each for each in said if each is not None)


def flatten(c: Reader) -> list[Reader]:
    """The objects that describe a rotary embedding; there may be one for each kind of layer."""
    found = list[Reader]()
    for key, section in c.objects("rope_scaling", "rope_parameters").items():
        r = Reader(section, key)
        by_layer = r.objects(*(kind for kind in LAYER_KINDS if r.given(kind)))
        if by_layer:
            r.refuse_unread(frozenset(), "rotary embedding by kind of layer")
            found += [Reader(inner, f"{key}[{kind!r}]") for kind, inner in by_layer.items()]
        else:
            found.append(r)
    return found


@dataclass(frozen=True)
class RopesByKind:
    """One rotary embedding in layers that see everything, another in those with a window."""

    whole: RopeRule
    windowed: RopeRule
    windows: Rule

    def __call__(self, c: Reader) -> tuple[Rope, ...]:
        found = c.objects("rope_scaling", "rope_parameters")
        newer = Reader(found.get("rope_parameters", {}), "rope_parameters")
        kinds = newer.objects(WHOLE, WINDOWED)
        newer.refuse_unread(frozenset(), "rotary embedding by kind of layer")
        # the older spelling scales the layers that see everything, and no others
        merged = {**kinds.get(WHOLE, {}), **found.get("rope_scaling", {})}
        whole = self.whole.read(c, Reader(merged, f"rope_parameters[{WHOLE!r}]"))
        inner = Reader(kinds.get(WINDOWED, {}), f"rope_parameters[{WINDOWED!r}]")
        windowed = self.windowed.read(c, inner)
        windows = cast("tuple[int | None, ...]", self.windows(c))
        return tuple(whole if window is None else windowed for window in windows)


def first_number(key: str, default: float, *readers: Reader) -> float:
    """The first that is set."""
    found = [value for r in readers if (value := r.get(float, key)) is not None]
    value = found[0] if found else default
    if value <= 0:
        raise ConfigError(f"{readers[0].name}: {key} = {value} is not positive")
    return value


def positive(r: Reader, key: str) -> float:
    """A number above zero, which must be set."""
    value = r.need(float, key)
    if value <= 0:
        raise ConfigError(f"{r.name}: {key} = {value} is not positive")
    return value
