"""Plans: keys and errors of study files, identity of plans, and steps that variants share."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chestx_cli.cells.declaring import Given, declared_plan, plan_in
from chestx_cli.cells.plan import DEFAULT_VARIANTS, Plan, PlanError, changes_between, files_of, plan_of
from chestx_cli.cells.steps import chain_of
from chestx_cli.cells.study_file import STUDY_FILE
from chestx_cli.commands.study import STAGES, parse_seeds
from chestx_cli.core.errors import IntegrityError, UsageError
from chestx_cli.core.record import jsonable
from chestx_cli.evaluation.endpoints import ENDPOINTS
from chestx_cli.settings.toml_files import line_of

MARGINS = {name: endpoint.margin for name, endpoint in ENDPOINTS.items()}
EXAMPLE = Path(__file__).parents[2] / "examples" / "study.toml"

FAULTS = [
    ('data = "d"\nfold = 5\n', 2, "unknown key 'fold'", "folds"),
    ('data = "d"\nfolds = 1\n', 2, "folds = 1", "2 to 100"),
    ('data = "d"\nfolds = "five"\n', 2, "'five'", "whole number"),
    ('data = "d"\nseeds = [1, 1]\n', 2, "twice", "once"),
    ('data = "d"\nseeds = ["a"]\n', 2, "seeds", "[1, 2, 3]"),
    ('data = "d"\nendpoint = "acuracy"\n', 2, "acuracy", "accuracy"),
    ('data = "d"\nmargin = 2\n', 2, "margin = 2", "0.02"),
    ('data = "d"\n\n[train]\nepoch = 3\n', 4, "unknown key 'epoch'", "epochs"),
    ('data = "d"\n[train]\nepochs = 0\n', 3, "--epochs 0", "at least 1"),
    ('data = "d"\n[train]\nepochs = "many"\n', 3, "'many'", ""),
    ('data = "d"\n[train]\nbackbone = "resnet51"\n', 3, "resnet51", "resnet50"),
    ('data = "d"\n[train]\nseed = 3\n', 3, "unknown key 'seed'", "lr"),
    ('data = "d"\n[split]\nratios = "70/20"\n[evaluate]\nby-name = 1\n', 5, "by-name", "by"),
    ('data = "d"\ntrain = 3\n', 2, "table", "[train]"),
    ('data = "d"\n[[variants]]\nname = "a"\n', 2, "no steps", "prune"),
    ('data = "d"\n[[variants]]\nsteps = [{prune = "oneshot"}]\n', 2, "no name", "name"),
    ('data = "d"\n[[variants]]\nname = "baseline"\nsteps = [{prune = "oneshot"}]\n', 3, "baseline", "otherwise"),
    ('data = "d"\n[[variants]]\nname = "a/b"\nsteps = [{prune = "oneshot"}]\n', 3, "a/b", "letters"),
    ('data = "d"\n[[variants]]\nname = "a"\nsteps = [{prune = "twoshot"}]\n', 4, "twoshot", "oneshot"),
    (
        'data = "d"\n[[variants]]\nname = "a"\nsteps = [\n  {prune = "oneshot"},\n'
        '  {quantize = "static", amont = 1},\n]\n',
        6,
        "amont",
        "allowed",
    ),
    (
        'data = "d"\n[[variants]]\nname = "a"\nsteps = [{prune = "oneshot"}]\n[[variants]]\nname = "b"\n'
        'steps = [{prune = "oneshot", steps = 3}]\n',
        7,
        "unknown key 'steps'",
        "amount",
    ),
    (
        'data = "d"\n[[variants]]\nname = "a"\nsteps = [{prune = "oneshot"}]\n[[variants]]\nname = "a"\n'
        'steps = [{prune = "oneshot", amount = 0.3}]\n',
        6,
        "two variants",
        "once",
    ),
    ('data = "d"\n[[variants]]\nname = "a"\nsteps = [{evaluate = "x"}]\n', 4, "prune, quantize and distill", "METHOD"),
    ('data = "d"\n[[variants]]\nname = "a"\nsteps = [{distill = "resnet81"}]\n', 4, "resnet81", "resnet18"),
    ('data = "d"\n[[variants]]\nname = "a"\nsteps = [{distill = "tiny", teacher = "x"}]\n', 4, "'teacher'", "allowed"),
    ("folds = 3\n", None, "no images", "data ="),
]

MEASURED = sorted((Path(__file__).parents[2] / "tools" / "benchmarks" / "studies").glob("*.toml"))


def plan(document: dict[str, Any]) -> Plan:
    return plan_of(document, STAGES, MARGINS)


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_the_studies_of_the_results_can_be_made_again(path: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "resnet50-cxr.safetensors").touch()
    read = plan_of(tomllib.loads(path.read_text()), STAGES, MARGINS, base=tmp_path)
    assert read.document.folds == 5
    assert [variant.name for variant in read.variants]


@pytest.mark.parametrize(("text", "line", "fact", "remedy"), FAULTS)
def test_an_error_is_reported_with_its_line_and_the_allowed_values(
    text: str, line: int | None, fact: str, remedy: str
) -> None:
    with pytest.raises(PlanError) as raised:
        plan(tomllib.loads(text))
    assert fact in raised.value.fact
    assert remedy in raised.value.remedy
    assert line_of(text, raised.value.path) == line


def test_a_plan_is_refused_where_options_of_the_command_line_have_no_table_to_go_to(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text('data = "d"\ntrain = 3\n')
    with pytest.raises(UsageError, match="line 2: train is a table of options"):
        declared_plan(tmp_path, file, Given(train={"epochs": 3}), STAGES)


def test_what_the_command_line_sets_replaces_what_the_file_has(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text('data = "d"\nfolds = 3\nmargin = 0.1\n[train]\nepochs = 2\nlr = 0.1\n')
    given = Given(seeds=(1, 2), endpoint="auroc", train={"epochs": 3, "backbone": None})
    plan = declared_plan(tmp_path, file, given, STAGES)
    assert (plan.folds, plan.seeds) == (3, (1, 2))
    # The margin of the file is that of another endpoint.
    assert (plan.endpoint, plan.margin) == ("auroc", MARGINS["auroc"])
    assert plan.options["train"] == {"epochs": 3, "lr": 0.1}


def test_a_stored_plan_without_one_of_its_fields_is_damaged(tmp_path: Path) -> None:
    document = jsonable(plan({"data": "d"}).document)
    del document["folds"]
    stamp = {"command": "", "options": {}, "inputs": {}, "environment": {}, "created": "", "duration_s": 0.0}
    stored = {"schema": "chestx.plan/1", "stamp": stamp, "declared": "", "sha256": "", "document": document}
    (tmp_path / "plan.json").write_text(json.dumps({**stored, "content": document}))
    with pytest.raises(IntegrityError, match=r"is damaged at document\.folds"):
        plan_in(tmp_path, STAGES)


def test_the_written_study_file_is_the_example_and_the_default_study() -> None:
    assert EXAMPLE.read_text(encoding="utf-8") == STUDY_FILE
    written, usual = plan(tomllib.loads(STUDY_FILE)), plan({"data": "data"})
    assert written.variants == usual.variants
    assert (written.folds, written.seeds, written.endpoint) == (usual.folds, usual.seeds, usual.endpoint)
    for table in ("train", "benchmark", "split"):
        defaults = {name: one.parameter.default for name, one in STAGES[table].options.items()}
        for name, value in written.options[table].items():
            assert value == defaults[name], f"{table}.{name} is not the command's default"


def test_a_plan_read_from_its_stored_document_is_equal() -> None:
    first = plan(
        {"data": "d", "train": {"epochs": 3}, "variants": list(DEFAULT_VARIANTS), "split": {"ratios": "80/10/10"}}
    )
    again = plan(jsonable(first.document))
    assert again == first
    assert again.sha256 == first.sha256


@pytest.mark.parametrize("is_students", [False, True])
def test_a_file_is_identified_by_its_content(tmp_path: Path, is_students: bool) -> None:
    def document_of(file: Path) -> dict[str, Any]:
        student = {"name": "student", "steps": [{"distill": "resnet18", "weights": str(file)}]}
        named = {"variants": [student]} if is_students else {"train": {"weights": str(file)}}
        return {"data": "d", **named}

    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"one")
    document = document_of(weights)
    before = plan(document)
    moved = tmp_path / "elsewhere" / "w.safetensors"
    moved.parent.mkdir()
    moved.write_bytes(b"one")
    assert plan(document_of(moved)).sha256 == before.sha256
    assert files_of(before)[1:] == (weights,)
    weights.write_bytes(b"two")
    assert plan(document).sha256 != before.sha256
    assert str(tmp_path) not in str(before.content)


@settings(deadline=None, max_examples=10)
@given(st.lists(st.sampled_from(["oneshot", "iterative", "structured"]), min_size=1, max_size=3))
def test_steps_that_variants_share_are_made_once(methods: list[str]) -> None:
    steps = [{"prune": method} for method in methods]
    variants = [{"name": f"v{i}", "steps": [*steps[: i + 1], {"quantize": "dynamic"}]} for i in range(len(steps))]
    made = list(chain_of(plan({"data": "d", "variants": variants})))
    names = [name for name, _, _ in made]
    assert len(names) == len(set(names)) == 2 * len(steps)
    for at, (_, parent, _) in enumerate(made):
        assert parent == "baseline" or parent in names[:at]


def test_an_intermediate_model_that_is_a_variant_has_its_name() -> None:
    structured = {"prune": "structured", "amount": 0.5}
    made = list(
        chain_of(
            plan(
                {
                    "data": "d",
                    "variants": [
                        {"name": "int8", "steps": [structured, {"quantize": "static"}]},
                        {"name": "narrow", "steps": [structured]},
                    ],
                }
            )
        )
    )
    assert [(name, parent) for name, parent, _ in made] == [("narrow", "baseline"), ("int8", "narrow")]


def test_two_variants_of_the_same_steps_are_refused() -> None:
    steps = [{"prune": "oneshot"}]
    twins = plan({"data": "d", "variants": [{"name": "a", "steps": steps}, {"name": "b", "steps": steps}]})
    with pytest.raises(PlanError, match="same steps"):
        list(chain_of(twins))


def test_differences_between_two_plans_are_named_by_option() -> None:
    one, other = ({"name": name, "steps": [{"quantize": name}]} for name in ("dynamic", "static"))
    first = plan({"data": "d", "variants": [one]})
    second = plan({"data": "d", "train": {"epochs": 3}, "endpoint": "auroc", "variants": [other]})
    changes = changes_between(first.content, second.content)
    assert {change.partition(":")[0] for change in changes[:-2]} == {"train.epochs", "endpoint"}
    assert changes[-2:] == ["variant static added", "variant dynamic removed"]
    assert not changes_between(first.content, first.content)


@pytest.mark.parametrize(("text", "seeds"), [("3", (42, 43, 44)), ("1,2,3", (1, 2, 3)), ("7,", (7,)), ("1", (42,))])
def test_seeds_are_counted_or_named(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds
