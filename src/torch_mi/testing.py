# SPDX-License-Identifier: MIT OR Apache-2.0
"""Seeded tiny models of every family, and the laws that any backend must obey.

A law takes a model and token ids [batch pos], three or more long, and raises `AssertionError` where
the model breaks it. A new backend is tested with `check_laws(MIModel(backend))`. A law whose hook
points a backend does not offer has nothing to say about it and passes; of a backend that is not
causal, leave out `edits_reach_no_earlier_position` and `a_prefix_and_the_rest_are_the_whole`.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_mi.backends.transformer import Transformer
from torch_mi.cache import HookCache, Prefix, Residual
from torch_mi.errors import ConfigError, did_you_mean
from torch_mi.families import FAMILIES, read_config
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.interventions import Add, Intervention, Knockout, Replace, Scale
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Origin
from torch_mi.model import MIModel
from torch_mi.types import Tokens

if TYPE_CHECKING:
    from torch_mi.tokens.tokenizer import MITokenizer

CHARACTERS = ("<s>", "\n", *map(chr, range(32, 127)))
"""The vocabulary of a tiny model: what begins a text, and every printable character."""

COMMON: Mapping[str, object] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "vocab_size": len(CHARACTERS),
    "max_position_embeddings": 64,
    "rope_theta": 100.0,
    "bos_token_id": 0,
}

TRIES = 5
"""Steps that are taken in search of one across which no token changes its experts."""


def tiny(
    family: str,
    seed: int = 0,
    changes: Mapping[str, object] | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> MIModel:
    """A small random model of a family that reads and writes characters; nothing is downloaded.

    Every parameter is random, so that gains are not one and biases not zero. `changes` are keys of
    the family's `config.json`.
    """
    if family not in FAMILIES:
        raise ConfigError(
            f"there is no tiny model of {family!r}; there are {', '.join(FAMILIES)}"
            f"{did_you_mean(family, FAMILIES)}"
        )
    of = FAMILIES[family]
    raw = {"model_type": family, **COMMON, **of.respelt(of.tiny), **of.respelt(changes or {})}
    cfg = read_config(raw)[1]
    backend = Transformer(cfg)
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in backend.named_parameters():
            noise = torch.randn(value.shape, generator=dice)
            if value.ndim == 1:
                noise = name.endswith("weight") + 0.3 * noise
            elif name != "tokens.weight":
                noise = noise / value.shape[-1] ** 0.5
            value.copy_(noise)
    backend = backend.to(device, dtype).eval()
    reads = cfg.vocab_size == len(CHARACTERS)
    return MIModel(backend, _characters() if reads else None, Origin(f"tiny:{family}", family))


@cache
def _characters() -> "MITokenizer":
    """One token for each character, and one that begins a text."""
    from tokenizers import Regex, Tokenizer, decoders, models  # noqa: PLC0415 - late
    from tokenizers.pre_tokenizers import Split  # noqa: PLC0415 - tokenizers loads late
    from tokenizers.processors import TemplateProcessing  # noqa: PLC0415 - tokenizers loads late

    from torch_mi.tokens.tokenizer import MITokenizer  # noqa: PLC0415 - only with text

    table = {text: i for i, text in enumerate(CHARACTERS)}
    made = Tokenizer(models.WordLevel(table, unk_token="?"))
    made.pre_tokenizer = Split(Regex("[\\s\\S]"), "isolated")
    made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.decoder = decoders.Fuse()
    made.add_special_tokens(["<s>"])  # pyright: ignore[reportUnknownMemberType]
    return MITokenizer(made)


def random_tokens(model: MIModel, batch: int = 2, pos: int = 9, seed: int = 0) -> Tokens:
    """Token ids [batch pos], the same for the same seed."""
    dice = torch.Generator().manual_seed(seed)
    return torch.randint(model.vocab_size, (batch, pos), generator=dice)


def every_hook_fires(model: MIModel, tokens: Tensor) -> None:
    """Every place on offer is reached, with the shape that was declared."""
    seen = model.forward(tokens, _everything(model))
    for hook in model.hooks:
        shape, found = _shape(model, hook, tokens), tuple(seen[hook].shape)
        _must(found == shape, f"{hook!r} is declared {shape} and was {found}")
    _must(len(seen) == len(model.hooks), "a run captured more places than the model offers")


def watching_changes_nothing(model: MIModel, tokens: Tensor) -> None:
    """Explicit runs give the same bits, watched or not; fused ones agree with them."""
    bare = model.forward(tokens, attention="explicit").output
    seen = model.forward(tokens, _everything(model), attention="explicit").output
    _must(torch.equal(bare, seen), "capturing everything changed the logits")
    for hook in model.hooks:
        seen = model.forward(tokens, HookSpec().capture(hook), attention="explicit").output
        _must(torch.equal(bare, seen), f"capturing {hook!r} changed the logits")
    _agree("fused logits", model.forward(tokens).output, bare)
    _agree("watched logits", model.forward(tokens, _everything(model)).output, bare)


def identity_edits_change_nothing(model: MIModel, tokens: Tensor) -> None:
    """Times one, plus zero, and a value in its own place leave a run as it was."""
    plain = model.forward(tokens, _everything(model), attention="explicit")
    for point in _editable(model):
        places = point.on(model.num_layers)
        kinds: dict[str, list[Intervention]] = {
            "Scale(1)": [Scale(1.0) for _ in places],
            "Add(0)": [Add(torch.zeros(())) for _ in places],
            "Replace(itself)": [Replace(plain[hook]) for hook in places],
        }
        for kind, edits in kinds.items():
            spec = _everything(model)
            for hook, edit in zip(places, edits, strict=True):
                spec.intervene(hook, edit)
            edited = model.forward(tokens, spec, attention="explicit")
            for name, value in plain.items():
                _agree(f"{name} after {kind} at {point.name}", edited[name], value)
            fired = [receipt.times for receipt in edited.receipts]
            _must(fired == [1] * len(places), f"{kind} at {point.name} fired {fired} times")


def the_residual_stream_adds_up(model: MIModel, tokens: Tensor) -> None:
    """What layers write is what the stream gains, in plain runs and in edited ones."""
    stream = (HookPoint.ResidPre, HookPoint.AttnOut, HookPoint.ResidMid)
    rest = (HookPoint.MlpOut, HookPoint.ResidPost)
    if not {*stream, *rest} <= model.backend.hook_points:
        return
    edits = HookSpec().intervene(HookPoint.AttnOut, Scale(1.5)).intervene(rest[0], Scale(-0.5))
    for spec in (HookSpec(), edits):
        seen = model.forward(tokens, HookSpec().capture(*stream, *rest) | spec)
        for layer in range(model.num_layers):
            before, attn, mid = (seen[point(layer)] for point in stream)
            mlp, after = (seen[point(layer)] for point in rest)
            _must(torch.equal(before + attn, mid), f"ResidPre + AttnOut ≠ ResidMid in {layer}")
            _must(torch.equal(mid + mlp, after), f"ResidMid + MlpOut ≠ ResidPost in {layer}")
            last = seen[HookPoint.ResidPost(layer - 1)] if layer else before
            _must(torch.equal(before, last), f"what leaves layer {layer - 1} enters no other")


def the_parts_add_up(model: MIModel, tokens: Tensor) -> None:
    """Experts make up the MLP's output, and heads attention's, but for a bias."""
    whole, part, shared = HookPoint.MlpRawOut, HookPoint.ExpertOut, HookPoint.SharedExpertOut
    seen = model.forward(tokens, _everything(model))
    for layer in range(model.num_layers):
        points = model.backend.layer_points(layer)
        if part in points:
            made = seen[part(layer)].sum(2)
            made = made + seen[shared(layer)] if shared in points else made
            _agree(f"sums of the experts of layer {layer}", made, seen[whole(layer)])
        if HookPoint.AttnResult in points and not model.backend.norms_attention_output:
            rest = seen[HookPoint.AttnOut(layer)] - seen[HookPoint.AttnResult(layer)].sum(2)
            bias = rest[:1, :1] * model.backend.adds_attention_bias
            _agree(f"what no head of layer {layer} adds", rest, bias.expand_as(rest))


def edits_reach_no_earlier_position(model: MIModel, tokens: Tensor) -> None:
    """What is done at a position changes it and what follows, even if it tries to look ahead."""
    at = tokens.shape[1] // 2
    plain = model.forward(tokens, attention="explicit").output
    changed = torch.cat([tokens[:, :at], (tokens[:, at:] + 1) % model.vocab_size], 1)
    _agree("logits before a new token", _logits(model, changed)[:, :at], plain[:, :at])
    dice = torch.Generator().manual_seed(0)
    for point in _editable(model):
        axis = "query" if "query" in point.axes else "pos"
        index = At(query=at) if axis == "query" else At(pos=at)
        shape = _shape(model, point.on(model.num_layers)[0], tokens)
        rest = [size for name, size in zip(point.axes, shape, strict=True) if name != axis]
        noise = torch.rand(rest, generator=dice)
        for edit in (Replace(noise + 0.1, at=index), Add(noise, at=index)):
            edited = _logits(model, tokens, HookSpec().intervene(point, edit))
            what = f"{edit!r} at {point.name}"
            _agree(f"logits before {what}", edited[:, :at], plain[:, :at])
            _must(not torch.equal(edited[:, at], plain[:, at]), f"{what} changed nothing there")
        whole = HookSpec().intervene(point, Replace(torch.rand(shape, generator=dice) + 0.1))
        what = f"logits before a new token, with all of {point.name} replaced"
        ahead, behind = _logits(model, changed, whole), _logits(model, tokens, whole)
        _agree(what, ahead[:, :at], behind[:, :at])


def any_layer_can_be_resumed(model: MIModel, tokens: Tensor) -> None:
    """A run from a layer's residual stream ends as the whole run did; so does one cut in two."""
    plain = model.forward(tokens, _everything(model), attention="explicit")
    for layer in range(model.num_layers):
        start = Residual(layer, plain[HookPoint.ResidPre(layer)])
        spec = HookSpec().capture(HookPoint.ResidPost)
        resumed = model.forward(start, spec, attention="explicit")
        _agree(f"logits of a run from layer {layer}", resumed.output, plain.output, 1e-6)
        _must(len(resumed) == model.num_layers - layer, f"a run from {layer} ran other layers")
    for layer in range(model.num_layers + 1):
        door = model.forward(tokens, stop=layer, attention="explicit").residual
        _must(door.layer == layer, f"a run to layer {layer} stopped at {door.layer}")
        ended = model.forward(door, attention="explicit").output
        _agree(f"logits of a run cut at layer {layer}", ended, plain.output, 1e-6)


