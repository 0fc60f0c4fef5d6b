"""`chestx compress`: the chosen variant meets the limits, or the nearest variant is named."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chestx_cli.compression.cost_probe import Prober
from chestx_cli.compression.search import INT4, Cost
from chestx_cli.core.files import sha256_of
from chestx_cli.core.signals import Interrupted
from chestx_cli.networks.training import fit
from conftest import TINY, Chestx

QUICK = ("--round-to", 1, "--finetune-epochs", 1, "--batch-size", 16, "--threads", 1, "--criteria", "l2")


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return what sets the latency of every model to a share of its untrained network's MACs."""

    def pretend(ms: float) -> None:
        from chestx_cli.inference.timing import Round

        def time_latency(models: list[Any], *_: object) -> list[list[Round]]:
            sizes = [Path(model.path).stat().st_size for model in models]
            return [[Round(seconds={1: (ms * size / 1e9,)})] for size in sizes]

        monkeypatch.setattr("chestx_cli.compression.cost_probe.time_latency", time_latency)
        monkeypatch.setattr("chestx_cli.compression.searched_models.time_latency", time_latency)

    return pretend


def test_the_chosen_variant_keeps_the_limits_and_is_one_as_any(
    chestx: Chestx, study: Path, costs: Callable[[float], None]
) -> None:
    costs(1.0)
    words = ("compress", "--study", study, "--max-size-mb", 0.012, "--max-drop", 1, *QUICK)
    outcome = chestx(*words, "--json")
    assert outcome.code == 0, outcome.err
    record = outcome.json()
    row = next(row for row in record["rows"] if row["variant"] == record["chosen"])
    assert row["missed"] == []
    assert row["size_mb"] <= 0.012
    assert record["rows"][0]["variant"] == "baseline"
    stored = json.loads((study / "variants" / record["chosen"] / "variant.json").read_text())
    assert stored["model_sha256"] == row["model_sha256"]
    assert stored["parent"] is not None
    assert chestx("evaluate", record["chosen"], "--study", study).code == 0
    again = chestx(*words, "--json")
    assert [row["model_sha256"] for row in again.json()["rows"]] == [row["model_sha256"] for row in record["rows"]]
    assert again.err.count("already done") == len(record["rows"]) - 1


def test_models_have_a_threshold_and_a_temperature_by_the_rules_of_their_parent(
    chestx: Chestx, study: Path, costs: Callable[[float], None]
) -> None:
    costs(1.0)
    rules = ("--operating-point", "youden", "--temperature")
    assert chestx("evaluate", "baseline", "--study", study, *rules).code == 0
    outcome = chestx("compress", "--study", study, "--max-size-mb", 0.012, "--max-drop", 1, *QUICK, "--json")
    assert outcome.code == 0, outcome.err
    stored = json.loads((study / "variants" / outcome.json()["chosen"] / "variant.json").read_text())
    assert stored["operating_point"]["rule"] == "youden"


def test_what_cannot_be_reached_has_its_own_exit_code_and_names_the_nearest(
    chestx: Chestx, study: Path, costs: Callable[[float], None]
) -> None:
    costs(1.0)
    words = ("--max-size-mb", 0.0001, "--max-drop", 0, "--time-budget", 0.0001)
    outcome = chestx("compress", "--study", study, *words, *QUICK, "--json")
    assert outcome.code == 3, outcome.err
    record = outcome.json()
    assert record["chosen"] is None
    assert record["nearest"] in {row["variant"] for row in record["rows"]}
    assert "Not reachable" in record["notes"][0]
    # Out of time: what is begun first is made, and nothing after it.
    assert len(record["rows"]) == 2
    assert "no time left" in outcome.err
    # Another budget continues; what was built so far would not be worth an evaluation.
    assert "continues from here" in record["answer"]["sentence"]
    following = record["answer"]["next_command"]
    assert following.startswith(f"chestx compress --study {study} --max-size-mb 0.0001")
    assert following.endswith("--time-budget 0.0002")
    assert following.count("--time-budget") == 1
    # With --force everything is made again, also with more time.
    forced = chestx("compress", "--study", study, *words, *QUICK, "--force", "--json").json()["answer"]
    assert "--force" in forced["next_command"]
    assert "continues" not in forced["sentence"]


