"""`chestx report` on a made-up study: what it says, what it leaves out, and that text from files stays text."""

from __future__ import annotations

import dataclasses
import hashlib
import html
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import chestx_cli.figures
from chestx_cli import report
from chestx_cli.errors import StudyError
from chestx_cli.evaluation import class_rows, evaluation_row, misses
from chestx_cli.images import Preprocessing
from chestx_cli.predictions import Predictions, write_predictions
from chestx_cli.record import Stamp
from chestx_cli.records import (
    BenchmarkRecord,
    BenchmarkRow,
    EpochRow,
    EvaluationRecord,
    GroupRuleRow,
    LayerMeasurement,
    LayerRow,
    PrunedLayerRow,
    Pruning,
    Quantization,
    ReportRecord,
    SensitivityRecord,
    SplitRecord,
    SplitRow,
    Training,
    VariantRecord,
)
from chestx_cli.reporting import escape_markdown, percent
from chestx_cli.study import Study, read_record, write_record

DRAW_FIGURES = chestx_cli.figures.draw_figures
HOSTILE = "<img src=x onerror=alert(1)>|`$x$`\n# _a_"
IMAGES = {"train": 12, "val": 8, "test": 56}
# Wrong test images of each variant: 2 of 56 are 96.4 %, 3 are 94.6 %.
WRONG = {
    "baseline": (0, 30),
    "oneshot-50": (0, 30, 31),
    "broken-80": tuple(range(0, 40, 2)),
    "dynamic-int8": (0, 30),
    "static-int8": (0, 30),
}
BYTES = {"dynamic-int8": 95_000_000, "static-int8": 24_500_000}
ONNX_BYTES = 98_140_000
# Latency at batch 1 under eager PyTorch and ONNX Runtime.
P50_MS: dict[str, dict[str, float]] = {
    "baseline": {"pytorch": 38.0, "onnxruntime": 19.8},
    "oneshot-50": {"pytorch": 38.3, "onnxruntime": 19.9},
    "broken-80": {"pytorch": 57.0, "onnxruntime": 19.7},
    "dynamic-int8": {"onnxruntime": 19.9},
    "static-int8": {"onnxruntime": 9.9},
}