def a_prefix_and_the_rest_are_the_whole(model: MIModel, tokens: Tensor) -> None:
    """Cut anywhere, or run token by token, a text gives the same logits, stream and patterns."""
    pos = tokens.shape[1]
    if model.backend.grows_differently(1, pos):
        return
    spec = _everything(model)
    whole = model.forward(tokens, spec)
    for cut in range(1, pos):
        prefix = model.forward(tokens[:, :cut], after=Prefix()).prefix
        _same_tail(model.forward(tokens[:, cut:], spec, after=prefix), whole, cut)
    prefix, steps = Prefix(), list[Tensor]()
    for i in range(pos):
        step = model.forward(tokens[:, i : i + 1], after=prefix)
        prefix = step.prefix
        steps.append(step.output)
    _agree("logits of a run token by token", torch.cat(steps, 1), whole.output)


def _same_tail(rest: HookCache, whole: HookCache, cut: int) -> None:
    _agree(f"logits after a prefix of {cut}", rest.output, whole.output[:, cut:])
    for name, value in whole.items():
        hook = Hook.parse(name)
        axis = hook.point.axes.index("query" if "query" in hook.point.axes else "pos")
        tail = value.narrow(axis, cut, value.shape[axis] - cut)
        _agree(f"{hook!r} after a prefix of {cut}", rest[hook], tail)


