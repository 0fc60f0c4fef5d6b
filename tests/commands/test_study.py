"""`chestx study`: complete runs, renewal of parts, resumption after kills, and the answer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from chestx_cli.cli.console import show_record
from chestx_cli.commands.study import study as study_command
from chestx_cli.core.errors import DataError
from chestx_cli.networks.memory import training_bytes
from chestx_cli.records.cells import StudyRecord
from chestx_cli.store.documents import read_record
from conftest import Chestx, Outcome, edit, run_chestx
from support.planned_study import CELLS, PLAN, results_without_times, weights_of, write_plan


def created_times(study: Path) -> dict[str, str]:
    """Return the creation time of each variant of each cell."""
    return {
        f"{path.parents[2].relative_to(study)}/{path.parent.name}": json.loads(path.read_text())["stamp"]["created"]
        for path in study.glob("seed-*/fold-*/variants/*/variant.json")
    }


def start(path: Path, study: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "chestx_cli", "study", str(path), "--study", str(study)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def test_every_image_is_tested_once_per_seed_and_the_table_has_every_variant(
    planned: tuple[Path, Path, Outcome],
) -> None:
    _, study, outcome = planned
    document = outcome.json()
    assert document["schema"] == "chestx.study/1"
    assert document["images"] == 60
    assert document["seeds"] == [1, 2]
    assert [row["variant"] for row in document["rows"]] == ["baseline", "oneshot-50", "twice"]
    for row in document["rows"]:
        low, high = row["interval"]
        assert low <= row["estimate"] <= high
        assert row["latency_p50_ms"] > 0
    assert len(document["noise"]) == 3
    assert document["noise_floor"] is not None
    for cell in CELLS:
        assert (study / cell / "variants" / "twice" / "evaluation.test.json").exists()
    # Timed in the first cell only.
    timed = sorted(study.glob("seed-*/fold-*/variants/*/benchmark.cpu.json"))
    assert {path.parents[2] for path in timed} == {study / "seed-1" / "fold-1"}


def test_a_cell_is_a_study_that_other_commands_work_on(own_planned: tuple[Path, Path], chestx: Chestx) -> None:
    _, study = own_planned
    assert chestx("evaluate", "--study", study / "seed-2" / "fold-1").code == 0
    compared = chestx("compare", "baseline", "twice", "--study", study / "seed-1", "--json")
    assert compared.code == 0, compared.err
    assert compared.json()["images"] == 60


def test_the_answer_is_one_screen_with_the_decision(planned: tuple[Path, Path, Outcome]) -> None:
    _, study, _ = planned
    record = study_command(study=study)
    assert isinstance(record, StudyRecord)
    console = Console(width=80, record=True, force_terminal=True, file=StringIO())
    show_record(record, console)
    lines = console.export_text().splitlines()
    assert len(lines) <= 24
    # The next command, which users copy, is not wrapped.
    assert max(len(line) for line in lines if not line.startswith("Next: ")) <= 80
    assert record.answer is not None
    assert "Ship" in record.answer.sentence
    assert "declared before the test images were looked at" in record.answer.sentence
    assert record.answer.next_command == f"chestx report --study {study}"
    assert "differ in the seed alone" in " ".join(record.answer.warnings)


def test_a_second_run_makes_nothing_and_has_the_same_results(own_planned: tuple[Path, Path], chestx: Chestx) -> None:
    path, study = own_planned
    before, results = weights_of(study), results_without_times(study)
    outcome = chestx("study", path, "--study", study)
    assert outcome.code == 0, outcome.err
    assert "already done: 4 of 4 cells" in outcome.err
    assert weights_of(study) == before
    assert results_without_times(study) == results
    shown = chestx("study", "--study", study, "--dry-run", "--json").json()
    assert [(row["done"], row["left"]) for row in shown["rows"]] == [(4, [])] * 4


def test_a_changed_option_renews_what_depends_on_it_and_nothing_else(
    own_planned: tuple[Path, Path], chestx: Chestx
) -> None:
    path, study = own_planned
    before = created_times(study)
    path.write_text(path.read_text().replace("finetune-epochs = 1", "finetune-epochs = 2"))
    shown = chestx("study", path, "--study", study, "--dry-run", "--json").json()
    assert {tuple(row["left"]) for row in shown["rows"]} == {("prune twice", "evaluate")}
    assert shown["seconds_left"] is None
    outcome = chestx("study", path, "--study", study, "--json")
    assert outcome.code == 0, outcome.err
    after = created_times(study)
    assert {name for name in after if after[name] != before.get(name)} == {f"{cell}/twice" for cell in CELLS}
    (amendment,) = outcome.json()["amendments"]
    assert amendment["tested_cells"] == 4
    assert "variant twice" in amendment["changes"][0]
    assert "after test images had been predicted" in outcome.json()["answer"]["sentence"]


def test_another_endpoint_or_margin_trains_nothing_and_is_listed(
    own_planned: tuple[Path, Path], chestx: Chestx
) -> None:
    _, study = own_planned
    before = weights_of(study)
    outcome = chestx("study", "--study", study, "--endpoint", "auroc", "--margin", "0.1", "--json")
    assert outcome.code == 0, outcome.err
    assert weights_of(study) == before
    assert (outcome.json()["endpoint"], outcome.json()["margin"]) == ("auroc", 0.1)
    assert set(outcome.json()["amendments"][0]["changes"]) == {"endpoint: accuracy -> auroc", "margin: 0.05 -> 0.1"}


def test_a_plan_stored_after_removal_of_the_first_is_an_amendment(
    own_planned: tuple[Path, Path], chestx: Chestx
) -> None:
    path, study = own_planned
    (study / "plan.json").unlink()
    outcome = chestx("study", path, "--study", study, "--endpoint", "auroc", "--json")
    assert outcome.code == 0, outcome.err
    (amendment,) = outcome.json()["amendments"]
    assert (amendment["tested_cells"], amendment["changes"]) == (4, ["no plan was stored before"])
    assert "declared before" not in outcome.json()["answer"]["sentence"]


def test_a_failed_cell_stops_no_other_and_is_shown_with_its_command(
    own_planned: tuple[Path, Path], chestx: Chestx
) -> None:
    path, study = own_planned
    cell = study / "seed-1" / "fold-2"
    # Without the variant, the cell makes it again, from a parent whose file is modified.
    shutil.rmtree(cell / "variants" / "twice")
    edit(cell / "variants" / "oneshot-50" / "model.safetensors", lambda content: content + b" ")
    shutil.rmtree(study / "seed-2" / "fold-2" / "variants" / "twice")
    outcome = chestx("study", path, "--study", study, "--json")
    assert outcome.code == 1
    (failure,) = outcome.json()["failures"]
    assert failure["cell"] == "seed-1/fold-2"
    assert failure["command"].startswith("chestx prune ")
    assert str(cell.resolve()) in failure["command"]
    assert (study / "seed-2" / "fold-2" / "variants" / "twice" / "evaluation.test.json").exists()
    # Judged on the seed whose folds are complete.
    assert outcome.json()["seeds"] == [2]
    assert "seed-1/fold-2 failed" in " ".join(outcome.json()["answer"]["warnings"])


@pytest.mark.parametrize(
    "after", ["seed-1/folds.json", "seed-1/fold-2/variants/baseline", "seed-2/fold-1/variants/twice"]
)
def test_a_study_killed_at_any_point_resumes_to_the_same_results(
    planned: tuple[Path, Path, Outcome], tmp_path: Path, data: Path, after: str
) -> None:
    path = write_plan(tmp_path, data)
    study = tmp_path / "study"
    process = start(path, study)
    deadline_s = time.monotonic() + 300
    while not (study / after).exists() and time.monotonic() < deadline_s and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # The cell's process ends when its stdin is closed; the next command waits for that.
    again = run_chestx("study", path, "--study", study)
    assert again.code == 0, again.err
    assert results_without_times(study) == results_without_times(planned[1])


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found by their environment in /proc")
def test_an_interrupt_ends_the_cells_processes_too(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, study = write_plan(tmp_path, data), tmp_path / "study"
    # Inherited by every process of the study, and by no other.
    monkeypatch.setenv("STUDY_UNDER_TEST", str(study))
    process = start(path, study)

    def alive() -> set[int]:
        of_study = set()
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if f"STUDY_UNDER_TEST={study}".encode() in environment.read_bytes().split(b"\0"):
                    of_study.add(int(environment.parent.name))
        return of_study - {os.getpid()}

    deadline_s = time.monotonic() + 300
    while not (study / "seed-1" / "fold-1" / "checkpoints").exists() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert len(alive()) > 1
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    # Python's own helper for shared memory ends a moment after the last process that used it.
    deadline_s = time.monotonic() + 10
    while alive() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert alive() == set()


def test_a_student_is_a_step_of_a_chain(tmp_path: Path, data: Path, chestx: Chestx) -> None:
    text = (
        PLAN.replace("seeds = [1, 2]", "seeds = [1]").partition("[[variants]]")[0]
        + """
