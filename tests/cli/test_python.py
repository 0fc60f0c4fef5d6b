"""chestx from Python: names and help at a prompt, records with a one-line repr, frames, progress."""

from __future__ import annotations

import io
import pydoc
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Any

import pytest

import chestx_cli as chestx
from chestx_cli.cli import progress
from chestx_cli.command_table import SUMMARIES
from chestx_cli.core.errors import UsageError
from chestx_cli.core.record import columns
from chestx_cli.core.signature import returned_by
from chestx_cli.records.benchmark import BenchmarkRecord
from chestx_cli.records.evaluation import EvaluationRecord
from chestx_cli.records.tabular import MAX_ROWS, TabularRecord
from chestx_cli.records.variant import VariantRecord
from chestx_cli.store.documents import read_record
from conftest import plain_env, write_images

# A line of a notebook's or a terminal's output.
LONGEST_REPR = 200


def every_record_kind() -> list[type[TabularRecord]]:
    for name in SUMMARIES:
        getattr(chestx, name)
    kinds = [TabularRecord]
    for kind in kinds:
        kinds += kind.__subclasses__()
    # Without those that only others build on.
    return sorted((kind for kind in kinds if hasattr(kind, "schema")), key=lambda kind: kind.__name__)


@pytest.fixture(scope="module")
def records(finished: Path) -> dict[str, TabularRecord]:
    """Return records that commands returned on the finished study, by the command."""
    return {
        "evaluate": chestx.evaluate(study=finished),
        "compare": chestx.compare("baseline", "oneshot-50", study=finished),
        "sensitivity": chestx.sensitivity(study=finished, amounts=(0.5, 0.9)),
        "prune": read_record(VariantRecord, finished / "variants" / "oneshot-50" / "variant.json"),
        "benchmark": read_record(BenchmarkRecord, finished / "variants" / "baseline" / "benchmark.cpu.json"),
    }


