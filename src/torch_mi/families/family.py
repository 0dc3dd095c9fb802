# SPDX-License-Identifier: MIT OR Apache-2.0
"""A model family, as data: how to read its `config.json`, and what it calls each tensor."""

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ConfigError
from torch_mi.families.names import Plan, place
from torch_mi.families.rules import Reader, Rule, brief
from torch_mi.families.sources import Shape, Source


@dataclass(frozen=True)
class Family:
    """One `model_type`: a rule for each field of the config, a source for each of our modules."""

    model_type: str
    rules: Mapping[str, Rule]
    sources: Mapping[str, Source]
    """Our module -> theirs; `*` is the layer."""
    inert: Set[str]
    """Config keys that change nothing this library computes."""
    fixed: Mapping[str, Collection[object]]
    """Config keys that change nothing as long as they have one of these values (or null)."""
    buffers: Collection[str] = ()
    """Patterns of checkpoint tensors that are not parameters."""
    variants: Sequence[Mapping[str, Source]] = ()
    """Other names that checkpoints use, each as what differs from `sources`."""
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    """What this family calls a config key -> what the rules call it."""
    tiny: Mapping[str, object] = field(default_factory=dict[str, object])
    """Config keys of this family's tiny model: the shapes that mistakes do not fit."""

    def but(  # noqa: PLR0913 - one for each part of a family
        self,
        model_type: str,
        *,
        rules: Mapping[str, Rule] | None = None,
        sources: Mapping[str, Source] | None = None,
        inert: Set[str] = frozenset(),
        fixed: Mapping[str, Collection[object]] | None = None,
        buffers: Collection[str] = (),
        variants: Sequence[Mapping[str, Source]] = (),
        aliases: Mapping[str, str] | None = None,
        tiny: Mapping[str, object] | None = None,
    ) -> "Family":
        """A family like this one, except."""
        return Family(
            model_type,
            rules={**self.rules, **(rules or {})},
            sources={**self.sources, **(sources or {})},
            inert=self.inert | inert,
            fixed={**self.fixed, **(fixed or {})},
            buffers=(*self.buffers, *buffers),
            variants=variants or self.variants,
            aliases={**self.aliases, **(aliases or {})},
            tiny=tiny or {},
        )

    def config(self, raw: Mapping[str, object]) -> TransformerConfig:
        """What `raw`, a parsed `config.json`, computes."""
        spelt = self.spelling(raw)
        raw = self.respelt(raw)
        c = Reader(raw, spelt=spelt)
        fields: dict[str, Any] = {name: rule(c) for name, rule in self.rules.items()}
        for key, values in self.fixed.items():
            value = raw.get(key)
            if value is not None and not any(same(value, each) for each in values):
                modelled = " or ".join(repr(each) for each in values) or "null"
                raise ConfigError(
                    f"config.json has {key} = {brief(value)}; "
                    f"in {self.model_type} only {modelled} is modelled"
                )
        c.refuse_unread(self.inert | set(self.fixed), self.model_type)
        return TransformerConfig(**fields)

    def respelt(self, raw: Mapping[str, object]) -> Mapping[str, object]:
        """A config with its keys as the rules call them."""
        keys, called = dict[str, object](), dict[str, str]()
        for key, value in raw.items():
            name = self.aliases.get(key, key)
            before = keys.get(name)
            if before is not None and value is not None and not alike(before, value):
                raise ConfigError(
                    f"config.json has {called[name]} = {brief(before)} and {key} = {brief(value)}, "
                    f"which in {self.model_type} are the same"
                )
            if before is None:
                keys[name], called[name] = value, key
        return keys

    def spelling(self, raw: Mapping[str, object]) -> Mapping[str, str]:
        """What a config, or else its family, calls the keys that the rules call otherwise."""
        spelt = dict[str, str]()
        for theirs, ours in self.aliases.items():
            if ours not in raw and (theirs in raw or ours not in spelt):
                spelt[ours] = theirs
        return spelt

    def tables(self) -> list[Mapping[str, Source]]:
        """Every table of names that checkpoints of this family use."""
        return [self.sources, *({**self.sources, **variant} for variant in self.variants)]

    def place(
        self, cfg: TransformerConfig, shapes: Mapping[str, Shape], names: Collection[str]
    ) -> Plan:
        """Where each parameter lies in a checkpoint whose tensors are called `names`."""
        return place(cfg, shapes, self.tables(), self.buffers, names)


def same(value: object, other: object) -> bool:
    """Equality that keeps `True` apart from 1."""
    return type(value) is type(other) and value == other


def alike(value: object, other: object) -> bool:
    """Equality that keeps `True` apart from 1, but not 1 from 1.0."""
    return isinstance(value, bool) is isinstance(other, bool) and value == other