def knocked_out_edges_are_exactly_gone(model: MIModel, tokens: Tensor) -> None:
    """A barred edge has no probability, the others share it all, and a blind row takes nothing."""
    if HookPoint.AttnScores not in _editable(model):
        return
    at, points = tokens.shape[1] // 2, (HookPoint.AttnPattern, HookPoint.ResidPre)

    def without(edges: At) -> HookCache:
        spec = HookSpec().capture(*points).intervene(HookPoint.AttnScores, Knockout(at=edges))
        return model.forward(tokens, spec, grad=True)

    seen, dark = without(At(query=at, key=at)), without(At(query=at))
    for layer in range(model.num_layers):
        pattern = seen[HookPoint.AttnPattern(layer)]
        _must(bool((pattern[:, :, at, at] == 0).all()), f"a barred edge of layer {layer} is open")
        _agree(f"sums of the rows of layer {layer}", pattern.sum(-1), torch.ones(()))
        row = dark[HookPoint.AttnPattern(layer)][:, :, at]
        _must(bool((row == 0).all()), f"a row of layer {layer} that may see nothing sees something")
    _must(bool(dark.output.isfinite().all()), "a row that may see nothing made logits infinite")
    slope = _slopes(dark.output.sum(), [dark[HookPoint.ResidPre(0)]])[0]
    _must(slope is None or bool(slope.isfinite().all()), "a blind row made gradients infinite")