def test_names_are_listed_without_importing_a_command_or_a_library() -> None:
    code = (
        "import sys, chestx_cli as chestx\n"
        "print(*(name for name in sys.modules if name.startswith('chestx_cli')))\n"
        "print(*dir(chestx))\n"
        "print(*(name for name in sys.modules if name.partition('.')[0] in "
        "('torch', 'pandas', 'numpy', 'rich', 'typer') or name.startswith('chestx_cli.commands')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=plain_env())
    imported, names, loaded = result.stdout.split("\n")[:3]
    assert imported == "chestx_cli"
    assert set(names.split()) == {*SUMMARIES, "open_study", "progress", "__version__"}
    assert loaded == ""


def test_a_name_that_is_wrong_is_known_to_be_like_a_right_one() -> None:
    with pytest.raises(AttributeError) as caught:
        getattr(chestx, "trian")  # noqa: B009 - the type checker knows that it is wrong
    assert (caught.value.name, caught.value.obj) == ("trian", chestx)


@pytest.mark.parametrize("name", SUMMARIES)
def test_help_says_what_the_shell_says_of_every_parameter(name: str) -> None:
    stage = getattr(chestx, name)
    lines = pydoc.plain(pydoc.render_doc(stage)).splitlines()
    assert max(map(len, lines)) <= 100
    said = " ".join(" ".join(lines).split())
    assert SUMMARIES[name] in said
    assert said.index("Parameters ---") < said.index("Returns ---") < said.index("Raises ---")
    for parameter, (declared, _, opt) in stage.options.items():
        _, _, after = said.partition(f" {parameter} : ")
        meaning = " ".join(opt.help_by_methods().split())
        heading, _, _ = after.partition(meaning)
        assert len(heading) < len(after), f"{parameter}: {meaning}"
        assert ("required" in heading) == (declared.default is declared.empty), heading
        for choice in opt.choices or ():
            assert f"'{choice}'" in heading
        if opt.maximum is not None:
            assert "at most" in heading


def test_a_default_stands_in_the_help_as_python_writes_it() -> None:
    said = " ".join((chestx.benchmark.__doc__ or "").split())
    assert "batch_sizes : tuple of int, default (1, 16), at least 1, at most 1_024" in said
    assert "study : path, default 'study'" in said
    assert repr(chestx.benchmark) == "<command chestx.benchmark>"


@pytest.mark.parametrize(
    ("stage", "wrong", "nearest"),
    [
        ("train", "epoch", "epochs"),
        ("prune", "from_", "parent"),
        ("benchmark", "batchsizes", "batch_sizes"),
        ("quantize", "methd", "method"),
    ],
)
def test_a_wrong_keyword_names_the_right_ones_the_nearest_first(stage: str, wrong: str, nearest: str) -> None:
    command = getattr(chestx, stage)
    with pytest.raises(UsageError, match=rf"^{stage} has no parameter '{wrong}'; choose one of ") as caught:
        command(**{wrong: 1})
    named = caught.value.remedy.removeprefix("choose one of ").split(", ")
    assert set(named) == set(command.options)
    assert named[0] == nearest


@pytest.mark.parametrize("kind", every_record_kind(), ids=lambda kind: kind.__name__)
def test_every_record_has_a_headline_of_its_own_and_columns_to_show(kind: type[TabularRecord]) -> None:
    assert kind.headline is not TabularRecord.headline
    assert kind.__repr__ is TabularRecord.__repr__
    assert columns(kind)


def test_commands_return_records_that_python_can_show() -> None:
    shown = {kind.__name__ for kind in every_record_kind()}
    for name in SUMMARIES:
        returned = returned_by(getattr(chestx, name).function)
        assert set(returned.split(" | ")) <= shown


def test_a_record_is_one_short_line_with_its_answer(records: dict[str, TabularRecord]) -> None:
    for record in records.values():
        line = repr(record)
        assert "\n" not in line
        assert len(line) <= LONGEST_REPR
        assert line.startswith(f"<{type(record).__name__}: ")
        assert all(stamp in line for stamp in record.stamp.data_stamps)
    evaluation = records["evaluate"]
    assert isinstance(evaluation, EvaluationRecord)
    for row in evaluation.comparisons[:2]:
        assert f"{row.variant} {row.short}" in repr(evaluation)
    assert "oneshot-50 against baseline" in repr(records["compare"])
    assert "(oneshot of baseline)" in repr(records["prune"])
    assert " ms on cpu" in repr(records["benchmark"])


def test_many_variants_do_not_make_a_long_line(records: dict[str, TabularRecord]) -> None:
    evaluation = records["evaluate"]
    assert isinstance(evaluation, EvaluationRecord)
    line = repr(evaluation.replace(comparisons=evaluation.comparisons * 10))
    assert f"{len(evaluation.comparisons) * 10 - 4} more" in line
    assert len(line) <= LONGEST_REPR


def test_a_frame_has_the_rows_of_the_answer_and_both_ends_of_an_interval(records: dict[str, TabularRecord]) -> None:
    evaluation = records["evaluate"]
    assert isinstance(evaluation, EvaluationRecord)
    frame = evaluation.to_frame()
    assert list(frame["variant"]) == [row.variant for row in evaluation.rows]
    assert list(frame["accuracy_low"]) == [row.accuracy_interval[0] for row in evaluation.rows]
    assert list(frame["accuracy_high"]) == [row.accuracy_interval[1] for row in evaluation.rows]
    assert "accuracy_interval" not in frame
    assert frame["accuracy"].dtype == float


def test_every_table_of_a_record_makes_a_frame(records: dict[str, TabularRecord]) -> None:
    for record in records.values():
        for name, rows in record.tables.items():
            frame = record.to_frame(name)
            assert len(frame) == len(rows)
            assert len(frame.columns) > 0
    pruned = records["prune"]
    assert isinstance(pruned, VariantRecord)
    assert pruned.pruning is not None
    assert list(pruned.to_frame("pruning.layers")["zeros"]) == [row.zeros for row in pruned.pruning.layers]
    # No table of its own: one row of what the record says.
    assert list(pruned.to_frame()["name"]) == ["oneshot-50"]
    assert "pruning" not in pruned.to_frame()


def test_a_table_that_is_not_there_names_those_that_are(records: dict[str, TabularRecord]) -> None:
    with pytest.raises(UsageError, match="choose one of calibration, rows, operating_rows"):
        records["evaluate"].to_frame("calibraton")


def test_a_notebook_shows_the_answer_as_a_table_of_text(records: dict[str, TabularRecord]) -> None:
    evaluation = records["evaluate"]
    assert isinstance(evaluation, EvaluationRecord)
    hostile = "<script>alert(1)</script>\x1b[2J"
    rows = tuple(row for row in evaluation.rows[:1])
    evaluation = evaluation.replace(answer=None)
    made = evaluation.replace(
        rows=tuple(type(row)(**{**vars(row), "variant": hostile}) for row in rows), comparisons=(), split=hostile
    )
    page = made._repr_html_()
    assert "<script" not in page
    assert "\x1b" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[2J") == 3
    shown = evaluation._repr_html_()
    assert shown.count("<tr>") == len(evaluation.rows) + 1
    assert all(f"<td>{row.variant}</td>" in shown for row in evaluation.rows)
    assert all(stamp in shown for stamp in evaluation.stamp.data_stamps)
    assert "Not a medical device" in shown
    many = evaluation.replace(rows=evaluation.rows[:1] * (MAX_ROWS + 5))._repr_html_()
    assert many.count("<tr>") == MAX_ROWS + 1
    assert "5 more" in many


def test_a_notebook_shows_columns_that_are_named_by_a_mappings_keys(finished: Path, data: Path) -> None:
    record = chestx.open_study(finished).variant("baseline").predict(data / "PNEUMONIA")
    assert record.answer is None
    assert "<th>Probability of PNEUMONIA</th>" in record._repr_html_()
    answered = chestx.predict((data / "PNEUMONIA",), study=finished)
    assert answered.answer is not None
    assert "<th>Probability of PNEUMONIA</th>" in answered._repr_html_()


def test_a_notebook_shows_the_answer_where_the_record_has_one(records: dict[str, TabularRecord]) -> None:
    record = records["evaluate"]
    assert record.answer is not None
    shown = record._repr_html_()
    assert escape(record.answer.sentence) in shown
    assert shown.count("<tr>") == len(record.answer.rows) + 1
    headings = [column.heading.replace("\n", " ") for column in columns(type(record.answer.rows[0])).values()]
    assert "".join(f"<th>{escape(heading)}</th>" for heading in headings) in shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_in_a_terminal_where_it_is_requested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)
    data = write_images(tmp_path / "data")
    with chestx.progress():
        chestx.split(data, study=tmp_path / "shown")
    assert "/60" in terminal.getvalue()
    shown = len(terminal.getvalue())
    chestx.split(data, study=tmp_path / "silent")
    assert len(terminal.getvalue()) == shown
    assert capfd.readouterr().out == ""


def test_notes_are_shown_within_progress_as_the_shell_shows_them(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def prune_again() -> str:
        chestx.prune(study=finished, method="oneshot")
        captured = capsys.readouterr()
        assert not captured.out
        return captured.err

    with chestx.progress():
        assert "oneshot-50" in prune_again()
    assert prune_again() == ""


@pytest.mark.slow
def test_progress_and_records_in_a_real_notebook(tmp_path: Path) -> None:
    pytest.importorskip("ipywidgets")
    pytest.importorskip("ipykernel")
    nbclient = pytest.importorskip("nbclient")
    v4 = pytest.importorskip("nbformat").v4
    data = write_images(tmp_path / "data")
    cells = [
        "import chestx_cli as chestx\nfrom chestx_cli.cli import progress\nprogress.PATIENCE_S = 0",
        f"with chestx.progress():\n    split = chestx.split({str(data)!r}, study={str(tmp_path / 'study')!r})\nsplit",
    ]
    notebook: Any = v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown = [output.get("data", {}) for output in notebook.cells[1].outputs]
    assert any("application/vnd.jupyter.widget-view+json" in part for part in shown), "a bar"
    assert "<tr><td>test</td>" in shown[-1]["text/html"]
    assert shown[-1]["text/plain"].startswith("<SplitRecord: 60 images")
