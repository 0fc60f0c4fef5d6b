"""The reliability harness works in its short form and covers every published figure."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.reliability import __main__ as harness
from tools.reliability.children import Children, children
from tools.reliability.registry import Setting, group, group_names
from tools.reliability.results import Figure, Results, markdown, read_results

ROOT = Path(__file__).parents[2]


def may_leave_the_network() -> bool:
    """Return whether the system lets this user make a network namespace."""
    program = shutil.which("unshare")
    return program is not None and any(
        subprocess.run([program, flags, "true"], capture_output=True, check=False).returncode == 0
        for flags in ("-n", "-rn")
    )


@pytest.fixture(scope="module")
def at() -> Iterator[Children]:
    """The runner of the commands of all groups, which share its imported modules."""
    with children() as found:
        yield found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the studies that groups copy."""
    return tmp_path_factory.mktemp("shared")


@pytest.mark.parametrize("name", group_names())
def test_every_group_reaches_its_figures_in_short(name: str, at: Children, shared: Path, tmp_path: Path) -> None:
    if name == "network" and not may_leave_the_network():
        pytest.skip("no network namespaces here")
    figures = group(name)(Setting(work=tmp_path, shared=shared, at=at, length="short"))
    assert figures
    assert all(figure.reached for figure in figures), [figure.failures for figure in figures]


def test_figures_are_written_down(tmp_path: Path) -> None:
    out = tmp_path / "reliability.json"
    shutil.copy(ROOT / "docs" / "reliability.md", tmp_path)
    assert harness.main(["--only", "audit", "--length", "short", "--out", str(out)]) == 0
    figures = json.loads(out.read_text())["groups"]["audit"]["figures"]
    table = (tmp_path / "reliability.md").read_text()
    assert all(figure["test"] in table for figure in figures)
    assert read_results(out).groups.keys() == {"audit"}


def test_a_group_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="unknown nonsense: choose from"):
        harness.main(["--only", "nonsense", "--out", str(tmp_path / "reliability.json")])


def test_a_test_without_cases_has_shown_nothing() -> None:
    assert not Figure(test="nothing", passed=0, total=0, criterion="it runs", seconds=0.0).reached
    assert "Measured with" in markdown(Results())


def test_a_package_that_was_not_looked_up_has_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.reliability.groups import audit

    answers = [
        {"name": "a", "version": "1", "vulns": []},
        {"name": "b", "version": "1", "vulns": [{"id": "CVE-1"}]},
        {"name": "c", "skip_reason": "not found"},
    ]
    for said, failures in (
        (json.dumps({"dependencies": answers}), ("c: not found", "b: CVE-1", "d: None")),
        ("", ("a: no network", "b: no network", "c: no network", "d: no network")),
    ):
        ended = subprocess.CompletedProcess(args=[], returncode=0, stdout=said, stderr="tried\nno network\n")
        monkeypatch.setattr(subprocess, "run", lambda *_, ended=ended, **__: ended)
        figure = audit._weaknesses(["a", "b", "c", "d"])
        assert set(figure.failures) == set(failures)
        assert figure.passed == 4 - len(failures)