def padding_is_not_seen(model: MIModel, tokens: Tensor) -> None:
    """Rows of a padded batch, filled up on either side, run as they run alone."""
    pos = tokens.shape[1]
    lengths = [max(1, pos - 3 * i) for i in range(len(tokens))]
    if model.backend.grows_differently(min(lengths), pos):
        return
    left = torch.tensor([[i >= pos - n for i in range(pos)] for n in lengths])
    spec = _everything(model)
    for side, mask in {"left": left, "right": left.flip(1)}.items():
        padded = tokens.masked_fill(~mask, 0)
        ran = model.forward(padded, spec, attention_mask=mask)
        fused = model.forward(padded, attention_mask=mask).output
        _must(bool(ran.output.isfinite().all()), f"{side} padding made logits infinite")
        for row, real in enumerate(mask):
            alone = model.forward(padded[row, real], spec)
            what = f"of row {row}, padded on the {side}"
            _agree(f"fused logits {what}", fused[row, real], alone.output[0])
            for name, value in alone.items():
                axes = Hook.parse(name).point.axes
                found = ran[name][row]
                for axis in [i - 1 for i, a in enumerate(axes) if a in ("pos", "query", "key")]:
                    found = found.index_select(axis, real.nonzero().flatten())
                _agree(f"{name} {what}", found, value[0])


def captures_can_be_differentiated(model: MIModel, tokens: Tensor) -> None:
    """The gradient at every place is what a small change there does; without `grad` is no graph."""
    bare = model.forward(tokens, _everything(model))
    _must(not any(x.requires_grad for x in bare.values()), "a run without grad built a graph")
    seen = model.forward(tokens, _everything(model), grad=True, attention="explicit")
    dice = torch.Generator().manual_seed(0)
    weights = torch.randn(seen.output.shape, generator=dice)
    hooks = [hook for hook, value in seen.items() if value.is_floating_point()]
    slopes = _slopes((seen.output * weights).sum(), [seen[hook] for hook in hooks])
    for hook, slope in zip(hooks, slopes, strict=True):
        if slope is None:
            raise AssertionError(f"the logits cannot be differentiated by {hook!r}")
        _must(bool(slope.isfinite().all()), f"the gradient at {hook!r} is not finite")
        if Hook.parse(hook).point not in _editable(model):
            continue
        for _ in range(TRIES):
            step = torch.randn(slope.shape, generator=dice)
            size = 2e-3 * float(seen[hook].detach().nan_to_num(neginf=0).std()) / float(step.std())
            up, down = (_choosing(model, tokens, hook, s * size * step) for s in (1.0, -1.0))
            if all(torch.equal(up[name], down[name]) for name in up):
                break
        else:  # such a step always moves some token to another expert: there is no slope here
            continue
        ends = [end.output * weights for end in (up, down)]
        found = float((ends[0].double() - ends[1].double()).sum()) / (2 * size)
        wanted = float((slope.double() * step).sum())
        spread = float((slope * step).abs().square().sum().sqrt())
        close = abs(found - wanted) <= 0.03 * (spread + abs(wanted))
        _must(close, f"the slope at {hook!r} is {found}, its gradient says {wanted}")


