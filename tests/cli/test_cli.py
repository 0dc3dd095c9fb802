# SPDX-License-Identifier: MIT OR Apache-2.0
"""The command line, run in this process: what verbs print, write, and say when they cannot."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import torch_mi
from torch_mi.analysis.anatomy import Anatomy
from torch_mi.analysis.attribution import Attribution
from torch_mi.analysis.heads import HeadScores
from torch_mi.analysis.lens import LogitLensResult
from torch_mi.cli import main as door
from torch_mi.model import MIModel
from torch_mi.show import page
from torch_mi.sweeps.grid import Grid

TINY = "tiny:llama"
VERBS = [verb.__name__.replace("_", "-") for verb in door.VERBS]


@dataclass(frozen=True)
class Ran:
    """What one command left."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back afterwards
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "TERMINAL_WIDTH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERMINAL_WIDTH", "80")

    def go(*args: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["torch-mi", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            door.main()
        out, err = capsys.readouterr()
        return Ran(int(ended.value.code or 0), out, err)

    return go


def test_the_version(run: Run):
    assert run("--version") == Ran(0, f"torch-mi {torch_mi.__version__}\n", "")


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb_fits_and_shows_an_example(run: Run, verb: str):
    ran = run(verb, "--help")
    assert ran.code == 0
    assert f"torch-mi {verb}" in ran.out
    assert ran.out.count(f"torch-mi {verb}") >= 2  # usage, example
    assert "--json" in ran.out
    assert "--debug" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


def test_help_lists_every_verb(run: Run):
    out = run("--help").out
    assert all(verb in out for verb in VERBS)
    assert "--install-completion" in out


def test_logit_lens_shows_writes_and_can_be_loaded(run: Run, tmp_path: Path):
    file = tmp_path / "new" / "folder" / "lens.json"
    ran = run("logit-lens", "a cat", "-m", TINY, "--target", "t", "--json", file, "--embedding")
    assert ran.code == 0
    assert 'logit lens · tiny:llama · "a cat"' in ran.out
    assert "P(t)" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    assert ran.err == f"wrote {file}\n"
    result = LogitLensResult.load(file)
    assert result.layers == [-1, 0, 1, 2]
    expected = torch_mi.logit_lens(
        MIModel.from_pretrained(TINY), "a cat", target="t", embedding=True
    )
    assert result.readings == expected.readings
    assert json.loads(file.read_text())["time_secs"] >= 0


def test_several_prompts_and_all_positions(run: Run, tmp_path: Path):
    html, data = tmp_path / "p.html", tmp_path / "p.json"
    ran = run(
        "logit-lens", "a", "longer", "-m", TINY, "--position", "all", "-q",
        "--html", html, "--json", data,
    )  # fmt: skip
    assert ran == Ran(0, "", "")
    assert len(json.loads(data.read_text())["results"]) == 2
    text = html.read_text()
    assert text.count('<div class="plot">') == 2
    assert "torch-mi logit-lens a longer" in text


def test_generate_continues_the_prompt(run: Run, tmp_path: Path):
    model = MIModel.from_pretrained(TINY)
    expected = model.generate("a cat", max_new_tokens=5).text
    ran = run("generate", "a cat", "-m", TINY, "-n", 5)
    assert ran.out == f"a cat{expected}\n"
    ran = run("generate", "a cat", "-m", TINY, "-n", 5, "--quiet")
    assert ran.out == f"{expected}\n"
    file = tmp_path / "g.json"
    ran = run(
        "generate", "a cat", "-m", TINY, "-n", 5, "-t", 1, "--top-k", 9, "--top-p", 0.9,
        "--seed", 3, "--json", file,
    )  # fmt: skip
    drawn = model.generate("a cat", max_new_tokens=5, temperature=1.0, top_k=9, top_p=0.9, seed=3)
    assert ran.out == f"a cat{drawn.text}\n"
    data = json.loads(file.read_text())
    assert data["rows"][0]["tokens"] == drawn.tokens
    assert data["sampling"]["seed"] == 3


def test_tokens_and_where_they_lie(run: Run, tmp_path: Path, stories: Path):
    file = tmp_path / "t.json"
    ran = run("tokens", "Once upon", "-m", stories, "--json", file)
    assert "3 tokens" in ran.out
    assert "·upon" in ran.out
    rows = json.loads(file.read_text())["tokens"]
    assert [row["token"] for row in rows] == ["<s>", " Once", " upon"]
    assert [row["special"] for row in rows] == [True, False, False]
    assert ["Once upon"[row["start"] : row["end"]] for row in rows[1:]] == ["Once", " upon"]


def test_hooks_name_every_place(run: Run, tmp_path: Path):
    file = tmp_path / "h.json"
    ran = run("hooks", TINY, "--json", file)
    model = MIModel.from_pretrained(TINY)
    for hook in model.hooks:
        assert str(hook.point) in ran.out
    rows = json.loads(file.read_text())["hooks"]
    assert [row["hook"] for row in rows] == list(map(str, model.hooks))
    assert max(map(len, ran.out.splitlines())) <= 80


def test_inspect_measures_the_weights(run: Run, tmp_path: Path):
    file, html = tmp_path / "i.json", tmp_path / "i.html"
    ran = run("inspect", TINY, "--json", file, "--html", html)
    assert "blocks.*.attn.q.weight" in ran.out
    assert "hidden_size" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    found = Anatomy.load(file)
    assert found.n_parameters == MIModel.from_pretrained(TINY).num_parameters
    assert "What tiny:llama is made of" in html.read_text()


def test_patch_attribute_and_heads_are_their_functions(run: Run, tmp_path: Path):
    model = MIModel.from_pretrained(TINY)
    file, html = tmp_path / "x.json", tmp_path / "x.html"
    said = int(model.forward("a cat").output[0, -1].argmax())

    ran = run("patch", "a cat", "a dog", "-m", TINY, "--at", "z", "--json", file, "--html", html)
    assert ran.code == 0
    expected = torch_mi.patch(model, "a cat", "a dog", at="z", metric=torch_mi.prob(said))
    assert torch.equal(Grid.load(file).values, expected.values)
    assert "z of the clean prompt" in ran.out

    ran = run("attribute", "a cat", "-m", TINY, "--versus", "t", "--json", file, "--html", html)
    shares = torch_mi.attribute(model, "a cat", target=said, versus="t").shares
    assert Attribution.load(file).shares == shares
    assert "shares of the logit" in ran.out

    ran = run("heads", TINY, "--kind", "duplicate_token", "--json", file, "--html", html)
    scores = torch_mi.find_heads(model, kind="duplicate_token").scores
    assert torch.equal(HeadScores.load(file).scores, scores)
    assert "duplicate-token heads" in ran.out
    assert html.read_text().count('<div class="plot">') == 1


def test_verify_compares_with_transformers(
    run: Run, tmp_path: Path, stories: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("transformers")
    file = tmp_path / "v.json"
    ran = run("verify", stories, "--prompt", "Once upon a time", "--json", file)
    assert ran.code == 0
    assert re.search(r"passed +yes", ran.out)
    assert "Once upon a time" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    assert json.loads(file.read_text())["passed"] is True
    monkeypatch.setattr(torch_mi.verification, "TOLERANCE", 0.0)
    ran = run("verify", stories, "--prompt", "Once upon a time")
    assert ran.code == 1
    assert re.search(r"passed +no", ran.out)


def test_doctor_looks_around(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("abc")
    file = tmp_path / "d.json"
    ran = run("doctor", "--json", file)
    assert ran.code == 0
    assert "org/name (2 B)" in ran.out
    found = json.loads(file.read_text())
    assert found["packages"]["torch"]
    assert found["devices"][0]["device"] == "cpu"
    assert found["cache"]["models"][0]["revision"] == "abc"


def test_the_demo_is_measured_on_any_model_that_answers(run: Run, tmp_path: Path, stories: Path):
    file, html = tmp_path / "d.json", tmp_path / "d.html"
    ran = run("demo", "-m", stories, "--json", file, "--html", html)
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= 80
    data = json.loads(file.read_text())
    assert data["pair"]["answer"] == " Lily"
    assert f"layer {data['head']['layer']}" in ran.out
    cut = data["knockout"]
    assert cut["after"] == pytest.approx(min(cut["grid"]["values"]))
    assert cut["before"] == pytest.approx(data["pair"]["probability"], abs=1e-5)
    model = MIModel.from_pretrained(stories)
    spec = torch_mi.HookSpec().intervene(
        torch_mi.HookPoint.AttnScores(cut["layer"]),
        torch_mi.Knockout(at=torch_mi.At(query=-1, key=cut["pos"])),
    )
    logits = model.forward(data["pair"]["clean"], spec).output
    answer = model.token_id(data["lenses"][0]["target"]["token_id"])
    assert torch_mi.extract_token_prob(logits, answer) == pytest.approx(cut["after"], abs=1e-5)
    assert html.read_text().count('<div class="plot">') == 3 + len(data["lenses"])


def test_the_demo_of_a_recurrent_model_is_about_its_states(run: Run, tmp_path: Path):
    file, html = tmp_path / "d.json", tmp_path / "d.html"
    ran = run("demo", "-m", "demo-rwkv", "--json", file, "--html", html)
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= 80
    data = json.loads(file.read_text())
    assert data["format"] == "torch-mi state tour 1"
    reading, cut = data["reading"], data["knockout"]
    assert f"layer {reading['layer']}, head {reading['head']}" in ran.out
    assert cut["after"] == pytest.approx(min(cut["grid"]["values"]))
    write = torch_mi.StateKnockoutSpec((cut["pos"],), layers=(cut["layer"],))
    model = MIModel.from_pretrained("demo-rwkv")
    spec = torch_mi.HookSpec().set_state_knockout(write)
    logits = model.forward(data["pair"]["clean"], spec).output
    answer = model.token_id(data["pair"]["answer"])
    assert torch_mi.extract_token_prob(logits, answer) == pytest.approx(cut["after"], abs=1e-5)
    assert html.read_text().count('<div class="plot">') == 4 + len(data["lenses"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["logit-len", "x"], "No such command 'logit-len'. Did you mean 'logit-lens'?"),
        (["logit-lens", "x", "--jsn", "f"], "No such option: --jsn (Possible options: --json)"),
        (["logit-lens", "x", "--top-k", "many"], "Invalid value for '--top-k'"),
        (["logit-lens", "-m", TINY], "Missing argument 'PROMPT"),
        (["logit-lens", "x", "-m", TINY, "--top-k", "0"], "top_k=0 is out of range: 1 … 97"),
        (["logit-lens", "x", "-m", TINY, "--position", "last"], "neither a number nor 'all'"),
        (["logit-lens", "x", "-m", TINY, "--position", "9"], "position=9 is out of range"),
        (["logit-lens", "x", "-m", TINY, "--target", "two"], "'two' is not one token but 3"),
        (["logit-lens", "x", "-m", "tiny:lama"], "did you mean 'llama'?"),
        (["logit-lens", "x", "-m", "./nowhere"], "there is no folder nowhere"),
        (["logit-lens", "x", "-m", TINY, "--device", "gpu"], "--device 'gpu' is not cpu, cuda"),
        (["logit-lens", "x", "-m", TINY, "--dtype", "int8"], "'int8' is not one of 'float32'"),
        (["logit-lens", "", "-m", "./nowhere"], "there is no folder"),
        (["generate", "x", "-m", TINY, "-t", "-1"], "temperature is a number from 0 upwards"),
        (["demo", "-m", TINY, "--html", "/dev/null/x.html"], "cannot write /dev/null/x.html"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(run: Run, args: list[str], message: str):
    ran = run(*args)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_a_file_that_cannot_be_written_is_refused_before_any_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def work(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(MIModel, "from_pretrained", work)
    ran = run("logit-lens", "x", "--json", tmp_path)
    assert ran.code == 2
    assert ran.err == f"error: cannot write {tmp_path}: it is a folder; give a file name in it\n"
    ran = run("logit-lens", "x", "--json", "/dev/null/x/y.json")
    assert ran.code == 2
    assert ran.err == "error: cannot write /dev/null/x/y.json: Not a directory\n"


def test_without_plotly_a_page_is_refused_before_any_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    page.plotly_js.cache_clear()
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    ran = run("logit-lens", "x", "-m", TINY, "--html", tmp_path / "x.html")
    assert ran.code == 2
    assert ran.err == "error: pages need plotly: pip install torch-mi[viz]\n"


def test_debug_lets_errors_through(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", ["torch-mi", "hooks", "./nowhere", "--debug"])
    with pytest.raises(torch_mi.FileError):
        door.main()
    assert capsys.readouterr().err == ""


def test_the_last_words_of_a_bug(capsys: pytest.CaptureFixture[str]):
    door.REPORT.debug = False
    door._last_words(ZeroDivisionError, ZeroDivisionError("by zero"), None)
    err = capsys.readouterr().err
    assert err.startswith("bug: ZeroDivisionError: by zero — this is a bug in torch-mi")
    assert err.count("\n") == 1
    assert "report" in err


def test_an_interruption_says_what_was_saved(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "lens.json"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("torch_mi.cli.session.Session.print", interrupted)
    ran = run("logit-lens", "a", "-m", TINY, "--json", file)
    assert ran.code == 130
    assert ran.err.endswith(f"interrupted: stopped; saved {file}\n")
    assert file.is_file()
