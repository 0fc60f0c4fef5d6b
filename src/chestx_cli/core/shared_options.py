"""Options that several commands have, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from chestx_cli.core.options import RERUN, TRAINING, Opt, joined, parse_fractions, parse_names, parse_ratios

StudyDir = Annotated[
    Path, Opt(help="Study directory: everything is written to and read from it.", envvar="CHESTX_STUDY", identity=False)
]
Seed = Annotated[int, Opt(help="Seed of everything random in this command.", minimum=0, maximum=2**32 - 1)]
Force = Annotated[bool, Opt(help="Replace what exists already.", identity=False, panel=RERUN)]
Restart = Annotated[bool, Opt(help="Begin anew instead of going on where it was stopped.", identity=False, panel=RERUN)]
CheckpointEvery = Annotated[
    int | None,
    Opt(
        help="Steps between checkpoints, for long epochs; every epoch ends with one.",
        minimum=1,
        identity=False,
        panel=RERUN,
    ),
]
Name = Annotated[
    str | None, Opt(help="Name of the variant to make; named after its method by default.", identity=False)
]
# The parent's weights tell it better than its name.
Parent = Annotated[str, Opt(help="Torch variant to start from.", flag="--from", identity=False)]
Baseline = Annotated[str, Opt(help="Variant that the others are compared with.")]
Device = Annotated[
    str, Opt(help="Device to compute on; auto takes a GPU where there is one.", choices=("auto", "cpu", "cuda"))
]
Precision = Annotated[
    str,
    Opt(
        help="Arithmetic of training; auto takes bf16 where the processor has instructions for it.",
        choices=("auto", "fp32", "bf16"),
        panel=TRAINING,
    ),
]
Compile = Annotated[
    bool,
    Opt(
        help="Compile the training step with torch.compile: minutes at first, then faster, above all on a GPU.",
        panel=TRAINING,
    ),
]
ImageSize = Annotated[int, Opt(help="Side of the network's square input in pixels.", minimum=32)]
BatchSize = Annotated[int, Opt(help="Images per step.", minimum=2, panel=TRAINING)]
LearningRate = Annotated[float, Opt(help="Learning rate of Adam.", above=0, panel=TRAINING)]
Variants = Annotated[
    tuple[str, ...], Opt(help="Variants, by name; all of them if none is named.", argument=True, metavar="VARIANT")
]
Threads = Annotated[int | None, Opt(help="Processor threads; all available by default.", minimum=1, maximum=1024)]
Layers = Annotated[
    tuple[str, ...],
    Opt(
        help="Only these layers, by name or pattern; all by default.",
        parse=parse_names,
        show=",".join,
        metavar="NAME,...",
    ),
]
Amounts = Annotated[
    tuple[float, ...],
    Opt(
        help="Shares of a layer's weights to remove.",
        parse=parse_fractions,
        show=joined(","),
        above=0,
        maximum=0.99,
        metavar="FLOAT,...",
    ),
]
Groups = Annotated[Path | None, Opt(help="CSV with the columns path,group: the patient of each image.", metavar="FILE")]
GroupRegex = Annotated[
    str | None, Opt(help="Regular expression whose first group in the relative path is the patient.")
]
Ratios = Annotated[
    tuple[float, ...],
    Opt(
        help="Train/validation/test shares in percent.", parse=parse_ratios, show=joined("/"), above=0, metavar="A/B/C"
    ),
]
Margin = Annotated[
    float | None,
    Opt(
        help="Largest loss of the endpoint that counts as not inferior; 0.02 of accuracy by default.",
        above=0,
        maximum=0.5,
        metavar="SHARE",
    ),
]
SensitivityMargin = Annotated[
    float,
    Opt(help="Largest fall of sensitivity that counts as not inferior.", above=0, maximum=0.5, metavar="SHARE"),
]
SpecificityMargin = Annotated[
    float,
    Opt(help="Largest fall of specificity that counts as not inferior.", above=0, maximum=0.5, metavar="SHARE"),
]
AurocMargin = Annotated[
    float, Opt(help="Largest fall of the AUROC that counts as not inferior.", above=0, maximum=0.5, metavar="AREA")
]
Prevalences = Annotated[
    tuple[float, ...],
    Opt(
        help="Prevalences to give the predictive values at.",
        parse=parse_fractions,
        show=joined(","),
        above=0,
        maximum=0.99,
        metavar="FLOAT,...",
    ),
]
