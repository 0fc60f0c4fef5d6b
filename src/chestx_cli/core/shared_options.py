"""Options shared by several commands, declared once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from chestx_cli.core.errors import UsageError
from chestx_cli.core.options import RERUN, TRAINING, Opt, joined, parse_fractions, parse_names, parse_ratios
from chestx_cli.core.printable import counted

if TYPE_CHECKING:
    from chestx_cli.core.record import Options

StudyDir = Annotated[Path, Opt(help="Folder of the study, or CHESTX_STUDY.", identity=False)]
CONFIG_FLAG = "--config"
ConfigFile = Annotated[
    str | None,
    Opt(help="File of options, or none.", flag=CONFIG_FLAG, metavar="FILE|none", identity=False),
]
Seed = Annotated[int, Opt(help="Seed of everything random in this command.", minimum=0, maximum=2**32 - 1)]
Force = Annotated[bool, Opt(help="Replace existing results.", identity=False, panel=RERUN)]
Restart = Annotated[bool, Opt(help="Start over instead of resuming.", identity=False, panel=RERUN)]
CheckpointEvery = Annotated[
    int | None,
    Opt(
        help="Steps between checkpoints within an epoch.",
        minimum=1,
        identity=False,
        panel=RERUN,
    ),
]
Name = Annotated[str | None, Opt(help="Name of the variant; default: from its method.", identity=False)]
# Not part of the identity: the hash of the parent's weights is.
Parent = Annotated[str, Opt(help="Torch variant to start from.", flag="--from", identity=False)]
Baseline = Annotated[str, Opt(help="Variant that the others are compared with.")]
Device = Annotated[str, Opt(help="Where to compute; auto uses a GPU if any.", choices=("auto", "cpu", "cuda"))]
Precision = Annotated[
    str,
    Opt(
        help="Training precision; auto: bf16 where fast.",
        choices=("auto", "fp32", "bf16"),
        panel=TRAINING,
    ),
]
Compile = Annotated[
    bool,
    Opt(
        help="torch.compile the step; slow to start.",
        panel=TRAINING,
    ),
]
ImageSize = Annotated[int, Opt(help="Side of the network's square input in pixels.", minimum=32)]
BatchSize = Annotated[int, Opt(help="Images per step.", minimum=2, panel=TRAINING)]
LearningRate = Annotated[float, Opt(help="Learning rate of Adam.", above=0, panel=TRAINING)]
TEMPERATURE, TEACHER_WEIGHT = 4.0, 0.5
Temperature = Annotated[float, Opt(help="Softmax temperature of teacher and student.", above=0, panel=TRAINING)]
TeacherWeight = Annotated[float, Opt(help="Weight of the teacher in the loss.", above=0, maximum=1, panel=TRAINING)]
FeatureWeight = Annotated[float, Opt(help="Weight of the teacher's last feature map.", minimum=0, panel=TRAINING)]
CONSTANT, COSINE, ONECYCLE = "constant", "cosine", "onecycle"
LOWEST, ONE_SE = "lowest", "one-se"
Keep = Annotated[
    str,
    Opt(help="Epoch kept: lowest loss, or latest within its error.", choices=(LOWEST, ONE_SE), panel=TRAINING),
]
Schedule = Annotated[
    str,
    Opt(help="Learning rate over the fit.", choices=(CONSTANT, COSINE, ONECYCLE), panel=TRAINING),
]


@dataclass(frozen=True, kw_only=True)
class Refinements:
    """Settings of any fit that the original study leaves out: the options of `train`, `distill` and all of `prune`.

    The defaults are the study's. A field declared here is an option of all three, and reaches the fitting loop.
    """

    schedule: Schedule = CONSTANT
    keep: Keep = LOWEST
    warmup_epochs: Annotated[
        float, Opt(help="Epochs in which the learning rate rises.", minimum=0, panel=TRAINING, metavar="N")
    ] = 0.0
    weight_decay: Annotated[
        float, Opt(help="Decoupled weight decay (AdamW).", minimum=0, maximum=1, panel=TRAINING, metavar="FLOAT")
    ] = 0.0
    ema: Annotated[
        float, Opt(help="Decay of averaged weights, as 0.99; 0: none.", minimum=0, maximum=0.9999, panel=TRAINING)
    ] = 0.0
    early_stop: Annotated[
        int | None, Opt(help="Stop after N epochs without a lower loss.", minimum=1, panel=TRAINING)
    ] = None
    freeze_epochs: Annotated[int, Opt(help="First epochs, which train the head alone.", minimum=0, panel=TRAINING)] = 0
    label_smoothing: Annotated[
        float, Opt(help="Share of the target given to both classes.", minimum=0, maximum=0.5, panel=TRAINING)
    ] = 0.0
    mixup: Annotated[
        float, Opt(help="Mix images; alpha of Beta, as 0.2; 0: none.", minimum=0, maximum=10, panel=TRAINING)
    ] = 0.0

    @classmethod
    def of(cls, options: Options) -> Self:
        """Return the settings among a command's options, by parameter; those that it lacks are the study's."""
        return cls(**{name: options[name] for name in cls.__dataclass_fields__ if name in options})

    def require_possible(self, epochs: int, flag_of_epochs: str = "--epochs") -> None:
        """Raise UsageError for settings that exclude each other in a fit of `epochs`, which that option sets."""
        if self.schedule == ONECYCLE and self.warmup_epochs:
            raise UsageError(
                "--schedule onecycle has its own warm-up",
                "leave --warmup-epochs out, or use cosine",
                option="warmup_epochs",
            )
        _require_shorter("--warmup-epochs", self.warmup_epochs, epochs, flag_of_epochs)
        _require_shorter("--freeze-epochs", self.freeze_epochs, epochs, flag_of_epochs)


def _require_shorter(flag: str, value: float, epochs: int, flag_of_epochs: str) -> None:
    if value and value >= epochs:
        raise UsageError(
            f"{flag} {value:g} leaves nothing of a fit of {counted(epochs, 'epoch')}", f"give more {flag_of_epochs}"
        )


STUDYS = Refinements()
Variants = Annotated[
    tuple[str, ...], Opt(help="Variants, by name; all of them if none is named.", argument=True, metavar="VARIANT")
]
ShowPaths = Annotated[bool, Opt(help="Show files and folders, which may name patients.", identity=False)]
Threads = Annotated[int | None, Opt(help="Processor threads; all available by default.", minimum=1, maximum=1024)]
Layers = Annotated[
    tuple[str, ...],
    Opt(
        help="Only these layers, by name or pattern.",
        parse=parse_names,
        show=",".join,
        metavar="NAME,...",
    ),
]
Amounts = Annotated[
    tuple[float, ...],
    Opt(
        help="Shares of its weights to remove.",
        parse=parse_fractions,
        show=joined(","),
        above=0,
        maximum=0.99,
        metavar="FLOAT,...",
    ),
]
Groups = Annotated[Path | None, Opt(help="CSV of path,group: the patient of each image.", metavar="FILE")]
GroupRegex = Annotated[str | None, Opt(help="Regex whose group 1 in the path is the patient.", metavar="REGEX")]
Ratios = Annotated[
    tuple[float, ...],
    Opt(
        help="Train/validation/test shares in percent.", parse=parse_ratios, show=joined("/"), above=0, metavar="A/B/C"
    ),
]
Window = Annotated[
    str | None,
    Opt(help="DICOM: show by this window or table; default: the first.", metavar="N|NAME"),
]
AllowLateral = Annotated[bool, Opt(help="Take DICOM images that say they are lateral views.")]
Margin = Annotated[
    float | None,
    Opt(
        help="Largest loss still not inferior; accuracy: 0.02.",
        above=0,
        maximum=0.5,
        metavar="SHARE",
    ),
]
SensitivityMargin = Annotated[
    float,
    Opt(help="Largest drop in sensitivity allowed.", above=0, maximum=0.5, metavar="SHARE"),
]
SpecificityMargin = Annotated[
    float,
    Opt(help="Largest drop in specificity allowed.", above=0, maximum=0.5, metavar="SHARE"),
]
AurocMargin = Annotated[float, Opt(help="Largest drop in AUROC allowed.", above=0, maximum=0.5, metavar="AREA")]
Prevalences = Annotated[
    tuple[float, ...],
    Opt(
        help="Prevalences for predictive values.",
        parse=parse_fractions,
        show=joined(","),
        above=0,
        maximum=0.99,
        metavar="FLOAT,...",
    ),
]
