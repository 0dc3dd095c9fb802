# SPDX-License-Identifier: MIT OR Apache-2.0
"""Tables fit, labels show what is there, figures hold the numbers, pages need nothing else."""

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
import torch

import torch_mi as mi
from torch_mi import show
from torch_mi.analysis.anatomy import Anatomy, anatomy
from torch_mi.analysis.attribution import attribute
from torch_mi.analysis.heads import find_heads
from torch_mi.analysis.lens import logit_lens
from torch_mi.analysis.patching import patch
from torch_mi.analysis.tour import tour
from torch_mi.errors import MIError, ModelError
from torch_mi.model import MIModel
from torch_mi.results import Result
from torch_mi.show import page
from torch_mi.show.heat import DARK_SCALES, SCALES, Heat
from torch_mi.show.labels import label, metric_words, one_line, ordinal, tick_labels
from torch_mi.show.pages import lens_page, lens_summary
from torch_mi.show.sweeps import decimals, rounded
from torch_mi.sweeps.metrics import logit_diff, prob
from torch_mi.testing import tiny

LONG = "a rather long prompt, so that not every position can fit into eighty columns <s>&$x$"


@pytest.fixture(scope="module")
def model() -> MIModel:
    return tiny("llama")


@pytest.fixture(scope="module")
def results(model: MIModel) -> list[Result]:
    return [
        logit_lens(model, LONG, target="t", embedding=True),
        logit_lens(model, LONG, top_k=1),
        logit_lens(model, LONG, position="all", target="t"),
        patch(model, "a cat", "a dog", at="resid_pre", metric=prob("t")),
        patch(model, "a cat", "a dog", at="z", metric=prob("t")),
        find_heads(model, length=6, repeats=1),
        attribute(model, "a cat", target="t"),
        anatomy(model),
    ]


def drawn(figure: Any) -> dict[str, Any]:
    """A figure as a browser gets it."""
    return json.loads(figure.to_json())


def test_tables_fit_eighty_columns(results: list[Result]):
    for result in results:
        lines = show.text(result).splitlines()
        assert len(lines) > 3
        assert max(map(len, lines)) <= 80
        assert repr(result) == show.text(result)


class Bare(Result):
    """A result that has no table of its own."""

    form = "bare 1"

    def to_dict(self) -> dict[str, object]:
        rows = [{"name": " a", "size": 0.123456}, {"name": "b", "size": 2.0}]
        return {"format": "bare 1", "score": 0.5, "note": None, "good": True, "rows": rows}

    @classmethod
    def _build(cls, data: dict[str, Any]) -> "Bare":
        del data
        return cls()


def test_a_new_kind_of_result_still_prints():
    lines = [line.split() for line in repr(Bare()).splitlines() if "─" not in line]
    assert [line for line in lines if line] == [
        ["Bare"],
        ["field", "value"],
        ["score", "0.5"],
        ["note", "–"],
        ["good", "yes"],
        ["rows"],
        ["name", "size"],
        ['"', 'a"', "0.1235"],
        ["b", "2"],
    ]


def test_a_wider_terminal_shows_more(model: MIModel):
    result = logit_lens(model, LONG, position="all")
    narrow, wide = show.text(result, 60), show.text(result, 200)
    assert max(map(len, narrow.splitlines())) <= 60
    assert narrow.count("·") < wide.count("·")


def test_the_table_says_what_was_read(model: MIModel):
    result = logit_lens(model, "a cat", target="t", embedding=True)
    text = show.text(result)
    assert 'tiny:llama · "a cat"' in text
    assert "what each layer expects after t (position 5)" in text
    for reading in result.at():
        best = reading.predictions[0]
        assert f"{label(best.token)} " in text
    assert [line.split()[0] for line in text.splitlines()[5:]] == ["embed", "0", "1", "2"]


def test_labels_show_spaces_and_newlines():
    assert label(" Paris") == "·Paris"
    assert label("\n\n") == "\\n\\n"
    assert label("") == "∅"
    assert label("a" * 30) == "a" * 13 + "…"
    assert [ordinal(i) for i in (1, 2, 3, 11, 12, 13, 21, 112)] == [
        "1st", "2nd", "3rd", "11th", "12th", "13th", "21st", "112th",
    ]  # fmt: skip
    assert len(one_line("x" * 500)) < 80
    assert tick_labels(["<s>", " a"], [True, False]) == [
        "<span style='color:#8b949e'>&lt;s&gt;</span>",
        "·a",
    ]


def test_every_result_has_a_figure_of_json(results: list[Result]):
    for result in results:
        figure = drawn(result.plot())
        assert figure["data"]
        assert figure["layout"]["height"] >= 260


