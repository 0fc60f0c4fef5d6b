"""Figures and page of a synthetic study over folds and seeds: every endpoint, one seed, distant variants."""

from __future__ import annotations

import dataclasses
import html
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from chestx_cli.evaluation.endpoints import ENDPOINTS
from chestx_cli.evaluation.reading import read_study
from chestx_cli.evaluation.results import StudyResults
from chestx_cli.records.benchmark import BenchmarkRecord
from chestx_cli.records.cells import (
    Amendment,
    CellResultRow,
    NoiseRow,
    PlanDocument,
    PlannedVariant,
    PlanRecord,
    PooledRatesRow,
    PooledRow,
    SeedRow,
    StudyRecord,
)
from chestx_cli.records.variant import BASELINE
from chestx_cli.reporting.decision import Choice
from chestx_cli.reporting.figures.drawing import draw_pooled_figures
from chestx_cli.reporting.page.blocks import Drawn
from chestx_cli.reporting.page.pictures import read_figures
from chestx_cli.reporting.page.pooled import PooledResults
from chestx_cli.reporting.page.writing import build_pooled_page, write_page
from chestx_cli.reporting.study_answer import choice_of, of_page, of_study
from support.made_up_study import made_stamp, timed, write_study

# Differences with their intervals, of the first variants of the synthetic study in its order.
DIFFERENCES = {
    "oneshot-50": (-0.4, -0.45, -0.35),
    "iterative-3x20": (0.004, -0.01, 0.018),
    "dynamic-int8": (0, -0.3, 0.3),
}
WORDS = {"oneshot-50": "inferior", "iterative-3x20": "not inferior", "dynamic-int8": "inconclusive"}


def made_record(endpoint: str = "auroc", seeds: tuple[int, ...] = (1, 2), *, times: bool = True) -> StudyRecord:
    rows = [
        PooledRow(
            variant=name,
            estimate=0.9,
            interval=(0.85, 0.94),
            seed_sd=0.01 if len(seeds) > 1 else None,
            difference=None if name == BASELINE else DIFFERENCES[name][0],
            difference_interval=None if name == BASELINE else DIFFERENCES[name][1:],
            verdict=f"{word} (specificity)" if (word := WORDS.get(name, "")) == "inferior" else word,
            word=word,
            in_words=f"{word}, as was found" if word else "",
            needed_images=7400 if word == "inconclusive" else None,
            seeds_holding=0.5 if word else None,
            size_bytes=98_300_000 // place,
            latency_p50_ms=20.0 / place if times else None,
            front_share=0.998 if times else None,
        )
        for place, name in enumerate((BASELINE, *DIFFERENCES), start=1)
    ]
    names = [row.variant for row in rows]
    return StudyRecord(
        stamp=made_stamp(9, "chestx study"),
        notes=("Verdicts are corrected for the number of variants (Holm).",),
        plan_sha256="a" * 64,
        declared="2026-01-01T10:00:00+00:00",
        endpoint=endpoint,
        margin=0.02,
        folds=2,
        seeds=seeds,
        images=378,
        patients=120,
        positive="PNEUMONIA",
        positives=178,
        device="cpu",
        noise_floor=0.03 if len(seeds) > 1 else None,
        rows=tuple(rows),
        seed_rows=tuple(
            SeedRow(variant=name, seed=seed, estimate=0.9, difference=None, difference_interval=None, verdict="")
            for name in names
            for seed in seeds
        ),
        noise=tuple(
            NoiseRow(variant=name, seeds=(seeds[0], seeds[-1]), difference=0.03, difference_interval=(0.0, 0.06))
            for name in names
            if len(seeds) > 1
        ),
        rates=tuple(
            PooledRatesRow(
                variant=name,
                sensitivity=0.9,
                sensitivity_interval=(0.85, 0.94),
                specificity=0.8,
                specificity_interval=(0.74, 0.85),
            )
            for name in names
        ),
        prevalences=(0.05, 0.1, 0.3),
        cell_rows=tuple(
            CellResultRow(cell=f"seed-{seed}/fold-{fold}", images=189, patients=60, estimates=dict.fromkeys(names, 0.9))
            for seed in seeds
            for fold in (1, 2)
        ),
    )