@pytest.mark.parametrize(
    ("words", "says", "remedy"),
    [
        ((), "there is nothing to search for", "--max-latency-ms"),
        (("--max-size-mb", 1, "--criteria", "nonsense"), "nonsense", "bn-scale"),
        (("--max-size-mb", 1, "--students", "nonsense"), "nonsense", "resnet18"),
        (("--max-size-mb", 1, "--students", "resnet18"), "weights of resnet18 are not", "resnet18 --fetch"),
        (("--max-size-mb", 1, "--students", "resnet18", "--fetch"), "cannot fetch https://", "leave resnet18 out"),
        (("--max-size-mb", 1, "--students", "nonsense:0.5"), "nonsense", "resnet18"),
        (("--max-size-mb", 1, "--students", "tiny:2"), "--students tiny:2: the width is", "tiny:0.5"),
        (("--max-size-mb", 1, "--students", "tiny:half"), "--students tiny:half: the width is", "tiny:0.5"),
        (("--max-size-mb", 1, "--students", "tiny:0.01"), "leaves none of the 8 channels", "give at least 0.07"),
        (("--max-size-mb", 1, "--runtime", "pytorch"), "unknown --runtime", "choose one of onnxruntime"),
        (("--objective", "energy"), "no energy counter of this processor", "--objective latency"),
    ],
    ids=[
        "no limit",
        "criterion",
        "student",
        "student without weights",
        "fetch",
        "wide stranger",
        "too wide",
        "no width",
        "too narrow",
        "runtime",
        "energy",
    ],
)
def test_what_cannot_be_searched_is_refused(
    words: tuple[object, ...],
    says: str,
    remedy: str,
    chestx: Chestx,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("chestx_cli.core.machine.ENERGY_COUNTERS", tmp_path)
    monkeypatch.setattr("chestx_cli.networks.weights.pretrained._answers", lambda _: False)
    # Before the study is opened, which does not exist.
    outcome = chestx("compress", "--study", tmp_path / "study", *words)
    assert outcome.code in (1, 2)
    said = " ".join(outcome.err.split())
    assert says in said
    assert remedy in said


@pytest.mark.skipif(importlib.util.find_spec("openvino") is not None, reason="openvino is installed")
def test_a_runtime_must_be_installed(chestx: Chestx, tmp_path: Path) -> None:
    outcome = chestx("compress", "--study", tmp_path, "--max-size-mb", 1, "--runtime", "openvino")
    assert outcome.code == 2
    assert "chestx-cli[openvino]" in outcome.err


def test_networks_compete_in_short_fits_which_a_killed_search_keeps(
    chestx: Chestx, study: Path, costs: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    costs(1.0)
    before = {path.name for path in (study / "variants").iterdir()}
    words = (
        *("compress", "--study", study, "--objective", "size", "--max-drop", 1, "--endpoint", "auroc"),
        *("--criteria", "l2,bn-scale", "--students", "tiny", "--short-epochs", 1, "--finetune-epochs", 3),
        *("--round-to", 1, "--batch-size", 16, "--threads", 1, "--json"),
    )
    begun: list[str] = []
    fatal = 3

    def killed(*args: Any, **kwargs: Any) -> Any:
        if len(begun) == fatal:
            raise Interrupted(2)
        begun.append(kwargs["stage"])
        return fit(*args, **kwargs)

    monkeypatch.setattr("chestx_cli.compression.short_fits.fit", killed)
    assert chestx(*words).code == 130
    # The fourth was not begun.
    assert begun == ["short fit"] * 3
    fatal = -1
    outcome = chestx(*words)
    assert outcome.code == 0, outcome.err
    record = outcome.json()
    fits = record["short_fits"]
    # Two shares by two criteria, and the student; the better three again.
    assert [row["epochs"] for row in fits] == [1] * 5 + [2] * 3
    # None is done twice.
    assert len(begun) == len(fits)
    first, second = fits[:5], fits[5:]
    assert {row["network"] for row in second} <= {row["network"] for row in first}
    # What is left are ordinary variants.
    rows = {row["variant"]: row for row in record["rows"]}
    assert {path.name for path in (study / "variants").iterdir()} - before == rows.keys() - {"baseline"}
    assert not list((study / "checkpoints").glob(".short-fits*"))
    # The least of the objective within the limits.
    chosen = rows[record["chosen"]]
    assert chosen["size_mb"] == min(row["size_mb"] for row in rows.values() if not row["missed"])
    for row in rows.values():
        assert row["dropped"] == "AUROC"
        assert row["drop"] == pytest.approx(-row["auroc_difference"])
        assert row["drop_interval"][0] <= row["drop"] <= row["drop_interval"][1]
        assert 0 <= row["front_share"] <= 1
    assert rows["baseline"]["drop"] == 0
    assert chosen["is_on_front"]
    assert chosen["front_share"] == 1
    assert record["objective"] == "size"
    assert record["answer"]["sentence"].startswith(
        f"{record['chosen']} meets all limits on the validation images, with"
    )


def test_a_student_of_half_the_width_competes_and_force_begins_anew(
    chestx: Chestx, study: Path, costs: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    costs(1.0)
    begun: list[str] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        begun.append(kwargs["stage"])
        return fit(*args, **kwargs)

    monkeypatch.setattr("chestx_cli.compression.short_fits.fit", counted)
    (study.parent / "chestx.toml").write_text('[compress]\nstudents = ["tiny", "tiny:50%", "tiny:0.5"]\n')
    words = (
        *("compress", "--study", study, "--objective", "size", "--max-drop", 1, "--criteria", "l2"),
        *("--short-epochs", 1, "--finetune-epochs", 2, "--round-to", 1, "--batch-size", 16, "--threads", 1, "--json"),
        *("--config", study.parent / "chestx.toml"),
    )
    outcome = chestx(*words)
    assert outcome.code == 0, outcome.err
    record = outcome.json()
    assert "student tiny:0.5" in {row["network"] for row in record["short_fits"]}
    assert len(begun) == len(record["short_fits"])
    rows = {row["variant"]: row for row in record["rows"]}
    student = rows["tiny-width-50-student-2"]
    assert student["student"] == "tiny:0.5"
    assert student["macs_removed"] > 0.5
    assert "tiny-width-50-student-2-static-int8" in rows
    assert "--backbone tiny --width 0.5" in " ".join(outcome.err.split())
    stored = json.loads((study / "variants" / student["variant"] / "variant.json").read_text())
    assert stored["options"]["width"] == 0.5
    assert chestx(*words).code == 0
    assert len(begun) == len(record["short_fits"])
    forced = chestx(*words, "--force")
    assert forced.code == 0, forced.err
    assert "already done" not in forced.err
    assert len(begun) == 2 * len(record["short_fits"])


def test_guided_pruning_competes_by_a_sensitivity_that_is_measured_once(
    chestx: Chestx, study: Path, costs: Callable[[float], None]
) -> None:
    costs(1.0)
    words = (
        *("compress", "--study", study, "--max-size-mb", 0.012, "--max-drop", 1, "--guided", "--criteria", "l2"),
        *("--short-epochs", 1, "--finetune-epochs", 2, *QUICK[4:8], "--round-to", 1, "--json"),
    )
    outcome = chestx(*words)
    assert outcome.code == 0, outcome.err
    assert "--structured --criterion l2" in " ".join(outcome.err.split())
    record = outcome.json()
    assert {row["method"] for row in record["rows"]} == {None, "structured", "guided"}
    guided = next(row for row in record["rows"] if row["method"] == "guided")
    variant = json.loads((study / "variants" / guided["variant"] / "variant.json").read_text())
    assert variant["options"]["method"] == "guided"
    assert variant["options"]["criterion"] == "l2"
    stored = study / "variants" / "baseline" / "sensitivity.structured.json"
    assert record["stamp"]["inputs"]["baseline/sensitivity.structured.json"] == sha256_of(stored)
    again = chestx(*words)
    assert again.code == 0, again.err
    assert "chestx sensitivity" not in " ".join(again.err.split())
    assert again.json()["rows"] == record["rows"]
    # That of another criterion is not replaced, since it may have guided other variants.
    assert chestx("sensitivity", "--study", study, "--structured", "--criterion", "bn-scale").code == 0
    before = stored.read_bytes()
    refused = chestx(*words)
    assert refused.code == 1
    said = " ".join(refused.err.split())
    assert "was measured with --criterion bn-scale, not l2" in said
    assert f'run "chestx sensitivity --study {study} --structured --criterion l2" first' in said
    assert stored.read_bytes() == before
    assert chestx("sensitivity", "--study", study, "--structured", "--criterion", "l2").code == 0
    assert chestx(*words, "--force").code == 0


def test_for_the_least_size_weights_are_in_4_bits_at_last(
    chestx: Chestx, study: Path, costs: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    costs(1.0)
    measured = Prober.cost

    def cost(prober: Prober, *about: Any) -> dict[str, Cost]:
        # The tiny network has too few weights for a file in 4 bits to be smaller.
        found = measured(prober, *about)
        return found | {INT4: dataclasses.replace(found[INT4], size_mb=found[INT4].size_mb / 10)}

    monkeypatch.setattr(Prober, "cost", cost)
    outcome = chestx("compress", "--study", study, "--objective", "size", "--max-drop", 1, *QUICK, "--json")
    assert outcome.code == 0, outcome.err
    rows = outcome.json()["rows"]
    assert [row["int8"] for row in rows].count("static-int4") == 1
    packed = rows[-1]["variant"]
    network = packed.removesuffix("-static-int8-int4-weights")
    assert network in {row["variant"] for row in rows if row["int8"] is None}
    stored = json.loads((study / "variants" / packed / "variant.json").read_text())
    assert stored["options"]["int4_weights"] is True
    assert stored["parent"] == network


def test_all_folds_are_searched_together(
    chestx: Chestx, data: Path, tmp_path: Path, costs: Callable[[float], None]
) -> None:
    costs(1.0)
    root = tmp_path / "folds"
    assert chestx("split", data, "--study", root, "--folds", 2, "--image-size", 32).code == 0
    limits = ("--objective", "latency", "--max-drop", 1, "--time-budget", 0.0001)
    search = ("compress", "--study", root, *limits, *QUICK)
    train = ("train", *TINY, "--epochs", 1, "--batch-size", 16)
    assert chestx(*train, "--study", root / "fold-1").code == 0
    refused = chestx(*search)
    assert refused.code == 1
    assert f"chestx train --study {root / 'fold-2'}" in " ".join(refused.err.split())
    assert chestx(*train, "--study", root / "fold-2").code == 0
    outcome = chestx(*search, "--json")
    assert outcome.code == 0, outcome.err
    record = outcome.json()
    assert record["folds"] == ["fold-1", "fold-2"]
    divided = json.loads((root / "folds.json").read_text())
    assert record["images"] == sum(row["val_images"] for row in divided["rows"])
    names = [row["variant"] for row in record["rows"]]
    assert names == ["baseline", "static-int8"]
    sizes, right = [], 0.0
    for fold, row in zip(record["folds"], divided["rows"], strict=True):
        stored = json.loads((root / fold / "variants" / "static-int8" / "variant.json").read_text())
        sizes.append(stored["model_bytes"] / 1e6)
        right += stored["quantization"]["accuracy"] * row["val_images"]
        assert record["stamp"]["inputs"][f"{fold}/static-int8/model.onnx"] == stored["model_sha256"]
    assert record["rows"][1]["size_mb"] == max(sizes)
    assert record["rows"][1]["accuracy"] == pytest.approx(right / record["images"])
    assert record["answer"]["next_command"].endswith(f"--study {root / 'fold-1'}")


def test_channels_in_coarse_steps_end_in_what_can_be_built(
    chestx: Chestx, study: Path, costs: Callable[[float], None]
) -> None:
    costs(1.0)
    words = ("compress", "--study", study, "--max-size-mb", 0.0001, "--max-drop", 1, *QUICK[2:], "--round-to", 8)
    outcome = chestx(*words, "--json")
    assert outcome.code == 3, outcome.err
    rows = outcome.json()["rows"]
    assert len(rows) > 1
    for row in rows[1:]:
        assert f"structured-{round(100 * row['macs_removed'])}-" in row["variant"] or row["macs_removed"] == 0
