"""The reference loop in benchmarks does the same work as chestx, and the harness records its measurements."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from chestx_cli.store.directory import Study
from conftest import Chestx
from tools.benchmarks import against_notebook, performance, profile, results
from tools.benchmarks.reference import notebook
from tools.benchmarks.workplace import Settings, Workplace
from tools.harness import documents
from tools.harness.processes import in_turn, ratio_of, run_process, spread_of

ROOT = Path(__file__).parents[2]
SIZE_PX = 32
NETWORK = ("--backbone", "resnet18", "--image-size", str(SIZE_PX), "--batch-size", "16")


@pytest.fixture(autouse=True)
def random_state() -> Iterator[None]:
    """Restore torch's random state for the other tests."""
    with torch.random.fork_rng():
        yield


@pytest.fixture(scope="module")
def trained(chestx: Chestx, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a study with a ResNet18, which the notebook knows too."""
    study = tmp_path_factory.mktemp("peer") / "study"
    outcome = chestx("train", data, "--study", study, *NETWORK, "--weights", "none", "--epochs", 1)
    assert outcome.code == 0, outcome.err
    return study


def test_the_notebook_measures_a_pruned_layer_as_chestx_does(chestx: Chestx, data: Path, trained: Path) -> None:
    found = chestx("sensitivity", "--study", trained, "--layers", "layer2.0.conv1", "--amounts", "0.6", "--json").json()
    split = Study(trained).read_split()
    config = notebook.Config(
        data=data, out=trained, backbone="resnet18", image_size=SIZE_PX, layers=("layer2.0.conv1",), workers=0
    )
    images = ImageFolder(str(data), notebook.eval_transform(SIZE_PX))
    rows = {Path(path).relative_to(data).as_posix(): index for index, (path, _) in enumerate(images.samples)}
    val = Subset(images, [rows[split.paths[row]] for row in split.indices("val")])
    model = notebook.build_model(config, 2)
    model.load_state_dict(load_file(trained / "variants" / "baseline" / "model.safetensors"))
    (name,) = notebook.layers_of(model, config.layers)
    theirs = notebook.measure_layer(model, name, 0.6, notebook.make_loader(val, config))
    (ours,) = found["measurements"]
    assert ours["layer"] == name
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
    assert (ours["accuracy"], ours["auroc"]) == pytest.approx((theirs["accuracy"], theirs["auroc"]))


def test_the_notebook_does_every_step_of_the_study(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(data), "--out", str(tmp_path), *NETWORK, "--epochs", "1", "--finetune-epochs", "0"]
    words += ["--prune-steps", "2", "--layers", "conv1", "--amounts", "0.5", "--workers", "0"]
    done = notebook.main([*words, "--bench-rounds", "1", "--bench-seconds", "0.01"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["step"] for line in lines] == ["imports", *notebook.STEPS]
    assert set(done["evaluate"]) == {"baseline", "prune_oneshot", "prune_iterative", "quantize"}
    layers = {f"{name}.weight" for name in notebook.layers_of(done["prune_oneshot"])}
    for name, asked in (("prune_oneshot", 0.5), ("prune_iterative", 1 - 0.8**2)):
        weights = [value for key, value in done[name].state_dict().items() if key in layers]
        zeros = sum(int(torch.count_nonzero(weight == 0)) for weight in weights)
        assert zeros / sum(weight.numel() for weight in weights) == pytest.approx(asked, abs=1e-3)
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".csv", ".safetensors", ".pth"}


def test_the_notebook_augments_as_chestx_says_it_does() -> None:
    kinds = [type(step).__name__ for step in notebook.train_transform(SIZE_PX).transforms]
    assert kinds[:4] == ["Resize", "RandomHorizontalFlip", "RandomRotation", "ColorJitter"]
    resize, flip, turn, jitter = notebook.train_transform(SIZE_PX).transforms[:4]
    assert (list(resize.size), flip.p, list(turn.degrees)) == ([SIZE_PX, SIZE_PX], 0.5, [-10.0, 10.0])
    assert (list(jitter.brightness), list(jitter.contrast)) == ([0.8, 1.2], [0.8, 1.2])
    assert (jitter.hue, jitter.saturation) == (None, None)


def test_performance_writes_table_json_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(ROOT / "docs" / "results.md", tmp_path)
    performance.main(["--only", "startup", "--startup-runs", "1", "--docs", str(tmp_path)])
    capsys.readouterr()
    first = json.loads((tmp_path / "performance.json").read_text())
    assert [row["target"] for row in first["rows"]] == [0.15, 0.4, 0.7, None]
    shown = (tmp_path / "results.md").read_text()
    assert "| chestx --version |" in shown
    assert "--only startup" in shown
    assert str(tmp_path) not in shown
    assert (tmp_path / "figures" / "performance.png").stat().st_size > 0


def test_rows_know_whether_they_reach_their_target() -> None:
    def row(value: float, *, higher: bool) -> results.Row:
        return results.Row(
            group="x", what="x", unit="s", value=value, low=value, high=value, rounds=1, target=2.0, higher=higher
        )

    assert [row(value, higher=True).reached for value in (1.9, 2.0)] == [False, True]
    assert [row(value, higher=False).reached for value in (2.0, 2.1)] == [True, False]
    assert row(4.0, higher=True).score == 2.0
    assert row(4.0, higher=False).score == 0.5


def test_figures_of_another_machine_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "performance.json"
    kept = results.Results(machine={"processor": "a"}, operations_per_s={"fp32": 1.0})
    kept.replace_group("x", [results.row_of(spread_of([1.0, 3.0, 2.0]), 3, group="x", what="x", unit="s")], "c", "")
    path.write_text(kept.to_json())
    again = results.read_results(path, {"processor": "a"}, {"fp32": 2.0})
    assert [(row.value, row.low, row.high) for row in again.rows] == [(2.0, 1.0, 3.0)]
    assert results.read_results(path, {"processor": "b"}, {"fp32": 2.0}).rows == []


def test_a_document_without_markers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("text")
    with pytest.raises(SystemExit, match="has no lines"):
        documents.insert(tmp_path / "page.md", "performance", "table")


def test_sides_take_turns_and_ratios_are_by_round() -> None:
    order: list[str] = []
    in_turn(2, lambda _index: order.append("a"), lambda _index: order.append("b"))
    assert order == ["a", "b", "a", "b"]
    assert ratio_of([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]).median == 3.0


def test_a_failing_process_is_not_timed() -> None:
    with pytest.raises(SystemExit, match=r"ended with 3:\nwhy"):
        run_process(["sh", "-c", "echo why >&2; exit 3"])


def test_each_section_of_the_notebook_has_its_command() -> None:
    options = performance.parser().parse_args([])
    given = {k: v for k, v in vars(options).items() if k not in {"only", "docs"}}
    place = Workplace(settings=Settings(**{**given, "data": ROOT, "work": ROOT}))
    assert tuple(against_notebook.study_commands(place, ROOT)) == notebook.STEPS


@pytest.mark.parametrize(
    ("stack", "kind"),
    [
        ("fit (chestx_cli/networks/training.py:1);_find_and_load (<frozen importlib._bootstrap>:1)", "imports"),
        ("fit (chestx_cli/networks/training.py:1);backward (torch/_tensor.py:1)", "backward"),
        ("fit (chestx_cli/networks/training.py:1);forward (torch/nn/modules/conv.py:1)", "forward"),
        ("fit (chestx_cli/networks/training.py:1);augment (chestx_cli/networks/augmentation.py:1)", "data"),
        ("fit (chestx_cli/networks/training.py:1)", "rest"),
    ],
)
def test_samples_belong_to_what_was_done(stack: str, kind: str) -> None:
    shares = profile.shares_of(f"thread (1): MainThread;{stack} 4\nthread (2): worker;{stack} 9\n")
    assert shares[kind] == 1.0
