"""Devices, numerical precision, and reproducible computation."""

from __future__ import annotations

import ctypes
import functools
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
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
# From this size in bytes on a tensor takes memory from the system in a fit's first step.
_LARGE = 2**20
# glibc cuts up to 112 bytes off the block of a tensor to align it. Requests in bytes for blocks of these sizes, and how
# many of each: more than a large network's step has small objects.
_SMALL = range(24, 128, 16)
_N_SMALL = 4000


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


@functools.cache
def return_freed_memory() -> None:
    """Make glibc take each large tensor from the system and return it, until `keep_freed_memory`; no effect elsewhere.

    For the first step of a process: layers keep small objects from it, such as the kernels for their shapes. Among
    tensors in one heap they would divide its space when the tensors are freed, and none of the same size would fit
    there again, since glibc cuts a tensor from a slightly larger block to align it.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)


@functools.cache
def keep_freed_memory() -> None:
    """Make glibc keep freed memory for later allocations, until the process ends; no effect elsewhere.

    glibc returns large blocks to the system immediately. A training step frees and allocates many of them, and the
    system would clear every page each time.
    """
    libc = _glibc()
    if libc is not None:
        _stock_small_blocks(libc)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def _stock_small_blocks(libc: ctypes.CDLL) -> None:
    """Give glibc free blocks of the sizes that it cuts off tensors, so that fewer small objects lie between tensors.

    Nodes of the graph exist until the backward pass ends, and the activations between them are freed during it.
    """
    malloc, free = libc.malloc, libc.free
    malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    for size in _SMALL:
        blocks = []
        for _ in range(_N_SMALL):
            blocks.append(malloc(size))
            # Never freed, so that its neighbours do not become one block.
            malloc(1)
        for block in blocks:
            free(block)


def has_glibc() -> bool:
    """Return whether memory is glibc's, so that the functions above have an effect."""
    return _glibc() is not None


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc" else None


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

    deterministic_before = torch.get_deterministic_debug_mode()
    # Typed as Any: torch's stubs lack the setting.
    filling: Any = torch.utils.deterministic
    filled_before = filling.fill_uninitialized_memory
    # cuBLAS reads this once, at first use in the process.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # use_deterministic_algorithms also tells torch's compiler, which takes a second to import (`training._forward`).
    torch.set_deterministic_debug_mode("error")
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
        torch.set_deterministic_debug_mode(deterministic_before)
