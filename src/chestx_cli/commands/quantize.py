"""`chestx quantize`: an ONNX file of a torch variant with fewer bits per weight."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chestx_cli.compression.quantization.methods import (
    QUANTIZATION_METHODS,
    Int8Method,
    QuantizationMethod,
    QuantizedFile,
    Task,
)
from chestx_cli.compression.quantization.onnx_graph import count_weights, weight_rows
from chestx_cli.compression.quantization.static import judge_on
from chestx_cli.compression.quantization.target_cpus import TARGET_CPUS
from chestx_cli.core.command import Run, stage_of_fields
from chestx_cli.core.machine import has_exact_products
from chestx_cli.core.options import Methods
from chestx_cli.core.shared_options import CheckpointEvery, Force, Name, Parent, Restart, Seed, StudyDir
from chestx_cli.evaluation.endpoints import Paired, compare
from chestx_cli.evaluation.statistics.intervals import draw_patients
from chestx_cli.evaluation.statistics.metrics import decide
from chestx_cli.inference.onnx_export import CHECKED_IMAGES, PERCENT, export_onnx, require_kernels_agree
from chestx_cli.networks.devices import reproducible
from chestx_cli.networks.training_data import read_fit_data
from chestx_cli.networks.weights.serialization import load_network
from chestx_cli.records.variant import BASELINE, DYNAMIC, Fp32LayerRow, Quantization, VariantRecord
from chestx_cli.reporting import answers
from chestx_cli.store.directory import Study, open_study
from chestx_cli.store.variants import Making, Model, Plan, Rerun, derived_name, making, open_parent

if TYPE_CHECKING:
    from chestx_cli.evaluation.statistics.outcome import Outcome
    from chestx_cli.store.split import Split

SMALL_SHARE = 0.25


@stage_of_fields(
    examples=("chestx quantize --method dynamic", "chestx quantize --from iterative-3x20"),
    after="prune",
    answer=answers.of_variant,
)
def quantize(
    run: Run,
    *,
    study: StudyDir = Path("study"),
    method: Annotated[
        QuantizationMethod, Methods(registry=QUANTIZATION_METHODS, default=DYNAMIC, help="How to quantize.")
    ],
    parent: Parent = BASELINE,
    name: Name = None,
    seed: Seed = 42,
    checkpoint_every: CheckpointEvery = None,
    restart: Restart = False,
    force: Force = False,
) -> VariantRecord:
    """Quantize a variant to an ONNX file of fewer bits per weight.

    The dynamic method stores the Linear layers' weights in 8 bits and quantizes their inputs batch by batch; the
    convolutions stay in FP32. The static method computes the whole network in 8 bits, calibrated on training images;
    qat first fine-tunes it with simulated 8-bit rounding. fp16 and int4 make the file smaller and nothing faster:
    weights are unpacked when the file is opened, and computed in FP32.

    With --skip-slower, static times each layer in FP32 and INT8 on this processor. Layers that INT8 makes slower stay
    in FP32 if the whole file is then faster.
    """
    target = open_study(study)
    split, source = open_parent(run, target, parent)
    method_name = QUANTIZATION_METHODS.name_of(type(method))
    plan = Plan(
        name=name or derived_name(source, method.suffix),
        method=method_name,
        options={"method": method_name, **method.document()},
        split=split,
        parent=source,
    )
    with making(run, target, plan, Rerun(force=force, restart=restart, checkpoint_every=checkpoint_every)) as variant:
        return variant.existing or _quantized(run, target, variant, source, method, seed)


def _quantized(
    run: Run, study: Study, variant: Making, source: VariantRecord, method: QuantizationMethod, seed: int
) -> VariantRecord:
    split = variant.plan.split
    data = read_fit_data(study, split, source.preprocessing, run.reporter)
    validation = split.indices("val")
    judge = judge_on(data, threshold=source.threshold)
    with reproducible(seed):
        network = load_network(study, source)
        with run.reporter.progress(f"Exporting {source.name} to ONNX", PERCENT) as advance:
            checked = source.preprocessing.normalised(data.pixels[validation[:CHECKED_IMAGES]])
            fp32 = export_onnx(network, checked, advance)
        quantized = method.quantize(
            Task(
                network=network,
                parent=source,
                fp32=fp32,
                data=data,
                judge=judge,
                reporter=run.reporter,
                checkpoints=variant.checkpoints,
            )
        )
        kernel_difference = None
        if method.qdq:
            kernel_difference = require_kernels_agree(
                quantized.content, data.pixels, validation[:CHECKED_IMAGES], source.preprocessing
            )
        title = "Predicting the validation images in FP32 and quantized"
        with run.reporter.progress(title, 2 * len(validation)) as advance:
            fp32_outcome = judge(fp32, validation, advance)
            outcome = judge(quantized.content, validation, advance)
    return _stored(run, variant, source, method, fp32, quantized, fp32_outcome, outcome, kernel_difference)


def _stored(
    run: Run,
    variant: Making,
    source: VariantRecord,
    method: QuantizationMethod,
    fp32: bytes,
    made: QuantizedFile,
    before: Outcome,
    after: Outcome,
    kernel_difference: float | None,
) -> VariantRecord:
    import numpy as np
    import onnx

    paired = _paired(variant.plan.split, before, after, source.threshold)
    graph, quantized = onnx.load_from_string(fp32), onnx.load_from_string(made.content)
    weights = weight_rows(quantized)
    # All in the same bits, but for a few that methods leave in more.
    bits = min(row.bits for row in weights)
    quantized_parameters = sum(row.weights for row in weights if row.bits == bits)
    # Rounding makes zeros, and a convolution that reads grey has fewer weights.
    fewer, fewer_nonzero = np.subtract(count_weights(graph), count_weights(quantized)).tolist()
    parameters = source.parameters - fewer
    share = quantized_parameters / parameters
    target_cpu = method.target_cpu if isinstance(method, Int8Method) else None
    sizes = {row.layer: row.weights for row in weights}
    model = Model(
        kind="onnx",
        content=made.content,
        backbone=source.backbone,
        preprocessing=source.preprocessing,
        parameters=parameters,
        nonzero_parameters=source.nonzero_parameters - fewer_nonzero,
        macs=source.macs,
    )
    return variant.store(
        model,
        calibration_sha256=made.calibration.sha256 if made.calibration else None,
        training=made.training,
        quantization=Quantization(
            target_cpu=target_cpu,
            bits=bits,
            quantized_parameters=quantized_parameters,
            quantized_share=share,
            parent_bytes=len(fp32),
            calibration_images=len(made.calibration.rows) if made.calibration else None,
            accuracy_before=before.accuracy,
            accuracy=after.accuracy,
            lost=paired.lost,
            won=paired.won,
            difference_interval=paired.interval.bounds,
            p=paired.p,
            auroc_before=before.auroc,
            auroc=after.auroc,
            max_probability_difference=float(np.abs(before.probability - after.probability).max()),
            kernel_difference=kernel_difference,
            trained_difference=made.trained_difference,
            weights=weights,
            fp32_layers=tuple(
                Fp32LayerRow(layer=name, weights=sizes[name], loss_increase=increase)
                for name, increase in made.excluded.items()
            ),
            layer_speeds=made.speeds,
        ),
        notes=(
            *_size_notes(
                share,
                bits,
                len(fp32),
                len(made.content),
                computes_in_int8=target_cpu is not None,
                linear_only=not method.qdq,
            ),
            *(_numerics_notes(run, target_cpu) if target_cpu is not None else ()),
            *((made.speeds.sentence,) if made.speeds is not None else ()),
        ),
    )


def _paired(split: Split, before: Outcome, after: Outcome, threshold: float) -> Paired:
    """Return the paired comparison of the quantized file's decisions with FP32's on the validation images."""
    import numpy as np

    rows = split.indices("val")
    truth = split.is_positive(rows)
    first, second = (decide(outcome.probability, threshold) == truth for outcome in (before, after))
    return compare(first, second, draw_patients(split.groups[rows], np.random.default_rng(0)), margin=0.0)


def _size_notes(
    share: float, bits: int, before_bytes: int, after_bytes: int, *, computes_in_int8: bool, linear_only: bool
) -> tuple[str, ...]:
    saved = 1 - after_bytes / before_bytes
    size = (
        f"The file is {saved:.1%} smaller than the same model as FP32 ONNX" if saved > 0 else "The file is no smaller"
    )
    if not computes_in_int8:
        return (
            f"{share:.1%} of the parameters are stored in {bits} bits. {size}; weights are unpacked when it is opened, "
            "so it is not faster than FP32, and needs about the same memory.",
        )
    if share >= SMALL_SHARE or not linear_only:
        return (
            f'{share:.1%} of the parameters are {bits}-bit integers. {size}; "chestx benchmark" measures whether it '
            "is faster.",
        )
    return (
        f"Only {share:.1%} of the parameters are quantized: the rest of this network is convolutions. {size}; do "
        "not expect it to be faster.",
    )


def _numerics_notes(run: Run, target_cpu: str) -> tuple[str, ...]:
    """Return on which processors INT8 sums are exact, and what was measured; warn if this one is not among them."""
    numerics = TARGET_CPUS[target_cpu]
    measured = (
        f"A static file of ResNet50 for --target-cpu {target_cpu} {numerics.measured}, under ONNX Runtime; "
        '"chestx benchmark" measures this one here.'
    )
    if numerics.reduced:
        return (
            f"Weights use 7 bits so that INT8 sums cannot overflow: they are exact on {numerics.exact_on}.",
            measured,
        )
    note = (
        f"Weights use all 8 bits: INT8 sums are exact on {numerics.exact_on}. On x86 without VNNI they "
        'saturate unless the session option "session.x64quantprecision" is 1, which is slower; chestx sets it there.'
    )
    if not has_exact_products():
        run.reporter.warn(f"this processor is not known to be one that --target-cpu {target_cpu} is made for. {note}")
    return note, measured
