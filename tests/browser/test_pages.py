# SPDX-License-Identifier: MIT OR Apache-2.0
"""The pages in a real browser: they draw, answer to pointing and clicking, and fetch nothing."""

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from torch_mi.analysis.anatomy import anatomy
from torch_mi.analysis.lens import logit_lens
from torch_mi.analysis.tour import tour
from torch_mi.loading import PACKAGED
from torch_mi.model import MIModel
from torch_mi.show import page
from torch_mi.show.pages import Page, anatomy_page, lens_page
from torch_mi.show.tour import tour_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
SHARED = Path(os.environ.get("TORCH_MI_SHARED", Path(__file__).parents[2] / "../shared"))
STORIES = SHARED / "data" / "models" / "stories260K"
PROMPT = "Once <b>upon</b> a time & $x$"

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium to look at pages")

PROBE = """
<script>
function texts(inside, selector) {
  return Array.from(inside.querySelectorAll(selector)).map(function (t) { return t.textContent; });
}
window.addEventListener("load", function () {
  const plots = Array.from(document.querySelectorAll(".plot"));
  const seen = {
    plots: plots.length,
    drawn: plots.filter(function (p) { return p.querySelector(".heatmaplayer image"); }).length,
    width: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    ticks: texts(plots[0], ".xtick"),
    layers: Array.from(plots[0].querySelectorAll(".ytick")).map(function (t) {
      return [t.textContent, t.getBoundingClientRect().y];
    }),
    ink: plots[0].layout.font.color,
    scale: plots[0].data[0].colorscale[0][1],
    fetched: performance.getEntriesByType("resource").map(function (e) { return e.name; }),
  };
  const press = new MouseEvent("click", { bubbles: true });
  const area = plots[0].querySelector(".nsewdrag");
  const box = area.getBoundingClientRect();
  const z = plots[0].data[0].z;
  area.dispatchEvent(new MouseEvent("mousemove", {
    bubbles: true,
    clientX: box.left + box.width / z[0].length / 2,
    clientY: box.bottom - box.height / z.length / 2,
  }));
  setTimeout(function () {
    seen.hover = texts(plots[0], ".hovertext");
    const buttons = plots[0].querySelectorAll(".updatemenu-button");
    seen.buttons = texts(plots[0], ".updatemenu-button");
    if (buttons.length > 1) buttons[1].dispatchEvent(press);
    setTimeout(function () {
      seen.title = plots[0].layout.title.text;
      seen.values = plots[0].data[0].z;
      const note = document.createElement("script");
      note.type = "application/json";
      note.id = "seen";
      note.textContent = JSON.stringify(seen).replace(/</g, "\\u003c");
      document.body.appendChild(note);
    }, 500);
  }, 500);
});
</script>
"""


@dataclass(frozen=True)
class Looked:
    """What the browser saw, and what it wrote to its console."""

    seen: dict[str, Any]
    console: list[str]
    dom: str


def look(made: Page, folder: Path, *, dark: bool = False) -> Looked:
    """Open a page, point at the first cell, press the second button."""
    path = folder / "page.html"
    text = page.render(*made, footer="made by a test")
    path.write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    assert BROWSER is not None
    ran = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1100,900",
            f"--user-data-dir={folder / 'profile'}",
            "--virtual-time-budget=8000",
            "--enable-logging=stderr",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<script type="application/json" id="seen">(.*?)</script>', ran.stdout)
    console = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    assert found is not None, console
    return Looked(json.loads(found[1]), console, ran.stdout)


@pytest.fixture(scope="module")
def model() -> MIModel:
    return MIModel.from_pretrained("tiny:llama")


def test_a_lens_page_draws_and_answers(model: MIModel, tmp_path: Path):
    result = logit_lens(model, PROMPT, position="all", target="t")
    looked = look(lens_page([result]), tmp_path)
    seen = looked.seen
    assert looked.console == []
    assert seen["fetched"] == []
    assert seen["plots"] == seen["drawn"] == 1
    assert seen["ticks"][:6] == ["<s>", "O", "n", "c", "e", "·"]
    assert "<" in seen["ticks"][6:]
    first = result.readings[0]
    assert len(seen["hover"]) == 1
    assert "layer 0, after <s>" in seen["hover"][0]
    assert f"rank {first.target.rank}" in seen["hover"][0] if first.target else False
    assert seen["buttons"] == ["likeliest tokens", "P(t)"]
    assert seen["title"] == "How likely each layer finds t next, in percent"
    assert seen["values"][0][0] == pytest.approx(first.target.probability if first.target else 0)


def test_layers_go_upwards(model: MIModel, tmp_path: Path):
    seen = look(lens_page([logit_lens(model, "a cat", position="all")]), tmp_path).seen
    heights = dict(seen["layers"])
    assert heights["0"] > heights["1"] > heights["2"]


def test_the_page_itself_never_scrolls_sideways(model: MIModel, tmp_path: Path):
    wide = logit_lens(model, "a" * 60, position="all")
    assert look(lens_page([wide]), tmp_path).seen["width"] <= 0


@pytest.mark.slow
def test_light_and_dark(model: MIModel, tmp_path: Path):
    made = lens_page([logit_lens(model, "a cat", target="t")])
    (tmp_path / "light").mkdir()
    (tmp_path / "dark").mkdir()
    light = look(made, tmp_path / "light").seen
    dark = look(made, tmp_path / "dark", dark=True).seen
    assert (light["ink"], light["scale"]) == ("#1f2328", "#f7fafd")
    assert (dark["ink"], dark["scale"]) == ("#e6edf3", "#141a22")


def test_what_a_prompt_says_is_text(model: MIModel, tmp_path: Path):
    nasty = "</script><script>document.title='x'</script>"
    looked = look(lens_page([logit_lens(model, nasty)]), tmp_path)
    assert looked.console == []
    assert "<title>Logit lens · tiny:llama</title>" in looked.dom
    assert html.escape(nasty, quote=False) in looked.dom


def test_the_other_pages_draw(model: MIModel, tmp_path: Path):
    looked = look(anatomy_page(anatomy(model)), tmp_path)
    assert looked.console == []
    assert looked.seen["drawn"] == 1


@pytest.mark.parametrize("name", ["demo", "demo-rwkv", "stories"])
def test_the_tour(name: str, tmp_path: Path):
    folder = {**PACKAGED, "stories": STORIES}[name]
    if not (folder / "config.json").is_file():
        pytest.skip(f"there is no model in {folder}")
    seen = tour(MIModel.from_pretrained(folder))
    looked = look(tour_page(seen), tmp_path)
    assert looked.console == []
    assert looked.seen["fetched"] == []
    steps = 4 if name == "demo-rwkv" else 3  # one more, about what flows beside the stream
    assert looked.seen["drawn"] == looked.seen["plots"] == steps + len(seen.lenses)