[[variants]]
name = "student-int8"
steps = [{ distill = "tiny", weights = "none", epochs = 1, batch-size = 16, width = 0.5 }, { quantize = "dynamic" }]
"""
    )
    path, study = write_plan(tmp_path, data, text), tmp_path / "study"
    outcome = chestx("study", path, "--study", study, "--json")
    assert outcome.code == 0, outcome.err
    assert [row["variant"] for row in outcome.json()["rows"]] == ["baseline", "student-int8"]
    for fold in (1, 2):
        made = study / "seed-1" / f"fold-{fold}" / "variants" / "student-int8.step-1" / "variant.json"
        record = json.loads(made.read_text())
        assert (record["method"], record["parent"], record["options"]["seed"]) == ("distill", "baseline", 1)
        assert record["options"]["width"] == 0.5
    again = chestx("study", "--study", study)
    assert again.code == 0, again.err
    assert "already done: 2 of 2 cells" in again.err
    whole = path.read_text()
    path.write_text(whole.replace("epochs = 1,", "epochs = 1, warmup-epochs = 2,"))
    refused = chestx("study", path, "--study", tmp_path / "other")
    assert refused.code == 2
    assert "leaves nothing of a fit of 1 epoch" in refused.err
    assert not (tmp_path / "other").exists()
    path.write_text(whole.replace("width = 0.5", "width = 0.01"))
    refused = chestx("study", path, "--study", tmp_path / "other")
    assert refused.code == 2
    assert "leaves none of the 8 channels of conv1" in refused.err
    assert not (tmp_path / "other").exists()
    path.write_text(whole)
    # A changed option of the student renews the student and its descendants.
    path.write_text(path.read_text().replace("epochs = 1,", "epochs = 1, lr = 5e-4,"))
    left = chestx("study", path, "--study", study, "--dry-run", "--json").json()["rows"]
    assert [row["left"] for row in left] == [
        ["distill student-int8.step-1", "quantize student-int8", "evaluate"] for _ in (1, 2)
    ]
    path.write_text(
        path.read_text().replace('weights = "none", epochs', "epochs").replace('"tiny", epoch', '"resnet18", epoch')
    )
    refused = chestx("study", path, "--study", tmp_path / "other", env={"TORCH_HOME": str(tmp_path / "no-weights")})
    assert refused.code == 1
    assert "the ImageNet weights of resnet18 are not on this machine" in refused.err
    assert not (tmp_path / "other").exists()


def test_a_student_whose_weights_file_has_changed_is_made_again(
    finished: Path, tmp_path: Path, data: Path, chestx: Chestx
) -> None:
    weights = tmp_path / "weights.safetensors"
    first, second = (finished / "variants" / name / "model.safetensors" for name in ("baseline", "oneshot-50"))
    shutil.copy(first, weights)
    text = (
        PLAN.replace("seeds = [1, 2]", "seeds = [1]").partition("[[variants]]")[0]
        + """