def _choosing(model: MIModel, tokens: Tensor, hook: str, delta: Tensor) -> HookCache:
    """A run with `delta` added, and which experts it chose."""
    choices = model.backend.hook_points & {HookPoint.ExpertIndices}
    spec = HookSpec().capture(*choices).intervene(hook, Add(delta))
    return model.forward(tokens, spec, attention="explicit")


def the_last_residual_gives_the_logits(model: MIModel, tokens: Tensor) -> None:
    """Unembedding what leaves the last layer is what the model does."""
    last = HookPoint.ResidPost(model.num_layers - 1)
    seen = model.forward(tokens, HookSpec().capture(last))
    _agree("project_to_vocab", model.project_to_vocab(seen[last]), seen.output)


Law = Callable[[MIModel, Tensor], None]

LAWS: tuple[Law, ...] = (
    every_hook_fires,
    watching_changes_nothing,
    identity_edits_change_nothing,
    the_residual_stream_adds_up,
    the_parts_add_up,
    edits_reach_no_earlier_position,
    any_layer_can_be_resumed,
    a_prefix_and_the_rest_are_the_whole,
    knocked_out_edges_are_exactly_gone,
    padding_is_not_seen,
    captures_can_be_differentiated,
    the_last_residual_gives_the_logits,
)


def check_laws(
    model: MIModel, tokens: Tensor | None = None, *, without: Iterable[Law] = ()
) -> None:
    """Hold a model to every law, `without` those that do not apply to its kind."""
    left_out = list(without)
    for law in LAWS:
        if law not in left_out:
            law(model, random_tokens(model) if tokens is None else tokens)


def _everything(model: MIModel) -> HookSpec:
    return HookSpec().capture(*(p for p in HookPoint if p in model.backend.hook_points))


def _editable(model: MIModel) -> list[HookPoint]:
    return [p for p in HookPoint if p in model.backend.hook_points - model.backend.read_only]


def _logits(model: MIModel, tokens: Tensor, spec: HookSpec | None = None) -> Tensor:
    return model.forward(tokens, spec, attention="explicit").output


def _shape(model: MIModel, hook: Hook, tokens: Tensor) -> tuple[int, ...]:
    batch, pos = tokens.shape
    runs = {"batch": batch, "pos": pos, "query": pos, "key": pos}
    return tuple(axis if isinstance(axis, int) else runs[axis] for axis in model.hooks[hook])


def _slopes(end: Tensor, at: list[Tensor]) -> tuple[Tensor | None, ...]:
    _must(end.requires_grad, "a run with grad built no graph")
    return torch.autograd.grad(end, at, allow_unused=True)


def _must(holds: bool, what: str) -> None:  # noqa: FBT001 - it reads as a sentence
    if not holds:
        raise AssertionError(what)


def _agree(what: str, found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Equality up to `tolerance` of the largest finite entry."""
    if torch.equal(found, wanted):
        return
    wanted = wanted.expand_as(found) if wanted.ndim == 0 else wanted
    size = wanted.nan_to_num(neginf=0).abs().max().item()
    torch.testing.assert_close(
        found, wanted, rtol=0, atol=tolerance * max(1.0, size), msg=lambda m: f"{what}: {m}"
    )
