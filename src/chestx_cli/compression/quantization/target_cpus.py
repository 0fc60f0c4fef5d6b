"""8-bit ranges that a processor multiplies without overflow: the choices of `--target-cpu`."""

from __future__ import annotations

from dataclasses import dataclass

from chestx_cli.core.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """Integer formats of activations and weights, and the processors on which their products are exact.

    Weights are symmetric, from -weight_limit to weight_limit. x86 processors without VNNI add two products of an
    unsigned and a signed byte in 16 bits: 2 × 255 × 64 fits, 2 × 255 × 127 saturates silently. Source: ONNX Runtime
    documentation, "Quantize ONNX models"; Intel SDM, VPMADDUBSW. measured: speed of a static ResNet50 under ONNX
    Runtime, as the predicate of a sentence.
    """

    signed_activations: bool
    weight_limit: int
    exact_on: str
    measured: str = "was not measured"

    @property
    def activation_range(self) -> tuple[int, int]:
        """Return the smallest and largest integer of an activation."""
        return (-128, 127) if self.signed_activations else (0, 255)

    @property
    def reduced(self) -> bool:
        """Return whether weights use only 7 bits, so that INT8 sums cannot overflow on any processor."""
        return self.weight_limit <= REDUCED_LIMIT


REDUCED_LIMIT, FULL_LIMIT = 64, 127
ANY_CPU = "any"

TARGET_CPUS: Registry[Numerics] = Registry("target processor", of=Numerics)
TARGET_CPUS.add(
    ANY_CPU,
    Numerics(
        signed_activations=False,
        weight_limit=REDUCED_LIMIT,
        exact_on="every processor, with or without VNNI",
        measured="took 0.32 of the time of FP32 with VNNI, and 0.53 with AVX2 alone",
    ),
)
TARGET_CPUS.add(
    "vnni",
    Numerics(
        signed_activations=False,
        weight_limit=FULL_LIMIT,
        exact_on="x86 processors with VNNI",
        measured="took 0.74 of the time of FP32 with AVX2 alone, and was not measured with VNNI",
    ),
)
TARGET_CPUS.add("arm64", Numerics(signed_activations=True, weight_limit=FULL_LIMIT, exact_on="ARM64 processors"))
