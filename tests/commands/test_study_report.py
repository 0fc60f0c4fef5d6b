"""`chestx report` on a study over folds and seeds: its page, and studies that it refuses."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import socket
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from chestx_cli import report
from chestx_cli.cells.pooling import LOST
from chestx_cli.core.errors import StudyError
from chestx_cli.records.answers import PooledAnswerRow
from chestx_cli.records.cells import ExemplarRow, PlanRecord, StudyRecord
from chestx_cli.records.commands import ReportRecord
from chestx_cli.store.documents import read_record, write_record
from conftest import Chestx, Outcome, edit
from support.planned_study import CELLS

FIGURES = ("differences", "front", "seeds")


class Page(HTMLParser):
    """Links and images of a page, and the levels and texts of its headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.alternatives: list[str | None] = []
        self.headings: list[tuple[int, str]] = []
        self._level = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "img":
            self.alternatives.append(dict(attrs).get("alt"))
        if re.fullmatch(r"h[1-6]", tag):
            self._level = int(tag[1])
            self.headings.append((self._level, ""))

    def handle_data(self, data: str) -> None:
        if self._level:
            self.headings[-1] = (self._level, self.headings[-1][1] + data)

    def handle_endtag(self, tag: str) -> None:
        if re.fullmatch(r"h[1-6]", tag):
            self._level = 0


def text_of(page: str) -> str:
    """Return the visible text of a page."""
    return html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)))


@pytest.fixture(scope="module")
def written(
    planned: tuple[Path, Path, Outcome], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ReportRecord, str]:
    """Return a study over folds and seeds, the record of `report`, and the page; tests must not change the study."""
    study = tmp_path_factory.mktemp("paged") / "study"
    shutil.copytree(planned[1], study)
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("the page is made without a network")

        patch.setattr(socket.socket, "connect", refuse)
        record = report(study=study)
    return study, record, Path(record.html).read_text()


def test_the_page_opens_with_the_question_and_the_answer_of_the_terminal(
    written: tuple[Path, ReportRecord, str], planned: tuple[Path, Path, Outcome]
) -> None:
    _, record, page = written
    answer = planned[2].json()["answer"]
    first = text_of(page)
    first = first[: first.index("Reasons")]
    assert record.answer
    rows = [dataclasses.asdict(row) for row in record.answer.rows]
    assert all(isinstance(row, PooledAnswerRow) for row in record.answer.rows)
    assert rows == answer["rows"]
    cells = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in re.findall(r"<tr.*?</tr>", page, re.DOTALL)]
    assert [list(row.values()) for row in rows] == [[html.unescape(cell) for cell in row] for row in cells[1:4]]
    assert record.answer.sentence.startswith(answer["sentence"])
    assert answer["sentence"].partition(" Endpoint: ")[0] in first
    assert "60 images of" in first
    assert "2 folds × 2 seeds" in first
    assert "accuracy, margin 0.05, declared before the test images were looked at" in first
    assert "Research software. Not a medical device." in first
    assert "of the former and raises" in first
    assert "GMACs per image" in first
    assert 'alt="Differences from the baseline"' in page[: page.index('id="reasons"')]


def test_the_numbers_of_the_page_are_those_of_the_study(written: tuple[Path, ReportRecord, str]) -> None:
    study, record, _ = written
    document = json.loads((study / "study.json").read_text())
    frames = {path.name: pd.read_csv(path) for path in (study / "report" / "tables").iterdir()}
    (deciding,) = (frame for name, frame in frames.items() if "what-decided" in name)
    others = document["rows"][1:]
    assert list(deciding["Variant"]) == [row["variant"] for row in others]
    # Quoted, since a spreadsheet would read a leading sign as a formula.
    shown = [text.lstrip("'") for text in deciding["Difference of accuracy"]]
    assert shown == [f"{100 * row['difference']:+.1f} %" for row in others]
    assert record.statements
    assert [row.text for row in record.statements] == [f"{row['variant']} is {row['in_words']}." for row in others]
    (cells,) = (frame for name, frame in frames.items() if "images-that-a-cell-tests" in name or "a-ce" in name)
    assert list(cells["Cell"]) == CELLS
    # Every image is in the test part of one fold.
    assert int(cells["Images"][:2].sum()) == document["images"]


def test_the_page_loads_nothing_and_links_only_to_existing_files(written: tuple[Path, ReportRecord, str]) -> None:
    study, record, page = written
    assert record.figures == FIGURES
    assert "<script" not in page
    assert not re.search(r"https?://|url\(", page)
    found = Page(page)
    for link in found.links:
        assert link.startswith(("data:image/", "#")) or (study / "report" / link).exists(), link
    assert {f"../{cell}/" for cell in CELLS} <= set(found.links)
    assert all(found.alternatives)
    markdown = Path(record.markdown).read_text()
    links = re.findall(r"\]\(([^)]+)\)", markdown)
    assert len(links) >= len(FIGURES) + len(CELLS)
    assert all((study / "report" / link).exists() for link in links)


def test_no_heading_and_no_sentence_is_repeated(written: tuple[Path, ReportRecord, str]) -> None:
    _, _, page = written
    headings = Page(page).headings
    assert [level for level, _ in headings].count(1) == 1
    texts = [text.strip() for _, text in headings]
    assert len(set(texts)) == len(texts)
    for expected in (
        "Seeds",
        "Noise between trainings",
        "Changed decisions",
        "Plan",
        "Cells",
        "Methods, ready to paste",
    ):
        assert expected in texts
    paragraphs = [text_of(one) for one in re.findall(r"<(?:p|li|figcaption)[^>]*>(.*?)</", page, re.DOTALL)]
    sentences = [one for text in paragraphs for one in re.split(r"(?<=[.:]) (?=[A-Z])", text) if len(one) > 60]
    assert len(sentences) > 10
    assert [one for one in set(sentences) if sentences.count(one) > 1] == []


