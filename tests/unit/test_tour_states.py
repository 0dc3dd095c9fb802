# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the tour says of a recurrent model is what the model does."""

import json
from itertools import product

import pytest
import torch

import torch_mi as mi
from examples import tour as example
from torch_mi import show
from torch_mi.analysis.states import state_sweep
from torch_mi.analysis.tour import tour
from torch_mi.analysis.tour_states import NEEDED, StateTour, state_tour, unwritten
from torch_mi.errors import ModelError
from torch_mi.show.tour import tour_page
from torch_mi.show.tour_states import reading_words
from torch_mi.testing import tiny

P = mi.HookPoint
PAIRS = [("a cat", "a cap"), ("a dog", "a dot"), ("say x", "say y")]


@pytest.fixture(scope="module")
def model() -> mi.MIModel:
    return mi.MIModel.from_pretrained("demo-rwkv", device="cpu")


@pytest.fixture(scope="module")
def seen(model: mi.MIModel) -> StateTour:
    found = tour(model)
    assert isinstance(found, StateTour)
    return found


def chance(model: mi.MIModel, prompt: str, token: int, spec: mi.HookSpec | None = None) -> float:
    return mi.extract_token_prob(model.forward(prompt, spec).output, token)


def test_the_clearest_pair_and_its_lenses(seen: StateTour):
    assert seen.pair.answer.token == " Mary"
    assert seen.lenses[0].target == (seen.pair.answer.token_id, " Mary")
    assert len(seen.lenses) == 3


def test_weights_give_what_the_head_reads(model: mi.MIModel, seen: StateTour):
    reading = seen.reading
    assert reading.head is not None
    points = [point(reading.layer) for point in (P.RwkvV, P.RwkvWkv)]
    run = model.forward(seen.pair.clean, mi.HookSpec().capture(*points))
    values, read = (run[point][0, :, reading.head] for point in points)
    made = torch.tensor(reading.row) @ values
    torch.testing.assert_close(made, read[-1], atol=1e-3, rtol=1e-3)


def test_no_other_head_reads_more_of_what_differs(model: mi.MIModel, seen: StateTour):
    reading = seen.reading
    ids, others = (model.encode(text)[0] for text in (seen.pair.clean, seen.pair.corrupted))
    assert [i for i in range(len(ids)) if ids[i] != others[i]] == list(reading.asked) == [10]
    shares: dict[tuple[int, int], float] = {}
    for layer in range(model.num_layers):
        hook = P.RwkvEffectiveAttn(layer)
        run = model.forward(seen.pair.clean, mi.HookSpec().capture(hook))
        for head, row in enumerate(run[hook][0, :, -1].abs()):
            shares[layer, head] = float(row[10] / row.sum())
    assert max(shares, key=lambda place: shares[place]) == (reading.layer, reading.head)
    assert reading.share == pytest.approx(max(shares.values()), rel=1e-4)
    assert reading.share > 3 * reading.chance


def test_no_other_write_matters_more(model: mi.MIModel, seen: StateTour):
    cut, pair = seen.cut, seen.pair
    swept = state_sweep(model, pair.clean, mi.prob(pair.answer.token_id), progress=False)
    torch.testing.assert_close(cut.grid.values, swept.values)
    assert cut.after == pytest.approx(float(swept.values.min()))
    answer = pair.answer.token_id
    spec = unwritten(cut.layer, cut.pos)
    assert chance(model, pair.clean, answer, spec) == pytest.approx(cut.after, abs=1e-5)
    assert int(model.forward(pair.clean, spec).output[0, -1].argmax()) == cut.instead.token_id
    alone = [
        chance(model, pair.clean, answer, unwritten(cut.layer, cut.pos, head))
        for head in range(model.backend.sizes["head"])
    ]
    assert cut.after_head == pytest.approx(min(alone), abs=1e-5)
    assert cut.head == alone.index(min(alone))
    assert cut.token == " Mary"


def test_what_flows_beside_the_stream_is_put_in(model: mi.MIModel, seen: StateTour):
    assert seen.whole is not None
    pair, layer, pos = seen.pair, 1, 10
    hooks = [P.ResidPre(layer), P.RwkvVFirst(1), P.RwkvVFirst(2)]
    run = model.forward(pair.clean, mi.HookSpec().capture(*hooks))
    spec = mi.HookSpec()
    for hook in hooks:
        spec.intervene(hook, mi.Replace(run[hook][:, pos], at=mi.At(pos=pos)))
    got = chance(model, pair.corrupted, pair.answer.token_id, spec)
    assert float(seen.whole.values[layer, pos]) == pytest.approx(got, abs=1e-5)
    assert got > 0.9
    assert float(seen.patched.values[layer, pos]) < 0.1
    torch.testing.assert_close(seen.whole.values[0], seen.patched.values[0], atol=1e-5, rtol=1e-4)


def test_json_page_and_terminal_say_the_same(seen: StateTour):
    data = json.loads(json.dumps(seen.to_dict(), allow_nan=False))
    assert data["format"] == "torch-mi state tour 1"
    assert data["knockout"]["after"] == seen.cut.after
    assert data["reading"]["share"] == seen.reading.share
    title, lead, sections = tour_page(seen)
    assert "demo-rwkv" in title
    assert "read from its states" in lead
    assert len(sections) == 4 + len(seen.lenses)
    assert all(section.figure is not None for section in sections)
    terminal = show.text(seen)
    for said in ("layer 2, head 2", "Keeping one token from writing", "beside the stream"):
        assert said in terminal


def test_the_code_beside_the_pictures_runs(model: mi.MIModel, seen: StateTour):
    for section in tour_page(seen)[2][-4:]:
        exec(section.code, {"mi": mi, "model": model})


@pytest.mark.parametrize("family", ["rwkv", "rwkv6", "mamba", "mamba2", "delta_net"])
def test_other_recurrent_models_have_a_tour(family: str):
    made = tiny(family)
    found = state_tour(made, PAIRS)
    channels = made.backend.sizes["d_value"] == 1
    assert (found.reading.head is None) == (found.cut.head is None) == channels
    assert ("single channels" in reading_words(found)) == channels
    assert found.whole is None
    assert len(tour_page(found)[2]) == 3 + len(found.lenses)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["whole_stream"] is None
    tried = [
        chance(made, found.pair.clean, found.pair.answer.token_id, unwritten(layer, pos))
        for layer, pos in product(range(3), range(len(found.cut.grid.axes["pos"])))
    ]
    assert min(tried) == pytest.approx(found.cut.after, abs=1e-5)
    assert "last token" in show.text(found)


def test_a_model_without_the_points_says_so(model: mi.MIModel, monkeypatch: pytest.MonkeyPatch):
    left = frozenset(model.backend.hook_points) - {P.RwkvWrite}
    monkeypatch.setattr(model.backend, "hook_points", left)
    with pytest.raises(ModelError, match="looks at RwkvWrite, which demo-rwkv does not have"):
        tour(model)
    assert P.RwkvWrite in NEEDED


def test_a_tour_needs_answers_that_differ(model: mi.MIModel):
    with pytest.raises(ModelError, match="answers none of the tour's pairs"):
        tour(model, [("The cat", "The cat sat on the mat")])


def test_the_example_runs(model: mi.MIModel, capsys: pytest.CaptureFixture[str]):
    example.main(model)
    out = capsys.readouterr().out
    assert "2. What the last token reads from a state" in out
    assert "3. Without one write to a state" in out
