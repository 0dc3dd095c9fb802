# SPDX-License-Identifier: MIT OR Apache-2.0
"""One random llama-shaped model, in memory and on disk, and the libraries that can run it."""

import warnings
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.pairing import BenchmarkError
from torch_mi.model import MIModel

TOLERANCE = 1e-4
"""How far two libraries' float32 results may be apart."""


@dataclass(frozen=True)
class Shape:
    """The size of a llama-shaped model."""

    d_model: int
    layers: int
    heads: int
    d_mlp: int
    vocab: int

    @property
    def middle(self) -> int:
        """The layer whose residual stream is looked at."""
        return (self.layers - 1) // 2


SMALL = Shape(768, 12, 12, 2048, 32000)
"""GPT-2 small's width, depth and heads: 134 M parameters, 0.54 GB in float32."""
TINY = Shape(64, 2, 4, 128, 500)
"""For smoke tests and warm-ups."""


def has(package: str) -> bool:
    """Whether a peer is installed."""
    return find_spec(package) is not None


def need(package: str) -> None:
    """An error that says how to get a peer that is not installed."""
    if not has(package):
        raise BenchmarkError(
            f"{package} is not installed here; run `make bench`, which installs it"
        )


def has_hooked_transformer() -> bool:
    """Whether this TransformerLens still has `HookedTransformer`."""
    return has("transformer_lens") and int(metadata.version("transformer-lens").split(".")[0]) < 4


def llama(shape: Shape) -> Any:
    """A `transformers` llama with random weights, the same at every call, attention by SDPA."""
    need("transformers")
    from transformers import AutoModelForCausalLM, LlamaConfig  # noqa: PLC0415 - a peer

    torch.manual_seed(0)
    cfg = LlamaConfig(
        hidden_size=shape.d_model,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        intermediate_size=shape.d_mlp,
        vocab_size=shape.vocab,
        bos_token_id=None,
        eos_token_id=None,
    )
    return AutoModelForCausalLM.from_config(cfg, attn_implementation="sdpa").eval()


def save(shape: Shape, folder: Path, shard: str = "5GB") -> Path:
    """A folder with the model of that shape, in files of at most `shard`."""
    from transformers.utils import logging  # noqa: PLC0415 - a peer

    logging.disable_progress_bar()
    llama(shape).save_pretrained(folder, max_shard_size=shard)
    return folder


@dataclass(frozen=True)
class Peers:
    """The same weights in every library that is installed."""

    shape: Shape
    ours: MIModel
    hf: Any
    bridge: Any | None = None
    """TransformerLens's `TransformerBridge`: the `transformers` model with hooks."""
    hooked: Any | None = None
    """TransformerLens's own `HookedTransformer`, in versions before 4."""

    @property
    def lenses(self) -> dict[str, Any]:
        """The TransformerLens models there are, by name."""
        both = {"TransformerBridge": self.bridge, "HookedTransformer": self.hooked}
        return {name: model for name, model in both.items() if model is not None}

    def tokens(self, length: int) -> Tensor:
        """Random token ids [1 length]."""
        dice = torch.Generator().manual_seed(length)
        ids = torch.randint(0, self.shape.vocab, (1, length), generator=dice)
        return ids.to(self.ours.device)


def gather(shape: Shape, folder: Path, device: str = "cpu") -> Peers:
    """The model of that shape in every library; ours shares its weights with transformers."""
    hf = llama(shape).to(device)
    ours = MIModel.from_hf(hf)
    bridge = bridge_over(hf, folder, device) if has("transformer_lens") else None
    hooked = _hooked(hf, shape, device) if has_hooked_transformer() else None
    return Peers(shape, ours, hf, bridge, hooked)


def agree(what: str, a: Tensor, b: Tensor) -> None:
    """An error unless two results are the same within `TOLERANCE`."""
    if a.shape != b.shape:
        raise BenchmarkError(f"{what}: {list(a.shape)} and {list(b.shape)} are different shapes")
    apart = float((a - b).abs().max())
    if not apart <= TOLERANCE:
        raise BenchmarkError(f"{what} differ by {apart:.2g}, more than {TOLERANCE:g}")


def words() -> Any:
    """A tokenizer of two words, for peers that insist on one and are then given token ids."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - only for the peer
    from tokenizers.models import WordLevel  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - a peer

    model = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    return PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="b", eos_token="b", pad_token="b"
    )


def bridge_over(hf: Any, folder: Path, device: str) -> Any:
    """A bridge over a model of its own, from a folder with a tokenizer: it insists on one."""
    from transformer_lens.model_bridge import (  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - a peer, not everywhere
        TransformerBridge,
    )
    from transformers.utils import logging  # noqa: PLC0415 - a peer

    logging.disable_progress_bar()
    words().save_pretrained(folder)
    hf.save_pretrained(folder)
    return TransformerBridge.boot_transformers(str(folder), device=device)


def _hooked(hf: Any, shape: Shape, device: str) -> Any:
    """A `HookedTransformer` of the same arithmetic, with the weights copied over."""
    import transformer_lens as lens  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - a peer, not everywhere
    from transformer_lens.pretrained.weight_conversions import (  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - a peer, not everywhere
        convert_llama_weights,
    )

    cfg = lens.HookedTransformerConfig(
        n_layers=shape.layers,
        d_model=shape.d_model,
        n_heads=shape.heads,
        d_head=shape.d_model // shape.heads,
        d_mlp=shape.d_mlp,
        d_vocab=shape.vocab,
        n_ctx=1024,
        act_fn="silu",
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        eps=hf.config.rms_norm_eps,
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        rotary_dim=shape.d_model // shape.heads,
        rotary_base=10000,
        original_architecture="LlamaForCausalLM",
        init_weights=False,
        device=device,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = lens.HookedTransformer(cfg)
    model.load_state_dict(convert_llama_weights(hf, cfg), strict=False)
    return model.eval()
