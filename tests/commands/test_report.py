"""`chestx report` on a made-up study: its statements, its omissions, and text from files shown literally."""

from __future__ import annotations

import dataclasses
import html
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from chestx_cli import report
from chestx_cli.core.errors import StudyError
from chestx_cli.evaluation.reading import read_study
from chestx_cli.evaluation.results import StudyResults
from chestx_cli.records.benchmark import BenchmarkRecord
from chestx_cli.records.commands import ReportRecord
from chestx_cli.records.evaluation import EvaluationRecord
from chestx_cli.records.sensitivity import SensitivityRecord
from chestx_cli.records.variant import VariantRecord
from chestx_cli.reporting.decision import decide
from chestx_cli.reporting.figures import drawing
from chestx_cli.reporting.page.blocks import make_table, percent
from chestx_cli.reporting.page.render import escape_markdown
from chestx_cli.reporting.page.tables import csv_of
from chestx_cli.store.directory import Study
from chestx_cli.store.documents import read_record, write_record
from support.made_up_study import Made, rewrite_benchmarks, sha256, write_study

DRAW_FIGURES = drawing.draw_figures_into
HOSTILE = "<img src=x onerror=alert(1)>|`$x$`\n# _a_"
# Of 56 test images, 2 wrong are 96.4 %, 3 are 94.6 %.
VARIANTS = (
    Made(name="baseline", wrong=(0, 1), p50_ms={"pytorch": 38.0, "onnxruntime": 19.8}),
    Made(name="oneshot-50", wrong=(0, 1, 28), sparsity=0.5, p50_ms={"pytorch": 38.3, "onnxruntime": 19.9}),
    Made(name="broken-80", wrong=tuple(range(20)), sparsity=0.8, p50_ms={"pytorch": 57.0, "onnxruntime": 19.7}),
    Made(name="dynamic-int8", wrong=(0, 1), kind="onnx", model_bytes=95_000_000, p50_ms={"onnxruntime": 19.9}),
    Made(name="static-int8", wrong=(0, 1), kind="onnx", model_bytes=24_500_000, p50_ms={"onnxruntime": 9.9}),
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One made-up study, to be copied."""
    return write_study(tmp_path_factory.mktemp("template"), VARIANTS, epochs=3).root


@pytest.fixture
def study(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A copy of the study for one test, whose report has no figures: drawing is tested elsewhere and takes seconds."""
    monkeypatch.setattr(drawing, "draw_figures_into", lambda *_: ())
    shutil.copytree(template, tmp_path / "study")
    return Study(tmp_path / "study")


def rendered(study: Study) -> tuple[ReportRecord, str, str]:
    """Return the record, the page as a reader sees its text, and the Markdown."""
    record = report(study=study.root)
    page = re.sub(r"<style>.*?</style>", "", Path(record.html).read_text(), flags=re.DOTALL)
    return record, html.unescape(re.sub(r"<[^>]*>", "", page)), Path(record.markdown).read_text()


def statements(record: ReportRecord) -> list[str]:
    """Return the text of a report."""
    return [row.text for row in record.statements]


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


def remake(study: Study, name: str) -> None:
    """Change the weights of a variant, as if it had been made again."""
    record = study.read_variant(name)
    (study.variant(name) / record.model_file).write_text("made again")
    change(study, name, "variant.json", VariantRecord, model_sha256=sha256("made again"))


def test_an_edited_model_is_left_out_and_named(study: Study) -> None:
    (study.variant("static-int8") / "model.onnx").write_text("edited")
    record, text, _ = rendered(study)
    assert "static-int8/model.onnx was changed" in text
    assert not any(said.startswith("static-int8") for said in statements(record))


def test_figures_are_embedded_in_the_page_and_linked_from_the_markdown(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("class-distribution", "confusion-matrices")
    monkeypatch.setattr(drawing, "FIGURES", {name: drawing.FIGURES[name] for name in names})
    monkeypatch.setattr(drawing, "draw_figures_into", DRAW_FIGURES)
    record = report(study=study.root)
    assert record.figures == names
    text = Path(record.html).read_text()
    assert text.count('src="data:image/svg+xml;base64,') == len(names)
    flips = sum(min(12, len(v.evaluation.flips)) for v in read_study(study).variants if v.evaluation)
    assert flips == 13
    assert text.count('src="data:image/png;base64,') == 6 + flips
    links = re.findall(r"\]\(([^)]+)\)", Path(record.markdown).read_text())
    assert len(links) == len(names) + 6 + flips
    assert all((study.report / link).is_file() for link in links)


def test_every_registered_figure_has_its_place(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    svg = study.root / "empty.svg"
    svg.write_text("<svg/>")
    names = tuple(drawing.FIGURES)

    def draw(_folder: Path, _results: StudyResults, chosen: tuple[str, ...], *_: object) -> list[drawing.DrawnFigure]:
        return [
            drawing.DrawnFigure(name=name, title=f"The {name}", caption="!", svg=svg, png=Path(f"{name}.png"))
            for name in chosen
        ]

    monkeypatch.setattr(drawing, "FIGURES", (*names, "registered-later"))
    monkeypatch.setattr(drawing, "draw_figures_into", draw)
    record = report(study=study.root)
    before, _, after = Path(record.html).read_text().rpartition("More figures")
    assert all(f"The {name}" in before for name in names)
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
    files = {path.relative_to(study.report).as_posix() for path in study.report.rglob("*") if path.is_file()}
    assert all(link.startswith(("data:image/", "#")) or link in files for link in page.links())
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "iframe", "object", "form", "base"})
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")


class Outline(HTMLParser):
    """What a reader of a page is led by: headings, headers of tables, and its sentences outside of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.levels: list[int] = []
        self.header_cells: list[dict[str, str | None]] = []
        self.tables_without_headers = 0
        self.landmarks: list[str] = []
        self.sentences: list[str] = []
        self.words: list[str] = []
        self.feed(re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"p", "li", "figcaption"}:
            self.words = []
        if re.fullmatch(r"h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag in {"header", "main", "footer"}:
            self.landmarks.append(tag)
        if tag == "th":
            self.header_cells.append(dict(attrs))
        if tag == "table":
            self.tables_without_headers += 1
        if tag == "thead":
            self.tables_without_headers -= 1

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in {"p", "li", "figcaption"}:
            self.sentences += re.split(r"(?<=[.:]) (?=[A-Z])", " ".join("".join(self.words).split()))


def test_the_page_can_be_read_aloud_and_says_nothing_twice(study: Study) -> None:
    text = Path(report(study=study.root).html).read_text()
    outline = Outline(text)
    assert '<html lang="en">' in text
    assert outline.landmarks == ["header", "main", "footer"]
    assert outline.levels[0] == 1
    assert outline.levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(outline.levels, outline.levels[1:], strict=False))
    assert outline.tables_without_headers == 0
    assert all(cell.get("scope") in {"col", "row"} for cell in outline.header_cells)
    long = [sentence for sentence in outline.sentences if len(sentence) > 60]
    assert len(long) > 20
    assert [sentence for sentence in set(long) if long.count(sentence) > 1] == []


def test_the_first_screen_is_the_decision_of_the_terminal(study: Study) -> None:
    record, text, markdown = rendered(study)
    assert record.answer
    first = text[: text.index("Reasons")]
    decided = decide(read_study(study).variants)
    assert decided.sentence in first
    assert record.answer.rows == decided.rows
    assert all(value in first for row in decided.rows for value in dataclasses.astuple(row))
    assert 0 < markdown.index("## Answer") < markdown.index("## Reasons") < markdown.index("## Everything")
    assert "of the former and raises" in first
    assert "GMACs per image" in first


def test_tables_lie_beside_the_page_as_csv(study: Study) -> None:
    page = Path(report(study=study.root).html).read_text()
    files = sorted((study.report / "tables").iterdir())
    assert len(files) > 10
    assert all(f'href="tables/{file.name}"' in page for file in files)
    deciding = pd.read_csv(files[0])
    assert list(deciding["Variant"]) == ["oneshot-50", "broken-80", "dynamic-int8", "static-int8"]
    assert list(deciding["Verdict"])[1] == "inferior"


def test_no_cell_of_a_csv_file_is_computed_by_a_spreadsheet() -> None:
    table = make_table("A table", [("Name", "", ["=1+1", "@a", "-cmd", "plain"]), ("Change", "", ["+1.0 %"] * 4)])
    first = [line.split(",") for line in csv_of(table).splitlines()[1:]]
    assert first == [["'=1+1", "'+1.0 %"], ["'@a", "'+1.0 %"], ["'-cmd", "'+1.0 %"], ["plain", "'+1.0 %"]]


def test_the_model_card_has_all_headings_and_the_methods_the_numbers(study: Study) -> None:
    record, text, _ = rendered(study)
    card = (Path(record.html).parent / "model-card.md").read_text()
    headings = re.findall(r"^## (.*)$", card, flags=re.MULTILINE)
    assert headings == [
        "Model details",
        "Intended use",
        "Factors",
        "Metrics",
        "Evaluation data",
        "Training data",
        "Quantitative analyses",
        "Ethical considerations",
        "Caveats and recommendations",
    ]
    assert "Not for diagnosis" in card
    assert "the same 56 test images of 28 patients" in text


def test_without_times_the_first_screen_says_so_instead_of_an_empty_figure(study: Study) -> None:
    for path in study.root.glob("variants/*/benchmark.cpu.json"):
        path.unlink()
    _, text, _ = rendered(study)
    assert "Not timed yet" in text[: text.index("Reasons")]


def test_both_say_that_it_is_no_medical_device_and_the_same_statements(study: Study) -> None:
    record, text, markdown = rendered(study)
    assert "Research software. Not a medical device." in text[:200]
    assert "Research software. Not a medical device." in markdown[:200]
    for statement in statements(record):
        assert statement in text
        assert escape_markdown(statement) in markdown


def test_hostile_text_is_shown_and_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "draw_figures_into", lambda *_: ())
    made = write_study(tmp_path, VARIANTS, classes=("NORMAL", HOSTILE), method=HOSTILE)
    record, text, markdown = rendered(made)
    tags = Page(Path(record.html).read_text()).tags
    assert all("onerror" not in attrs for _, attrs in tags)
    assert text.count("<img src=x onerror=alert(1)>|`$x$`\\n# _a_") > 10
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
    said = statements(report(study=study.root))
    assert said[0] == "With 56 test images, one image is 1.8 points of accuracy."
    (one,) = (text for text in said if text.startswith("oneshot-50 (94.6 %)"))
    assert "is inconclusive: 56 images are too few; about" in one
    assert "(-1.8 points of accuracy, 95 % CI" in one
    assert "1 of 56 images correct with the baseline only, 0 with the variant only)" in one
    assert (
        "oneshot-50 misses 1 of 28 PNEUMONIA images and calls 2 of 28 others PNEUMONIA; "
        "the baseline misses 0 of 28 PNEUMONIA images and calls 2 of 28 others PNEUMONIA." in said
    )
    assert any(text.startswith("broken-80 (64.3 %) is inferior to the baseline (accuracy") for text in said)
    assert not any("No variant is shown to differ" in text for text in said)


def test_says_so_if_nothing_is_distinguishable(study: Study) -> None:
    shutil.rmtree(study.variant("broken-80"))
    assert any("No variant is shown to differ" in text for text in statements(report(study=study.root)))


def test_statements_on_size_and_speed(study: Study) -> None:
    said = statements(report(study=study.root))
    (zeros,) = [text for text in said if text.startswith("oneshot-50 has")]
    assert zeros.startswith("oneshot-50 has 50.0 % zeros, and the same file size. oneshot-50 is not faster than")
    (dynamic,) = [text for text in said if text.startswith("dynamic-int8 is 3.2 % smaller")]
    assert "dynamic-int8 is not faster than the FP32 baseline on cpu (both under ONNX Runtime" in dynamic
    (static,) = [text for text in said if text.startswith("static-int8 is 75.0 % smaller")]
    # Against the best FP32 runtime, not 3.84 times against eager PyTorch.
    assert "static-int8 is faster than the FP32 baseline" in static
    assert "2.00 times as fast (95 % 1.98–2.02)" in static
    # Slower under eager PyTorch, and not under the runtime that one would use.
    (mixed,) = [text for text in said if text.startswith("broken-80 has")]
    assert "broken-80 is not faster than the FP32 baseline" in mixed
    assert any("1.92 times as fast" in text and "gain is not due to compression" in text for text in said)
    assert any(text.startswith("Recommended for speed on cpu: static-int8 under ONNX Runtime.") for text in said)


def test_a_slower_int8_file_is_not_recommended(study: Study) -> None:
    rewrite_benchmarks(study, VARIANTS, "static-int8", {"onnxruntime": 40.0})
    said = statements(report(study=study.root))
    assert "static-int8 is an INT8 file that is slower than FP32 here: it is not recommended." in said
    assert any(text.startswith("Recommended for speed on cpu: the FP32 baseline itself") for text in said)


@pytest.mark.parametrize(
    ("p50_ms", "word"), [(18.0, "faster"), (18.9, "not faster"), (20.7, "not faster"), (21.0, "slower")]
)
def test_within_five_percent_nothing_is_faster_or_slower(study: Study, p50_ms: float, word: str) -> None:
    rewrite_benchmarks(study, VARIANTS, "static-int8", {"onnxruntime": p50_ms})
    (said,) = [text for text in statements(report(study=study.root)) if text.startswith("static-int8 is 75.0 %")]
    assert f"static-int8 is {word} than the FP32 baseline" in said
    assert (": 21.0 ms, 1.06 times the latency (95 % " in said) == (word == "slower")


@pytest.mark.parametrize("interval", [(0.9, 1.4), None])
def test_a_ratio_that_scatters_over_one_is_called_neither_faster_nor_slower(
    study: Study, interval: tuple[float, float] | None
) -> None:
    record = read_record(BenchmarkRecord, study.variant("static-int8") / "benchmark.cpu.json")
    rows = tuple(dataclasses.replace(row, speedup_over_best_fp32_interval=interval) for row in record.rows)
    change(study, "static-int8", "benchmark.cpu.json", BenchmarkRecord, rows=rows)
    (said,) = [text for text in statements(report(study=study.root)) if text.startswith("static-int8 is 75.0 %")]
    assert "static-int8: not enough rounds to say whether it is faster than the FP32 baseline" in said
    assert "2.00 times as fast (" in said


def test_variant_under_another_runtime_is_compared_with_the_best_fp32_runtime(study: Study) -> None:
    rewrite_benchmarks(study, VARIANTS, "static-int8", {"openvino": 9.9})
    (said,) = [text for text in statements(report(study=study.root)) if text.startswith("static-int8 is 75.0 %")]
    assert "(OpenVINO against ONNX Runtime, the best for each): 9.90 ms, 2.00 times as fast" in said


def test_a_noisy_benchmark_is_said_before_what_it_shows(study: Study) -> None:
    for name in study.variant_names():
        change(study, name, "benchmark.cpu.json", BenchmarkRecord, warnings=("NOISY: the rounds differ.",))
    said = statements(report(study=study.root))
    assert said.count("NOISY: the rounds differ.") == 1
    assert said.index("NOISY: the rounds differ.") < min(i for i, text in enumerate(said) if " ms" in text)


def test_without_a_benchmark_nothing_is_said_on_speed(study: Study) -> None:
    for path in study.root.glob("variants/*/benchmark.cpu.json"):
        path.unlink()
    record, text, _ = rendered(study)
    assert not re.search(r"fast|slow|latency| ms", " ".join(statements(record)))
    assert "oneshot-50 has 50.0 % zeros, and the same file size." in statements(record)
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
    remake(study, "static-int8")
    change(study, "baseline", "sensitivity.json", SensitivityRecord, model_sha256=sha256("before"))
    change(study, "dynamic-int8", "variant.json", VariantRecord, split_sha256=sha256("other split"))
    record, text, markdown = rendered(study)
    assert record.variants == 4
    assert not any(text.startswith(("static-int8 (", "dynamic-int8")) for text in statements(record))
    assert not any("static-int8" in text and " ms" in text for text in statements(record))
    limits = text[text.rindex("Limits") :]
    for what in ("evaluation of static-int8", "sensitivity of baseline", "variant dynamic-int8"):
        assert what in limits
        assert what in markdown
    assert 'run "chestx sensitivity"' in text


def test_comparison_with_an_earlier_baseline_is_left_out(study: Study) -> None:
    remake(study, "baseline")
    record, text, _ = rendered(study)
    assert not any("distinguishable" in said or "worse" in said or " ms" in said for said in statements(record))
    assert "against an earlier baseline" in text
    assert "STALE: oneshot-50 was made from an earlier version of baseline." in text
    assert 'run "chestx make oneshot-50 --force"' in text


def test_leak_between_parts_is_said_first(study: Study) -> None:
    table = pd.read_csv(study.split_csv, dtype=str)
    table["group"] = "one patient"
    content = table.to_csv(index=False, lineterminator="\n")
    study.split_csv.write_text(content)
    digest = sha256(content)
    write_record(study.split_json, study.read_split_record().replace(split_csv_sha256=digest))
    assert statements(report(study=study.root))[1].startswith("LEAKED: ")


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


def test_claim_checklist_answers_and_names_what_is_left(study: Study) -> None:
    _, text, _ = rendered(study)
    claim = text.split("CLAIM checklist")[-1]
    for item in ("Level at which partitions are disjoint", "Uncertainty and significance", "Failure analysis"):
        assert item in claim
    assert "Left to the author: 1 title" in claim


def test_verdicts_of_separate_evaluations_are_corrected_together(study: Study) -> None:
    for name in ("oneshot-50", "broken-80", "dynamic-int8", "static-int8"):
        path = study.variant(name) / "evaluation.test.json"
        record = read_record(EvaluationRecord, path)
        (row,) = record.comparisons
        # As if each had been evaluated alone.
        write_record(path, record.replace(comparisons=(dataclasses.replace(row, holm_p=row.p),)))
    found = {v.name: v.comparison for v in read_study(study).variants if v.comparison}
    assert found["broken-80"].holm_p == pytest.approx(4 * found["broken-80"].p)


def test_changed_decisions_begin_with_new_false_negatives(study: Study) -> None:
    _, text, markdown = rendered(study)
    assert "oneshot-50: 1 of 56 decisions changed, 1 of them new false negatives" in text
    assert "static-int8 decides all 56 test images like" in text
    assert "new false negative" in markdown
