# SPDX-License-Identifier: MIT OR Apache-2.0
"""The front door: a model, and the one call that runs it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from torch_mi.backends.protocol import MIBackend, ReadsNumbers, Run, offer_of, stream_width
from torch_mi.cache import HookCache, Prefix, Ran, Residual
from torch_mi.errors import ModelError, TokenizerError
from torch_mi.hooks.coordinates import Frame, Text
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.hooks.spec import HookSpec, frozen
from torch_mi.hooks.trace import Trace, silent
from torch_mi.manifest import Manifest, Origin, describe_spec, fingerprint, versions
from torch_mi.memory import running
from torch_mi.prompts import Batch, Prompt, read_numbers, read_prompt, spelt
from torch_mi.results import describe
from torch_mi.types import Carry, Logits, Tokens, numbers

if TYPE_CHECKING:
    from torch_mi.config.transformer import TransformerConfig
    from torch_mi.forecasting import Footprint
    from torch_mi.generate import GenerationResult
    from torch_mi.rehearsal import Rehearsal
    from torch_mi.tokens.tokenizer import MITokenizer

AttentionMode = Literal["auto", "explicit"]


@dataclass(frozen=True)
class _Pass:
    """How one run goes: what is watched, what came before, which layers, what is kept."""

    run: Run
    trace: Trace
    prefix: Prefix
    layers: range
    keep: bool
    ends: bool


class MIModel:
    """A model you can look inside: a backend, a tokenizer, and one way to run them."""

    def __init__(
        self,
        backend: MIBackend,
        tokenizer: "MITokenizer | None" = None,
        origin: Origin | None = None,
    ) -> None:
        self.backend = backend
        self.origin = origin or Origin("unnamed", "custom")
        self._tokenizer = tokenizer
        self._offer = offer_of(backend)

    @staticmethod
    def from_pretrained(  # noqa: PLR0913 - the other door
        source: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: "torch.dtype | Literal['auto']" = torch.float32,
        token: str | None = None,
        local_files_only: bool = False,
        adapter: str | Path | None = None,
    ) -> "MIModel":
        """Load a model (Hub id, folder, GGUF file, `"demo"`), with a LoRA `adapter` merged into it.

        `device` is the first GPU unless given; `dtype="auto"` the checkpoint's own. Runs no code.
        """
        from torch_mi.loading import Request, load  # noqa: PLC0415

        return load(source, Request(revision, token, local_files_only, adapter), device, dtype)

    @staticmethod
    def from_hf(hf_model: Any, tokenizer: Any = None) -> "MIModel":
        """Wrap a `transformers` model that is in memory; the two share their parameters."""
        from torch_mi.loading import adopt  # noqa: PLC0415 - loading builds models

        return adopt(hf_model, tokenizer)

    @staticmethod
    def from_config(
        cfg: "TransformerConfig",
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        tokenizer: Any = None,
    ) -> "MIModel":
        """A new trainable model of a config (`TransformerConfig.toy`); one `seed`, one model.

        Matrices are normal with deviation 0.8 / sqrt(hidden_size), biases zero, norms plain.
        """
        from torch_mi.making import make  # noqa: PLC0415 - making builds models

        return make(cfg, seed, device, dtype, tokenizer)

    def parameters(self) -> Iterator[Tensor]:
        """Every weight, for an optimiser: `torch.optim.AdamW(model.parameters())`."""
        return (weight for _, weight in self.backend.named_parameters())

    def save(self, folder: str | Path) -> Path:
        """Write config, weights and tokenizer to a folder, for `from_pretrained` to read."""
        from torch_mi.making import save  # noqa: PLC0415 - making builds models

        return save(self, folder)

    def forward(  # noqa: PLR0913 - the one door
        self,
        start: "Prompt | Residual",
        spec: HookSpec | None = None,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        after: Prefix | None = None,
        stop: int | None = None,
        attention: AttentionMode = "auto",
        grad: bool = False,
    ) -> HookCache:
        """Run from a prompt or a residual stream, to the logits or to the door of layer `stop`.

        `start` is text, token ids [pos] or [batch pos], a list of either, or a `Residual`. Texts
        of different lengths are padded on the left. `attention_mask` [batch pos] is true (1) at
        real tokens; `position_ids` [batch pos] are counted from the mask unless given.
        `after` is a prefix already run; given one, even an empty one, the result has the prefix
        that this run leaves behind. `attention="explicit"` never uses a fused kernel, for results
        that are the same to the last bit whether or not anyone looks. With `grad`, every tensor
        can be differentiated.
        """
        if attention not in ("auto", "explicit"):
            raise ModelError(f"attention={attention!r} is neither 'auto' nor 'explicit'")
        prefix = Prefix.before(after, causal=self.backend.causal)
        spec = frozen(spec)
        layers = self._layers(start, stop, prefix)
        batch = self._read(start, attention_mask, position_ids, prefix)
        frame = self._frame(batch, prefix, layers, ends=stop is None)
        trace = Trace(spec, self._offer, frame)
        run = Run(batch.positions, prefix.seen, batch.padding, attention == "explicit")
        passing = _Pass(run, trace, prefix, layers, keep=after is not None, ends=stop is None)
        with torch.set_grad_enabled(grad), running(frame.batch, frame.pos):
            end, carries = self._through(start, batch, passing)
        captured, before = trace.finish()
        kept = None if after is None else batch.follow(prefix, carries, self.backend)
        made = partial(self._manifest, batch, spec, attention, trace)
        receipts = tuple(trace.receipts)
        ran = Ran(end, captured, before, receipts, batch.tokens, batch.real, kept, made)
        return HookCache(ran)

    __call__ = forward

    def run_with_cache(
        self, prompt: Prompt, names: "str | Sequence[str] | None" = None
    ) -> tuple[Logits, HookCache]:
        """Logits and cache, as TransformerLens returns them; `names` limits what is captured."""
        every = [p for p in HookPoint if p in self.backend.hook_points]
        wanted = [names] if isinstance(names, str) else every if names is None else names
        cache = self.forward(prompt, HookSpec().capture(*wanted))
        return cache.output, cache

    def encode(self, text: str | Sequence[str]) -> Tokens:
        """Token ids [batch pos] of a text, or of texts that come out equally long."""
        batch = read_prompt(text, self.tokenizer)
        if batch.real is not None:
            said = f"these texts are {numbers(batch.real.sum(1))} tokens long"
            raise TokenizerError(f"{said}; give the list to forward(), which pads it")
        return batch.tokens.to(self.device)

    def decode(self, tokens: Tensor | Sequence[int] | int) -> str:
        """The text of token ids."""
        return self.tokenizer.decode(tokens)

    def to_str_tokens(self, prompt: Prompt) -> list[str]:
        """The pieces of text that the tokens of one prompt stand for."""
        batch = read_prompt(prompt, self._tokenizer)
        if len(batch.tokens) != 1:
            raise TokenizerError(f"to_str_tokens takes one prompt, got {len(batch.tokens)}")
        return self.tokenizer.to_str_tokens(batch.rows()[0])

    def project_to_vocab(self, hidden: Tensor) -> Tensor:
        """Logits [... vocab] of residual-stream vectors [... d_model].

        Through the final norm, the unembedding and the final soft-cap: the last layer's
        `ResidPost` gives the model's own logits.
        """
        if hidden.shape[-1:] != (self.hidden_size,):
            raise ModelError(
                f"project_to_vocab needs vectors of {self.hidden_size}, got {list(hidden.shape)}"
            )
        flat = hidden.reshape(1, -1, self.hidden_size).to(self.device, self.dtype)
        logits = self.backend.unembed(flat, silent)
        return logits.reshape(*hidden.shape[:-1], -1)

    def embedding_vector(self, token: int | str) -> Tensor:
        """A token's row [d_model] of the embedding matrix, before any embedding scale."""
        return self.backend.embedding[self.token_id(token)].detach()

    def unembedding_vector(self, token: int | str) -> Tensor:
        """A token's direction [d_model] in the unembedding matrix."""
        return self.backend.unembedding[self.token_id(token, output=True)].detach()

    def token_id(self, token: int | str, *, output: bool = False) -> int:
        """The id of a word that is one token, or the id itself, checked; `output` is of a logit."""
        count = self.backend.sizes["vocab"] if output else self.vocab_size
        if isinstance(token, str) and count != self.vocab_size:
            raise TokenizerError(f"{count} logits, none for a word: {token!r} must be a number")
        found = self.tokenizer.find_token_id(token) if isinstance(token, str) else int(token)
        if not 0 <= found < count:
            raise TokenizerError(f"token id {found} is out of range: 0 … {count - 1}")
        return found

    def generate(  # noqa: PLR0913 - sampling is made of choices
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 20,
        spec: HookSpec | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop_tokens: Sequence[int | str] | None = None,
        use_cache: bool | None = None,
        after: Prefix | None = None,
    ) -> "GenerationResult":
        """Continue one prompt, `after` a prefix if given, with the edits of `spec` at every step.

        Greedy at `temperature=0`. Stops after one of `stop_tokens` (the model's own unless given),
        which is not part of the text. `use_cache=None` carries keys and values, or a state, over
        where that is the same as running all again; `True` and `False` force one or the other.
        `mi.stream` yields step by step.
        """
        from torch_mi.generate import Generation, Sampling  # noqa: PLC0415 - it runs models

        sampling = Sampling(temperature, top_k, top_p, seed)
        stops = None if stop_tokens is None else [self.token_id(t) for t in stop_tokens]
        made = Generation(self, prompt, spec, sampling, stops, use_cache)
        return made.following(after).finish(max_new_tokens)

    @property
    def tokenizer(self) -> "MITokenizer":
        """The tokenizer; an error that says why, if there is none."""
        if self._tokenizer is None:
            raise TokenizerError(f"no tokenizer: {self.origin.tokenizer_problem}")
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        return self._tokenizer is not None

    @property
    def num_layers(self) -> int:
        return self.backend.n_layers

    @property
    def hidden_size(self) -> int:
        return self.backend.sizes["d_model"]

    @property
    def vocab_size(self) -> int:
        """How many tokens there are to read."""
        return len(self.backend.embedding)

    @property
    def num_heads(self) -> int:
        return self.backend.sizes["head"]

    @property
    def num_kv_heads(self) -> int:
        return self.backend.sizes["kv_head"]

    @property
    def head_dim(self) -> int:
        return self.backend.sizes["d_head"]

    @property
    def device(self) -> torch.device:
        return self.backend.device

    @property
    def dtype(self) -> torch.dtype:
        return self.backend.dtype

    @property
    def config(self) -> Any:
        """The backend's configuration."""
        return self.backend.cfg

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for _, p in self.backend.named_parameters())

    @property
    def hooks(self) -> Mapping[Hook, tuple[int | str, ...]]:
        """Every place on offer, with its shape; what a run decides is a name."""
        return self._offer.shapes(self.backend.sizes)

    def memory_footprint(self) -> "Footprint":
        """The bytes of the parameters by kind, dtype and device."""
        from torch_mi.forecasting import footprint  # noqa: PLC0415 - on demand

        return footprint(self)

    @property
    def rehearsal(self) -> "Rehearsal":
        """This model without data: `rehearsal.estimate(prompt, spec)` says what a run takes."""
        from torch_mi.rehearsal import Rehearsal  # noqa: PLC0415 - it is a model itself

        return Rehearsal(self)

    @property
    def fingerprint(self) -> str:
        """A digest that tells these weights, as they are now, from others."""
        return fingerprint(self.backend.named_parameters())

    def __repr__(self) -> str:
        return describe(self)

    def _layers(self, start: "Prompt | Residual", stop: int | None, prefix: Prefix) -> range:
        first = start.layer if isinstance(start, Residual) else 0
        last = self.num_layers if stop is None else stop
        if not 0 <= first <= last <= self.num_layers:
            raise ModelError(
                f"a run from layer {first} to the door of layer {last} is not possible: "
                f"this model has layers 0 … {self.num_layers - 1}"
            )
        prefix.check(range(first, last))
        return range(first, last)

    def _read(
        self,
        start: "Prompt | Residual",
        mask: Tensor | None,
        positions: Tensor | None,
        prefix: Prefix,
    ) -> Batch:
        """The prompt as tokens on the model's device, with padding and positions settled."""
        if not isinstance(start, Residual):
            return batch_of(self, start).place(mask, positions, prefix, self.device)
        batch = Batch.blank(start.x, stream_width(self.backend, start.layer))
        return batch.place(mask, positions, prefix, self.device)

    def _frame(self, batch: Batch, prefix: Prefix, layers: range, *, ends: bool) -> Frame:
        columns, sizes, starts = batch.columns(), self.backend.sizes, batch.known

        def text(row: int) -> Text:
            return spelt(self.tokenizer, batch.with_prefix(prefix).rows()[row])

        said, shape = text if self.has_tokenizer and starts else None, (*batch.shape, prefix.seen)
        return Frame(*shape, sizes, layers, columns, said, begins=starts, ends=ends)

    def _through(
        self, start: "Prompt | Residual", batch: Batch, p: "_Pass"
    ) -> tuple[Tensor | Residual, dict[int, Carry]]:
        """The only loop over layers."""
        shared = self.backend.begin(p.run)
        if isinstance(start, Residual):
            x = start.x.to(self.device, self.dtype)
        else:
            x = self.backend.embed(batch.tokens, shared, p.trace.tap())
        carries: dict[int, Carry] = {}
        for layer in p.layers:
            past = p.prefix.carries.get(layer, ())
            x, carry = self.backend.block(layer, x, shared, p.trace.tap(layer), past)
            if p.keep:
                carries[layer] = carry
        end = self.backend.unembed(x, p.trace.tap()) if p.ends else Residual(p.layers.stop, x)
        return end, carries

    def _manifest(
        self, batch: Batch, spec: HookSpec | None, attention: AttentionMode, trace: Trace
    ) -> Manifest:
        return Manifest(
            model_id=self.origin.model_id,
            revision=self.origin.revision,
            weights=self.fingerprint,
            tokens=batch.ids(),
            spec=describe_spec(spec),
            attention=attention,
            explicit_layers=trace.explicit_layers(
                everywhere=attention == "explicit" or self.backend.always_explicit
            ),
            dtype=str(self.dtype).removeprefix("torch."),
            device=str(self.device),
            versions=versions(),
        )


def batch_of(model: MIModel, prompt: Prompt) -> Batch:
    """A prompt of any kind as token ids, padded on the left where lengths differ."""
    if isinstance(model.backend, ReadsNumbers):
        return Batch(read_numbers(prompt))
    known = model.tokenizer if model.has_tokenizer else None
    return read_prompt(prompt, known, model.origin.tokenizer_problem).checked(model.vocab_size)
