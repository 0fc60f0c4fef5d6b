"""8-bit ranges that a processor multiplies without overflow: the choices of `--target-cpu`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from chestx_cli.core.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """Integer formats of activations and weights, and the processors on which their products are exact.

    Weights are symmetric, from -weight_limit to weight_limit. x86 processors without VNNI add two products of an
    unsigned and a signed byte in 16 bits: 2 × 255 × 64 fits, 2 × 255 × 127 saturates silently. Source: ONNX Runtime
    documentation, "Quantize ONNX models"; Intel SDM, VPMADDUBSW. times: latency of a static ResNet50 under ONNX
    Runtime as a share of FP32's, by the most capable of `PROCESSORS` that a processor has (docs/compression.md).
    """

    signed_activations: bool
    weight_limit: int
    exact_on: str
    times: Mapping[str, float] = field(default_factory=dict)

    @property
    def measured(self) -> str:
        """Return the measured times as the predicate of a sentence."""
        if not self.times:
            return "was not measured"
        first, *others = [(self.times[name], words) for name, words in PROCESSORS.items() if name in self.times]
        more = "".join(f", {share:.2f} {words}" for share, words in others)
        return f"took {first[0]:.2f} of the time of FP32 {first[1]}{more}"

    @property
    def activation_range(self) -> tuple[int, int]:
        """Return the smallest and largest integer of an activation."""
        return (-128, 127) if self.signed_activations else (0, 255)

    @property
    def reduced(self) -> bool:
        """Return whether weights use only 7 bits, so that INT8 sums cannot overflow on any processor."""
        return self.weight_limit <= REDUCED_LIMIT


# Instructions (of `machine.INSTRUCTIONS`) that decide which 8-bit kernels are used, the most capable first, as in a
# sentence. Without VNNI they were measured by hiding it, or on a processor with AVX2 alone.
PROCESSORS = {"VNNI": "with VNNI", "AVX512": "with AVX512 (VNNI hidden)", "AVX2": "with AVX2 alone"}
REDUCED_LIMIT, FULL_LIMIT = 64, 127
ANY_CPU = "any"

TARGET_CPUS: Registry[Numerics] = Registry("target processor", of=Numerics)
TARGET_CPUS.add(
    ANY_CPU,
    Numerics(
        signed_activations=False,
        weight_limit=REDUCED_LIMIT,
        exact_on="every processor, with or without VNNI",
        times={"VNNI": 0.32, "AVX512": 0.56, "AVX2": 0.53},
    ),
)
TARGET_CPUS.add(
    "vnni",
    Numerics(
        signed_activations=False,
        weight_limit=FULL_LIMIT,
        exact_on="x86 processors with VNNI",
        times={"VNNI": 0.32, "AVX512": 0.77, "AVX2": 0.74},
    ),
)
TARGET_CPUS.add("arm64", Numerics(signed_activations=True, weight_limit=FULL_LIMIT, exact_on="ARM64 processors"))
