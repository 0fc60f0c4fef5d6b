"""The environment that results depend on: processor, GPUs, threads, versions."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
from pathlib import Path

# Linux's energy counters of processor packages (RAPL): intel-rapl:0, which AMD's processors have too, intel-rapl:1, ...
ENERGY_COUNTERS = Path("/sys/class/powercap")
# Linux's accounting of this process's threads.
THREADS = Path("/proc/self/task")
# The driver's own list, readable without loading a library.
NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
REPORTED_PACKAGES = ("torch", "torchvision", "onnxruntime", "scikit-learn", "numpy", "pillow")


def available_threads() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_bytes() -> int | None:
    """Return the memory in bytes available without swapping (MemAvailable); None except on Linux."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    return None


def environment() -> dict[str, str]:
    """Return the environment that results can depend on: versions, processor, threads, GPUs."""
    versions = {}
    for package in ("chestx-cli", *REPORTED_PACKAGES):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        **versions,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "threads": str(available_threads()),
        **({"gpu": ", ".join(gpus)} if (gpus := gpu_names()) else {}),
    }


@functools.cache
def gpu_names() -> tuple[str, ...]:
    """Return the names of the NVIDIA GPUs listed by the driver; empty without one, and except on Linux."""
    descriptions = sorted(NVIDIA_GPUS.glob("*/information"))
    lines = [line for path in descriptions for line in path.read_text(errors="replace").splitlines()]
    return tuple(value.strip() for name, _, value in (line.partition(":") for line in lines) if name == "Model")


@functools.cache
def processor_name() -> str:
    """Return the processor's model name, if the system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def resident_bytes(what: str) -> int | None:
    """Return this process's resident memory in bytes, current (VmRSS) or peak (VmHWM); None except on Linux.

    Not getrusage, whose peak is inherited from the parent process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == what:
                return int(value.split()[0]) * 1024
    return None


class Waiting:
    """Measures how long this process's threads wait for a processor, over the blocks that are entered `with` it."""

    def __init__(self) -> None:
        self._ran_ns = self._waited_ns = 0
        self._before = _scheduled_ns()

    def __enter__(self) -> Waiting:
        """Begin a block."""
        self._before = _scheduled_ns()
        return self

    def __exit__(self, *_: object) -> None:
        """End a block; threads that ended in it do not count."""
        for thread, (ran_ns, waited_ns) in _scheduled_ns().items():
            ran_before_ns, waited_before_ns = self._before.get(thread, (0, 0))
            self._ran_ns += ran_ns - ran_before_ns
            self._waited_ns += waited_ns - waited_before_ns

    @property
    def share(self) -> float | None:
        """The share of the time that threads ran or waited in which they waited; None except on Linux."""
        whole_ns = self._ran_ns + self._waited_ns
        return self._waited_ns / whole_ns if whole_ns > 0 else None


def _scheduled_ns() -> dict[str, tuple[int, int]]:
    """Return for each thread of this process the time on a processor and in its queue in nanoseconds."""
    scheduled = {}
    for path in THREADS.glob("*/schedstat"):
        # A thread may end meanwhile.
        with contextlib.suppress(OSError):
            ran_ns, waited_ns = path.read_text().split()[:2]
            scheduled[path.parent.name] = int(ran_ns), int(waited_ns)
    return scheduled


def energy_counters() -> tuple[Path, ...]:
    """Return the folders of this machine's readable energy counters, one per processor package.

    Empty on other systems than Linux, on most virtual machines, and where only the superuser may read them.
    """
    folders = sorted(ENERGY_COUNTERS.glob("intel-rapl:[0-9]*"))
    return tuple(folder for folder in folders if _is_package(folder))


def _is_package(folder: Path) -> bool:
    # Other zones are parts of a package (intel-rapl:0:1), or contain it (psys).
    try:
        name = (folder / "name").read_text().strip()
        read_energy_uj((folder,))
        _range_uj(folder)
    except (OSError, ValueError):
        return False
    return name.startswith("package") and folder.name.count(":") == 1


def read_energy_uj(counters: tuple[Path, ...]) -> tuple[int, ...]:
    """Return the present value of each energy counter in microjoules."""
    return tuple(int((folder / "energy_uj").read_text()) for folder in counters)


def used_energy_j(counters: tuple[Path, ...], before_uj: tuple[int, ...]) -> float:
    """Return the energy in joules used since the counters were read; each may have started over once."""
    now_uj = read_energy_uj(counters)
    used_uj = (
        now - before if now >= before else now - before + _range_uj(folder)
        for folder, before, now in zip(counters, before_uj, now_uj, strict=True)
    )
    return sum(used_uj) / 1e6


def _range_uj(folder: Path) -> int:
    return int((folder / "max_energy_range_uj").read_text())


# Instruction sets that affect times and numbers, with their flags in Linux.
INSTRUCTIONS = {
    "AVX2": ("avx2",),
    "AVX512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "BF16": ("avx512_bf16", "amx_bf16"),
    "AMX": ("amx_tile",),
}


@functools.cache
def instructions() -> frozenset[str] | None:
    """Return the INSTRUCTIONS of this processor; None where the system does not list them, as only Linux does."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return None
    lines = cpuinfo.read_text(errors="replace").splitlines()
    flags = next((line.split() for line in lines if line.startswith("flags")), None)
    if flags is None:
        return None
    return frozenset(name for name, known in INSTRUCTIONS.items() if not set(known).isdisjoint(flags))


@functools.cache
def has_exact_products() -> bool:
    """Return whether this processor is known to sum products of full 8-bit integers without saturation."""
    machine = platform.machine().lower()
    if machine not in {"x86_64", "amd64"}:
        return machine in {"aarch64", "arm64"}
    return "VNNI" in (instructions() or ())