def made_plan(record: StudyRecord) -> PlanRecord:
    content = PlanDocument(
        data="images",
        folds=record.folds,
        seeds=record.seeds,
        endpoint=record.endpoint,
        margin=record.margin,
        variants=tuple(PlannedVariant(name=name, steps=({"prune": "oneshot", "amount": 0.5},)) for name in DIFFERENCES),
    )
    return PlanRecord(
        stamp=made_stamp(0, "chestx study"),
        declared=record.declared,
        sha256=record.plan_sha256,
        document=dataclasses.replace(content, data="/somewhere/images"),
        content=content,
        amendments=record.amendments,
    )


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    """Return the results of the first cell."""
    return read_study(write_study(tmp_path_factory.mktemp("cell")), names=(BASELINE, *DIFFERENCES))


def texts(svg: Path) -> list[str]:
    root = ElementTree.fromstring(svg.read_text(encoding="utf-8"))  # noqa: S314 - written by the code under test
    return ["".join(one.itertext()).strip() for one in root.iter("{http://www.w3.org/2000/svg}text")]


def benchmarks_in(cell: StudyResults) -> dict[str, BenchmarkRecord]:
    return {variant.name: variant.benchmarks[0] for variant in cell.variants if variant.benchmarks}


def choice_in(record: StudyRecord, cell: StudyResults) -> Choice:
    return choice_of(record, {variant.name: variant.record for variant in cell.variants}, benchmarks_in(cell))


def page_of(folder: Path, record: StudyRecord, cell: StudyResults, noise: str = "Trainings differ.") -> tuple[str, str]:
    """Write a page; return its HTML and its visible text."""
    pooled = PooledResults(
        record=record,
        plan=made_plan(record),
        cell=cell,
        benchmarks=benchmarks_in(cell),
        choice=choice_in(record, cell),
        noise=noise,
        caveats=(),
        command="chestx report",
    )
    figures = read_figures(draw_pooled_figures(folder / "figures", record))
    write_page(folder, build_pooled_page(pooled, Drawn(figures=figures, examples=(), flips={}, show_paths=False)))
    page = (folder / "index.html").read_text()
    return page, html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)))


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_page_of_every_endpoint_repeats_no_sentence(tmp_path: Path, cell: StudyResults, endpoint: str) -> None:
    page, text = page_of(tmp_path, made_record(endpoint), cell)
    assert f"Judged by{ENDPOINTS[endpoint].noun}, margin 0.02" in text
    assert len(re.findall("<img", page)) == 3
    paragraphs = [
        html.unescape(re.sub(r"<[^>]*>", "", one)) for one in re.findall(r"<(?:p|li)[^>]*>(.*?)</", page, re.S)
    ]
    sentences = [one for whole in paragraphs for one in re.split(r"(?<=[.:]) (?=[A-Z])", whole) if len(one) > 60]
    assert len(sentences) > 8
    assert [one for one in set(sentences) if sentences.count(one) > 1] == []
    assert "/somewhere" not in page


def test_the_figure_shows_margin_and_noise_and_the_value_of_a_distant_difference(tmp_path: Path) -> None:
    drawn = draw_pooled_figures(tmp_path, made_record())
    assert [one.name for one in drawn] == ["differences", "front", "seeds"]
    shown = texts(drawn[0].svg)
    assert "margin −0.02" in shown
    # The axis ends at four noise floors.
    assert "−0.4" in shown
    assert {"inferior", "(specificity)", "not inferior", "inconclusive"} <= set(shown)
    assert any("differ by up to 0.030" in one for one in shown)
    assert "iterative-3x20 (below 100%)" in texts(drawn[1].svg)
    for one in drawn:
        with Image.open(one.png) as image:
            assert image.width >= 600
        assert one.caption.endswith(".")


def test_shares_are_drawn_in_points_and_losses_as_gains(tmp_path: Path) -> None:
    accuracy = texts(draw_pooled_figures(tmp_path, made_record("accuracy"))[0].svg)
    assert "margin −2" in accuracy
    assert "Difference, points, 95 % interval (right of 0 is better)" in accuracy
    brier = draw_pooled_figures(tmp_path, made_record("brier"))
    assert "Gain, Brier score, 95 % interval (right of 0 is better)" in texts(brier[0].svg)
    assert "Brier score (smaller is better), 95 % interval" in texts(brier[1].svg)


def test_the_page_of_one_seed_states_that_the_noise_is_not_known(tmp_path: Path, cell: StudyResults) -> None:
    record = made_record(seeds=(42,))
    assert [one.name for one in draw_pooled_figures(tmp_path, record)] == ["differences", "front"]
    _, text = page_of(tmp_path, record, cell, noise="")
    assert "One seed: what another training of the same recipe would give is not known." in text
    assert "2 folds × 1 seed" in text
    assert "Noise between trainings" not in text


