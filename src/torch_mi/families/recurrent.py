# SPDX-License-Identifier: MIT OR Apache-2.0
"""A family of recurrent models, as data: how its config and tensors are read, and their names."""

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field

from torch_mi.config.recurrent import RecurrentConfig
from torch_mi.errors import ConfigError
from torch_mi.families.evidence_recurrent import Evidence
from torch_mi.families.family import same
from torch_mi.families.names import Plan, place
from torch_mi.families.rules import Reader, brief
from torch_mi.families.sources import Shape, Source

Names = Mapping[str, Source]


def nothing(raw: Mapping[str, object], cfg: RecurrentConfig) -> tuple[str, ...]:  # noqa: ARG001
    """No assumptions."""
    return ()


@dataclass(frozen=True)
class RecurrentFamily:
    """One `model_type` of recurrent models, in every naming that its checkpoints use."""

    model_type: str
    read: Callable[[Reader, Evidence], RecurrentConfig]
    """The config, by a `config.json` and the tensors' shapes."""
    tables: Sequence[Names]
    """Our module or parameter -> theirs; `*` is the layer. The table that fits best is used."""
    inert: Set[str]
    """Config keys that change nothing this library computes."""
    fixed: Mapping[str, Collection[object]] = field(default_factory=dict[str, Collection[object]])
    """Config keys that change nothing as long as they have one of these values (or null)."""
    buffers: Collection[str] = ()
    """Patterns of checkpoint tensors that no run reads."""
    assumed: Callable[[Mapping[str, object], RecurrentConfig], tuple[str, ...]] = nothing
    """What shows in neither config nor tensors, and was decided."""
    tiny: Mapping[str, object] = field(default_factory=dict[str, object])
    """Config keys of this family's tiny model: the shapes that mistakes do not fit."""

    def config(
        self, raw: Mapping[str, object], shapes: Mapping[str, Shape] | None = None
    ) -> RecurrentConfig:
        """What `raw`, a parsed `config.json`, computes with tensors of these shapes."""
        c = Reader(raw)
        for key, values in self.fixed.items():
            value = raw.get(key)
            if value is not None and not any(same(value, each) for each in values):
                modelled = " or ".join(repr(each) for each in values) or "null"
                raise ConfigError(
                    f"config.json has {key} = {brief(value)}; "
                    f"in {self.model_type} only {modelled} is modelled"
                )
        cfg = self.read(c, Evidence(shapes or {}))
        c.refuse_unread(self.inert | set(self.fixed), self.model_type)
        return cfg

    def place(
        self, cfg: RecurrentConfig, shapes: Mapping[str, Shape], names: Collection[str]
    ) -> Plan:
        """Where each parameter lies in a checkpoint whose tensors are called `names`."""
        return place(cfg, shapes, self.tables, self.buffers, names)
