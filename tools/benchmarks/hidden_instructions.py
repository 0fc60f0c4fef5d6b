"""Runs a command with instruction sets of this processor hidden from the libraries that compute.

    python -m tools.benchmarks.hidden_instructions --without avx512 --work FOLDER -- COMMAND

ONNX Runtime, OpenVINO and PyTorch choose their kernels by the instruction `cpuid`. In copies of their libraries it is
replaced by an instruction that no processor has. A preloaded library handles the signal that this raises: it executes
`cpuid` and clears the hidden bits of the result. Nothing else is changed, so the kernels are those of an older
processor, but caches, clock and the speed of each instruction remain those of this one.
"""

from __future__ import annotations

import argparse
import importlib.util
import mmap
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from tools.benchmarks.workplace import made_once
from tools.harness.processes import say

TOOLS = ("gcc", "objdump", "grep")
PACKAGES = ("onnxruntime", "openvino", "torch")
# They choose no kernels of the processor, and are large.
NOT_OF_THE_CPU = ("cuda", "nvshmem", "intel_gpu", "intel_npu")
# Libraries of torch are found relative to the folder that contains it.
BESIDE = ("nvidia",)
CPUID = b"\x0f\xa2"
# An instruction of 32-bit mode (push es): undefined in 64-bit mode, and unlike ud2 not used by compilers.
UNDEFINED = b"\x06\x06"

# Bits of leaf 7 of `cpuid`: Intel, "Software Developer's Manual", volume 2A, CPUID.
VNNI_AND_BF16 = {
    "LEAF_7_0_ECX": (11,),
    # AMX-BF16, AVX512-FP16, AMX-TILE, AMX-INT8.
    "LEAF_7_0_EDX": (22, 23, 24, 25),
    # AVX-VNNI, AVX512-BF16, AMX-FP16.
    "LEAF_7_1_EAX": (4, 5, 21),
    # AVX-VNNI-INT8, AVX-NE-CONVERT, AMX-COMPLEX, AVX-VNNI-INT16, AVX10.
    "LEAF_7_1_EDX": (4, 5, 8, 10, 19),
}
AVX512 = {
    # F, DQ, IFMA, PF, ER, CD, BW, VL.
    "LEAF_7_0_EBX": (16, 17, 21, 26, 27, 28, 30, 31),
    # VBMI, VBMI2, BITALG, VPOPCNTDQ.
    "LEAF_7_0_ECX": (1, 6, 12, 14),
    # 4VNNIW, 4FMAPS, VP2INTERSECT.
    "LEAF_7_0_EDX": (2, 3, 8),
}
REGISTERS = sorted({*VNNI_AND_BF16, *AVX512})
LEVELS: dict[str, tuple[Mapping[str, tuple[int, ...]], ...]] = {
    "vnni": (VNNI_AND_BF16,),
    "avx512": (VNNI_AND_BF16, AVX512),
}

HANDLER = r"""
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <ucontext.h>

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    unsigned leaf = (unsigned)registers[REG_RAX], part = (unsigned)registers[REG_RCX], a, b, c, d;
    (void)info;
    if (code[0] != 0x06 || code[1] != 0x06) {
        /* A fault of the program: executed again, it now ends the process. */
        signal(number, SIG_DFL);
        return;
    }
    __cpuid_count(leaf, part, a, b, c, d);
    if (leaf == 7 && part == 0) {
        b &= ~LEAF_7_0_EBX;
        c &= ~LEAF_7_0_ECX;
        d &= ~LEAF_7_0_EDX;
    }
    if (leaf == 7 && part == 1) {
        a &= ~LEAF_7_1_EAX;
        d &= ~LEAF_7_1_EDX;
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void install(void) {
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO};
    sigaction(SIGILL, &action, 0);
}
"""