def stamp(command: str, minute: int) -> Stamp:
    return Stamp(
        command=command,
        options={"seed": 42},
        inputs={},
        environment={"torch": "2.13.0", "processor": "Made-up CPU", "threads": "2"},
        created=f"2026-01-01T10:{minute:02d}:00+00:00",
        duration_s=1.5,
    )


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_split(root: Path, classes: tuple[str, str]) -> SplitRecord:
    data = root / "data"
    data.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    for part, count in IMAGES.items():
        for i in range(count):
            path = data / f"patient{len(rows)}.png"
            Image.fromarray(rng.integers(0, 255, (40, 50), dtype=np.uint8)).save(path)
            rows.append(
                {
                    "image_id": f"img-{len(rows):06d}",
                    "path": path.name,
                    "label": classes[i % 2],
                    "group": f"p{len(rows) // 2}",
                    "split": part,
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                    "size_bytes": path.stat().st_size,
                    "width_px": 50,
                    "height_px": 40,
                }
            )
    study = Study(root / "study")
    study.root.mkdir()
    study.split_csv.write_text(pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    record = SplitRecord(
        stamp=stamp("chestx split data", 0),
        data=str(data),
        layout="class folders",
        images=len(rows),
        patients=len(rows) // 2,
        classes=classes,
        positive=classes[1],
        ignored_files=1,
        rows=tuple(
            SplitRow(split=part, label=label, images=n // 2, patients=n // 2, share=n / sum(IMAGES.values()))
            for part, n in IMAGES.items()
            for label in classes
        ),
        group_rules=(GroupRuleRow(rule="NIH", images=len(rows)),),
        split_csv_sha256=hashlib.sha256(study.split_csv.read_bytes()).hexdigest(),
    )
    write_record(study.split_json, record)
    return record


def make_variant(name: str, minute: int, split: SplitRecord, *, method: str) -> VariantRecord:
    is_int8, is_pruned = name.endswith("int8"), name.endswith(("50", "80"))
    epoch = {f.name: 0.9 for f in dataclasses.fields(EpochRow)}
    zeros = int(name[-2:]) / 100 if is_pruned else 0.0
    epochs = tuple(EpochRow(**{**epoch, "stage": "train", "epoch": i, "kept": i == 2}) for i in (1, 2, 3))  # type: ignore[arg-type]
    return VariantRecord(
        stamp=stamp(f"chestx make {name}", minute),
        name=name,
        kind="onnx" if is_int8 else "torch",
        method=method,
        parent=None if name == "baseline" else "baseline",
        parent_sha256=None if name == "baseline" else sha256("baseline"),
        backbone="resnet50",
        classes=split.classes,
        positive=split.positive,
        preprocessing=Preprocessing(),
        threshold=0.5,
        options={"method": method, "lr": 1e-4},
        model_file="model.onnx" if is_int8 else "model.safetensors",
        model_sha256=sha256(name),
        model_bytes=BYTES.get(name, 98_300_000),
        parameters=24_559_170,
        nonzero_parameters=int(24_559_170 * (1 - zeros)),
        macs=4_089_184_256,
        split_sha256=split.split_csv_sha256,
        training=Training(
            device="cpu", precision="bf16", initial_weights="x", best_epoch=2, best_val_loss=0.2, epochs=epochs
        )
        if name == "baseline"
        else None,
        pruning=Pruning(
            asked_sparsity=zeros,
            achieved_sparsity=zeros,
            finetune_epochs=0,
            layers=(PrunedLayerRow(layer="conv1", weights=100, zeros=int(100 * zeros), sparsity=zeros),),
        )
        if is_pruned
        else None,
        quantization=Quantization(
            quantized_layers=("fc",),
            quantized_parameters=1_050_000,
            quantized_share=0.043,
            parent_bytes=ONNX_BYTES,
            max_probability_difference=0.01,
        )
        if is_int8
        else None,
    )


def make_evaluations(study: Study, records: list[VariantRecord]) -> None:
    split = study.read_split()
    rows = split.indices("test")
    found = {}
    for record in records:
        truth = split.is_positive(rows)
        decision = truth.copy()
        decision[list(WRONG[record.name])] ^= 1
        probability = np.where(decision == 1, 0.9, 0.1) + np.linspace(0, 0.05, len(rows))
        found[record.name] = Predictions(
            image_ids=split.ids[rows], is_positive=truth, probability=probability, decision=decision
        )
    result = EvaluationRecord(
        stamp=stamp("chestx evaluate", 20),
        split="test",
        images=len(rows),
        patients=len(rows) // 2,
        positive=split.classes[1],
        baseline="baseline",
        split_sha256=split.sha256,
        rows=tuple(
            evaluation_row(
                r,
                found[r.name],
                None if r.name == "baseline" else found["baseline"],
                split.groups[rows],
                np.random.default_rng(0),
            )
            for r in records
        ),
        class_rows=tuple(row for r in records for row in class_rows(r, found[r.name], split)),
        misses=tuple(row for r in records for row in misses(r, found[r.name], split, rows)),
    )
    result = result.replace(stamp=with_inputs(result.stamp, records))
    for record in records:
        write_predictions(study.variant(record.name) / "predictions.test.csv", found[record.name])
        write_record(study.variant(record.name) / "evaluation.test.json", result.of(record.name))


def with_inputs(made: Stamp, records: list[VariantRecord]) -> Stamp:
    return dataclasses.replace(made, inputs={f"{r.name}/{r.model_file}": r.model_sha256 for r in records})


def make_benchmarks(study: Study, records: list[VariantRecord], p50_ms: dict[str, dict[str, float]]) -> None:
    best_ms, eager_ms = p50_ms["baseline"]["onnxruntime"], p50_ms["baseline"]["pytorch"]
    result = BenchmarkRecord(
        stamp=with_inputs(stamp("chestx benchmark", 30), records),
        device="cpu",
        threads=2,
        rounds=5,
        latency_batch=1,
        throughput_batch=16,
        baseline="baseline",
        best_fp32_runtime="onnxruntime",
        rows=tuple(
            BenchmarkRow(
                variant=r.name,
                runtime=runtime,
                model_bytes=r.model_bytes,
                size_mb=r.model_bytes / 1e6,
                parameters=r.parameters,
                nonzero_parameters=r.nonzero_parameters,
                macs=r.macs,
                gmacs=r.macs / 1e9,
                latency_p50_ms=ms,
                latency_p90_ms=ms * 1.1,
                latency_p99_ms=ms * 1.3,
                throughput_images_per_s=1200 / ms,
                speedup_over_eager=eager_ms / ms,
                speedup_over_best_fp32=best_ms / ms,
                samples=300,
                model_sha256=r.model_sha256,
            )
            for r in records
            for runtime, ms in p50_ms[r.name].items()
        ),
    )
    for record in records:
        write_record(study.variant(record.name) / "benchmark.cpu.json", result.of(record.name))


def make_sensitivity(study: Study, record: VariantRecord) -> None:
    layers = [(f"layer{i}.conv", 0.5 - i * 0.02) for i in range(20)]
    write_record(
        study.variant(record.name) / "sensitivity.json",
        SensitivityRecord(
            stamp=stamp("chestx sensitivity", 10),
            variant=record.name,
            split="val",
            images=IMAGES["val"],
            loss=0.2,
            accuracy=0.95,
            auroc=0.99,
            amounts=(0.2, 0.8),
            model_sha256=record.model_sha256,
            rows=tuple(
                LayerRow(
                    rank=i + 1,
                    layer=layer,
                    kind="Conv2d",
                    weights=9408,
                    mean_loss_increase=rise,
                    max_loss_increase=2 * rise,
                    max_accuracy_drop=rise / 4,
                    min_auroc=0.9,
                )
                for i, (layer, rise) in enumerate(layers)
            ),
            measurements=tuple(
                LayerMeasurement(
                    layer=layer, kind="Conv2d", weights=9408, amount=a, loss=0.2 + rise * a, accuracy=0.9, auroc=0.9
                )
                for layer, rise in layers
                for a in (0.2, 0.8)
            ),
        ),
    )


def make_study(root: Path, *, classes: tuple[str, str] = ("NORMAL", "PNEUMONIA"), method: str = "made up") -> Study:
    """Write a study of five variants with all results."""
    split = make_split(root, classes)
    study = Study(root / "study")
    records = [make_variant(name, minute, split, method=method) for minute, name in enumerate(WRONG, start=1)]
    for record in records:
        write_record(study.variant(record.name) / "variant.json", record)
    make_evaluations(study, records)
    make_benchmarks(study, records, P50_MS)
    make_sensitivity(study, records[0])
    return study


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One made-up study, to be copied."""
    return make_study(tmp_path_factory.mktemp("template")).root


@pytest.fixture
def study(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A copy of the study for one test, whose report has no figures: drawing is tested elsewhere and takes seconds."""
    monkeypatch.setattr(chestx_cli.figures, "draw_figures", lambda *_: ())
    shutil.copytree(template, tmp_path / "study")
    return Study(tmp_path / "study")


def rendered(study: Study) -> tuple[ReportRecord, str, str]:
    """Return the record, the page as a reader sees its text, and the Markdown."""
    record = report(study=study.root)
    page = re.sub(r"<style>.*?</style>", "", Path(record.html).read_text(), flags=re.DOTALL)
    return record, html.unescape(re.sub(r"<[^>]*>", "", page)), Path(record.markdown).read_text()


def table_widths(markdown: str) -> list[set[int]]:
    """Return the numbers of cells that the rows of each Markdown table have."""
    tables: list[set[int]] = [set()]
    for line in markdown.splitlines():
        if line.startswith("|"):
            tables[-1].add(len(re.findall(r"(?<!\\)\|", line)))
        elif tables[-1]:
            tables.append(set())
    return [widths for widths in tables if widths]


class Page(HTMLParser):
    """What of a page could run, load or be shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def links(self) -> list[str]:
        """Return everything that the page refers to."""
        return [value or "" for _, attrs in self.tags for name, value in attrs.items() if name in ("src", "href")]


def change(study: Study, name: str, file: str, kind: type[Any], **changes: Any) -> None:
    path = study.variant(name) / file
    write_record(path, read_record(kind, path).replace(**changes))


def test_figures_are_embedded_in_the_page_and_linked_from_the_markdown(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("class-distribution", "confusion-matrices")
    monkeypatch.setattr(chestx_cli.figures, "draw_figures", lambda target: DRAW_FIGURES(target, names))
    record = report(study=study.root)
    assert record.figures == names
    text = Path(record.html).read_text()
    assert text.count('src="data:image/svg+xml;base64,') == len(names)
    assert text.count('src="data:image/png;base64,') == 6
    links = re.findall(r"\]\(([^)]+)\)", Path(record.markdown).read_text())
    assert len(links) == len(names) + 6
    assert all((study.report / link).is_file() for link in links)


def test_every_registered_figure_has_its_place(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    svg = study.root / "empty.svg"
    svg.write_text("<svg/>")
    drawn = [
        chestx_cli.figures.DrawnFigure(name=name, title=f"The {name}", caption="!", svg=svg, png=Path(f"{name}.png"))
        for name in (*chestx_cli.figures.FIGURES, "registered-later")
    ]
    monkeypatch.setattr(chestx_cli.figures, "draw_figures", lambda _: drawn)
    _, text, _ = rendered(study)
    before, _, after = text.rpartition("More figures")
    assert all(f"The {name}" in before for name in chestx_cli.figures.FIGURES)
    assert "The registered-later" in after


def test_page_runs_and_loads_nothing(study: Study) -> None:
    text = Path(report(study=study.root).html).read_text()
    page = Page(text)
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "<script" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert all(link.startswith(("data:image/", "#")) for link in page.links())
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "iframe", "object", "form", "base"})
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")


def test_both_say_that_it_is_no_medical_device_and_the_same_statements(study: Study) -> None:
    record, text, markdown = rendered(study)
    assert "Research software. Not a medical device." in text[:200]
    assert "Research software. Not a medical device." in markdown[:200]
    for statement in record.statements:
        assert statement in text
        assert escape_markdown(statement) in markdown


def test_hostile_text_is_shown_and_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chestx_cli.figures, "draw_figures", lambda *_: ())
    made = make_study(tmp_path, classes=("NORMAL", HOSTILE), method=HOSTILE)
    record, text, markdown = rendered(made)
    tags = Page(Path(record.html).read_text()).tags
    assert all("onerror" not in attrs for _, attrs in tags)
    assert text.count("<img src=x onerror=alert(1)>|`$x$` # _a_") > 10
    assert "<" not in markdown
    assert "`$" not in markdown
    assert all(len(widths) == 1 for widths in table_widths(markdown))


def test_same_study_gives_the_same_bytes(study: Study) -> None:
    assert rendered(study)[1:] == rendered(study)[1:]


def test_tables_of_the_markdown_are_whole(study: Study) -> None:
    _, _, markdown = rendered(study)
    assert len(table_widths(markdown)) > 10
    assert all(len(widths) == 1 for widths in table_widths(markdown))
    assert 'run "chestx' not in markdown


def test_statements_on_accuracy(study: Study) -> None:
    said = report(study=study.root).statements
    assert said[0] == "With 56 test images, one image is 1.8 points of accuracy."
    assert (
        "oneshot-50 (94.6 %) is not distinguishable from the baseline (96.4 %): "
        "1 image lost, 0 won, McNemar exact p = 1." in said
    )
    assert "oneshot-50 misses 1 of 28 PNEUMONIA images, the baseline 0." in said
    assert any(text.startswith("broken-80 (64.3 %) is worse than the baseline (96.4 %)") for text in said)
    assert not any("No variant is distinguishable" in text for text in said)


def test_says_so_if_nothing_is_distinguishable(study: Study) -> None:
    shutil.rmtree(study.variant("broken-80"))
    assert any("No variant is distinguishable" in text for text in report(study=study.root).statements)


def test_statements_on_size_and_speed(study: Study) -> None:
    said = report(study=study.root).statements
    (zeros,) = [text for text in said if text.startswith("oneshot-50 has")]
    assert zeros.startswith("oneshot-50 has 50.0 % zeros, and the same file size and latency")
    assert "38.3 ms against 38.0 ms under eager PyTorch" in zeros
    (dynamic,) = [text for text in said if text.startswith("dynamic-int8 is 3.2 % smaller")]
    assert "no faster: 19.9 ms against 19.8 ms under ONNX Runtime" in dynamic
    (static,) = [text for text in said if text.startswith("static-int8 is 75.0 % smaller")]
    # Against the same runtime, not 3.84 times against eager PyTorch.
    assert "faster: 2.00 times as fast" in static
    (slower,) = [text for text in said if text.startswith("broken-80 has")]
    assert "slower: 1.50 times the latency" in slower
    assert any("1.92 times as fast" in text and "no gain of compression" in text for text in said)


@pytest.mark.parametrize(
    ("p50_ms", "word"), [(18.0, "faster: "), (18.9, "no faster: "), (20.7, "no faster: "), (21.0, "slower: ")]
)
def test_within_five_percent_nothing_is_faster_or_slower(study: Study, p50_ms: float, word: str) -> None:
    records = [study.read_variant(name) for name in study.variant_names()]
    make_benchmarks(study, records, {**P50_MS, "static-int8": {"onnxruntime": p50_ms}})
    (said,) = [text for text in report(study=study.root).statements if text.startswith("static-int8 is 75.0 %")]
    assert f" and {word}" in said


def test_variant_under_another_runtime_is_compared_with_the_best_fp32_runtime(study: Study) -> None:
    records = [study.read_variant(name) for name in study.variant_names()]
    make_benchmarks(study, records, {**P50_MS, "static-int8": {"other": 9.9}})
    (said,) = [text for text in report(study=study.root).statements if text.startswith("static-int8 is 75.0 %")]
    assert "faster than the FP32 baseline under its best runtime, ONNX Runtime: 2.00 times as fast" in said


def test_without_a_benchmark_nothing_is_said_on_speed(study: Study) -> None:
    for path in study.root.glob("variants/*/benchmark.cpu.json"):
        path.unlink()
    record, text, _ = rendered(study)
    assert not re.search(r"fast|slow|latency| ms", " ".join(record.statements))
    assert "oneshot-50 has 50.0 % zeros, and the same file size." in record.statements
    assert 'run "chestx benchmark"' in text


@pytest.mark.parametrize(
    ("pattern", "command"),
    [
        ("variants/*", "chestx train"),
        ("variants/*/evaluation.test.json", "chestx evaluate"),
        ("variants/*/benchmark.cpu.json", "chestx benchmark"),
        ("variants/*/sensitivity.json", "chestx sensitivity"),
        ("variants/*[0-9]", "chestx prune"),
    ],
)
def test_what_is_missing_names_its_command(study: Study, pattern: str, command: str) -> None:
    for path in study.root.glob(pattern):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _, text, markdown = rendered(study)
    assert f'run "{command}"' in text
    assert f'run "{command}"' in markdown


def test_images_that_changed_are_not_shown(study: Study) -> None:
    split = study.read_split_record()
    write_record(study.split_json, split.replace(data="nowhere"))
    assert "No example images" in rendered(study)[1]


def test_results_of_earlier_weights_are_left_out_and_named(study: Study) -> None:
    change(study, "static-int8", "variant.json", VariantRecord, model_sha256=sha256("made again"))
    change(study, "baseline", "sensitivity.json", SensitivityRecord, model_sha256=sha256("before"))
    change(study, "dynamic-int8", "variant.json", VariantRecord, split_sha256=sha256("other split"))
    record, text, markdown = rendered(study)
    assert record.variants == 4
    assert not any(text.startswith(("static-int8 (", "dynamic-int8")) for text in record.statements)
    assert not any("static-int8" in text and " ms" in text for text in record.statements)
    limits = text[text.rindex("Limits") :]
    for what in ("evaluation of static-int8", "sensitivity of baseline", "variant dynamic-int8"):
        assert what in limits
        assert what in markdown
    assert 'run "chestx sensitivity"' in text


def test_comparison_with_an_earlier_baseline_is_left_out(study: Study) -> None:
    change(study, "baseline", "variant.json", VariantRecord, model_sha256=sha256("trained again"))
    record, text, _ = rendered(study)
    assert not any("distinguishable" in said or "worse" in said or " ms" in said for said in record.statements)
    assert "against an earlier baseline" in text
    assert "oneshot-50 was made from an earlier baseline than the one shown here" in text


def test_leak_between_parts_is_said_first(study: Study) -> None:
    table = pd.read_csv(study.split_csv, dtype=str)
    table["group"] = "one patient"
    content = table.to_csv(index=False, lineterminator="\n")
    study.split_csv.write_text(content)
    digest = sha256(content)
    write_record(study.split_json, study.read_split_record().replace(split_csv_sha256=digest))
    assert report(study=study.root).statements[1].startswith("Patients leak")


def test_no_patient_file_name_beside_an_example_or_a_miss(study: Study) -> None:
    _, text, markdown = rendered(study)
    assert "img-0000" in text
    assert not re.search(r"patient\d+\.png", text + markdown)


def test_without_a_split_it_fails(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="chestx split DATA"):
        report(study=tmp_path / "study")


@pytest.mark.parametrize(
    ("value", "text"), [(0.9643, "96.4 %"), (1.0, "100.0 %"), (0.0, "0.0 %"), (0.9999, "99.99 %"), (0.0001, "0.01 %")]
)
def test_percent_never_rounds_up_to_all_or_down_to_nothing(value: float, text: str) -> None:
    assert percent(value) == text
