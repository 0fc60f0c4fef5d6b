"""The record of a benchmark: latency, throughput, memory and size of variants on one machine."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from chestx_cli.core.record import col
from chestx_cli.records.tabular import Count, Positive, Share, Size, TabularRecord, listed

BATCHES = " / "
# PyTorch without export or compilation, a runtime for torch variants only.
EAGER = "pytorch"


@dataclass(frozen=True, kw_only=True)
class BatchRow:
    """Calls with one batch size under one runtime, over all rounds; images/s are computed from the median."""

    batch_size: Count
    p50_ms: Positive
    p90_ms: Positive
    p99_ms: Positive
    images_per_s: Positive
    calls: Count
    round_p50_ms: tuple[Positive, ...]


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """Speed of one variant under one runtime; speed-ups are medians over rounds, above 1 means faster.

    Latencies and speed-ups are of the smallest batch; `images_per_s` has one value per batch size. Speed-ups are None
    if the FP32 baseline was not timed in the same run; their 95 % intervals also with fewer than three rounds, and for
    a model against itself.
    """

    variant: str = col("Variant")
    runtime: str = col("Runtime")
    latency_p50_ms: Positive = col("p50 ms", ".2f")
    latency_p90_ms: Positive = col("p90", ".2f")
    latency_p99_ms: Positive = col("p99", ".2f")
    images_per_s: tuple[Positive, ...] = col("images/s", ".1f", separator=BATCHES)
    speedup_over_eager: Positive | None = col("× eager", ".2f")
    speedup_over_eager_interval: tuple[Positive, Positive] | None
    speedup_over_best_fp32: Positive | None = col("× best FP32", ".2f")
    speedup_over_best_fp32_interval: tuple[Positive, Positive] | None = col("95 % interval", ".2f")
    batches: tuple[BatchRow, ...]
    model_sha256: str
    # Share of their time that the threads waited for a processor; None where the system does not report it, and in
    # records of earlier versions.
    waited_share: Share | None = None


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """Memory of one variant under one runtime, and the size of its own file.

    Peak memory is reported by the kernel for a process that ran all batch sizes; `added_memory_mb` is the increase
    after the runtime was imported. Both are medians over rounds, None if the system reports no peak. 1 MB is 10^6
    bytes.
    """

    variant: str = col("Variant")
    runtime: str = col("Runtime")
    peak_memory_mb: Positive | None = col("Peak MB", ".0f")
    added_memory_mb: float | None = col("added", ".0f")
    size_mb: Positive = col("File MB", ".2f")
    gzip_mb: Positive = col("gzip MB", ".2f")
    sparse_mb: Positive = col("sparse MB", ".2f")
    # What a device receives: the model as ONNX file and the scripts; None where the model was not exported.
    bundle_mb: Positive | None = col("Bundle MB", ".2f", default=None)
    parameters: Count = col("Parameters", ",")
    nonzero_parameters: Count = col("Non-zero", ",")
    gmacs: float = col("GMACs", ".3f")
    macs: Count
    model_bytes: Size
    gzip_bytes: Size
    sparse_bytes: Size
    model_sha256: str


@dataclass(frozen=True, kw_only=True)
class BenchmarkRecord(TabularRecord):
    """`benchmark.DEVICE.json`, for one variant; the command returns one with the rows of all variants.

    `baseline` and `best_fp32_runtime` are None if the FP32 baseline was not timed in the same run.
    """

    schema: ClassVar[str] = "chestx.benchmark/3"
    title: ClassVar[str] = "Benchmark"
    remedy: ClassVar[str] = 'run "chestx benchmark" again, or remove the file'

    device: str = col("Device")
    machine: str = col("Machine")
    threads: Count = col("Threads")
    rounds: Count = col("Interleaved rounds")
    batch_sizes: tuple[Count, ...] = col("Batch sizes", separator=BATCHES)
    baseline: str | None = col("FP32 baseline")
    best_fp32_runtime: str | None = col("Its best runtime")
    rows: tuple[BenchmarkRow, ...]
    cost_rows: tuple[CostRow, ...]
    warnings: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """Return the median latency of each variant under its best runtime, fastest first."""
        best = {row.variant: row for row in sorted(self.rows, key=lambda row: -row.latency_p50_ms)}.values()
        return listed(f"{row.variant} {row.latency_p50_ms:.3g} ms" for row in reversed(best)) + f" on {self.device}"

    @property
    def latency_batch(self) -> int:
        """Return the batch size of latencies and speed-ups."""
        return self.batch_sizes[0]

    def fastest(self, variant: str) -> BenchmarkRow | None:
        """Return a variant's row under the runtime of lowest median latency; None if it was not timed."""
        rows = (row for row in self.rows if row.variant == variant)
        return min(rows, key=lambda row: row.latency_p50_ms, default=None)

    def of(self, variant: str) -> BenchmarkRecord:
        """Return the record with the rows of one variant only."""
        return dataclasses.replace(
            self,
            rows=tuple(row for row in self.rows if row.variant == variant),
            cost_rows=tuple(row for row in self.cost_rows if row.variant == variant),
        )