def missing_means() -> str | None:
    """Return why instruction sets cannot be hidden here; None if they can."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return "this is not Linux on x86-64"
    absent = [name for name in TOOLS if shutil.which(name) is None]
    return f"{' and '.join(absent)} not found" if absent else None


def tool(name: str) -> str:
    """Return the path of one of the TOOLS."""
    path = shutil.which(name)
    if path is None:
        raise SystemExit(f"{name} not found")
    return path


def hiding(level: str, work: Path, packages: Sequence[str]) -> dict[str, str]:
    """Return the environment variables of a process from which a level's instruction sets are hidden.

    The copies of the packages are made once in `work`. Raises SystemExit if that cannot be done here.
    """
    if reason := missing_means():
        raise SystemExit(f"cannot hide instruction sets: {reason}")
    site = work / "site"
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        source = Path(spec.origin).parent
        made_once(site / name, partial(copy_package, source))
        for beside in BESIDE:
            if (source.parent / beside).exists() and not (site / beside).exists():
                (site / beside).symlink_to(source.parent / beside)
    path = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path), "LD_PRELOAD": str(compiled_handler(level, work))}


def compiled_handler(level: str, work: Path) -> Path:
    """Return the library to preload, which hides a level's instruction sets."""
    masks = dict.fromkeys(REGISTERS, 0)
    for bits_of in LEVELS[level]:
        for register, bits in bits_of.items():
            masks[register] |= sum(1 << bit for bit in bits)
    source, library = work / f"without-{level}.c", work / f"without-{level}.so"
    source.write_text("".join(f"#define {name} {mask:#x}u\n" for name, mask in masks.items()) + HANDLER)
    subprocess.run([tool("gcc"), "-O2", "-shared", "-fPIC", "-Wall", "-o", library, source], check=True)
    return library


def copy_package(source: Path, target: Path) -> None:
    """Copy a package: links to its files, and copies of the libraries that execute `cpuid`, with it replaced."""
    for folder, _, names in os.walk(source):
        into = target / Path(folder).relative_to(source)
        into.mkdir(parents=True)
        for name in names:
            file = Path(folder) / name
            if ".so" in name and not file.is_symlink() and not any(word in name for word in NOT_OF_THE_CPU):
                content = without_cpuid(file)
                if content is not None:
                    (into / name).write_bytes(content)
                    continue
            (into / name).symlink_to(file)


def without_cpuid(library: Path) -> bytes | None:
    """Return a library with each `cpuid` replaced; None if it has none."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        if mapped.find(CPUID) < 0:
            return None
    addresses = cpuid_addresses(library)
    if not addresses:
        return None
    content = bytearray(library.read_bytes())
    for offset in file_offsets(content, addresses):
        if content[offset : offset + 2] != CPUID:
            raise SystemExit(f"{library.name}: no cpuid at offset {offset:#x}, where the disassembly has one")
        content[offset : offset + 2] = UNDEFINED
    say(f"{library.name}: {len(addresses)} times cpuid")
    return bytes(content)


def cpuid_addresses(library: Path) -> list[int]:
    """Return the addresses of the `cpuid` instructions by disassembly; the two bytes alone may be data."""
    # grep reads the lines of large libraries many times as fast as Python.
    words = [tool("objdump"), "-d", "--no-show-raw-insn", str(library)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as disassembly:
        found = subprocess.run(
            [tool("grep"), "-E", r"^ *[0-9a-f]+:.*\bcpuid\b"],
            stdin=disassembly.stdout,
            capture_output=True,
            text=True,
            check=False,
            env={"LC_ALL": "C"},
        )
    # grep ends with 1 if no line matches.
    if disassembly.returncode != 0 or found.returncode > 1:
        raise SystemExit(f"{library.name} cannot be disassembled")
    return [int(line.partition(":")[0], 16) for line in found.stdout.splitlines()]


def file_offsets(content: bytes | bytearray, addresses: Sequence[int]) -> list[int]:
    """Return the offsets of addresses in a 64-bit ELF file, by its program headers."""
    (start,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    segments = []
    for index in range(count):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", content, start + index * size)
        # Loaded segments.
        if kind == 1:
            segments.append((address, address + length, offset - address))
    return [next(one + shift for low, high, shift in segments if low <= one < high) for one in addresses]


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", choices=LEVELS, required=True, help="avx512 hides VNNI, BF16 and AMX too")
    parser.add_argument("--work", type=Path, required=True, help="folder for the copies of libraries, kept")
    parser.add_argument("--packages", default=",".join(PACKAGES), help="packages to hide them from, if installed")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(words)
    options.work.mkdir(parents=True, exist_ok=True)
    packages = [name for name in options.packages.split(",") if name]
    environment = {**os.environ, **hiding(options.without, options.work.resolve(), packages)}
    return subprocess.run(options.command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