[[variants]]
name = "student"
steps = [{ distill = "tiny", weights = "weights.safetensors", epochs = 1, batch-size = 16 }]
"""
    )
    path, study = write_plan(tmp_path, data, text), tmp_path / "study"
    outcome = chestx("study", path, "--study", study)
    assert outcome.code == 0, outcome.err
    assert "already done: 2 of 2 cells" in chestx("study", path, "--study", study).err
    shutil.copy(second, weights)
    left = chestx("study", path, "--study", study, "--dry-run", "--json").json()["rows"]
    assert [row["left"] for row in left] == [["distill student", "evaluate"] for _ in (1, 2)]
    outcome = chestx("study", path, "--study", study, "--json")
    assert outcome.code == 0, outcome.err
    assert "variant student: " in outcome.json()["amendments"][0]["changes"][0]
    made = json.loads((study / "seed-1" / "fold-1" / "variants" / "student" / "variant.json").read_text())
    digest = hashlib.sha256(second.read_bytes()).hexdigest()
    assert made["options"]["weights"] == f"weights.safetensors (sha256 {digest})"


def test_the_example_is_run(tmp_path: Path, data: Path, chestx: Chestx) -> None:
    """Run the example with a tiny network and short training; its keys are unchanged."""
    text = (Path(__file__).parents[2] / "examples" / "study.toml").read_text()
    shorter = {
        'data = "data" ': f"data = {json.dumps(str(data))} ",
        "folds = 5": "folds = 2",
        'backbone = "resnet50"\nweights = "imagenet"': 'backbone = "tiny"\nimage-size = 32\nweights = "none"',
        "epochs = 12\nlr = 1e-4": "epochs = 3\nlr = 1e-3",
        "amount = 0.75": "amount = 0.5, finetune-epochs = 1, round-to = 1",
        "rounds = 5": 'rounds = 1\nduration = 0.02\nruntimes = ["onnxruntime"]',
    }
    for old, new in shorter.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "study.toml").write_text(text)
    outcome = chestx("study", tmp_path / "study.toml", "--study", tmp_path / "study", "--json")
    assert outcome.code == 0, outcome.err
    rows = {row["variant"]: row for row in outcome.json()["rows"]}
    assert set(rows) == {"baseline", "oneshot-50", "iterative-3x20", "structured-75-static-int8", "dynamic-int8"}
    assert rows["structured-75-static-int8"]["size_bytes"] < rows["baseline"]["size_bytes"]
    assert read_record(StudyRecord, tmp_path / "study" / "study.json").seeds == (42,)


def test_an_error_in_a_study_file_names_file_and_line(tmp_path: Path, data: Path, chestx: Chestx) -> None:
    path = write_plan(tmp_path, data, PLAN.replace("epochs = 2", "epoch = 2", 1))
    outcome = chestx("study", path, "--study", tmp_path / "study")
    assert outcome.code == 2
    assert f"{path}, line 11: unknown key 'epoch'" in outcome.err
    assert "epochs" in outcome.err.split("allowed are")[1][:20]
    assert not (tmp_path / "study").exists()


def test_init_writes_a_file_that_runs_and_keeps_an_existing_one(
    tmp_path: Path, data: Path, chestx: Chestx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert chestx("study", data, "--init").code == 0
    assert str(data) in (tmp_path / "study.toml").read_text()
    refused = chestx("study", data, "--init")
    assert refused.code == 1
    assert "--force" in refused.err
    shown = chestx("study", "study.toml", "--weights", "none", "--dry-run", "--json")
    assert shown.code == 0, shown.err
    assert len(shown.json()["rows"]) == 5
    assert not (tmp_path / "study").exists()


def test_a_folder_with_a_split_of_its_own_and_missing_weights_are_refused_before_anything_is_written(
    tmp_path: Path, data: Path, fresh: Path, chestx: Chestx, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--study DIR" in chestx("study", data, "--study", fresh).err
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    outcome = chestx("study", data, "--study", tmp_path / "study")
    assert outcome.code == 1
    assert f'"chestx study {data} --study {tmp_path / "study"} --weights none" needs no network' in outcome.err
    assert not (tmp_path / "study").exists()
    many = chestx("study", data, "--study", tmp_path / "study", "--weights", "none", "--jobs", "999")
    assert many.code == 2
    assert "999" in many.err


def test_more_trainings_at_a_time_than_memory_holds_are_refused_with_the_number_that_fits(
    tmp_path: Path, data: Path, chestx: Chestx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chestx_cli.commands.study.available_threads", lambda: 4)
    monkeypatch.setattr("chestx_cli.commands.study.available_bytes", lambda: 6_000_000_000)
    words = ("study", data, "--study", tmp_path / "study", "--weights", "none", "--backbone", "resnet18", "--jobs", 4)
    outcome = chestx(*words)
    assert outcome.code == 2
    assert "4 trainings at a time need about" in outcome.err
    # bf16 keeps half of the activations, so that more fit where the processor has it.
    assert "--jobs 2" in outcome.err or "--jobs 3" in outcome.err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    "larger",
    [
        '[train]\nema = 0.9\n@[[variants]]\nname = "a"\nsteps = [{ prune = "oneshot" }]\n',
        '@[[variants]]\nname = "a"\nsteps = [{ distill = "resnet18", weights = "none", precision = "fp32" }]\n',
        '@[[variants]]\nname = "a"\nsteps = [{ prune = "structured", distill = true, precision = "fp32" }]\n',
        '@[[variants]]\nname = "a"\nsteps = [{ quantize = "qat", batch-size = 64 }]\n',
    ],
)
def test_the_largest_fit_of_a_cell_decides_how_many_fit_into_memory(
    tmp_path: Path, data: Path, chestx: Chestx, monkeypatch: pytest.MonkeyPatch, larger: str
) -> None:
    baseline = {"backbone": '"resnet18"', "weights": '"none"', "precision": '"fp32"'}
    train = "[train]\n" + "".join(f"{key} = {value}\n" for key, value in baseline.items())
    one = training_bytes("resnet18", 224, 32, "fp32")
    monkeypatch.setattr("chestx_cli.commands.study.available_threads", lambda: 2)
    monkeypatch.setattr("chestx_cli.commands.study.available_bytes", lambda: 2 * one)
    own, _, variants = larger.partition("@")
    path = write_plan(tmp_path, data, f'data = "DATA"\n{train}{own.removeprefix("[train]")}\n{variants}')
    outcome = chestx("study", path, "--study", tmp_path / "study", "--jobs", 2)
    assert outcome.code == 2, outcome.err
    assert "2 trainings at a time need about" in outcome.err
    assert "--jobs 1" in outcome.err


def test_the_remedy_of_a_refused_split_is_a_line_of_the_study_file(
    tmp_path: Path, data: Path, chestx: Chestx, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Path(shutil.copytree(data, tmp_path / "images"))
    next(images.rglob("*.png")).write_bytes(b"no image")
    path, study = write_plan(tmp_path, images), tmp_path / "study"
    refused = chestx("study", path, "--study", study, "--json")
    assert refused.code == 1
    remedy = refused.json()["error"]["remedy"]
    assert '"skip-bad = true" leaves them out' in remedy
    assert "lines below [split] of the study file" in remedy
    path.write_text(path.read_text().replace("[train]", "[split]\nskip-bad = true\n\n[train]"))

    def reached(*_: object) -> None:
        raise DataError("the split is made")

    monkeypatch.setattr("chestx_cli.commands.study._make_cells", reached)
    assert "the split is made" in chestx("study", path, "--study", study).err
