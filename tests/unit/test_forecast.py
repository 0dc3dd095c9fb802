# SPDX-License-Identifier: MIT OR Apache-2.0
"""What runs and models take, said before and measured after."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import torch_mi as mi
from torch_mi import forecasting, loading, memory, rehearsal, testing
from torch_mi.backends.transformer import Transformer
from torch_mi.cache import HookCache, Prefix, Residual
from torch_mi.errors import ConfigError, ModelError
from torch_mi.families import FAMILIES
from torch_mi.forecasting import Footprint, LoadForecast, RunForecast, guess, points_of, shortage
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.interventions import Apply, Replace, Scale
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.memory import MB
from torch_mi.model import MIModel

DEMO = Path(loading.__file__).parent / "demo"


def everything(model: MIModel) -> HookSpec:
    return HookSpec().capture(*(p for p in HookPoint if p in model.backend.hook_points))


def free(count: int | None) -> Callable[[object], int | None]:
    """A machine on which so much is free."""
    return lambda _device: count


def bytes_of(cache: HookCache) -> int:
    """The bytes of a cache's captures, each storage once."""
    stores = [x.untyped_storage() for x in (*cache.values(), *cache.before.values())]
    return sum({s.data_ptr(): s.nbytes() for s in stores}.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_captures_take_what_was_said(family: str):
    model = testing.tiny(family)
    tokens = testing.random_tokens(model)
    spec = everything(model)
    said = spec.estimate(model, tokens)
    found = model.forward(tokens, spec)
    assert said.points == tuple(points_of(found))
    assert said.captures == bytes_of(found)
    assert {p.point for p in said.points} == set(map(str, model.backend.hook_points))
    assert said.logits == found.output.untyped_storage().nbytes()
    carries = model.forward(tokens, after=Prefix()).prefix.carries
    kept = {t.untyped_storage().data_ptr(): t for carry in carries.values() for t in carry}
    assert said.keys_values == sum(t.untyped_storage().nbytes() for t in kept.values())
    assert said.captures + said.logits <= said.total + said.logits  # logits are a capture here
    assert said.captures <= said.total
    generous = tokens.numel() * guess(model, tokens.shape[1]) * 4
    assert said.total < generous


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "olmo2"])
def test_each_point_alone_takes_what_was_said(family: str):
    model = testing.tiny(family, changes={"num_hidden_layers": 1})
    tokens = testing.random_tokens(model)
    stage = model.rehearsal
    for point in model.backend.hook_points:
        spec = HookSpec().capture(point)
        said, found = stage.estimate(tokens, spec), model.forward(tokens, spec)
        assert said.captures == bytes_of(found), point
        assert bool(said.attention) == bool(
            model.backend.always_explicit or point in (HookPoint.AttnScores, HookPoint.AttnPattern)
        )


def peak(run: Callable[[], HookCache]) -> int:
    """The most that a run held at once, by torch's own record of what it took and gave back."""
    run()  # what is made once and kept
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler's own
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            ran = run()
    results: Any = watched.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    assert ran.output.isfinite().all()
    return most


RUNS: dict[str, tuple[HookSpec, dict[str, Any]]] = {
    "plain": (HookSpec(), {}),
    "explicit": (HookSpec(), {"attention": "explicit"}),
    "patterns": (HookSpec().capture(HookPoint.AttnPattern), {}),
    "edited": (HookSpec().intervene(HookPoint.AttnScores, Scale(0.5, at=At(head=1))), {}),
    "graph": (HookSpec().capture(HookPoint.ResidPost), {"grad": True}),
    "prefix": (HookSpec().capture(HookPoint.MlpOut), {"after": Prefix()}),
}


