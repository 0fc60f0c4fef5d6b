"""Figures: drawn for every study with the required results and only then, byte-identical each time."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from chestx_cli.core.errors import ChestxError, StudyError, UsageError
from chestx_cli.core.printable import printable
from chestx_cli.evaluation.reading import read_study
from chestx_cli.records.benchmark import BenchmarkRecord
from chestx_cli.records.evaluation import EvaluationRecord, EvaluationRow, UnprovenRow
from chestx_cli.records.sensitivity import SensitivityRecord
from chestx_cli.records.split import UNMATCHED, GroupRuleRow
from chestx_cli.reporting.figures import drawing
from chestx_cli.reporting.figures.drawing import FIGURES, draw_figures, drawing_beside, drawn_beside
from chestx_cli.reporting.figures.pareto import NAME_GAP, NAMES_AT, name_heights
from chestx_cli.reporting.figures.sensitivity import sensitivity
from chestx_cli.reporting.figures.style import STYLE
from chestx_cli.store.directory import Study
from chestx_cli.store.documents import read_record, write_record
from support import made_up_study
from support.made_up_study import FIVE, made_stamp, rewrite_benchmarks, sha256, write_split, write_study

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from chestx_cli.core.worker import Beside
    from chestx_cli.evaluation.results import StudyResults


DATA_FIGURES = ("class-distribution", "split", "near-duplicates")


def texts(svg: Path) -> str:
    """Return all text of an SVG, without white space around lines."""
    root = ElementTree.fromstring(svg.read_text(encoding="utf-8"))  # noqa: S314 - written by the code under test
    return "\n".join("".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = write_study(tmp_path_factory.mktemp("full"))
    draw_figures(study, FIGURES)
    return study


def ink_share(png: Path) -> float:
    """Return the share of pixels that are not white."""
    with Image.open(png) as image:
        return float((np.asarray(image.convert("L")) < 250).mean())


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_drawn_as_svg_and_png_and_shows_something(full: Study, name: str) -> None:
    svg, png = (full.report / "figures" / f"{name}.{suffix}" for suffix in ("svg", "png"))
    assert texts(svg)
    with Image.open(png) as image:
        assert image.width >= 600
        assert image.getpixel((0, 0))[:3] == (255, 255, 255)  # type: ignore[index]
    assert ink_share(png) > 0.01
    assert FIGURES[name].title
    assert FIGURES[name].caption.endswith(".")


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_skipped_and_its_old_files_removed_where_the_study_has_only_a_split(
    tmp_path: Path, name: str
) -> None:
    study = write_split(tmp_path)
    stale = study.report / "figures" / f"{name}.svg"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an earlier study")
    drawn = draw_figures(study, (name,))
    assert [found.name for found in drawn] == ([name] if name in DATA_FIGURES else [])
    assert stale.exists() == (name in DATA_FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_same_study_gives_the_same_bytes(full: Study, name: str) -> None:
    paths = [full.report / "figures" / f"{name}.{suffix}" for suffix in ("svg", "png")]
    before = [path.read_bytes() for path in paths]
    (drawn,) = draw_figures(full, (name,))
    assert [drawn.svg, drawn.png] == paths
    assert [path.read_bytes() for path in paths] == before


def test_unknown_figure_is_refused_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose one of class-distribution"):
        draw_figures(Study(tmp_path), ("nonsense",))


def test_a_second_process_draws_the_same_bytes(full: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in (full.report / "figures").iterdir()}
    own = Study(Path(shutil.copytree(full.root, tmp_path / "study")))
    shutil.rmtree(own.report)
    drawn_there = []

    def noted(process: Beside, name: str) -> drawing.Pictures | None:
        drawn_there.append(name)
        return drawn_beside(process, name)

    monkeypatch.setattr(drawing, "available_threads", lambda: 2)
    monkeypatch.setattr(drawing, "drawn_beside", noted)
    drawn = draw_figures(own, FIGURES)
    assert [one.name for one in drawn] == list(FIGURES)
    assert drawn_there
    assert {path.name: path.read_bytes() for path in (own.report / "figures").iterdir()} == before


def test_what_fails_in_the_second_process_fails_as_here(full: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "available_threads", lambda: 2)
    gone = replace(read_study(full), study=Study(full.root / "gone"))
    with drawing_beside(len(FIGURES)) as other:
        assert other is not None
        other.send(gone)
        with pytest.raises(StudyError, match=r"predictions\.test\.csv no longer exists"):
            drawn_beside(other, "roc-pr")
        other.process.kill()
        with pytest.raises(ChestxError, match="the process that draws figures ended with code -9"):
            drawn_beside(other, "split")


def redrawn(study: Study, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return which figures are drawn, and not kept, when all are wanted."""
    names: set[str] = set()
    real = drawing._drawn

    def noted(results: StudyResults, name: str) -> drawing.Pictures | None:
        found = real(results, name)
        if found is not None:
            names.add(name)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(drawing, "available_threads", lambda: 1)
        patch.setattr(drawing, "_drawn", noted)
        draw_figures(study, FIGURES)
    return names


