"""Devices, numerical precision, and reproducible computation."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from chestx_cli.core.errors import UsageError
from chestx_cli.core.machine import processor_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def resolve_device(device: str) -> str:
    """Return cpu or cuda; auto selects CUDA if available. Raises UsageError for cuda if it is not available."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "--device cuda: torch finds no CUDA GPU here", "use --device cpu, or install a CUDA build and driver"
        )
    return device


def resolve_precision(precision: str, device: str) -> str:
    """Return fp32 or bf16; auto selects bf16 if the processor or GPU has instructions for it."""
    import torch

    if precision != "auto":
        return precision
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # Without these instructions, bf16 is emulated and slower than FP32.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def device_name(device: str) -> str:
    """Return the model name of the processor (cpu) or GPU (cuda)."""
    if device != "cuda":
        return processor_name()
    import torch

    return torch.cuda.get_device_name()


def autocast(device: str, precision: str) -> torch.autocast:
    """Return a context in which a network computes in this precision."""
    import torch

    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for later allocations, until the process ends; no effect elsewhere.

    glibc returns blocks above 32 MiB to the system immediately. A training step frees and allocates many of them, and
    the system would clear every page each time.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return
    import ctypes

    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)


def move_to(network: nn.Module, device: str) -> nn.Module:
    """Move a network to a device in place, in the channels-last layout of the images."""
    return _moved(network, device, channels_last=True)


def move_back(network: nn.Module) -> nn.Module:
    """Move a network to the CPU in place, in the contiguous layout of stored files."""
    return _moved(network, "cpu", channels_last=False)


def _moved(network: nn.Module, device: str, *, channels_last: bool) -> nn.Module:
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format
    # torch's stubs lack a device together with a memory format.
    moved: nn.Module = network.to(device, memory_format=layout)  # type: ignore[call-overload]
    return moved


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch, allow only deterministic algorithms and disable TF32 inside the block; then restore the settings.

    By default torch computes FP32 convolutions on a GPU in TF32, with 10 instead of 23 mantissa bits.
    """
    import torch

    deterministic_before = torch.are_deterministic_algorithms_enabled()
    # Typed as Any: torch's stubs lack the setting.
    filling: Any = torch.utils.deterministic
    filled_before = filling.fill_uninitialized_memory
    # cuBLAS reads this once, at first use in the process.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Typed as Any, as above.
    matrix_units: tuple[Any, Any] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    tf32_before = [unit.allow_tf32 for unit in matrix_units]
    for unit in matrix_units:
        unit.allow_tf32 = False
    # Otherwise torch fills every new tensor before a layer writes its output there, which takes 5 % of a training step.
    filling.fill_uninitialized_memory = False
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        for unit, allowed in zip(matrix_units, tf32_before, strict=True):
            unit.allow_tf32 = allowed
        filling.fill_uninitialized_memory = filled_before
        torch.use_deterministic_algorithms(deterministic_before)
