"""`chestx quantize`: an INT8 ONNX file of a torch variant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from chestx_cli.devices import reproducible
from chestx_cli.exporting import CHECKED_IMAGES, export_onnx
from chestx_cli.models import load_network
from chestx_cli.options import Force, Name, Opt, Parent, Seed, StudyDir
from chestx_cli.pixels import open_pixels
from chestx_cli.quantizing import QUANTIZATION_METHODS, quantize_onnx
from chestx_cli.records import Quantization, VariantRecord
from chestx_cli.runtimes import onnx_session, predict
from chestx_cli.stage import Run, stage
from chestx_cli.study import BASELINE, Study
from chestx_cli.variants import Plan, already_made, being_made, derived_name, open_parent, store_variant, variant_record

MODEL_FILE = "model.onnx"
SMALL_SHARE = 0.25


@stage
def quantize(
    run: Run,
    *,
    study: StudyDir = Path("study"),
    method: Annotated[str, Opt(help="How to quantize.", choices=QUANTIZATION_METHODS)] = "dynamic",
    parent: Parent = BASELINE,
    name: Name = None,
    seed: Seed = 42,
    force: Force = False,
) -> VariantRecord:
    """Quantize a torch variant to an INT8 ONNX file that ONNX Runtime runs.

    The dynamic method stores the Linear layers' weights in 8 bits and quantizes their inputs batch by batch; the
    convolutions stay in FP32.
    """
    import numpy as np

    target = Study(study)
    split, source = open_parent(run, target, parent)
    plan = Plan(
        name=name or derived_name(source, QUANTIZATION_METHODS[method].suffix),
        method=method,
        options={"method": method},
        split=split,
        parent=source,
    )
    being_made(run, target, plan)
    existing = already_made(run, target, plan, force=force)
    if existing is not None:
        return existing
    pixels = open_pixels(target, split, source.preprocessing, run.reporter)
    validation = split.indices("val")
    with reproducible(seed), run.reporter.progress("Export, quantize, compare", 3) as advance:
        inputs = source.preprocessing.normalised(pixels[validation[:CHECKED_IMAGES]])
        fp32 = export_onnx(load_network(target, source), inputs)
        advance()
        quantized = quantize_onnx(method, fp32)
        advance()
        before, after = (
            predict(onnx_session(content), pixels, validation, source.preprocessing)
            for content in (fp32, quantized.content)
        )
        advance()
    share = quantized.parameters / source.parameters
    record = variant_record(
        run,
        plan,
        quantized.content,
        kind="onnx",
        backbone=source.backbone,
        preprocessing=source.preprocessing,
        model_file=MODEL_FILE,
        parameters=source.parameters,
        nonzero_parameters=source.nonzero_parameters - quantized.rounded_to_zero,
        macs=source.macs,
        quantization=Quantization(
            quantized_layers=quantized.layers,
            quantized_parameters=quantized.parameters,
            quantized_share=share,
            parent_bytes=len(fp32),
            max_probability_difference=float(np.abs(before - after).max()),
        ),
        notes=_notes(share, len(fp32), len(quantized.content)),
    )
    store_variant(target, record, quantized.content)
    return record


def _notes(share: float, before_bytes: int, after_bytes: int) -> tuple[str, ...]:
    saved = 1 - after_bytes / before_bytes
    size = (
        f"The file is {saved:.1%} smaller than the same model as FP32 ONNX" if saved > 0 else "The file is no smaller"
    )
    if share >= SMALL_SHARE:
        return (f"{share:.1%} of the parameters are 8-bit integers. {size}.",)
    return (
        f"Only {share:.1%} of the parameters are touched: the rest of this network is convolutions. {size}; "
        "do not expect it to be faster.",
    )