def test_the_lens_figure_has_layers_upwards(model: MIModel):
    result = logit_lens(model, "a cat", position="all", target="t")
    figure = drawn(result.plot())
    heat = figure["data"][0]
    assert list(figure["layout"]["yaxis"]["ticktext"]) == ["0", "1", "2"]
    assert figure["layout"]["yaxis"]["range"] == [-0.5, 2.5]
    assert len(figure["layout"]["xaxis"]["ticktext"]) == 6
    top = max(result.readings, key=lambda r: (r.layer, r.position))
    assert heat["z"][-1][-1] == top.predictions[0].probability
    assert heat["text"][-1][-1] == label(top.predictions[0].token).replace("<", "&lt;")
    assert (heat["zmin"], heat["zmax"]) == (0, 1)
    buttons = figure["layout"]["updatemenus"][0]["buttons"]
    assert top.target is not None
    assert buttons[1]["args"][0]["z"][0][-1][-1] == top.target.probability


def test_the_target_rises_beside_the_ranks(model: MIModel):
    result = logit_lens(model, "a cat", target="t")
    heat, line = drawn(result.plot())["data"]
    assert line["x"] == result.target_probabilities()
    assert len(heat["z"][0]) == 5


def test_sixty_tokens_have_their_words_and_three_hundred_do_not(model: MIModel):
    figure = drawn(logit_lens(model, "a" * 59, position="all").plot())
    assert figure["data"][0]["texttemplate"] == "%{text}"
    assert figure["layout"]["width"] > 2000
    figure = drawn(logit_lens(model, "a" * 300, position="all").plot())
    assert "texttemplate" not in figure["data"][0]


def test_attention_shows_what_the_head_does(model: MIModel):
    point = mi.HookPoint.AttnPattern(1)
    pattern = model.forward("a cat", mi.HookSpec().capture(point))[point][0]
    tokens = model.to_str_tokens("a cat")
    figure = drawn(show.attention(pattern, tokens))
    buttons = figure["layout"]["updatemenus"][0]["buttons"]
    assert [b["label"] for b in buttons] == [f"head {i}" for i in range(6)]
    for head, button in enumerate(buttons):
        z = button["args"][0]["z"][0]
        assert z[4][2] == pytest.approx(float(pattern[head, 4, 2]))
        assert z[2][4] is None
    assert "updatemenus" not in drawn(show.attention(pattern[0], tokens))["layout"]
    with pytest.raises(ModelError, match="does not fit 3 tokens"):
        show.attention(pattern, ["a", "b", "c"])


def test_a_grid_is_coloured_around_its_baseline(model: MIModel):
    grid = patch(model, "a cat", "a dog", at="resid_pre", metric=prob("t"))
    heat = drawn(grid.plot())["data"][0]
    assert (heat["zmin"] + heat["zmax"]) / 2 == pytest.approx(grid.baseline)
    assert len(heat["z"]) == 3
    assert heat["colorscale"][0][1] == SCALES["diverging"][0]


def test_every_block_is_three_panels_on_one_scale(model: MIModel):
    grid = patch(model, "a cat, a cat", "a dog, a cat", at="every_block", metric=prob("t"))
    figure = drawn(grid.plot())
    layout, heats = figure["layout"], figure["data"]
    assert [note["text"] for note in layout["annotations"]] == ["resid_pre", "attn_out", "mlp_out"]
    assert len({(heat["zmin"], heat["zmax"]) for heat in heats}) == 1
    assert heats[0]["zmin"] + heats[0]["zmax"] == pytest.approx(2 * grid.baseline)
    assert [heat.get("showscale") for heat in heats] == [True, False, False]
    domains = [layout[f"yaxis{i}"]["domain"] for i in ("", 2, 3)]
    assert domains[0][0] > domains[1][1] > domains[1][0] > domains[2][1]
    words = layout["xaxis"]["ticktext"]
    assert "#8b949e" in words[0], "the token that begins the text is dimmed"
    assert words.count("·") == 3, "equal tokens stay apart"
    assert layout["xaxis"]["tickvals"] == list(range(len(words)))
    assert "attn_out: layer × pos" in show.text(grid)


