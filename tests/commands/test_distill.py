"""`chestx distill`: another network learns from a variant and is then an ordinary variant."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chestx_cli.networks import distillation
from chestx_cli.networks.weights.serialization import load_network
from chestx_cli.records.variant import DISTILLED
from chestx_cli.store.directory import Study
from chestx_cli.store.lineage import unproven_of
from conftest import Chestx

STUDENT = ("distill", "--backbone", "tiny", "--weights", "none", "--lr", "0.001", "--epochs", "2", "--batch-size", "16")


def record_of(study: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((study / "variants" / name / "variant.json").read_text()))


def test_a_student_learns_from_the_outputs_of_its_teacher(
    chestx: Chestx, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = chestx(*STUDENT, "--study", study, "--seed", 5)
    assert outcome.code == 0, outcome.err
    record = record_of(study, "tiny-student")
    # Said once: the caveat is the student's own.
    said = " ".join(outcome.out.split()).count("tiny-student is not shown to have learned anything")
    assert said == bool(record["unproven"])
    teacher = record_of(study, "baseline")
    assert (record["method"], record["parent"]) == ("distill", "baseline")
    assert record["parent_sha256"] == teacher["model_sha256"]
    assert record["preprocessing"] == teacher["preprocessing"]
    assert record["options"]["balance"] == teacher["options"]["balance"]
    assert record["pruning"] is None
    assert record["structure"] is None
    assert [row["epoch"] for row in record["training"]["epochs"]] == [1, 2]
    # The same command again is done already; another teacher makes another student.
    assert "already done" in chestx(*STUDENT, "--study", study, "--seed", 5).err
    met: list[float] = []
    real = distillation.distilling

    def remembered(teacher: torch.nn.Module, *args: Any, **options: Any) -> Any:
        mix_loss = real(teacher, *args, **options)

        @contextmanager
        def remembering(student: torch.nn.Module, side_px: int) -> Any:
            with mix_loss(student, side_px) as hook:

                def mixed(loss: torch.Tensor, inputs: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
                    met.append(float((hook(loss, inputs, logits) - loss).detach()))
                    return hook(loss, inputs, logits)

                yield mixed

        return remembering

    monkeypatch.setattr("chestx_cli.commands.distill.distilling", remembered)
    words = (*STUDENT, "--study", study, "--seed", 5, "--from", "oneshot-50", "--teacher-weight", 1, "--name", "other")
    outcome = chestx(*words)
    assert outcome.code == 0, outcome.err
    assert any(met)
    first, second = (load_network(Study(study), Study(study).read_variant(name)) for name in ("tiny-student", "other"))
    assert not torch.equal(first.state_dict()["conv1.weight"], second.state_dict()["conv1.weight"])


def test_a_student_is_pruned_quantized_judged_and_stale_like_any_variant(chestx: Chestx, study: Path) -> None:
    at = ("--study", study)
    assert chestx(*STUDENT, *at).code == 0
    for words in (
        ("prune", "--from", "tiny-student"),
        ("quantize", "--from", "tiny-student"),
        ("evaluate",),
        ("benchmark", "--rounds", "1", "--duration", "0.02", "--runtimes", "onnxruntime"),
        ("report",),
    ):
        outcome = chestx(*words, *at)
        assert outcome.code == 0, outcome.err
    evaluated = chestx("evaluate", *at, "--json").json()
    assert {"tiny-student", "tiny-student-oneshot-50", "tiny-student-dynamic-int8"} <= {
        row["variant"] for row in evaluated["rows"]
    }
    assert "tiny-student (distill)" in (study / "report" / "index.html").read_text(encoding="utf-8")
    trained = ("train", *STUDENT[1:5], "--image-size", "32", "--lr", "0.002", "--epochs", "1", "--batch-size", "16")
    assert chestx(*trained, "--force", *at).code == 0
    rows = {row["variant"]: row for row in chestx("status", *at, "--json").json()["rows"]}
    assert rows["tiny-student"]["state"] == "stale"
    assert rows["tiny-student-oneshot-50"]["state"] == "stale"
    renewed = chestx("status", *at, "--json").json()["renewals"][0]["command"]
    assert renewed.startswith(("chestx distill", "chestx prune", "chestx quantize"))


def test_a_narrower_student_begins_with_the_channels_of_largest_norm_and_goes_on_like_any_variant(
    chestx: Chestx, study: Path, tmp_path: Path
) -> None:
    at = ("--study", study)
    weights = shutil.copy(study / "variants" / "baseline" / "model.safetensors", tmp_path / "tiny.safetensors")
    words = ("distill", "--backbone", "tiny", "--weights", weights, "--epochs", "1", "--batch-size", "16", *at)
    outcome = chestx(*words, "--width", "50%")
    assert outcome.code == 0, outcome.err
    name = "tiny-width-50-student"
    record, whole = record_of(study, name), record_of(study, "baseline")
    assert "with 50 % of its channels: the channels of largest norm of tiny.safetensors" in record["notes"][0]
    assert record["options"]["width"] == 0.5
    assert record["macs"] < whole["macs"] / 2
    student, teacher = (
        load_network(Study(study), Study(study).read_variant(one)).state_dict() for one in (name, "baseline")
    )
    assert (student["conv1.weight"].shape[0], tuple(student["conv2.weight"].shape[:2])) == (4, (8, 4))
    # One epoch moves the weights little: each filter is still nearest to one of the teacher's.
    filters = teacher["conv1.weight"].flatten(1)
    nearest = torch.cdist(student["conv1.weight"].flatten(1), filters).min(dim=1)
    assert len(set(nearest.indices.tolist())) == 4
    assert float(nearest.values.max()) < float(torch.pdist(filters).min()) / 2
    assert "already done" in chestx(*words, "--width", "0.5").err
    refused = chestx(*words, "--name", name)
    assert refused.code == 1
    assert "width: 0.5 -> 1.0" in refused.err
    for more in (
        ("prune", "--method", "structured", "--amount", "0.3", "--round-to", "1", "--finetune-epochs", "0"),
        ("quantize", "--method", "static", "--calibration-images", "8"),
        ("export", name, "--out", tmp_path / "bundle"),
        ("evaluate",),
        ("status",),
    ):
        parent = ("--from", name) if more[0] in {"prune", "quantize"} else ()
        outcome = chestx(*more, *parent, *at)
        assert outcome.code == 0, outcome.err
    pruned = record_of(study, f"{name}-structured-30")
    assert pruned["structure"]["parent_macs"] == record["macs"]
    assert pruned["macs"] < record["macs"]
    rows = chestx("evaluate", *at, "--json").json()["rows"]
    assert {name, f"{name}-structured-30", f"{name}-static-int8"} <= {row["variant"] for row in rows}


def test_a_narrower_student_without_weights_begins_with_random_ones(chestx: Chestx, study: Path) -> None:
    outcome = chestx(*STUDENT, "--width", "0.5", "--epochs", "1", "--study", study)
    assert outcome.code == 0, outcome.err
    assert "with 50 % of its channels: random weights" in record_of(study, "tiny-width-50-student")["notes"][0]
    outcome = chestx(*STUDENT, "--width", "0.05", "--study", study)
    assert outcome.code == 2
    assert "a width of 0.05 leaves none of the 8 channels of conv1" in outcome.err
    assert not (study / "variants" / "tiny-width-5-student").exists()


def test_a_student_that_learned_nothing_is_marked_and_so_is_what_is_made_from_it() -> None:
    def made(name: str, parent: str | None, method: str, *unproven: str) -> Any:
        return SimpleNamespace(
            name=name,
            parent=parent,
            parent_sha256=parent,
            model_sha256=name,
            unproven=unproven,
            is_new_network=parent is None or method == DISTILLED,
        )

    records = [made("a", None, "train"), made("b", "a", DISTILLED, "nothing"), made("c", "b", "oneshot", "nothing")]
    by_name = {record.name: record for record in records}
    assert unproven_of(records[:1], by_name, lambda _: ()) == ()
    assert unproven_of(records[1:2], by_name, lambda _: ()) == (("b", "nothing"),)
    assert unproven_of(records[2:], by_name, lambda _: ()) == (("b", "nothing"),)


def test_what_cannot_be_distilled_is_refused(chestx: Chestx, study: Path) -> None:
    outcome = chestx("distill", "--from", "dynamic-int8", "--weights", "none", "--study", study)
    assert outcome.code == 1
    assert "dynamic-int8" in outcome.err
    outcome = chestx(*STUDENT, "--warmup-epochs", 2, "--study", study)
    assert outcome.code == 2
    assert "leaves nothing of a fit of 2 epochs" in outcome.err