def test_a_figure_is_drawn_again_when_what_it_shows_has_changed(
    full: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(Path(shutil.copytree(full.root, tmp_path / "study")))
    figures = study.report / "figures"
    # It shows images, which no document tells of.
    always = {"near-duplicates"}
    assert redrawn(study, monkeypatch) == always
    before = (figures / "comparison.svg").read_bytes()
    (figures / "comparison.svg").write_text("edited")
    (figures / "split.png").unlink()
    assert redrawn(study, monkeypatch) == {*always, "comparison", "split"}
    assert (figures / "comparison.svg").read_bytes() == before
    rewrite_benchmarks(study, FIVE, "dynamic-int8", {"onnxruntime": 11.0})
    assert redrawn(study, monkeypatch) == {*always, "comparison", "pareto", "pruning-comparison"}
    path = study.variant("baseline") / "sensitivity.json"
    record = read_record(SensitivityRecord, path)
    write_record(path, record.replace(loss=record.loss + 0.01))
    assert redrawn(study, monkeypatch) == {*always, "sensitivity", "structured-sensitivity", "int8-sensitivity"}
    # Another evaluation changes what stands before each figure of models, too.
    path = study.variant("baseline") / "evaluation.test.json"
    found = read_record(EvaluationRecord, path)
    write_record(path, found.replace(unproven=(UnprovenRow(variant="baseline", finding="made up"),)))
    assert redrawn(study, monkeypatch) == set(FIGURES) - {"class-distribution", "split"}
    assert "UNPROVEN" in texts(figures / "training-curves.svg")


@pytest.mark.parametrize("classes", [("<script>", "$x_1$"), ("_a & b", "肺炎 <b>"), ("normal\x1b[31m", "pneu\nmonia")])
def test_class_names_are_shown_literally(tmp_path: Path, classes: tuple[str, str]) -> None:
    study = write_study(tmp_path, FIVE[:1], classes=classes)
    for drawn in draw_figures(study, ("class-distribution", "split", "classification-report", "confusion-matrices")):
        said = texts(drawn.svg)
        for name in classes:
            assert printable(name) in said, (drawn.name, name)
        assert "<script" not in drawn.svg.read_text(encoding="utf-8")


def made_study(root: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Write a study of which something is missing or small."""
    if kind == "18 test images":
        monkeypatch.setattr(made_up_study, "SIZES", {**made_up_study.SIZES, "test": (8, 10)})
    if kind == "no AUROC":
        epochs = tuple(
            replace(row, train={**row.train, "auroc": None}, val={**row.val, "auroc": None})
            for row in made_up_study.make_epochs(3)
        )
        monkeypatch.setattr(made_up_study, "make_epochs", lambda _: epochs)
    counts = {"one variant": 1, "two variants": 2, "four variants": 4}
    layers = () if kind == "whole" else ("conv1", "layer1.0.conv1", "fc")
    study = write_study(
        root, FIVE[: counts.get(kind, len(FIVE))], epochs=1 if kind == "one epoch" else 4, layers=layers
    )
    if kind == "no benchmark":
        for path in study.root.rglob("benchmark.*.json"):
            path.unlink()
    if kind == "no zeros":
        for name in study.variant_names():
            record = study.read_variant(name)
            full_record = record.replace(nonzero_parameters=record.parameters)
            write_record(study.variant(name) / "variant.json", full_record)
    return study


def content_of(axes: Axes) -> list[Artist]:
    """Return the content of a panel: marks positioned by values on both axes, without guide lines."""

    def by_values(artist: Artist) -> bool:
        return artist.get_transform() not in (axes.get_xaxis_transform("grid"), axes.get_yaxis_transform("grid"))

    lines = [line for line in axes.lines if by_values(line) and np.isfinite(np.asarray(line.get_xydata())).any()]
    bars = [patch for patch in axes.patches if by_values(patch) and any(patch.get_path().get_extents().size)]
    drawn_bars = [bar for bar in bars if not isinstance(bar, Rectangle) or (bar.get_width() and bar.get_height())]
    return [*lines, *drawn_bars, *axes.collections, *axes.images]


KINDS = (
    *("whole", "no benchmark", "one variant", "two variants", "four variants", "18 test images"),
    *("one epoch", "no AUROC", "no zeros"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_no_figure_has_an_empty_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    results = read_study(made_study(tmp_path, kind, monkeypatch))
    drawn = set()
    for name, entry in FIGURES.items():
        with mpl.rc_context(STYLE):
            figure = entry.draw(results.only(entry.shows))
        if figure is None:
            continue
        drawn.add(name)
        panels = [axes for axes in figure.axes if axes.get_visible() and (axes.axison or axes.images)]
        assert panels, name
        for axes in panels:
            assert content_of(axes), (name, axes.get_title(loc="left"))
        # What is no panel holds a legend, or is a place at a grid's end, fewer than half a line of it.
        unused = [axes for axes in figure.axes if axes not in panels and not axes.get_legend()]
        if unused:
            grid = figure.axes[0].get_subplotspec().get_gridspec()  # type: ignore[union-attr]  # all are of a grid
            assert grid.nrows > 1, name
            assert 2 * len(unused) <= max(2, grid.ncols + 1), name
    left_out = {
        "no benchmark": {"pareto"},
        "one variant": {"pareto", "comparison", "pruning-comparison"},
        "18 test images": {"roc-pr", "reliability", "decision-curve"},
        "one epoch": {"training-curves"},
    }
    assert set(FIGURES) - drawn == left_out.get(kind, set())


def test_one_variant_is_enough(tmp_path: Path) -> None:
    study = write_study(tmp_path, FIVE[:1], epochs=2, layers=("conv1", "fc"))
    drawn = {found.name: found for found in draw_figures(study, FIGURES)}
    assert set(drawn) == set(FIGURES) - {"pruning-comparison", "comparison", "pareto"}


def test_a_curve_of_a_handful_of_images_is_not_drawn(full: Study, tmp_path: Path) -> None:
    study = Study(Path(shutil.copytree(full.root, tmp_path / "study")))
    for name in study.variant_names():
        path = study.variant(name) / "evaluation.test.json"
        found = read_record(EvaluationRecord, path)
        few = replace(found.rows[0], true_positives=18, false_negatives=1)
        write_record(path, found.replace(rows=(few,)))
    curves = ("roc-pr", "reliability", "decision-curve")
    assert draw_figures(study, curves) == ()
    assert not any((study.report / "figures" / f"{name}.svg").exists() for name in curves)


def test_every_point_of_accuracy_against_latency_has_its_name(full: Study) -> None:
    said = texts(full.report / "figures" / "pareto.svg").splitlines()
    for made in FIVE:
        ends = made.name[:12], made.name[-4:]
        found = [
            text for text in said if text.startswith(ends[0]) and text.removesuffix(" (reference)").endswith(ends[1])
        ]
        assert found, made.name


def test_twelve_variants_have_a_line_each(tmp_path: Path) -> None:
    variants = [*FIVE, *(replace(FIVE[1], name=f"another-variant-of-30-letters-{i}") for i in range(7))]
    study = write_study(tmp_path, variants)
    for drawn in draw_figures(study, ("classification-report", "roc-pr", "comparison")):
        said = texts(drawn.svg)
        assert all(f"another-variant-of-30-letters-{i}" in said for i in range(7)), drawn.name


def test_comparison_says_counts_and_p_and_that_images_of_a_patient_hang_together(full: Study) -> None:
    said = texts(full.report / "figures" / "comparison.svg")
    row = next(row for row in _rows(full) if row.variant == "oneshot-50")
    assert f"({row.correct}/56)" in said
    compared = next(found.comparison for found in read_study(full).variants if found.name == "oneshot-50")
    assert compared is not None
    assert f"p = {compared.holm_p:.2g}" in said
    assert "56 test images of 28 patients" in said
    assert "(Holm)" in said


def test_results_of_another_model_or_split_are_not_shown(tmp_path: Path) -> None:
    study = write_study(tmp_path, FIVE[:3])
    record = study.read_variant("oneshot-50")
    write_record(study.variant("oneshot-50") / "variant.json", record.replace(model_sha256=sha256("retrained")))
    other = study.read_variant("iterative-3x20")
    write_record(study.variant("iterative-3x20") / "variant.json", other.replace(split_sha256=sha256("other")))
    (drawn,) = draw_figures(study, ("comparison",))
    said = texts(drawn.svg)
    assert "not evaluated" in said
    assert "not measured" in said
    assert "iterative-3x20" not in said


def test_separate_benchmark_runs_are_told(tmp_path: Path) -> None:
    study = write_study(tmp_path, FIVE[:2])
    path = study.variant("oneshot-50") / "benchmark.cpu.json"
    record = read_record(BenchmarkRecord, path)
    write_record(path, record.replace(stamp=made_stamp(59)))
    (drawn,) = draw_figures(study, ("comparison",))
    assert "SEPARATE BENCHMARK RUNS" in texts(drawn.svg)


def test_leaking_and_unknown_patients_are_told(tmp_path: Path) -> None:
    study = write_split(tmp_path)
    content = study.split_csv.read_text().replace("test-NORMAL-0", "train-NORMAL-0")
    study.split_csv.write_text(content)
    record = study.read_split_record()
    rules = (GroupRuleRow(rule=UNMATCHED, images=7),)
    write_record(study.split_json, record.replace(split_csv_sha256=sha256(content), group_rules=rules))
    (drawn,) = draw_figures(study, ("split",))
    said = texts(drawn.svg)
    assert "LEAKED: 1 patient is in test and in another part" in said
    assert "unknown" in said


def _rows(study: Study) -> list[EvaluationRow]:
    paths = [study.variant(name) / "evaluation.test.json" for name in study.variant_names()]
    return [row for path in paths for row in read_record(EvaluationRecord, path).rows]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.0, 0.97), st.floats(0.0, 1.0)).map(lambda at: (round(at[0], 3), round(at[1], 3))),
        min_size=1,
        max_size=12,
    )
)
def test_names_keep_apart_and_their_leader_lines_do_not_cross(points: list[tuple[float, float]]) -> None:
    heights = name_heights(points)
    ordered = sorted(heights)
    gap = min(NAME_GAP, 1 / max(1, len(points) - 1))
    assert all(high - low > gap - 1e-9 for low, high in pairwise(ordered))
    assert ordered[0] >= -1e-9
    assert ordered[-1] <= 1 + 1e-9
    lines = [(at, (NAMES_AT, height)) for at, height in zip(points, heights, strict=True)]
    for one, other in combinations(lines, 2):
        # Strictly on different sides of each other: a common end or a line through a point is no crossing.
        assert not (_sides(one, other) < -1e-9 and _sides(other, one) < -1e-9)


def _sides(line: tuple[tuple[float, float], tuple[float, float]], other: tuple[tuple[float, float], ...]) -> float:
    """Return a negative number if the ends of the other line are on different sides of this one."""
    (x, y), (to_x, to_y) = line
    first, second = ((to_x - x) * (b - y) - (to_y - y) * (a - x) for a, b in other)
    return first * second


@pytest.mark.parametrize(("precision", "says"), [("fp32", False), ("int8", True)])
def test_a_figure_of_sensitivity_says_if_it_was_computed_in_8_bits(full: Study, precision: str, says: bool) -> None:
    results = read_study(full)
    variants = tuple(
        replace(one, sensitivity=one.sensitivity and one.sensitivity.replace(precision=precision))
        for one in results.variants
    )
    drawn = sensitivity(replace(results, variants=variants))
    assert drawn is not None
    shown = " ".join(" ".join(text.get_text() for text in drawn.findobj(Text)).split())
    assert ("Convolutions were computed in 8 bits." in shown) is says