@pytest.mark.parametrize("how", RUNS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral"])
def test_the_most_a_run_holds_is_what_was_said(family: str, how: str):
    spec, choices = RUNS[how]
    model = testing.tiny(family, changes={"max_position_embeddings": 256})
    tokens = testing.random_tokens(model, 3, 120)
    said = model.rehearsal.estimate(tokens, spec, **choices)
    found = peak(lambda: model.forward(tokens, spec, **choices))
    # which experts see how many tokens is known only then
    slack = 0.02 if model.backend.sizes.get("expert") is None else 0.1
    assert said.total == pytest.approx(found, rel=slack)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("how", RUNS)
def test_the_most_a_run_holds_on_a_gpu_is_near_what_was_said(how: str):
    spec, choices = RUNS[how]
    changes = {"max_position_embeddings": 4096, "hidden_size": 512, "vocab_size": 5000}
    model = testing.tiny("llama", changes=changes, device="cuda")
    tokens = testing.random_tokens(model, 4, 512)
    model.forward(tokens, spec, **choices)  # what kernels keep for themselves
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model.forward(tokens, spec, **choices)
    found = torch.cuda.max_memory_allocated() - before
    said = model.rehearsal.estimate(tokens, spec, **choices)
    assert 0.8 < said.total / found < 1.25


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype):
    model = testing.tiny("qwen2", dtype=dtype)
    tokens = testing.random_tokens(model)
    spec = everything(model)
    said = spec.estimate(model, tokens)
    assert said.points == tuple(points_of(model.forward(tokens, spec)))
    kinds = {p.point: p.dtype for p in said.points}
    assert kinds["blocks.*.hook_attn_out"] == str(dtype).removeprefix("torch.")
    assert kinds["blocks.*.attn.hook_scores"] == str(dtype).removeprefix("torch.")


def test_prompts_of_every_kind():
    model = testing.tiny("llama")
    spec = HookSpec().capture(HookPoint.AttnResult)
    for prompt in ("a text", ["a text", "another of them"], [[1, 2, 3], [4]], [5, 6]):
        said = spec.estimate(model, prompt)
        found = model.forward(prompt, spec)
        assert (said.batch, said.pos) == found.output.shape[:2]
        assert said.captures == bytes_of(found)
    tokens = testing.random_tokens(model)
    start = Residual(1, torch.zeros(2, 9, 24))
    said = model.rehearsal.estimate(start, spec)
    assert said.captures == bytes_of(model.forward(start, spec))
    before = model.forward(tokens[:, :4], after=Prefix()).prefix
    said = model.rehearsal.estimate(tokens[:, 4:], spec, after=before)
    assert said.captures == bytes_of(model.forward(tokens[:, 4:], spec, after=before))


def test_edits_are_counted_and_code_is_not_run():
    model = testing.tiny("llama")
    tokens = testing.random_tokens(model)
    at = HookPoint.ResidPre

    def never(_x: Tensor, _hook: object) -> Tensor:
        raise AssertionError("it ran")

    captured = HookSpec().capture(at).capture(at, when="before")
    real = captured.copy().intervene(at, Apply(lambda x, _: x * 2, at=At(pos=3)))
    code = captured.copy().intervene(at, Apply(never, at=At(pos=3)))
    found = model.forward(tokens, real)
    assert code.estimate(model, tokens).captures == bytes_of(found)
    assert code.estimate(model, tokens).captures == 2 * captured.estimate(model, tokens).captures
    value = torch.zeros(2, 9, 24)
    replaced = HookSpec().capture(at).intervene(at(1), Replace(value))
    assert replaced.estimate(model, tokens).captures == bytes_of(model.forward(tokens, replaced))


def test_an_estimate_leaves_the_model_alone():
    model = testing.tiny("gemma2")
    tokens = testing.random_tokens(model)
    print_of = model.fingerprint
    plain = model.forward(tokens).output
    everything(model).estimate(model, tokens)
    assert model.fingerprint == print_of
    assert torch.equal(model.forward(tokens).output, plain)
    assert model.device.type == "cpu"


def test_what_a_run_refuses_an_estimate_refuses():
    model = testing.tiny("llama")
    with pytest.raises(ModelError, match="out of range"):
        HookSpec().estimate(model, [10**6])
    with pytest.raises(mi.HookError, match="this model has no MlpMid"):
        HookSpec().capture(HookPoint.MlpMid).estimate(model, [1, 2])


class Looks(Transformer):
    """A backend whose arithmetic depends on its numbers."""

    def embed(self, tokens: Tensor, shared: Any, tap: Any) -> Tensor:
        x = super().embed(tokens, shared, tap)
        return x if x.sum().item() > 0 else -x


def test_a_backend_that_needs_its_numbers_says_so():
    model = MIModel(Looks(testing.tiny("llama").config))
    with pytest.raises(ModelError, match="a Looks cannot be run without data, so there is no"):
        HookSpec().estimate(model, [1, 2])


