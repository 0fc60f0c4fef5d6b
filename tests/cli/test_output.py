"""Output to stdout in any encoding, to a closed stdout, and to a full disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import TINY, write_images

RUN = "from chestx_cli.cli.main import main; main()"
ENCODINGS = ("cp1252", "ascii", "latin-1", "shift_jis")
LAST_LINE = b"Research software. Not a medical device."


def typed(*words: object, redirect: str = "", encoding: str = "utf-8") -> tuple[int, bytes, str]:
    """Run a command in a shell that redirects its streams; return its code, and what reached stdout and stderr."""
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, "-c", RUN, *map(str, words)],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding, "TERM": "dumb"},
    )
    return done.returncode, done.stdout, done.stderr.decode("utf-8", "replace")


@pytest.fixture(scope="module")
def accented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return images whose negative class no narrow encoding has whole."""
    data = write_images(tmp_path_factory.mktemp("accented") / "data")
    (data / "NORMAL").rename(data / "Gesund – 正常")
    return data


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_tables_are_printed_in_any_encoding(accented: Path, tmp_path: Path, encoding: str) -> None:
    words = ("split", accented, "--study", tmp_path / "s", "--positive", "PNEUMONIA", "--image-size", 32)
    code, out, err = typed(*words, "--full", encoding=encoding)
    assert (code, err) == (0, "")
    text = out.decode(encoding)
    assert "Gesund" in text
    assert ("正常" in text) == (encoding == "shift_jis")
    # An en dash is a hyphen where there is none, so that ranges stay ranges.
    assert ("Gesund - ??" in text) == (encoding in {"ascii", "latin-1"}), text
    # Data lose nothing: JSON spells out what the encoding lacks.
    code, out, _ = typed(*words, "--json", encoding=encoding)
    assert (code, json.loads(out.decode(encoding))["classes"]) == (0, ["Gesund – 正常", "PNEUMONIA"])


@pytest.mark.parametrize(
    ("command", "encoding"),
    [
        ("evaluate", "cp1252"),
        ("evaluate", "ascii"),
        ("compare baseline oneshot-50", "latin-1"),
        ("benchmark --rounds 1 --duration 0.01", "ascii"),
    ],
)
def test_every_kind_of_table_is_printed_in_any_encoding(study: Path, command: str, encoding: str) -> None:
    code, out, err = typed(*command.split(), "--study", study, encoding=encoding)
    assert (code, "bug in chestx" in err) == (0, False), err
    assert LAST_LINE in out
    assert "\N{MULTIPLICATION SIGN}" not in out.decode(encoding) or encoding != "ascii"


@pytest.mark.parametrize(
    ("words", "redirect", "reason"),
    [
        ("split", ">/dev/full", "No space left on device"),
        ("split --json", ">/dev/full", "No space left on device"),
        ("split", ">&-", "it is closed"),
        ("split --json", ">&- <&-", "it is closed"),
        ("train", ">/dev/full", "No space left on device"),
    ],
)
def test_a_stdout_that_takes_nothing_is_said_after_the_work(
    data: Path, tmp_path: Path, words: str, redirect: str, reason: str
) -> None:
    if "full" in redirect and not Path("/dev/full").exists():
        pytest.skip("no device that is always full")
    # Training shows two records, and is not ended by the first that cannot be shown.
    options = (*TINY, "--epochs", 1) if words == "train" else ("--image-size", 32)
    line = (*words.split(), data, "--study", tmp_path / "s", *options)
    code, _, err = typed(*line, redirect=redirect)
    assert (code, err.splitlines()[-2]) == (1, f"error: cannot write to stdout: {reason}")
    assert "bug" not in err
    assert "Exception ignored" not in err
    code, out, err = typed(*line)
    assert (code, "already done" in err) == (0, True)
    assert out


@pytest.mark.parametrize(
    ("words", "redirect"),
    [("--version", ">/dev/full"), ("--version", ">&-"), ("--help", ">/dev/full"), ("split --help", ">&-")],
)
def test_help_needs_a_stdout_too(words: str, redirect: str) -> None:
    code, _, err = typed(*words.split(), redirect=redirect)
    assert code == 1
    assert err.startswith("error: cannot write to stdout: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>&-", ">&- 2>&-"])
def test_a_stderr_that_takes_nothing_ends_no_work(data: Path, tmp_path: Path, redirect: str) -> None:
    words = ("split", data, "--study", tmp_path / "s", "--image-size", 32)
    assert typed(*words)[0] == 0
    # Said on stderr alone: that it is done already.
    code, out, _ = typed(*words, redirect=redirect)
    assert (code, LAST_LINE in out) == ((1, False) if ">&- 2" in redirect else (0, True))
    assert typed("split", tmp_path / "nothing", "--study", tmp_path / "s", redirect=redirect)[0] == 1


def test_files_do_not_take_the_place_of_a_closed_stdout(tmp_path: Path) -> None:
    """Output of a library to the descriptor of stdout would otherwise end up in the first file opened."""
    code = (
        "import os, sys\nfrom chestx_cli.cli import streams\nstreams.prepare()\n"
        f"with open({str(tmp_path / 'file')!r}, 'w') as file:\n"
        "    os.write(1, b'printed by a library')\n    sys.exit(file.fileno())\n"
    )
    done = subprocess.run(["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code], check=False)
    assert done.returncode > 2
    assert (tmp_path / "file").read_text() == ""