def test_without_times_the_page_names_the_command(tmp_path: Path, cell: StudyResults) -> None:
    untimed = dataclasses.replace(
        cell, variants=tuple(dataclasses.replace(variant, benchmarks=()) for variant in cell.variants)
    )
    _, text = page_of(tmp_path, made_record(times=False), untimed)
    assert "Fewer than two variants are timed" in text
    assert "not timed yet" in text[: text.index("Reasons")]


def test_a_changed_plan_is_stated_on_the_first_screen_and_listed(tmp_path: Path, cell: StudyResults) -> None:
    change = Amendment(declared="2026-01-02T10:00:00+00:00", tested_cells=4, changes=("margin: 0.05 -> 0.02",))
    _, text = page_of(tmp_path, made_record().replace(amendments=(change,)), cell)
    first, after = text[: text.index("Reasons")], text[text.index("What was declared") :]
    assert "changed after test images were predicted" in first
    assert "margin: 0.05 -> 0.02" in first
    assert "Changes made after test images had been predicted" in after
    assert "declared and stored with its hash before" not in text


def test_the_next_command_after_the_page_depends_on_the_decision(cell: StudyResults) -> None:
    record, root = made_record(), Path("a study")
    choice = choice_in(record, cell)
    assert of_study(record, root, choice, "").next_command == "chestx report --study 'a study'"
    shipped = of_page(record, root, choice, "", "page")
    assert shipped.next_command == "chestx export iterative-3x20 --out bundle --study 'a study/seed-1/fold-1'"
    record = record.replace(
        rows=tuple(dataclasses.replace(row, word="inconclusive" if row.word else "") for row in record.rows)
    )
    undecided = of_page(record, root, choice_in(record, cell), "", "page")
    assert undecided.next_command.startswith("chestx compare baseline ")
    assert undecided.next_command.endswith("--study 'a study/seed-1'")
    record = record.replace(rows=record.rows[:1])
    alone = of_page(record, root, choice_in(record, cell), "", "page")
    assert alone.next_command == "chestx report --study 'a study/seed-1/fold-1'"


def test_the_answer_names_the_measure_behind_a_verdict_which_the_table_has_no_room_for(cell: StudyResults) -> None:
    record = made_record()
    rows = tuple(
        dataclasses.replace(row, word="inferior", verdict="inferior (AUROC, sensitivity)")
        if row.variant == "dynamic-int8"
        else row
        for row in record.rows
    )
    choice = choice_in(record, cell)
    one = of_study(record, Path("root"), choice, "Trainings differ.")
    both = of_study(record.replace(rows=rows), Path("root"), choice, "Trainings differ.")
    assert one.warnings == ("Inferior (specificity): oneshot-50.", "Trainings differ.")
    assert both.warnings[:2] == ("Inferior (specificity): oneshot-50.", "Inferior (AUROC, sensitivity): dynamic-int8.")


@pytest.mark.parametrize(("latency_ms", "is_slower"), [(12.0, True), (6.0, False)])
@pytest.mark.parametrize("parent_word", ["not inferior", "inferior"])
def test_int8_that_is_slower_than_its_parent_is_not_recommended_where_the_parent_can_be(
    cell: StudyResults, latency_ms: float, parent_word: str, *, is_slower: bool
) -> None:
    baseline, parent, _, int8 = cell.variants
    parent, int8 = timed(parent, 8.0, 23.4), timed(int8, latency_ms, 23.4)
    made_from = dataclasses.replace(int8, record=int8.record.replace(parent=parent.name))
    record = made_record()
    words = {parent.name: parent_word, int8.name: "not inferior"}
    record = record.replace(
        rows=tuple(
            dataclasses.replace(row, word=words.get(row.variant, ""))
            for row in record.rows
            if row.variant in {BASELINE, *words}
        )
    )
    choice = choice_in(record, dataclasses.replace(cell, variants=(baseline, parent, made_from)))
    parent_ships = parent_word == "not inferior"
    assert choice.ship == (parent.name if parent_ships and is_slower else int8.name)
    assert (int8.name in choice.shipped) == (not (parent_ships and is_slower))
    # The parent is a step of the plan, which is neither tested nor timed.
    step = dataclasses.replace(int8, record=int8.record.replace(parent=f"{int8.name}.step-1"))
    choice = choice_in(record, dataclasses.replace(cell, variants=(baseline, parent, step)))
    assert int8.name in choice.shipped
