"""Every block of docs/extending.md is a plugin that works in the commands as its section describes."""

from __future__ import annotations

import ast
import csv
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from chestx_cli import registries
from chestx_cli.core.plugins import GROUP
from conftest import PLAIN_PATH

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = {
    section.partition("\n")[0].strip().lower().replace(" ", "_"): block
    for section in PAGE.split("\n## ")[1:]
    for block in re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
}


class Home:
    """A folder in which every block is installed as its own package, and a study made by commands there."""

    def __init__(self, folder: Path) -> None:
        self.study = folder / "study"
        self._site = folder / "site"
        self._site.mkdir()
        for name, code in BLOCKS.items():
            (self._site / f"ext_{name}.py").write_text(code, encoding="utf-8")
            metadata = self._site / f"ext_{name}-0.dist-info"
            metadata.mkdir()
            (metadata / "METADATA").write_text(f"Metadata-Version: 2.4\nName: ext-{name}\nVersion: 0\n")
            (metadata / "entry_points.txt").write_text(f"[chestx.plugins]\n{name} = ext_{name}\n")

    def run(self, *words: object) -> str:
        """Return the output of a command that exits with 0."""
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(self._site), PLAIN_PATH]),
            "CHESTX_STUDY": str(self.study),
        }
        line = [sys.executable, "-m", "chestx_cli", *map(str, words)]
        ended = subprocess.run(line, capture_output=True, text=True, check=False, env=env)
        assert ended.returncode == 0, f"{words}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Home:
    """Return the plugins with a baseline that their backbone, loss and metric were there for."""
    made = Home(tmp_path_factory.mktemp("extending"))
    words = ("--backbone", "plain", "--loss", "smoothed", "--weights", "none", "--image-size", 32, "--epochs", 2)
    shown = made.run("train", data, *words, "--batch-size", 16, "--lr", 0.001, "--full")
    assert "Train Specificity" in shown
    assert "Val Specificity" in shown
    return made


def variant(home: Home, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((home.study / "variants" / name / "variant.json").read_text())
    return found


def test_backbone_loss_and_metric(home: Home) -> None:
    record = variant(home, "baseline")
    assert record["backbone"] == "plain"
    assert isinstance(record["options"], dict)
    assert record["options"]["loss"] == "smoothed"
    with (home.study / "variants" / "baseline" / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(0 <= float(row[f"{part}_Specificity"]) <= 1 for row in rows for part in ("train", "val"))
    assert ">Specificity<" in (home.study / "report" / "figures" / "training-curves.svg").read_text(encoding="utf-8")


def test_criterion_prunes_and_measures_sensitivity(home: Home) -> None:
    words = ("--criterion", "spread", "--json")
    pruned = json.loads(home.run("prune", "--method", "structured", "--finetune-epochs", 0, "--round-to", 1, *words))
    assert pruned["structure"]["criterion"] == "spread"
    measured = json.loads(home.run("sensitivity", "--structured", "--amounts", 0.5, *words))
    assert measured["criterion"] == "spread"
    assert measured["rows"]


def test_pruning_method(home: Home) -> None:
    words = ("--method", "layerwise", "--amount", 0.6, "--finetune-epochs", 1, "--batch-size", 16, "--json")
    record = json.loads(home.run("prune", *words))
    assert record["name"] == "layerwise-60"
    layers = [layer["sparsity"] for layer in record["pruning"]["layers"]]
    assert layers == pytest.approx([0.6] * len(layers), abs=0.02)


def test_quantization_method_evaluated_by_an_endpoint(home: Home) -> None:
    record = json.loads(home.run("quantize", "--method", "weights", "--json"))
    assert record["name"] == "weights-int8"
    assert record["quantization"]["quantized_share"] > 0.9
    evaluated = json.loads(home.run("evaluate", "--endpoint", "log-loss", "--json"))
    row = next(row for row in evaluated["comparisons"] if row["variant"] == "weights-int8")
    assert (row["endpoint"], row["margin"], row["test"]) == ("log-loss", 0.05, "t, patients")
    assert "gain in log-loss" in row["verdict"]
    words = ("baseline", "weights-int8", "--endpoint", "log-loss", "--margin", 0.2, "--json")
    compared = json.loads(home.run("compare", *words))
    assert (compared["endpoint"], compared["margin"]) == ("log-loss", 0.2)
    assert "gain in log-loss" in compared["verdict"]


def test_runtime(home: Home) -> None:
    names = ("onnxruntime", "onnxruntime-unoptimised")
    words = ("--runtimes", ",".join(names), "--rounds", 1, "--duration", 0.02, "--json")
    rows = json.loads(home.run("benchmark", "baseline", *words))["rows"]
    assert {row["runtime"] for row in rows} == set(names)


def test_figure_in_the_report(home: Home) -> None:
    assert "model-files" in json.loads(home.run("report", "--json"))["figures"]
    assert "Size of each variant's model file." in (home.study / "report" / "report.md").read_text(encoding="utf-8")


def test_command(home: Home) -> None:
    assert "Count the images of each part" in home.run("--help")
    assert sum(row["images"] for row in json.loads(home.run("count", "--json"))["rows"]) == 60


def test_the_package_of_the_page_names_its_module() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    package = tomllib.loads(text)
    assert list(package["project"]["entry-points"]) == [GROUP]
    assert [*package["project"]["entry-points"][GROUP].values()] == package["tool"]["setuptools"]["py-modules"]


def test_every_block_imports_public_names_only() -> None:
    for name, code in BLOCKS.items():
        imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
        assert {node.module for node in imports if (node.module or "").startswith("chestx")} == {registries.__name__}
        assert len([line for line in code.splitlines() if line.strip()]) <= 30, name


def test_public_names_are_importable_and_known_to_type_checkers() -> None:
    tree = ast.parse(Path(registries.__file__).read_text(encoding="utf-8"))
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    stated = {
        alias.name: node.module for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert stated == registries._PLACE_OF
    for name, module in stated.items():
        assert getattr(registries, name) is getattr(importlib.import_module(str(module)), name)
