# SPDX-License-Identifier: MIT OR Apache-2.0
"""Cones of inputs, each spanned by as many rays as there are inputs, cut exactly by planes.

A network without biases is linear on cones from the origin. Under N(0, I), or any distribution
that looks alike from all sides, a cone's probability is its part of the sphere: an angle for two
inputs, a spherical triangle for three (Van Oosterom and Strackee, 1983).
"""

import math
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torch_mi.errors import ModelError

FLAT = 1e-12
"""A ray whose distance from a plane is below this part of its length lies in the plane."""
MOST = 1_000_000
"""Cones that are held at once."""
ANGLES = (2, 3)
"""Numbers of inputs for which a cone's part of the sphere has a closed form."""


@dataclass(frozen=True, eq=False)
class Cones:
    """Cones, and the labels [cone label] that their cuts have given them so far."""

    rays: Float[Tensor, "cone ray n"]
    labels: Int[Tensor, "cone label"]

    def __len__(self) -> int:
        return len(self.rays)

    @property
    def inside(self) -> Float[Tensor, "cone n"]:
        """A direction within each cone."""
        return self.rays.mean(1)

    def pick(self, which: Tensor) -> "Cones":
        """Some of the cones."""
        return Cones(self.rays[which], self.labels[which])

    def labelled(self, label: Int[Tensor, " cone"]) -> "Cones":
        """The same with one more label each."""
        return Cones(self.rays, torch.cat([self.labels, label[:, None]], 1))

    def shares(self) -> Float[Tensor, " cone"]:
        """The part of the sphere in each cone."""
        n = self.rays.shape[2]
        if n not in ANGLES:
            raise ModelError(
                f"exact shares are known for 2 and 3 inputs, not for {n}; activation_regions "
                "estimates them from samples"
            )
        return _angles(self.rays) if n == ANGLES[0] else _triangles(self.rays)


def orthants(n: int) -> Cones:
    """All of space, as the cones on which no input changes its sign."""
    signs = torch.cartesian_prod(*[torch.tensor([1.0, -1.0], dtype=torch.float64)] * n)
    rays = torch.diag_embed(signs.reshape(-1, n))
    return Cones(rays, torch.zeros(len(rays), 0, dtype=torch.long))


def cut(
    cones: Cones, planes: Float[Tensor, "#cone n"]
) -> tuple[Cones, Int[Tensor, " piece"], Int[Tensor, " piece"]]:
    """Cut each cone by its plane through the origin.

    The pieces, the side of each (1 where the plane's normal is at or above zero, 0 below), and the
    cone that each was cut from.
    """
    source = torch.arange(len(cones))
    planes = planes.expand(len(cones), -1)
    for a, b in combinations(range(cones.rays.shape[1]), 2):
        side = _sides(cones.rays, planes[source])
        crossed = side[:, a] * side[:, b] < 0
        if not bool(crossed.any()):
            continue
        split = cones.pick(crossed)
        middle = _crossing(split.rays[:, a], split.rays[:, b], planes[source[crossed]])
        one, other = split.rays.clone(), split.rays.clone()
        one[:, b], other[:, a] = middle, middle
        rays = torch.cat([cones.rays[~crossed], one, other])
        labels = torch.cat([cones.labels[~crossed], split.labels, split.labels])
        cones = Cones(rays, labels)
        source = torch.cat([source[~crossed], source[crossed], source[crossed]])
        if len(cones) > MOST:
            raise ModelError(
                f"there are more than {MOST:,} cones; exact regions are for a few neurons and "
                "inputs, activation_regions for more"
            )
    side = _sides(cones.rays, planes[source])
    return cones, (side.sum(1) >= 0).long(), source


def length(x: Tensor, dim: int = -1) -> Tensor:
    """The Euclidean length along one axis."""
    return x.square().sum(dim).sqrt()


def _sides(rays: Tensor, planes: Tensor) -> Tensor:
    """On which side of its cone's plane each ray [cone ray] lies: 1, -1, or 0 in it."""
    reach = length(rays) * length(planes)[:, None]
    height = (rays * planes[:, None]).sum(-1)
    return torch.where(height.abs() <= FLAT * reach, 0, height.sign())


def _crossing(a: Tensor, b: Tensor, planes: Tensor) -> Tensor:
    """The ray between two rays [cone n] that lies in the plane between them."""
    up = (a * planes).sum(-1, keepdim=True).abs()
    down = (b * planes).sum(-1, keepdim=True).abs()
    ray = (a * down + b * up) / (up + down)
    return ray / length(ray)[:, None]


def _angles(rays: Tensor) -> Tensor:
    """The part of the circle between two rays."""
    a, b = rays[:, 0], rays[:, 1]
    across = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).abs()
    return torch.atan2(across, (a * b).sum(-1)) / (2 * math.pi)


def _triangles(rays: Tensor) -> Tensor:
    """The part of the sphere between three rays."""
    unit = rays / length(rays)[:, :, None]
    a, b, c = (unit[:, i] for i in range(3))
    volume = (a * torch.cross(b, c, dim=1)).sum(-1).abs()
    around = 1 + (a * b).sum(-1) + (b * c).sum(-1) + (c * a).sum(-1)
    return 2 * torch.atan2(volume, around) / (4 * math.pi)
