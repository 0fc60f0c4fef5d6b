"""`chestx demo`: the whole study on synthetic images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

from chestx_cli.commands.benchmark import benchmark
from chestx_cli.commands.evaluate import evaluate
from chestx_cli.commands.prune import prune
from chestx_cli.commands.quantize import quantize
from chestx_cli.commands.report import report
from chestx_cli.commands.split import split
from chestx_cli.commands.train import train
from chestx_cli.core.command import Run, Stage, stage
from chestx_cli.core.errors import StudyError
from chestx_cli.core.files import folder_appears_whole
from chestx_cli.core.options import Opt
from chestx_cli.core.record import Record
from chestx_cli.core.shared_options import Force, Seed
from chestx_cli.data.synthetic.sets import NOTICE_FILE, notice, write_synthetic_set
from chestx_cli.evaluation.reading import read_study
from chestx_cli.records.commands import DemoRecord, DemoStepRow
from chestx_cli.reporting.answers import of_demo
from chestx_cli.reporting.decision import decide
from chestx_cli.store.directory import open_study
from chestx_cli.store.locks import hold

P = ParamSpec("P")
R = TypeVar("R", bound=Record)
# Margin of accuracy: a few hundred images cannot resolve a smaller one.
MARGIN = 0.05
# Half of the images are tested, and opacities are distinct: with fewer images or more errors, verdicts would be
# inconclusive.
LEAST_SEVERITY = 0.8
SIZE_PX = 128
BATCH_SIZE = 16
# Learning rate of fine-tuning; training from scratch uses a larger one.
LR = 3e-4


@dataclass(frozen=True, kw_only=True)
class Extent:
    """Amount of computation in the demonstration."""

    images: int
    ratios: tuple[float, ...]
    backbone: str
    image_size_px: int
    epochs: int
    pruning_steps: int
    macs_removed: float
    finetune_epochs: int
    rounds: int
    round_s: float


# A small network trained from scratch on small images: no weights to download.
WHOLE = Extent(
    images=800,
    ratios=(40.0, 10.0, 50.0),
    backbone="resnet18",
    image_size_px=64,
    epochs=8,
    pruning_steps=3,
    macs_removed=0.5,
    finetune_epochs=5,
    rounds=3,
    round_s=0.2,
)
# Without iterative pruning, whose fine-tuning and timing take longest of what makes nothing faster.
QUICK = replace(WHOLE, images=400, ratios=(35.0, 15.0, 50.0), pruning_steps=0, finetune_epochs=3, round_s=0.1)


@stage(examples=("chestx demo --out demo", "chestx demo --quick"))
def demo(
    run: Run,
    *,
    out: Annotated[Path, Opt(help="Folder for the images and the study.", identity=False)] = Path("demo"),
    quick: Annotated[bool, Opt(help="Fewer images and epochs: a minute instead of three.")] = False,
    images: Annotated[
        int | None, Opt(help=f"Synthetic images; {WHOLE.images}, or {QUICK.images} with --quick.", minimum=40)
    ] = None,
    seed: Seed = 42,
    force: Force = False,
) -> DemoRecord:
    """Run a whole study on synthetic radiographs.

    The images are drawn, not taken from patients: they show how the commands work together, nothing about pneumonia.
    """
    extent = QUICK if quick else WHOLE
    data, study = out / "data", out / "study"
    n_images = images or extent.images
    _draw(run, data, images=n_images, seed=seed, force=force)
    steps: list[DemoStepRow] = []

    def step(stage: Stage[P, R], *args: P.args, **kwargs: P.kwargs) -> None:
        record = run.call(stage, *args, **kwargs)
        steps.append(DemoStepRow(command=stage.command_line(*args, **kwargs), duration_s=record.stamp.duration_s))

    step(
        split,
        study=study,
        data=data,
        ratios=extent.ratios,
        seed=seed,
        image_size=extent.image_size_px,
        force=force,
    )
    step(
        train,
        study=study,
        backbone=extent.backbone,
        weights="none",
        image_size=extent.image_size_px,
        lr=1e-3,
        epochs=extent.epochs,
        batch_size=BATCH_SIZE,
        seed=seed,
        force=force,
    )
    step(prune, study=study, method="oneshot", force=force)
    if steps_of_zeros := extent.pruning_steps:
        step(prune, study=study, method="iterative", steps=steps_of_zeros, lr=LR, batch_size=BATCH_SIZE, force=force)
    step(
        prune,
        study=study,
        method="structured",
        amount=extent.macs_removed,
        finetune_epochs=extent.finetune_epochs,
        lr=LR,
        batch_size=BATCH_SIZE,
        force=force,
    )
    step(quantize, study=study, method="static", parent=f"structured-{extent.macs_removed * 100:.0f}", force=force)
    step(evaluate, study=study, operating_point="youden", margin=MARGIN)
    step(benchmark, study=study, runtimes=("onnxruntime",), rounds=extent.rounds, duration=extent.round_s)
    step(report, study=study)
    result = DemoRecord(
        stamp=run.stamp(),
        notes=(
            "The images are synthetic: these numbers show that the commands work, and nothing about real patients.",
        ),
        data=str(data),
        study=str(study),
        images=n_images,
        page=str(study / "report" / "index.html"),
        steps=tuple(steps),
    )
    return result.replace(answer=of_demo(result, decide(read_study(open_study(study)).variants)))


def _draw(run: Run, data: Path, *, images: int, seed: int, force: bool) -> None:
    """Draw the images unless the folder has them already; replace only a folder marked as synthetic."""
    notice_path = data / NOTICE_FILE
    if notice_path.is_file() and notice_path.read_text(encoding="utf-8") == notice(
        images, seed, SIZE_PX, LEAST_SEVERITY
    ):
        run.reporter.note(f"already done: {data}/ has these images")
        return
    hold(run, data.parent, "the synthetic images")
    if data.exists() and not (force and notice_path.is_file()):
        raise StudyError(f"{data}/ exists and holds other images", "choose another folder with --out DIR")
    with run.reporter.progress("Drawing radiographs", images) as advance, folder_appears_whole(data) as folder:
        write_synthetic_set(
            folder, images=images, seed=seed, size_px=SIZE_PX, least_severity=LEAST_SEVERITY, on_image=advance
        )
