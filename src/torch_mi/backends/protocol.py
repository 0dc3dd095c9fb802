# SPDX-License-Identifier: MIT OR Apache-2.0
"""What an architecture provides; `MIModel` provides everything else."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Offer, Tap
from torch_mi.types import Carry, Enters, Leaves, Logits, Resid, Tokens


@dataclass(frozen=True)
class Run:
    """What one forward pass is about, before any layer runs."""

    positions: Int[Tensor, "#batch pos"]
    """The position of each token, as position embeddings count it."""
    seen: int = 0
    """Tokens that came before, padding included."""
    padding: Bool[Tensor, "batch key"] | None = None
    """Where the tokens, those before included, are real; `None` if all are."""
    explicit: bool = False
    """Attention step by step in every layer, for bit-stable results."""


@dataclass(frozen=True)
class HeldNorm:
    """The linear part of a norm, once its denominator is held."""

    gain: Float[Tensor, "... d_model"]
    """With an axis of heads where each head has a norm of its own."""
    bias: Float[Tensor, "... d_model"] | None
    centred: bool
    """Whether the mean is taken off first."""

    def linear(self, x: Tensor, denominator: Tensor) -> Tensor:
        """A term [... d_model] of what is normed, after the norm; its bias is a term of its own."""
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        return x / denominator * self.gain.to(x.dtype)


@dataclass(frozen=True)
class Written:
    """What becomes of the heads' outputs on their way to the residual stream, in this order."""

    bias: Float[Tensor, " d_model"] | None = None
    norm: HeldNorm | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class MixedWritten:
    """What becomes of what the heads of a recurrent layer read, on its way to the residual stream.

    It is normed, with the denominators at `RwkvNormScale`; multiplied by what is at `gate`; and
    goes through the matrix.
    """

    matrix: Float[Tensor, "d_model head d_value"]
    norm: HeldNorm | None = None
    """Gain and bias [head d_value]."""
    gate: HookPoint | None = None
    gated_first: bool = False
    """Whether the gate comes before the norm."""
    bonus_after: bool = False
    """Whether what is at `RwkvBonus` is added after the norm, and not part of what is read."""
    bias: Float[Tensor, " d_model"] | None = None
    """What the matrix comes with."""


@runtime_checkable
class MIBackend(Protocol):
    """An architecture: an embedding, a stack of blocks, an unembedding.

    `begin` makes what the layers of one run share (rotary tables, masks); the other three are the
    forward pass. `block` returns what this layer hands on to later tokens beside its output.
    """

    @property
    def hook_points(self) -> frozenset[HookPoint]:
        """The kinds of places there are anywhere in this model."""
        ...

    def layer_points(self, layer: int) -> frozenset[HookPoint]:
        """The kinds of places there are in one layer."""
        ...

    @property
    def read_only(self) -> frozenset[HookPoint]:
        """Points that can be captured but not edited."""
        ...

    @property
    def always_explicit(self) -> bool:
        """Whether attention runs step by step even where nobody looks (for soft-caps)."""
        ...

    @property
    def cfg(self) -> object:
        """The configuration: a frozen dataclass."""
        ...

    @property
    def n_layers(self) -> int: ...
    @property
    def sizes(self) -> Mapping[str, int]:
        """d_model, head, kv_head, d_head, d_value, d_mlp, vocab …, as far as there are such axes.

        `vocab` is how many logits there are; `embedding` knows how many tokens can be read.
        """
        ...

    @property
    def embedding(self) -> Tensor:
        """The embedding matrix [vocab, d_model], before any scale."""
        ...

    @property
    def unembedding(self) -> Tensor:
        """The unembedding matrix [vocab, d_model]."""
        ...

    @property
    def unembedding_bias(self) -> Tensor | None:
        """What is added to the logits [vocab], if anything is."""
        ...

    @property
    def logit_scale(self) -> float:
        """What the unembedding's output is multiplied by, bias included."""
        ...

    def attention_written(self, layer: int) -> Written:
        """What becomes of the outputs of one layer's heads."""
        ...

    def mixed_written(self, layer: int) -> MixedWritten | None:
        """What becomes of what one layer's heads read of their state; `None` without a state."""
        ...

    def normed(self, layer: int, point: HookPoint, x: Tensor) -> Tensor:
        """What is read at `point`, AttnIn or MlpIn, of residual streams `x` [... d_model]."""
        ...

    @property
    def parallel(self) -> bool:
        """Whether the MLP of a layer reads the stream that its attention reads."""
        ...

    @property
    def causal(self) -> bool:
        """Whether no position can change what an earlier one computes."""
        ...

    @property
    def recurrent(self) -> bool:
        """Whether a layer hands on a state, and not something for each token."""
        ...

    def stream_points(self, layer: int) -> tuple[HookPoint, ...]:
        """What a layer's input consists of: `ResidPre`, and after it what else flows beside it."""
        ...

    @property
    def final_norm(self) -> HeldNorm | None:
        """What the final norm does to a normalised vector, if there is a final norm."""
        ...

    @property
    def norms_attention_output(self) -> bool:
        """Whether a norm or a multiplier stands between attention and the residual stream."""
        ...

    @property
    def adds_attention_bias(self) -> bool:
        """Whether attention adds a bias of its own to the residual stream."""
        ...

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]: ...
    def begin(self, run: Run) -> Any: ...
    def embed(self, tokens: Tokens, shared: Any, tap: Tap) -> Resid: ...
    def block(
        self, layer: int, x: Enters, shared: Any, tap: Tap, past: Carry
    ) -> tuple[Leaves, Carry]: ...
    def remember(self, layer: int, x: Enters, shared: Any, tap: Tap, past: Carry) -> Carry:
        """What `block` hands on to later tokens, without the rest of the layer."""
        ...

    def unembed(self, x: Resid, tap: Tap) -> Logits: ...

    def grows_differently(self, before: int, total: int) -> bool:
        """Whether a run of `total` tokens treats its first `before` unlike a run of those alone."""
        ...


@runtime_checkable
class ReadsNumbers(Protocol):
    """A backend whose prompts are numbers [batch pos], and not token ids."""

    reads_numbers: int
    """How many of them a prompt has at most."""


def offer_of(backend: MIBackend) -> Offer:
    """What a backend has to offer to a spec, layer by layer."""
    layers = range(backend.n_layers)
    within = tuple(backend.layer_points(layer) for layer in layers)
    return Offer(backend.hook_points, len(layers), backend.read_only, within=within)


def stream_width(backend: MIBackend, layer: int) -> int:
    """How wide what enters a layer is."""
    sizes = backend.sizes
    return sum(
        math.prod(sizes[axis] for axis in point.axes if axis not in ("batch", "pos"))
        for point in backend.stream_points(layer)
    )
