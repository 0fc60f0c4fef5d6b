"""Patients are stored as hashes, images named by ids, names from files are inert; the harness tests the rest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chestx_cli.cli import adapter
from chestx_cli.core.printable import printable
from chestx_cli.data.sources.pseudonyms import pseudonyms
from chestx_cli.evaluation.statistics.intervals import draw_patients
from chestx_cli.inference.bundles import SCRIPT
from chestx_cli.store.directory import Study
from chestx_cli.store.tables import csv_text, read_csv_text
from conftest import Chestx, write_images

HASHES = tuple(f"{n:064x}" for n in range(4))


def test_hashes_are_of_the_whole_set() -> None:
    made = pseudonyms(("a", "b", "a", "c"), HASHES)
    assert made[0] == made[2]
    assert len(set(made)) == 3
    assert made == pseudonyms(("a", "b", "a", "c"), HASHES)
    # Another patient, or another image, anywhere in the set makes another salt; the order of images does not.
    assert not set(made) & set(pseudonyms(("a", "b", "a", "d"), HASHES))
    assert not set(made) & set(pseudonyms(("a", "b", "a", "c"), (*HASHES[:3], "f" * 64)))
    assert pseudonyms(("c", "a", "b", "a"), HASHES[::-1]) == (made[3], made[0], made[1], made[2])


def test_keys_of_patients_change_no_draw() -> None:
    groups = np.array(["z", "z", "a", "m"])
    first, other = (draw_patients(keys, np.random.default_rng(0)) for keys in (groups, np.array(["a", "a", "q", "b"])))
    assert (first.code == other.code).all()
    assert (first.drawn == other.drawn).all()


def test_patients_are_forgotten_and_recognised(chestx: Chestx, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    files = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))
    table = pd.DataFrame({"path": files, "group": [f"Secret^Name-{n // 2}" for n in range(len(files))]})
    groups = tmp_path / "groups.csv"
    table.to_csv(groups, index=False)
    words = ("split", data, "--groups", groups)
    for name in ("a", "b"):
        outcome = chestx(*words, "--study", tmp_path / name, "--json")
        assert outcome.code == 0
        assert "secret" not in (outcome.out + outcome.err).lower()
    a, b = tmp_path / "a", tmp_path / "b"
    assert (a / "split.csv").read_bytes() == (b / "split.csv").read_bytes()
    assert not [path for path in a.rglob("*") if path.is_file() and b"secret" in path.read_bytes().lower()]
    assert "already done" in chestx(*words, "--study", a).err
    # Other names of the same patients are the same patients.
    table["group"] = table["group"].str.replace("Secret", "Other")
    table.to_csv(groups, index=False)
    refused = chestx(*words, "--study", a)
    assert (refused.code, "groups: another table" in refused.err) == (1, True)
    assert json.loads((a / "split.json").read_text())["stamp"]["options"]["groups"] == "FILE"


def test_only_what_stays_with_the_data_tells_paths(chestx: Chestx, study: Path, data: Path) -> None:
    names = [str(path) for path in Study(study).read_split().paths]
    telling = {
        path.relative_to(study).as_posix()
        for path in study.rglob("*")
        if path.is_file() and any(name.rpartition("/")[2].encode() in path.read_bytes() for name in names)
    }
    assert telling == {"split.csv"}
    folder = str(data.resolve()).encode()
    telling = {path.name for path in study.rglob("*") if path.is_file() and folder in path.read_bytes()}
    assert telling == {"split.json"}
    assert chestx("report", "--study", study, "--show-paths").code == 0
    page = (study / "report" / "index.html").read_text()
    assert str(data.resolve()) in page
    assert sum(name in page for name in names) > 0


def test_other_images_have_a_table_of_their_own(chestx: Chestx, study: Path, tmp_path: Path) -> None:
    other = write_images(tmp_path / "other", n_normal=9, n_pneumonia=7, first=700)
    (other / "NORMAL" / "IM-0001-bad.png").write_bytes(b"")
    outcome = chestx("evaluate", "--study", study, "--data", other, "--name", "elsewhere", "--debug")
    assert outcome.code == 0, outcome.err
    assert "elsewhere-000000 (empty: " in outcome.out or "(empty" in outcome.out
    assert "IM-0001-bad" not in outcome.out + outcome.err
    listed = pd.read_csv(study / "images.elsewhere.csv")
    assert len(listed) == 17
    told = pd.read_csv(study / "variants" / "baseline" / "predictions.elsewhere.csv")
    assert set(told["image_id"]) < set(listed["image_id"])
    assert str(other) not in (study / "variants" / "baseline" / "evaluation.elsewhere.json").read_text()


def test_errors_after_the_split_name_ids(chestx: Chestx, study: Path, data: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(data, own)
    record = json.loads((study / "split.json").read_text())
    (study / "split.json").unlink()
    (study / "split.json").write_text(json.dumps({**record, "data": str(own)}))
    shutil.rmtree(study / "cache")
    for path in own.rglob("*.png"):
        path.write_bytes(b"")
    outcome = chestx("evaluate", "--study", study, "--debug")
    assert outcome.code == 1
    assert "cannot read image img-0000" in outcome.err
    assert "the traceback may contain file names" in outcome.err
    assert not [path.name for path in own.rglob("*.png") if path.name in outcome.err]


def test_a_bug_is_told_by_its_place(chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("cannot open Doe^Jane.png")

    monkeypatch.setattr("chestx_cli.commands.evaluate.predict_split", fail)
    outcome = chestx("evaluate", "--study", study)
    assert outcome.code == 1
    assert "this is a bug in chestx: RuntimeError in test_privacy.py, line " in outcome.err
    assert "Doe" not in outcome.err
    assert "Doe" in chestx("evaluate", "--study", study, "--debug").err


@pytest.mark.parametrize(
    "cell", ["=1+1", "+1", "-1", "@a", "\t=1", "\r=1", "'=1", "'", "", "plain", "＝1", "a=b", '"', ","]
)
def test_cells_are_no_formulas_and_are_read_back(cell: str) -> None:
    text = csv_text({"path": [cell, "x"], "n": [-1, 2], "p": [-0.1, 1e-17]})
    assert read_csv_text(text.encode())["path"].tolist() == [cell, "x"]
    assert not text.split("\n")[1].lstrip('"').startswith(("=", "+", "-", "@", "\t", "\r", "＝"))
    # Numbers are numbers, to the last digit.
    assert text.replace('"x"', "x").endswith(",-1,-0.1\nx,2,1e-17\n")


def test_what_steers_is_spelled_out(chestx: Chestx, tmp_path: Path) -> None:
    assert printable("a\x1b[31m\u202eb\x9b\udcffc\n肺炎\u00a0é") == "a\\x1b[31m\\u202eb\\x9b\\udcffc\\n肺炎\u00a0é"
    assert printable("a\nb", keep="\n") == "a\nb"
    data = write_images(tmp_path / "data")
    evil = "N\x1b]0;own\x07\x9b31m\u202e[bold]"
    (data / "NORMAL").rename(data / evil)
    for words in (("--full",), ("--json", "--force")):
        outcome = chestx("split", data, "--study", tmp_path / "s", *words)
        assert outcome.code == 0, outcome.err
        assert not [c for c in outcome.out + outcome.err if not c.isprintable() and c != "\n"]
        assert "[bold]" in outcome.out
    assert evil in json.loads(outcome.out)["classes"]


def test_nothing_prints_past_the_one_function() -> None:
    source = Path(adapter.__file__).read_text(encoding="utf-8")
    assert "Text(" not in source
    assert "traceback.print_exc" not in source


@pytest.mark.parametrize("words", [("-c", "import chestx_cli, onnxruntime"), (str(SCRIPT), "--help")])
def test_onnx_runtime_reports_nothing_and_leaves_no_identifier(words: tuple[str, ...], tmp_path: Path) -> None:
    own = {"HOME": "home", "XDG_CACHE_HOME": "cache", "TMPDIR": "temporary"}
    # Where these are set, the runtime takes the machine for a test's and keeps quiet.
    quiet = {"CI", "GITHUB_ACTIONS", "TF_BUILD", "JENKINS_URL", "PYTEST_CURRENT_TEST"}
    quiet |= {"ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED"}
    env = {name: value for name, value in os.environ.items() if name not in quiet}
    for variable, name in own.items():
        (tmp_path / name).mkdir()
        env[variable] = str(tmp_path / name)
    subprocess.run([sys.executable, *words], env=env, check=True, stdout=subprocess.DEVNULL)
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(own.values())
