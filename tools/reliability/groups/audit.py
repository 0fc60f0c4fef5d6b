"""Dependencies of chestx: locked with hashes, and each under a known licence that is not GPL."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

from tools.harness.processes import ROOT
from tools.reliability.registry import Setting
from tools.reliability.results import MAX_FAILURES, Figure

LOCK = ROOT / "requirements.lock"
LOCKED = (
    "one version with SHA-256 hashes; the file names no registry and no option, and contains every dependency of "
    "pyproject.toml in an allowed version"
)
LICENSED = (
    "its metadata names only permissive licences or NVIDIA's; its licence texts mention no GNU licence, or the "
    "harness gives the reason"
)
WEAK = "pip-audit knows no vulnerability in it, or the harness gives the reason"
LIMIT_S = 600.0
_PINNED = re.compile(r"[\w.-]+==[^ ;]+(?: ; [^\\]+)?(?: --hash=sha256:[0-9a-f]{64})+")
_PERMISSIVE = re.compile(
    r"\b(MIT|BSD|0BSD|Apache|PSF|Python Software Foundation|ISC|ISCL|HPND|Zlib|CC0|BSL|MPL)\b",
    re.IGNORECASE,
)
_PROPRIETARY = re.compile(r"NVIDIA.Proprietary|NVIDIA Proprietary Software", re.IGNORECASE)
_GNU = re.compile(r"GNU\s+(AFFERO\s+|LESSER\s+)?GENERAL\s+PUBLIC|\b[AL]?GPL(v?\d|-\d|\b)", re.IGNORECASE)
_GNU_TEXT = re.compile(r"GNU\s+(AFFERO\s+|LESSER\s+)?GENERAL\s+PUBLIC\s+LICEN[CS]E", re.IGNORECASE)
_GCC = "runtime libraries of GCC, with the exception that lets every program use them"
_FREETYPE = "FreeType, which has two licences and is used under its own"
_PYTHON = "Python's licence, which states its compatibility with them"
# Packages whose licence text mentions a GNU licence that does not apply to chestx.
EXPLAINED = {
    "numpy": _GCC,
    "scipy": _GCC,
    "scikit-learn": _GCC,
    "matplotlib": _FREETYPE,
    "pillow": f"{_FREETYPE}; scripts of xz that are not part of it",
    "pandas": _PYTHON,
    "typing-extensions": _PYTHON,
    "ml-dtypes": "the Mozilla licence of Eigen, which names them as secondary licences",
    "setuptools": "autocommand, a part of it under the LGPL that chestx does not use or pass on",
}


# Advisories that do not affect chestx, with the reason.
EXPLAINED_WEAKNESSES: dict[str, str] = {}


def measure(setting: Setting) -> Sequence[Figure]:
    """Check the lock file and the metadata of its packages; at full length also look up known vulnerabilities."""
    started_s = time.perf_counter()
    lines = LOCK.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    entries = [re.sub(r"\s+", " ", line).strip() for line in lines if line.strip() and not line.startswith("#")]
    loose = [entry[:80] for entry in entries if not _PINNED.fullmatch(entry)]
    loose += _not_locked({entry.partition("==")[0]: entry.partition("==")[2].split()[0] for entry in entries})
    names = [entry.partition("==")[0] for entry in entries]
    licences = {name: _finding(name) for name in names}
    objections = [f"{name}: {text}" for name, text in licences.items() if text]
    seconds = time.perf_counter() - started_s
    figures = [
        _figure("packages in requirements.lock", LOCKED, len(entries), loose, seconds),
        _figure("licences of these packages", LICENSED, len(names), objections, seconds),
    ]
    return figures if setting.length == "short" else [*figures, _weaknesses(names)]


def _not_locked(locked: dict[str, str]) -> list[str]:
    """Return the project's direct dependencies that are not locked, or locked at a version that is not allowed."""
    from packaging.requirements import Requirement

    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    return [
        text
        for text in dependencies
        if (requirement := Requirement(text)) and locked.get(requirement.name, "") not in requirement.specifier
    ]


def _weaknesses(names: Sequence[str]) -> Figure:
    """Run pip-audit; a package that it could not look up counts as failed, whatever the exit code."""
    started_s = time.perf_counter()
    options = ("--disable-pip", "--require-hashes", "--format", "json", "--progress-spinner", "off")
    words = [sys.executable, "-m", "pip_audit", *options, "--requirement", str(LOCK)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    try:
        answers = {answer["name"]: answer for answer in json.loads(ended.stdout)["dependencies"]}
    except ValueError:
        last = ended.stderr.strip().splitlines()[-1:] or ["no output"]
        answers = {name: {"skip_reason": last[0]} for name in names}
    looked_up = [name for name in names if "vulns" in answers.get(name, {})]
    known = {name: [weakness["id"] for weakness in answers[name]["vulns"]] for name in looked_up}
    failures = [f"{name}: {answers.get(name, {}).get('skip_reason')}" for name in names if name not in looked_up]
    failures += [
        f"{name}: {', '.join(open_ones)}"
        for name, ids in known.items()
        if (open_ones := [one for one in ids if one not in EXPLAINED_WEAKNESSES])
    ]
    what = "known weaknesses of these packages"
    if not looked_up:
        what += " (NOT LOOKED UP: no advisory service answered this machine)"
    return _figure(what, WEAK, len(names), failures, time.perf_counter() - started_s)


def _figure(test: str, criterion: str, total: int, failures: list[str], seconds: float) -> Figure:
    return Figure(
        test=test,
        passed=total - len(failures),
        total=total,
        criterion=criterion,
        seconds=seconds,
        failures=tuple(failures[:MAX_FAILURES]),
    )


def _finding(name: str) -> str:
    """Return the objection to a package's licence; empty if there is none."""
    is_nvidia = name.startswith(("nvidia-", "cuda-"))
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        # Only GPU builds of torch depend on these.
        return "" if is_nvidia else "it is not installed"
    about = package.metadata
    metadata = [*(about.get_all("License-Expression") or ()), *(about.get_all("Classifier") or ())]
    # Some packages put the whole licence text here; it is checked below.
    metadata += [text.strip()[:60] for text in about.get_all("License") or ()]
    licences = " | ".join(text for text in metadata if text and (not text.count("::") or text.startswith("License")))
    if _GNU.search(licences):
        return f"its metadata states {licences}"
    if not _PERMISSIVE.search(licences) and not (is_nvidia and (_PROPRIETARY.search(licences) or not licences)):
        return f"its metadata states {licences or 'no licence'}"
    texts = [file for file in package.files or () if re.search(r"licen[cs]e|copying|notice", file.name, re.IGNORECASE)]
    for file in texts:
        place = Path(str(file.locate()))
        if ".dist-info" in str(file) and _GNU_TEXT.search(place.read_text(encoding="utf-8", errors="replace")):
            # NVIDIA's notices cover the whole CUDA toolkit, also its debugger, which these packages do not contain.
            return "" if name in EXPLAINED or is_nvidia else f"{file} names a GNU licence"
    return ""
