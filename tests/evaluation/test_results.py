"""Reading a study: once per command for all output, and without writing."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from chestx_cli import report
from chestx_cli.core import files
from chestx_cli.core.errors import StudyError
from chestx_cli.core.files import storage_error
from chestx_cli.evaluation.reading import read_study
from chestx_cli.evaluation.results import EVALUATIONS, VARIANTS
from chestx_cli.records.answers import INCONCLUSIVE, INFERIOR
from chestx_cli.records.evaluation import EvaluationRecord
from chestx_cli.records.variant import VariantRecord
from chestx_cli.store import documents
from chestx_cli.store.directory import Study, open_study
from chestx_cli.store.documents import read_record, write_record
from conftest import Chestx, tree
from support.made_up_study import FIVE, Made, sha256, write_study
from support.watching import watching

# Of 56 test images 7, each of another patient, are wrong that the baseline has right: exact p = 0.016, which Holm makes
# 0.031 as the least of two and 0.078 as the least of five.
WORSE = (0, 1, 2, 4, 6, 28, 30, 32, 34)
# What commands leave for one another, and can make again.
HIDDEN = ("cache", ".locks", ".report")
COMPARED = (
    Made(name="baseline", wrong=(0, 1), p50_ms={"pytorch": 38.0, "onnxruntime": 19.8}),
    Made(name="worse", wrong=WORSE, sparsity=0.5, p50_ms={"pytorch": 38.3, "onnxruntime": 19.9}),
    *(
        Made(name=f"alike-{i}", wrong=(0, 1, 28 + i), sparsity=0.3, p50_ms={"pytorch": 38.1, "onnxruntime": 19.7})
        for i in range(4)
    ),
)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("compared"), COMPARED, epochs=1).root


def retrain_baseline(study: Study, *, evaluated_again: tuple[str, ...]) -> None:
    """Retrain the baseline and evaluate it with some variants; the results of the others are now stale."""
    record = study.read_variant("baseline")
    (study.variant("baseline") / record.model_file).write_text("made anew")
    write_record(study.variant("baseline") / "variant.json", record.replace(model_sha256=sha256("made anew")))
    for name in ("baseline", *evaluated_again):
        path = study.variant(name) / "evaluation.test.json"
        found = read_record(EvaluationRecord, path)
        inputs = {**found.stamp.inputs, "baseline/model.safetensors": sha256("made anew")}
        found = found.replace(stamp=dataclasses.replace(found.stamp, inputs=inputs))
        if name == "baseline":
            found = found.replace(rows=(dataclasses.replace(found.rows[0], model_sha256=sha256("made anew")),))
        write_record(path, found)


def test_page_markdown_figures_and_compare_agree_after_the_baseline_was_retrained(
    compared: Path, tmp_path: Path, chestx: Chestx
) -> None:
    study = Study(Path(shutil.copytree(compared, tmp_path / "study")))
    before = read_study(study).comparisons["worse"]
    assert before.word == INCONCLUSIVE
    retrain_baseline(study, evaluated_again=("worse", "alike-0"))
    results = read_study(study)
    assert set(results.comparisons) == {"worse", "alike-0"}
    found = results.comparisons["worse"]
    assert found.word == INFERIOR
    assert found.holm_p == pytest.approx(2 * found.p)
    assert before.holm_p == pytest.approx(5 * found.p)
    holm_p, earlier_p = f"{found.holm_p:.2g}", f"{before.holm_p:.2g}"
    record = report(study=study.root)
    page = re.sub(r"<[^>]*>", " ", Path(record.html).read_text())
    markdown = Path(record.markdown).read_text()
    drawn = {
        name: (study.report / "figures" / f"{name}.svg").read_text() for name in ("comparison", "pruning-comparison")
    }
    for name, svg in drawn.items():
        assert f"p = {holm_p}" in svg, name
        assert svg.count("no current comparison") == 3, name
    tables = [text.rpartition("All variants: accuracy")[2].partition("Speed on cpu")[0] for text in (page, markdown)]
    for text in (*tables, *drawn.values()):
        assert holm_p in text
        assert earlier_p not in text
    row = next(line for line in markdown.splitlines() if line.startswith("| worse |") and line.endswith("(stale) |"))
    assert INFERIOR in row
    assert any(
        text["text"].startswith("worse (83.9 %) is inferior") for text in json.loads(record.to_json())["statements"]
    )
    # What was not compared with the present baseline is said to be so, and compared anew it gives no verdict of before.
    assert "the paired test of alike-1, which is against an earlier baseline" in markdown
    alone = chestx("compare", "baseline", "worse", "--study", study.root, "--json").json()
    assert alone["word"] == found.word
    assert "STALE" in json.dumps(alone)


def test_a_report_reads_each_document_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = write_study(tmp_path, FIVE)
    hashed: list[str] = []
    real = files.sha256_of

    def noted(path: Path) -> str:
        hashed.append(path.name)
        return real(path)

    monkeypatch.setattr(documents, "sha256_of", noted)
    # At first every figure is drawn, then none.
    for _ in range(2):
        hashed.clear()
        with watching(study.root) as watched:
            report(study=study.root)
        times = Counter(name for name in watched.opened if name.endswith(".json") and not name.startswith(HIDDEN))
        assert set(times) == {
            str(path.relative_to(study.root)) for path in study.root.rglob("*.json") if "cache" not in path.parts
        }
        assert set(times.values()) == {1}, times
        assert hashed.count("split.csv") == 1
        assert hashed.count("model.safetensors") + hashed.count("model.onnx") == len(FIVE)


def test_reading_writes_nothing_and_takes_no_lock(finished: Path, chestx: Chestx) -> None:
    with watching(finished) as watched:
        read_study(open_study(finished))
        assert chestx("compare", "baseline", "oneshot-50", "--study", finished).code == 0
    assert watched.opened
    assert watched.changed == []


def test_a_command_repairs_what_was_left_before_it_reads(study: Path, chestx: Chestx) -> None:
    folder = study / "variants" / "oneshot-50"
    folder.rename(folder.with_name(".oneshot-50.retired"))
    assert read_study(Study(study)).variant("oneshot-50") is None
    assert chestx("compare", "baseline", "oneshot-50", "--study", study).code == 0
    assert folder.is_dir()
    # The record of a split that did not get as far as its manifest is taken back, also where it is damaged.
    for content in ((study / "split.json").read_text().replace(read_split_sha256(study), "0" * 64), "{"):
        (study / ".split.json.next").write_text(content)
        assert chestx("compare", "baseline", "oneshot-50", "--study", study).code == 0
        assert not (study / ".split.json.next").exists()


def test_what_was_left_in_a_study_that_cannot_be_written_to_stays(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (study / "report").rename(study / ".report.retired")
    shutil.rmtree(study / ".locks")
    before = tree(study)

    def refuse(path: Path) -> None:
        raise storage_error(OSError(errno.EROFS, os.strerror(errno.EROFS)), path)

    monkeypatch.setattr("chestx_cli.store.locks.make_folder", refuse)
    assert read_study(open_study(study)).baseline is not None
    assert tree(study) == before


def test_named_variants_are_not_left_out_in_silence(compared: Path, tmp_path: Path) -> None:
    study = Study(Path(shutil.copytree(compared, tmp_path / "study")))
    path = study.variant("worse") / "variant.json"
    write_record(path, read_record(VariantRecord, path).replace(split_sha256=sha256("another")))
    assert "variant worse, which was trained on another split" in read_study(study).left_out
    with pytest.raises(StudyError, match="trained on another split"):
        read_study(study, names=("baseline", "worse"))


def test_parts_are_read_as_if_there_were_no_others(compared: Path) -> None:
    study = Study(compared)
    with watching(compared) as watched:
        read = read_study(study, parts=(VARIANTS, EVALUATIONS), check_models=False)
    assert {Path(name).name for name in watched.opened} == {
        "split.json",
        "split.csv",
        "variant.json",
        "evaluation.test.json",
    }
    whole = read_study(study)
    assert whole.devices == ("cpu",)
    assert read.variants == whole.only((VARIANTS, EVALUATIONS)).variants
    assert whole.only(()).variants == ()


def read_split_sha256(study: Path) -> str:
    return Study(study).read_split_record().split_csv_sha256
