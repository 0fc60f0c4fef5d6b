"""Instruction sets are hidden from libraries, and from nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.benchmarks.hidden_instructions import copy_package, hiding, main, missing_means

pytestmark = pytest.mark.skipif(missing_means() is not None, reason=f"instruction sets stay visible: {missing_means()}")

# A library whose functions execute cpuid, contain its two bytes as a number, and hit a fault of their own.
SOURCE = """
#include <cpuid.h>
unsigned leaf(unsigned number, unsigned part, int which) {
    unsigned found[4];
    __cpuid_count(number, part, found[0], found[1], found[2], found[3]);
    return found[which];
}
unsigned constant(void) { return 0xa20fa20f; }
void fault(void) { __builtin_trap(); }
"""
# Prints what the library reports: leaf 7 in full, its vendor, the constant.
PROBE = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.leaf.restype = library.constant.restype = ctypes.c_uint
rows = [[library.leaf(7, part, which) for which in range(4)] for part in (0, 1)]
print(*rows[0], *rows[1], library.leaf(0, 0, 1), library.constant())
if len(sys.argv) > 2:
    library.fault()
"""
EBX, ECX, EAX_1 = 1, 2, 4
AVX2_BIT, AVX512F_BIT, VNNI_BIT, AVX_VNNI_BIT, BF16_BIT = (1 << bit for bit in (5, 16, 11, 4, 5))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a package with the library and a Python file."""
    folder = tmp_path_factory.mktemp("package") / "probe"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "probe.c").write_text(SOURCE)
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", "probe.so", "probe.c"], cwd=folder, check=True)
    return folder


def reported(library: Path, *more: str, env: dict[str, str]) -> tuple[int, list[int]]:
    """Return the exit code and the numbers that a process with the library prints."""
    words = [sys.executable, "-c", PROBE, str(library), *more]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    return ended.returncode, [int(word) for word in ended.stdout.split()]


@pytest.mark.parametrize("level", ["vnni", "avx512"])
def test_only_the_hidden_bits_are_cleared(package: Path, tmp_path: Path, level: str) -> None:
    copy_package(package, tmp_path / "copy")
    assert (tmp_path / "copy" / "__init__.py").is_symlink()
    code, before = reported(package / "probe.so", env={})
    assert code == 0
    code, after = reported(tmp_path / "copy" / "probe.so", env=hiding(level, tmp_path, packages=()))
    assert code == 0
    assert not after[ECX] & VNNI_BIT
    assert not after[EAX_1] & (AVX_VNNI_BIT | BF16_BIT)
    assert after[EBX] & AVX512F_BIT == (0 if level == "avx512" else before[EBX] & AVX512F_BIT)
    assert after[EBX] & AVX2_BIT == before[EBX] & AVX2_BIT
    # The first register of the leaf, the vendor and the constant with the same bytes as the instruction.
    assert [after[index] for index in (0, 8, 9)] == [before[index] for index in (0, 8, 9)]


def test_without_the_preloaded_library_and_at_a_true_fault_the_process_ends(package: Path, tmp_path: Path) -> None:
    copy_package(package, tmp_path / "copy")
    library = tmp_path / "copy" / "probe.so"
    code, numbers = reported(library, env={})
    assert (code < 0, numbers) == (True, [])
    code, _ = reported(library, "fault", env=hiding("vnni", tmp_path, packages=()))
    assert code < 0


def test_the_exit_code_is_the_commands(tmp_path: Path) -> None:
    words = ["--without", "avx512", "--work", str(tmp_path), "--packages", ""]
    assert main([*words, "--", sys.executable, "-c", "raise SystemExit(7)"]) == 7