def test_sixty_tokens_and_thirty_two_layers_fit_a_page():
    heat = Heat(
        values=[[0.0] * 60] * 32,
        rows=[str(i) for i in range(32)],
        columns=["·restaurant"] * 60,
        words=[["0.00"] * 60] * 32,
    )
    figure = drawn(heat.figure())
    layout = figure["layout"]
    assert "texttemplate" not in figure["data"][0]
    assert "width" not in layout, "it takes the width of the page"
    assert layout["height"] < 800
    assert layout["xaxis"]["tickangle"] == -90
    assert len(layout["xaxis"]["ticktext"]) == 60
    few = drawn(replace(heat, values=[[0.0] * 16] * 32, columns=["a"] * 16).figure())
    assert few["data"][0]["texttemplate"] == "%{text}"
    assert few["layout"]["xaxis"]["tickangle"] == 0


@pytest.mark.parametrize(("tokens", "angle"), [(6, -45), (60, -90)])
def test_the_menu_of_heads_is_between_the_title_and_the_words(tokens: int, angle: int):
    figure = drawn(show.attention(torch.ones(2, tokens, tokens), ["·restaurant"] * tokens))
    layout = figure["layout"]
    menu = layout["updatemenus"][0]
    assert layout["xaxis"]["tickangle"] == angle
    assert menu["xanchor"] == "left"
    assert menu["pad"]["b"] > 7 * len("·restaurant") * (1 if tokens > 36 else 0.7)
    assert layout["margin"]["t"] >= menu["pad"]["b"] + 70, "room for the menu, and the title above"


def test_metrics_are_said_in_words(model: MIModel):
    grid = patch(model, "a cat", "a dog", at="resid_pre", metric=logit_diff("t", "g"))
    assert drawn(grid.plot())["data"][0]["colorbar"]["title"]["text"].startswith(
        "logit of t over g"
    )
    assert "logit of t over g" in show.text(grid)
    assert metric_words("LogitDiff(token=(' a', ' b'), other=' <c>')") == (
        "logit of each prompt's word over ·<c>"
    )


def test_scores_have_the_decimals_that_tell_them_apart():
    assert [decimals(x) for x in (50.0, 2.0, 0.3, 0.004)] == [2, 2, 2, 4]
    assert rounded(-0.001) == "0.00"


def test_notebooks_get_html_without_scripts(results: list[Result]):
    for result in results:
        html = result._repr_html_()
        HTMLParser().feed(html)
        assert "<script" not in html
        assert "<s>&" not in html


def test_a_page_is_whole_and_alone(model: MIModel):
    words = logit_lens(model, [LONG, "a cat"], position="all")
    text = page.render(*lens_page(words), footer="made by `hand` </script>")
    assert text.startswith("<!doctype html>")
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?!data:)", text)
    assert text.count('<div class="plot">') == 2
    assert "<code>hand</code> &lt;/script&gt;" in text
    for data in re.findall(r'<script type="application/json">(.*?)</script>', text):
        assert json.loads(data)["data"]
    written = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "`" not in written


def test_both_themes_have_the_same_scales():
    assert SCALES.keys() == DARK_SCALES.keys()
    assert all(len(SCALES[name]) == len(DARK_SCALES[name]) for name in SCALES)


def test_a_lens_in_a_sentence(model: MIModel):
    result = logit_lens(model, "a cat")
    final = result.at()[-1].predictions[0]
    words = lens_summary(result)
    assert f"`{label(final.token)}`" in words
    assert f"layer {result.first_appearance(final.token_id)}" in words


def test_without_plotly_the_remedy_is_named(model: MIModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MIError, match=r"pip install torch-mi\[viz\]"):
        logit_lens(model, "a").plot()
    page.plotly_js.cache_clear()
    with pytest.raises(MIError, match=r"pip install torch-mi\[viz\]"):
        page.plotly_js()


def test_what_has_no_picture_says_so():
    for draw in (show.plot, show.table):
        with pytest.raises(MIError, match=r"of a int|for a int"):
            draw(3)


def test_anatomy_measures_every_weight(model: MIModel):
    found = anatomy(model)
    weights = dict(model.backend.named_parameters())
    assert {w.name for w in found.weights} == set(weights)
    for weight in found.weights:
        x = weights[weight.name].detach()
        assert weight.shape == tuple(x.shape)
        assert weight.norm == pytest.approx(float(torch.linalg.vector_norm(x)), rel=1e-5)
        assert weight.rms == pytest.approx(float(x.pow(2).mean().sqrt()), rel=1e-5)
    assert [w.layer for w in found.kinds()["blocks.*.attn.q.weight"]] == [0, 1, 2]
    assert Anatomy.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert found.config["hidden_size"] == 24


def test_a_model_without_answers_has_no_tour(model: MIModel):
    with pytest.raises(ModelError, match="answers none of the tour's pairs"):
        tour(model, [("a cat", "a rather longer text")])
