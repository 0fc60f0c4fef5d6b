"""`chestx demo`: the whole study on synthetic images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

from chestx_cli.commands.benchmark import benchmark
from chestx_cli.commands.compare import compare
from chestx_cli.commands.evaluate import evaluate
from chestx_cli.commands.export import export
from chestx_cli.commands.prune import prune
from chestx_cli.commands.quantize import quantize
from chestx_cli.commands.report import report
from chestx_cli.commands.sensitivity import sensitivity
from chestx_cli.commands.split import split
from chestx_cli.commands.train import train
from chestx_cli.core.command import Run, Stage, stage
from chestx_cli.core.errors import StudyError
from chestx_cli.core.files import folder_appears_whole
from chestx_cli.core.options import Opt
from chestx_cli.core.record import Record
from chestx_cli.core.shared_options import Force, Seed
from chestx_cli.data.synthetic import NOTICE_FILE, notice, write_synthetic_set
from chestx_cli.evaluation.results import read_study
from chestx_cli.records.commands import DemoRecord, DemoStepRow
from chestx_cli.reporting.answers import of_demo
from chestx_cli.reporting.decision import decide
from chestx_cli.study.directory import open_study
from chestx_cli.study.locks import hold

IMAGE_SIZE_PX = 112
P = ParamSpec("P")
R = TypeVar("R", bound=Record)


@stage(examples=("chestx demo --out demo",))
def demo(
    run: Run,
    *,
    out: Annotated[Path, Opt(help="Folder for the synthetic images and the study.", identity=False)] = Path("demo"),
    images: Annotated[int, Opt(help="Number of synthetic images.", minimum=40)] = 600,
    seed: Seed = 42,
    force: Force = False,
) -> DemoRecord:
    """Make synthetic radiographs and run the whole study on them, each command as you would type it.

    The images are drawn, not taken from patients: they show how the commands work together, nothing about pneumonia.
    """
    data, study = out / "data", out / "study"
    _draw(run, data, images=images, seed=seed, force=force)
    steps: list[DemoStepRow] = []

    def step(stage: Stage[P, R], *args: P.args, **kwargs: P.kwargs) -> None:
        record = run.call(stage, *args, **kwargs)
        steps.append(DemoStepRow(command=stage.command_line(*args, **kwargs), duration_s=record.stamp.duration_s))

    step(split, study=study, data=data, seed=seed, image_size=IMAGE_SIZE_PX, force=force)
    # A small network from scratch on small images: minutes on two processor cores, and no weights to fetch.
    step(
        train,
        study=study,
        data=data,
        seed=seed,
        backbone="resnet18",
        weights="none",
        image_size=IMAGE_SIZE_PX,
        lr=1e-3,
        epochs=14,
        force=force,
    )
    step(sensitivity, study=study)
    step(prune, study=study, method="oneshot", force=force)
    step(prune, study=study, method="iterative", force=force)
    step(quantize, study=study, method="dynamic", force=force)
    step(evaluate, study=study)
    step(compare, study=study, first="baseline", second="oneshot-50")
    # Enough rounds to see that nothing has become faster.
    step(benchmark, study=study, rounds=3, duration=0.5)
    step(export, study=study, variant="dynamic-int8", out=out / "bundle", force=force)
    step(report, study=study)
    result = DemoRecord(
        stamp=run.stamp(),
        notes=(
            "The images are synthetic: these numbers show that the commands work, and nothing about real patients.",
        ),
        data=str(data),
        study=str(study),
        images=images,
        page=str(study / "report" / "index.html"),
        steps=tuple(steps),
    )
    return result.replace(answer=of_demo(result, decide(read_study(open_study(study)).variants)))


def _draw(run: Run, data: Path, *, images: int, seed: int, force: bool) -> None:
    """Draw the images unless the same ones lie there; replace only a folder marked as synthetic."""
    told = data / NOTICE_FILE
    if told.is_file() and told.read_text(encoding="utf-8") == notice(images, seed):
        run.reporter.note(f"already done: {data}/ has these images")
        return
    hold(run, data.parent, "the synthetic images")
    if data.exists() and not (force and told.is_file()):
        raise StudyError(f"{data}/ exists and holds other images", "choose another folder with --out DIR")
    with run.reporter.progress("Drawing radiographs", images) as advance, folder_appears_whole(data) as folder:
        write_synthetic_set(folder, images=images, seed=seed, on_image=advance)