def test_a_warning_says_how_much_and_what_to_do(monkeypatch: pytest.MonkeyPatch):
    model = testing.tiny("llama")
    said = HookSpec().capture(HookPoint.AttnPattern).estimate(model, [1, 2, 3])
    assert said.fits
    assert not said.warning
    monkeypatch.setattr(rehearsal, "available_bytes", free(1024))
    said = HookSpec().estimate(model, [[1] * 60] * 9)
    assert not said.fits
    assert said.warning == (
        f"9 × 60 tokens need about {memory.human_bytes(said.total)} on cpu beside the weights, "
        f"and 1.0 KB are free ({memory.human_bytes(said.total - 1024)} short); use fewer tokens at "
        "a time, capture less, or load in bfloat16"
    )
    monkeypatch.setattr(rehearsal, "available_bytes", free(None))
    said = HookSpec().estimate(model, [1])
    assert said.fits
    assert not said.warning


def test_what_clearly_fits_is_not_looked_at_closely(monkeypatch: pytest.MonkeyPatch):
    model = testing.tiny("llama")
    spec = HookSpec().capture(HookPoint.ResidPost)
    looked = list[object]()
    real = rehearsal.Rehearsal

    def look(subject: MIModel) -> rehearsal.Rehearsal:
        looked.append(subject)
        return real(subject)

    monkeypatch.setattr(rehearsal, "Rehearsal", look)
    assert not shortage(model, [1, 2, 3], spec)
    assert not looked
    for module in (forecasting, rehearsal):
        monkeypatch.setattr(module, "available_bytes", free(3 * MB))
    assert not shortage(model, [[1] * 60] * 4, spec)
    assert looked
    for module in (forecasting, rehearsal):
        monkeypatch.setattr(module, "available_bytes", free(10_000))
    assert "short" in shortage(model, [[1] * 60] * 4, spec, keep=True)


def test_results_are_saved_and_shown(tmp_path: Path):
    model = testing.tiny("llama")
    said = HookSpec().capture(HookPoint.AttnZ).estimate(model, [1, 2, 3])
    assert RunForecast.load(said.save(tmp_path / "r.json")) == said
    assert "blocks.*.attn.hook_z" in repr(said)
    assert "at most at once" in repr(said)
    found = model.memory_footprint()
    assert Footprint.load(found.save(tmp_path / "f.json")) == found
    assert "blocks.*.mlp.down" in repr(found)
    loaded = mi.forecast("demo", device="cpu")
    assert LoadForecast.load(loaded.save(tmp_path / "l.json")) == loaded
    assert "it fits" in repr(loaded)
    assert max(map(len, f"{said}\n{found}\n{loaded}".splitlines())) <= 80


@pytest.mark.parametrize("family", FAMILIES)
def test_a_footprint_is_all_parameters(family: str):
    model = testing.tiny(family)
    found = model.memory_footprint()
    assert found.parameters == model.num_parameters
    assert found.total == sum(p.nbytes for _, p in model.backend.named_parameters())
    for what in ("kind", "dtype", "device"):
        assert sum(found.by(what).values()) == found.total
    assert found.by("kind")["tokens"] == model.backend.embedding.nbytes
    assert mi.forecast(f"tiny:{family}", device="cpu").footprint.parts == found.parts


def test_dtypes_are_told_apart():
    model = testing.tiny("llama")
    cast("Any", model.backend).norm.to(torch.float64)
    assert model.memory_footprint().by("dtype")["float64"] == 24 * 8


def test_a_forecast_is_what_loading_takes_and_needs_no_weights(tmp_path: Path):
    shutil.copy(DEMO / "config.json", tmp_path)
    loaded = MIModel.from_pretrained("demo", device="cpu", dtype=torch.bfloat16)
    said = mi.forecast(tmp_path, device="cpu", dtype=torch.bfloat16)
    assert said.footprint.parts == loaded.memory_footprint().parts
    assert said.free is not None
    assert said.fits
    whole = mi.forecast("demo", device="cpu", dtype="auto")
    assert set(whole.footprint.by("dtype")) == {
        str(MIModel.from_pretrained("demo", device="cpu", dtype="auto").dtype).split(".")[1]
    }


def test_a_forecast_of_what_does_not_fit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forecasting, "available_bytes", free(MB))
    said = mi.forecast("demo", device="cpu")
    assert not said.fits
    assert "1.0 MB free on cpu: 3.8 MB short" in repr(said)


def test_a_forecast_of_an_unknown_model(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "lama"}')
    with pytest.raises(ConfigError, match="did you mean 'llama'"):
        mi.forecast(tmp_path)
    with pytest.raises(ModelError, match="cannot hold a model"):
        mi.forecast("demo", dtype=torch.int8)
