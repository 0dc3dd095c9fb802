# SPDX-License-Identifier: MIT OR Apache-2.0
"""The command line as a program: what it imports, its exit codes, signals, pipes, terminals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = "tiny:llama"
COMMAND = [sys.executable, "-m", "torch_mi"]


def environment(**changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR", "NO_COLOR")}
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return (
        kept
        | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
        | changes
    )


def run(*args: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(**changes),
        check=False,
    )


@pytest.mark.parametrize(
    "args", [["--help"], ["logit-lens", "--help"], ["--version"], ["nonsense"]]
)
def test_help_does_not_cost_torch(args: list[str]):
    code = (
        "import sys; sys.argv = ['torch-mi', *sys.argv[1:]]\n"
        "from torch_mi.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'tokenizers', 'huggingface_hub', 'plotly', 'transformers'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
        check=True,
    )
    assert ran.stdout.splitlines()[-1] == "LOADED []"


def test_a_verb_from_end_to_end(tmp_path: Path):
    file = tmp_path / "lens.json"
    ran = run("logit-lens", "a cat", "-m", TINY, "--json", str(file))
    assert ran.returncode == 0
    assert ran.stderr == f"wrote {file}\n"
    assert "\x1b" not in ran.stdout
    assert file.is_file()


@pytest.mark.slow
def test_colour_is_for_terminals_only_and_never_with_no_color():
    assert "\x1b[" in run("hooks", TINY, FORCE_COLOR="1").stdout
    assert "\x1b[3" not in run("hooks", TINY, FORCE_COLOR="1", NO_COLOR="1").stdout
    assert "\x1b[" not in run("hooks", TINY).stdout


@pytest.mark.slow
def test_an_error_has_no_traceback_unless_asked_for():
    ran = run("hooks", "./nowhere")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: there is no folder nowhere")
    ran = run("hooks", "./nowhere", "--debug")
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr
    assert "FileError" in ran.stderr


def test_our_bugs_ask_to_be_reported(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(
        "import torch_mi.cli.session as s\n"
        "def broken(*a, **k): raise ZeroDivisionError('by zero')\n"
        "s.Session.load = broken\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    ran = run("hooks", TINY, PYTHONPATH=paths)
    assert ran.returncode == 1
    assert ran.stderr.startswith("bug: ZeroDivisionError: by zero — this is a bug in torch-mi")
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
def test_a_closed_pipe_is_no_error():
    for verb in (["generate", "a", "-m", TINY, "-n", "40"], ["hooks", "--help"]):
        program = subprocess.Popen(
            [*COMMAND, *verb],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.close()
        errors = program.stderr.read()
        program.wait(timeout=120)
        program.stderr.close()
        assert errors == ""


@pytest.mark.slow
def test_control_c_stops_with_130_and_one_line(stories: Path):
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        pytest.skip("these tests run in the background, where Ctrl-C is ignored")
    program = subprocess.Popen(
        [*COMMAND, "generate", "Once upon a time", "-m", str(stories), "-n", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(PYTHONUNBUFFERED="1"),
    )
    assert program.stdout is not None
    program.stdout.read(len("Once upon a time") + 10)  # it is at work
    time.sleep(0.2)
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=60)
    assert program.returncode == 130
    assert errors.strip() == "interrupted: stopped; saved nothing"


def test_a_terminal_without_a_letter_shows_another():
    ran = run("logit-lens", "a cat", "-m", TINY, PYTHONIOENCODING="ascii")
    assert ran.returncode == 0
    assert 'logit lens ? tiny:llama ? "a cat"' in ran.stdout