def test_the_plan_is_shown_with_its_hash_and_without_paths(
    written: tuple[Path, ReportRecord, str], planned: tuple[Path, Path, Outcome], own_planned: tuple[Path, Path]
) -> None:
    study, _, page = written
    plan = read_record(PlanRecord, study / "plan.json")
    shown = text_of(page)
    assert plan.sha256 in shown
    assert "prune = oneshot; amount = 0.5, then prune = iterative" in shown
    folder = str(Path(plan.document.data))
    assert folder not in page
    assert str(planned[1]) not in page
    assert folder in Path(report(study=own_planned[1], show_paths=True).html).read_text()


def test_images_that_flip_in_most_seeds_are_shown(own_planned: tuple[Path, Path]) -> None:
    _, study = own_planned
    record = read_record(StudyRecord, study / "study.json")
    ids = pd.read_csv(study / "seed-1" / "fold-1" / "split.csv", dtype=str)["image_id"][:13]
    exemplars = tuple(
        ExemplarRow(variant="twice", image_id=name, change=LOST, seeds=2, of_seeds=2, fold="fold-1") for name in ids
    )
    write_record(study / "study.json", record.replace(exemplars=exemplars))
    page = Path(report(study=study).html).read_text()
    shown = text_of(page)
    assert "twice: 13 of 60 images decided otherwise in most seeds" in shown
    assert f"{ids[0]}: {LOST}, in 2 of 2 seeds" in shown
    assert "The first 12 of them" in shown
    assert "oneshot-50: no image is decided otherwise in most seeds." in shown
    assert page.count('src="data:image/png;base64,') == 12
    assert len(list((study / "report" / "figures").glob("flip-*.png"))) == 12


def refusal(study: Path) -> StudyError:
    with pytest.raises(StudyError) as raised:
        report(study=study)
    return raised.value


def remedy_of(error: StudyError, study: Path) -> list[str]:
    """Return the words of the command in a remedy, which must name the study."""
    (command,) = re.findall(r'"(chestx [^"]+)"', error.remedy)
    assert str(study) in command
    return str(command).split()[1:]


def test_a_study_without_results_is_refused_and_the_remedy_helps(
    own_planned: tuple[Path, Path], chestx: Chestx
) -> None:
    _, study = own_planned
    (study / "study.json").unlink()
    error = refusal(study)
    assert "no results yet" in error.fact
    assert not (study / "report").exists()
    assert chestx(*remedy_of(error, study)).code == 0
    assert chestx("report", "--study", study).code == 0


def test_a_study_with_a_failed_cell_is_refused(own_planned: tuple[Path, Path], chestx: Chestx) -> None:
    path, study = own_planned
    cell = study / "seed-1" / "fold-2"
    shutil.rmtree(cell / "variants" / "twice")
    model = cell / "variants" / "oneshot-50" / "model.safetensors"
    whole = model.read_bytes()
    edit(model, lambda content: content + b" ")
    assert chestx("study", path, "--study", study).code == 1
    error = refusal(study)
    assert "seed-1/fold-2 failed" in error.fact
    edit(model, lambda _: whole)
    assert chestx(*remedy_of(error, study)).code == 0
    assert chestx("report", "--study", study).code == 0


def test_results_of_an_earlier_plan_or_of_earlier_cells_are_refused(
    own_planned: tuple[Path, Path], chestx: Chestx
) -> None:
    path, study = own_planned
    # As if a study with another plan had been killed after it was declared.
    record = read_record(StudyRecord, study / "study.json")
    write_record(study / "study.json", record.replace(plan_sha256="0" * 64))
    assert "plan" in refusal(study).fact
    write_record(study / "study.json", record)
    cell = study / "seed-2" / "fold-1"
    shutil.rmtree(cell / "variants" / "twice")
    error = refusal(study)
    assert "changed since its results" in error.fact
    assert chestx(*remedy_of(error, study)).code == 0
    assert chestx("report", "--study", study).code == 0
    # The same models with another latency, as after another benchmark.
    (row, *rows) = record.rows
    write_record(study / "study.json", record.replace(rows=(dataclasses.replace(row, latency_p50_ms=1.0), *rows)))
    assert "changed since its results" in refusal(study).fact
    (study / "plan.json").unlink()
    assert "no plan in" in refusal(study).fact
    assert path.exists()


def test_a_command_for_one_split_names_the_first_cell(planned: tuple[Path, Path, Outcome], chestx: Chestx) -> None:
    _, study, _ = planned
    refused = chestx("export", "twice", "--study", study)
    assert refused.code == 1
    assert f"{study}/ is a study over folds and seeds" in refused.err
    assert f'--study {study}/seed-1/fold-1" takes its first cell' in refused.err


def test_a_changed_plan_is_stated_on_the_first_screen(own_planned: tuple[Path, Path], chestx: Chestx) -> None:
    _, study = own_planned
    assert chestx("study", "--study", study, "--endpoint", "auroc", "--margin", "0.1").code == 0
    record = report(study=study)
    page = text_of(Path(record.html).read_text())
    first = page[: page.index("Reasons")]
    assert "declared before" not in page
    assert "The plan was changed after test images had been predicted: endpoint: accuracy -> auroc" in first
    assert record.answer
    assert "The page: " in record.answer.sentence


def test_the_next_command_after_the_page_runs(
    written: tuple[Path, ReportRecord, str], chestx: Chestx, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, record, _ = written
    monkeypatch.chdir(tmp_path)
    assert record.answer
    words = record.answer.next_command.split()
    assert words[0] == "chestx"
    outcome = chestx(*words[1:])
    assert outcome.code == 0, outcome.err
