# SPDX-License-Identifier: MIT OR Apache-2.0
"""One place in one model: a hook point and its layer, which together are a name."""

from typing import TYPE_CHECKING, Self

from torch_mi.errors import HookError

if TYPE_CHECKING:
    from torch_mi.hooks.point import HookPoint


class Hook(str):
    """One place in one model: a hook point and, inside the blocks, a layer.

    >>> hook = Hook.parse("blocks.5.attn.hook_attn_scores")
    >>> hook.point, hook.layer, str(hook)
    (HookPoint.AttnScores, 5, 'blocks.5.attn.hook_scores')
    """

    point: "HookPoint"
    layer: int | None

    def __new__(cls, point: "HookPoint", layer: int | None = None) -> Self:
        if point.per_layer and (layer is None or layer < 0):
            raise HookError(
                f"{point.name} is inside a layer, numbered from 0; write HookPoint.{point.name}(0)"
            )
        if not point.per_layer and layer is not None:
            raise HookError(f"{point.name} is not inside a layer; write HookPoint.{point.name}")
        hook = super().__new__(cls, point.replace("*", str(layer)))
        hook.point, hook.layer = point, layer
        return hook

    def __getnewargs__(self) -> "tuple[HookPoint, int | None]":  # pyright: ignore[reportIncompatibleMethodOverride] - copied by its parts
        return self.point, self.layer

    @staticmethod
    def parse(where: str) -> "Hook":
        """Read one place by any of its spellings; an unknown name is an error."""
        from torch_mi.hooks.point import locate  # noqa: PLC0415 - points make hooks

        found = locate(where)
        if not isinstance(found, Hook):
            raise HookError(f"{where} is a place in every layer; name one, as {found(0)!r}")
        return found

    def __repr__(self) -> str:
        return f"HookPoint.{self.point.name}" + ("" if self.layer is None else f"({self.layer})")
