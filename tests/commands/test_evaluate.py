"""`chestx evaluate`: results recomputed from the stored predictions, and known answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from chestx_cli.evaluation.statistics.metrics import measure
from chestx_cli.evaluation.statistics.paired import mcnemar_exact
from conftest import Chestx, edit


def test_numbers_follow_from_the_stored_predictions(finished: Path) -> None:
    split = pd.read_csv(finished / "split.csv").set_index("image_id")
    test_ids = list(split.index[split["split"] == "test"])
    baseline = pd.read_csv(finished / "variants" / "baseline" / "predictions.test.csv")
    for folder in sorted((finished / "variants").iterdir()):
        table = pd.read_csv(folder / "predictions.test.csv")
        assert list(table["image_id"]) == test_ids
        truth = (split.loc[test_ids, "label"] == "PNEUMONIA").astype(int).to_numpy()
        assert (table["is_positive"] == truth).all()
        record = json.loads((folder / "evaluation.test.json").read_text())
        (row,) = record["rows"]
        correct = table["decision"] == table["is_positive"]
        assert row["correct"] == int(correct.sum())
        assert row["accuracy"] == pytest.approx(correct.mean())
        assert row["auroc"] == pytest.approx(roc_auc_score(truth, table["probability"]))
        assert row["accuracy_interval"][0] <= row["accuracy"] <= row["accuracy_interval"][1]
        cells = [row[name] for name in ("true_negatives", "false_positives", "false_negatives", "true_positives")]
        assert sum(cells) == len(test_ids)
        assert len(record["misses"]) == row["false_negatives"]
        assert {r["label"] for r in record["class_rows"]} == {"NORMAL", "PNEUMONIA"}
        if folder.name != "baseline":
            base_correct = baseline["decision"] == baseline["is_positive"]
            (compared,) = record["comparisons"]
            assert compared["lost"] == int((base_correct & ~correct).sum())
            assert compared["mcnemar_p"] == pytest.approx(mcnemar_exact(compared["lost"], compared["won"]))
            assert compared["interval"][0] <= compared["difference"] <= compared["interval"][1]
            changed = table["decision"] != baseline["decision"]
            assert {flip["image_id"] for flip in record["flips"]} == set(table["image_id"][changed])


def test_named_variants_are_compared_with_the_baseline_all_the_same(chestx: Chestx, study: Path) -> None:
    record = chestx("evaluate", "oneshot-50", "--study", study, "--json").json()
    assert [row["variant"] for row in record["rows"]] == ["baseline", "oneshot-50"]
    assert [row["variant"] for row in record["comparisons"]] == ["oneshot-50"]


def test_another_baseline_is_named(chestx: Chestx, study: Path) -> None:
    record = chestx("evaluate", "--study", study, "--baseline", "oneshot-50", "--json").json()
    assert record["rows"][0]["variant"] == "oneshot-50"
    assert all("oneshot-50" in row["verdict"] for row in record["comparisons"])


def test_another_positive_class_is_another_split(chestx: Chestx, study: Path, data: Path) -> None:
    assert chestx("split", data, "--study", study, "--positive", "NORMAL", "--force").code == 0
    refused = chestx("evaluate", "--study", study)
    assert refused.code == 1
    assert "another split" in refused.err


def test_a_copied_variant_is_not_taken_for_another(chestx: Chestx, study: Path) -> None:
    shutil.copytree(study / "variants" / "oneshot-50", study / "variants" / "mine")
    outcome = chestx("evaluate", "--study", study)
    assert outcome.code == 1
    assert "copy of variant 'oneshot-50'" in outcome.err


def test_evaluation_is_deterministic(chestx: Chestx, study: Path) -> None:
    records = [chestx("evaluate", "--study", study, "--json").json() for _ in range(2)]
    for record in records:
        del record["stamp"]
    assert records[0] == records[1]


def test_variants_of_another_split_are_refused(chestx: Chestx, study: Path, data: Path) -> None:
    outcome = chestx("split", data, "--study", study, "--seed", "5", "--force")
    assert outcome.code == 0
    assert "refused until made again: baseline, oneshot-50" in outcome.out
    refused = chestx("evaluate", "--study", study)
    assert refused.code == 1
    assert "another split" in refused.err
    assert "--force" in refused.err


def test_edited_files_are_refused(chestx: Chestx, study: Path) -> None:
    edit(study / "variants" / "oneshot-50" / "model.safetensors", lambda content: content[:-1] + b"\x01")
    outcome = chestx("evaluate", "--study", study)
    assert outcome.code == 1
    assert "oneshot-50/model.safetensors was changed" in outcome.err
    edit(study / "split.csv", lambda content: content.replace(b",test,", b",train,", 1))
    outcome = chestx("evaluate", "baseline", "--study", study)
    assert outcome.code == 1
    assert "split.csv was changed" in outcome.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _: b"{", "is not JSON"),
        (lambda _: b"[]", "is no chestx.variant record"),
        (
            lambda content: content.replace(b"chestx.variant/3", b"chestx.variant/9"),
            "by a newer chestx (schema chestx.variant/9)",
        ),
        (lambda content: content.replace(b'"threshold": 0.5', b'"threshold": "high"'), "damaged at threshold"),
    ],
)
def test_damaged_records_are_told(chestx: Chestx, study: Path, change: object, said: str) -> None:
    edit(study / "variants" / "oneshot-50" / "variant.json", change)  # type: ignore[arg-type]
    outcome = chestx("evaluate", "--study", study)
    assert outcome.code == 1
    assert said in outcome.err


def test_metrics_of_one_class_have_no_auroc() -> None:
    found = measure(np.ones(4, dtype=np.int64), np.array([0.9, 0.2, 0.5, 0.7]))
    assert (found.accuracy, found.auroc, found.average_precision) == (0.75, None, None)


def test_a_verdict_on_the_auroc(chestx: Chestx, study: Path) -> None:
    outcome = chestx("evaluate", "--study", study, "--endpoint", "auroc", "--json")
    assert outcome.code == 0, outcome.err
    record = outcome.json()
    areas = {row["variant"]: row["auroc"] for row in record["rows"]}
    assert (record["endpoint"], record["margin"]) == ("auroc", 0.02)
    for row in record["comparisons"]:
        assert row["difference"] == pytest.approx(areas[row["variant"]] - areas["baseline"])
        assert row["interval"][0] <= row["difference"] <= row["interval"][1]
        assert "of AUROC, 95 % CI" in row["verdict"]
    # It does not guard itself.
    assert {row["measure"] for row in record["guards"]} == {"sensitivity", "specificity"}
    compared = chestx("compare", "baseline", "oneshot-50", "--study", study, "--endpoint", "auroc", "--json").json()
    assert compared["endpoint"] == "auroc"
    report = chestx("report", "--study", study)
    assert report.code == 0, report.err
    assert "auroc, margin 0.02" in (study / "report" / "report.md").read_text()
