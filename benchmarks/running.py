# SPDX-License-Identifier: MIT OR Apache-2.0
"""Running one model in several libraries: bare, capturing everything, capturing one place."""

import ctypes
import gc
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.pairing import SMOKE, Effort, Pair, Row, Work, nothing, race, rows
from benchmarks.peers import Peers, agree
from torch_mi.cache import HookCache
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel

OURS = "torch-mi"
EVERYTHING = "torch-mi, every point"
LOOKED_AT = "torch-mi, every point, each looked at"
ONE = "torch-mi, one residual"

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, MOST = -1, -3, 2**31 - 1
"""Names of settings in glibc's `malloc.h`, and the largest value that they take."""


@dataclass(frozen=True)
class Setting:
    """How long the prompt is, how many threads run it, and for how long it is measured."""

    length: int
    threads: int
    effort: Effort

    def __str__(self) -> str:
        return f"{self.length} tokens, {self.threads} thread{'s' * (self.threads > 1)}"


def forward(peers: Peers, setting: Setting) -> list[Row]:
    """A plain run to the logits."""
    tokens = peers.tokens(setting.length)
    works: dict[str, Work] = {
        OURS: partial(peers.ours.forward, tokens),
        "transformers": partial(_hf, peers.hf, tokens),
    }
    for name, lens in peers.lenses.items():
        works[name] = partial(_logits, lens, tokens)
    ours = peers.ours(tokens).output
    agree("logits of torch-mi and transformers", ours, _hf(peers.hf, tokens).logits)
    for name, lens in peers.lenses.items():
        agree(f"logits of torch-mi and {name}", ours, _logits(lens, tokens))
    pairs = [Pair(OURS, "transformers", 1.0), *(Pair(OURS, name) for name in peers.lenses)]
    return _measured("forward", peers, setting, works, pairs)


def capture(peers: Peers, setting: Setting) -> list[Row]:
    """A run that captures every place, next to one that captures nothing."""
    tokens = peers.tokens(setting.length)
    works: dict[str, Work] = {
        OURS: partial(peers.ours.forward, tokens),
        EVERYTHING: partial(_everything, peers.ours, tokens),
        LOOKED_AT: partial(_looked_at, peers.ours, tokens),
    }
    pairs = [Pair(EVERYTHING, OURS, 1.15), Pair(LOOKED_AT, OURS)]
    for name, lens in peers.lenses.items():
        works[f"{name}, run_with_cache"] = partial(_cached, lens, tokens, None)
        pairs.append(Pair(EVERYTHING, f"{name}, run_with_cache"))
    _check_captures(peers, tokens)
    return _measured("capture", peers, setting, works, pairs)


def capture_kept(peers: Peers, setting: Setting) -> list[Row]:
    """The same in a process that does not give memory back to the system between runs.

    A capture has to be put somewhere. By default, glibc returns what the last run held, and the
    next one waits for the system to hand out the pages again, one by one.
    """
    if not keep_memory():
        return []
    return [replace(row, setting=f"{row.setting}, memory kept") for row in capture(peers, setting)]


def keep_memory() -> bool:
    """Tell glibc to keep freed memory for the rest of this process; false without a glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_THRESHOLD, MOST) and libc.mallopt(M_TRIM_THRESHOLD, MOST))


def residual(peers: Peers, setting: Setting) -> list[Row]:
    """A run that captures the residual stream after the middle layer."""
    tokens = peers.tokens(setting.length)
    place = HookPoint.ResidPost(peers.shape.middle)
    works: dict[str, Work] = {
        OURS: partial(peers.ours.forward, tokens),
        ONE: partial(_one, peers.ours, tokens, place),
        "transformers, output_hidden_states": partial(_hf, peers.hf, tokens, hidden=True),
    }
    pairs = [Pair(ONE, OURS), Pair(ONE, "transformers, output_hidden_states")]
    found = _one(peers.ours, tokens, place)[place]
    states = _hf(peers.hf, tokens, hidden=True).hidden_states
    agree(f"{place} and hidden_states", found, states[peers.shape.middle + 1])
    for name, lens in peers.lenses.items():
        agree(f"{place} of {name}", found, _cached(lens, tokens, str(place))[1][str(place)])
        works[f"{name}, names_filter"] = partial(_cached, lens, tokens, str(place))
        pairs.append(Pair(ONE, f"{name}, names_filter"))
    return _measured("residual", peers, setting, works, pairs)


def generation(peers: Peers, setting: Setting) -> list[Row]:
    """Greedy continuation with keys and values carried over."""
    tokens, new = peers.tokens(setting.length), 64 if setting.effort != SMOKE else 4
    ours = partial(peers.ours.generate, tokens, max_new_tokens=new, use_cache=True)
    theirs = partial(_hf_generate, peers.hf, tokens, new)
    agree(
        "continuations of torch-mi and transformers",
        torch.tensor(ours().tokens),
        theirs()[0, setting.length :].cpu(),
    )
    works: dict[str, Work] = {OURS: ours, "transformers": theirs}
    few = replace(setting, effort=replace(setting.effort, least=3))
    return _measured(f"generate {new}", peers, few, works, [Pair(OURS, "transformers")])


def _measured(
    case: str, peers: Peers, setting: Setting, works: dict[str, Work], pairs: Sequence[Pair]
) -> list[Row]:
    settle = torch.cuda.synchronize if peers.ours.device.type == "cuda" else nothing
    before = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        times = race(works, setting.effort, settle)
    finally:
        torch.set_num_threads(before)
        gc.collect()
    return rows(case, str(setting), times, pairs)


def _hf(model: Any, tokens: Tensor, *, hidden: bool = False) -> Any:
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False, output_hidden_states=hidden)


def _hf_generate(model: Any, tokens: Tensor, new: int) -> Tensor:
    mask = torch.ones_like(tokens)
    with torch.no_grad():
        return model.generate(
            tokens, attention_mask=mask, max_new_tokens=new, do_sample=False, use_cache=True
        )


def _logits(lens: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return lens(tokens)


def _cached(lens: Any, tokens: Tensor, names: str | None) -> Any:
    with torch.no_grad():
        return lens.run_with_cache(tokens, names_filter=names)


def _everything(model: MIModel, tokens: Tensor) -> HookCache:
    places = (point for point in HookPoint if point in model.backend.hook_points)
    return model.forward(tokens, HookSpec().capture(*places))


def _looked_at(model: MIModel, tokens: Tensor) -> list[Tensor]:
    cache = _everything(model, tokens)
    return [cache[name] for name in cache]


def _one(model: MIModel, tokens: Tensor, place: HookPoint | str) -> HookCache:
    return model.forward(tokens, HookSpec().capture(place))


def _check_captures(peers: Peers, tokens: Tensor) -> None:
    """Capturing changes no logits, and what is captured is what TransformerLens captures."""
    cache = _everything(peers.ours, tokens)
    agree("logits with and without captures", cache.output, peers.ours(tokens).output)
    layer = peers.shape.middle
    places = [HookPoint.AttnPattern, HookPoint.AttnZ, HookPoint.MlpPost, HookPoint.ResidPost]
    for name, lens in peers.lenses.items():
        theirs = _cached(lens, tokens, None)[1]
        for place in (str(point(layer)) for point in places):
            agree(f"{place} of torch-mi and {name}", cache[place], theirs[place])
