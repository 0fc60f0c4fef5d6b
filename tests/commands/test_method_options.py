"""Options of pruning and quantization methods: declared only by the dataclass of a method, and equal everywhere."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from typer.testing import CliRunner

import chestx_cli
from chestx_cli.cli.app import app_for
from chestx_cli.compression.pruning.methods import PRUNING_METHODS, Guided
from chestx_cli.compression.quantization.methods import QUANTIZATION_METHODS
from chestx_cli.core.command import Stage
from chestx_cli.core.errors import UsageError
from chestx_cli.core.options import Declared, Methods, Opt, declared_fields
from chestx_cli.core.record import jsonable
from chestx_cli.networks.weights.safe_readers import read_tensors
from conftest import Chestx

STAGES: dict[str, tuple[Stage[..., Any], dict[str, type[Any]]]] = {
    "prune": (chestx_cli.prune, dict(PRUNING_METHODS)),
    "quantize": (chestx_cli.quantize, dict(QUANTIZATION_METHODS)),
}
METHODS = [(command, method) for command, (_, methods) in STAGES.items() for method in methods]
FIELDS = [
    (command, method, field) for command, method in METHODS for field in declared_fields(STAGES[command][1][method])
]
# With these every option matters, so that all are stored.
TRAINED: dict[str, dict[str, Any]] = {"prune": {"finetune_epochs": 1, "distill": True, "batch_size": 16}}

OWN_METHOD = '''
"""A method of somebody else: weights go by their place."""

from dataclasses import dataclass
from typing import Annotated

from chestx_cli.compression.pruning.method_bases import Pruned, PruningTask, ZerosMethod, zeros_made
from chestx_cli.compression.pruning.methods import PRUNING_METHODS
from chestx_cli.core.options import Opt
from chestx_cli.networks.layers import prunable_layers


@PRUNING_METHODS.register("by-place")
@dataclass(frozen=True, kw_only=True)
class ByPlace(ZerosMethod):
    """Every so many weights zeroed."""

    stride: Annotated[int, Opt(help="Distance between the weights that are zeroed.", minimum=2)] = 4
    finetune_epochs: Annotated[int, Opt(help="Passes over the images afterwards.", minimum=0, maximum=3)] = 0

    @property
    def suffix(self) -> str:
        return f"by-place-{self.stride}"

    def prune(self, task: PruningTask) -> Pruned:
        for layer in prunable_layers(task.network).values():
            layer.weight.data.view(-1)[:: self.stride] = 0
        return zeros_made(self, task, [], 1 / self.stride)
'''


def declared(command: str, method: str, field: str) -> Declared:
    return declared_fields(STAGES[command][1][method])[field]


@pytest.mark.parametrize(("command", "method", "field"), FIELDS)
def test_every_option_of_a_method_is_a_flag_and_a_parameter(
    chestx: Chestx, command: str, method: str, field: str
) -> None:
    stage, methods = STAGES[command]
    own = declared(command, method, field)
    shown = chestx(command, "--help", env={"COLUMNS": "300", "TERM": "dumb"}).out
    assert own.opt.flag_of(field) in shown
    assert own.opt.help.removesuffix(".") in " ".join(shown.split())
    documented = " ".join((stage.__doc__ or "").split()).partition(f" {field} : ")[2]
    assert own.opt.help.removesuffix(".") in documented
    parameter = stage.__signature__.parameters[field]
    # None stands for the method's own default, where not all methods have the same.
    assert parameter.default in (own.parameter.default, None)
    assert parameter.annotation in (own.kind, own.kind | None)
    if parameter.default is None and own.parameter.default not in (None, False):
        text = "on" if own.parameter.default is True else own.opt.show(own.parameter.default)
        assert text in stage.options[field].opt.shown_defaults()
    taking = [name for name, kind in methods.items() if field in declared_fields(kind)]
    if field in stage.options and stage.options[field].opt.defaults:
        assert set(stage.options[field].opt.defaults or {}) == set(taking)


@pytest.mark.parametrize(("command", "method", "field"), FIELDS)
def test_every_option_of_a_method_is_checked(tmp_path: Path, command: str, method: str, field: str) -> None:
    stage, _ = STAGES[command]
    opt = declared(command, method, field).opt
    refused: list[object] = []
    if opt.choices is not None:
        refused.append("no such choice")
    if opt.minimum is not None:
        refused.append(opt.minimum - 1)
    if opt.above is not None:
        refused.append(opt.above)
    if opt.maximum is not None:
        refused.append(opt.maximum + 1)
    assert refused or isinstance(declared(command, method, field).parameter.default, bool)
    for value in refused:
        with pytest.raises(UsageError, match=opt.flag_of(field)):
            stage(study=tmp_path / "none", method=method, **{field: value})


@pytest.mark.parametrize(("command", "method"), METHODS)
def test_every_option_of_a_method_is_stored_with_its_variant(study: Path, command: str, method: str) -> None:
    stage, methods = STAGES[command]
    given = dict(TRAINED.get(command, {}))
    if "round_to" in declared_fields(methods[method]):
        # The tiny network has few channels.
        given["round_to"] = 1
    if method == "guided":
        chestx_cli.sensitivity(study=study, structured=True, amounts=(0.5,))
    record = stage(study=study, method=method, name="made", **given)
    expected = dataclasses.asdict(methods[method](**given))
    stored = json.loads((study / "variants" / "made" / "variant.json").read_text())["options"]
    if methods[method] is Guided:
        # Channels do not go without it, so that it is no choice.
        del expected["recalibrate"]
    if "criterion" in expected:
        expected["criterion"] = "bn-scale"
    assert stored.items() >= {"method": method, **jsonable(expected)}.items()
    assert stored == jsonable(record.options)
    line = record.stamp.command
    for field, value in given.items():
        is_default = value == methods[method].__dataclass_fields__[field].default
        assert (stage.options[field].opt.flag_of(field) in line) != is_default


def test_values_of_a_study_file_make_a_method() -> None:
    methods = Methods(registry=PRUNING_METHODS, default="oneshot", help="")
    made = methods.make("structured", {"amount": 0.75, "criterion": "l1"})
    assert made == PRUNING_METHODS["structured"](amount=0.75, criterion="l1")  # type: ignore[call-arg]  # its own
    with pytest.raises(UsageError, match="no option 'ammount'"):
        methods.make("structured", {"ammount": 0.75})
    with pytest.raises(UsageError, match="--budget has no effect with --method structured"):
        methods.make("structured", {"budget": "macs"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordyAmount:
    """A method whose amount is a text."""

    amount: Annotated[str, Opt(help="In words.")] = "half"


def test_options_with_one_name_have_one_type() -> None:
    registry: dict[str, type[Any]] = {**dict(PRUNING_METHODS), "wordy": WordyAmount}
    with pytest.raises(TypeError, match=r"option 'amount' has several types: .*wordy"):
        Methods(registry=registry, default="oneshot", help="").declared("method", ())


def test_a_method_of_somebody_else_is_one_file(
    chestx: Chestx, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PRUNING_METHODS, "_entries", dict(PRUNING_METHODS))
    path = tmp_path / "by_place.py"
    path.write_text(OWN_METHOD)
    spec = importlib.util.spec_from_file_location("by_place", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "by_place", module)
    spec.loader.exec_module(module)
    app, runner = app_for(None), CliRunner()

    def run(*words: object) -> Any:
        return runner.invoke(app, [str(word) for word in words], env={"COLUMNS": "300", "TERM": "dumb"})

    shown = " ".join(run("prune", "--help").stdout.split())
    assert "by-place Every so many weights zeroed." in shown
    assert "Distance between the weights that are zeroed." in shown
    assert "Passes over the images afterwards (by-place)." in shown
    made = run("prune", "--study", study, "--method", "by-place", "--stride", 3, "--json")
    record = json.loads(made.stdout)
    assert record["name"] == "by-place-3"
    assert record["options"]["stride"] == 3
    assert record["options"]["recalibrate"] is True
    assert record["stamp"]["command"] == "chestx prune --study DIR --method by-place --stride 3"
    stored = read_tensors(study / "variants" / "by-place-3" / "model.safetensors")["conv1.weight"].numpy().ravel()
    assert np.array_equal(np.flatnonzero(stored == 0), np.arange(0, stored.size, 3))
    assert "already done" in run("prune", "--study", study, "--method", "by-place", "--stride", 3).stderr
    for words, said in (
        (("--method", "by-place", "--stride", 1), "--stride 1 is too small"),
        # The check of this method, though others allow more.
        (("--method", "by-place", "--finetune-epochs", 4), "--finetune-epochs 4 is too large"),
        (("--method", "oneshot", "--stride", 3), "--stride has no effect with --method oneshot"),
        (("--method", "by-place", "--amount", 0.5), "--amount has no effect with --method by-place"),
    ):
        refused = run("prune", "--study", study, *words)
        assert refused.exit_code == 2
        assert said in refused.stderr
    assert chestx_cli.prune(study=study, method="by-place", stride=5).options["stride"] == 5
    assert chestx("prune", "--study", study, "--method", "oneshot").code == 0
