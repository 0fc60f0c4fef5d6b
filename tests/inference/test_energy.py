"""Energy: read from the processor's counters while calls are timed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from chestx_cli.compression.cost_probe import cost_of
from chestx_cli.core.machine import energy_counters, read_energy_uj, used_energy_j
from chestx_cli.inference import timing
from chestx_cli.inference.runtimes import Model
from chestx_cli.inference.timing import Job, Round


def zone(root: Path, folder: str, name: str, energy_uj: int, range_uj: int = 1_000_000_000) -> Path:
    path = root / folder
    path.mkdir()
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return path


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Return the folders of two packages, beside zones that would be counted twice."""
    monkeypatch.setattr("chestx_cli.core.machine.ENERGY_COUNTERS", tmp_path)
    packages = (zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000), zone(tmp_path, "intel-rapl:1", "package-1", 0))
    zone(tmp_path, "intel-rapl:0:0", "core", 4_000_000)
    zone(tmp_path, "intel-rapl:2", "psys", 9_000_000)
    # Without readable values.
    (tmp_path / "intel-rapl:3").mkdir()
    return packages


def test_only_whole_packages_are_counted(counters: tuple[Path, Path]) -> None:
    assert energy_counters() == counters


def test_a_counter_that_starts_over_goes_on(counters: tuple[Path, Path]) -> None:
    before_uj = read_energy_uj(counters)
    (counters[0] / "energy_uj").write_text("1000000")
    (counters[1] / "energy_uj").write_text("3000000")
    # 1,000 J is the range of the first: from 5 J to its end, then 1 J; 3 J of the second.
    assert used_energy_j(counters, before_uj) == pytest.approx(1000 - 5 + 1 + 3)


def job() -> Job:
    return Job(
        model=Model(path="", kind="onnx", backbone="tiny", n_classes=2),
        runtime="made up",
        device="cpu",
        threads=1,
        image_size_px=32,
        batch_sizes=(1, 4),
        duration_s=0.01,
        seed=0,
    )


def test_the_energy_of_a_call_is_measured_where_there_are_counters(
    counters: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(inputs: np.ndarray) -> np.ndarray:
        path = counters[1] / "energy_uj"
        # As many millijoules as images.
        path.write_text(str(int(path.read_text()) + 1000 * len(inputs)))
        return inputs

    runtime = SimpleNamespace(load=lambda: None, open=lambda *_: compute)
    monkeypatch.setattr(timing, "RUNTIMES", {"made up": runtime})
    measured = timing.measure(job())
    assert measured.joules == pytest.approx({1: 0.001, 4: 0.004})
    assert cost_of([measured], 2_000_000).energy_mj == pytest.approx(1)
    monkeypatch.setattr("chestx_cli.core.machine.ENERGY_COUNTERS", tmp_path / "none")
    assert timing.measure(job()).joules == {}


def test_costs_are_medians_over_rounds() -> None:
    rounds = [Round(seconds={1: (ms / 1000,) * 3}, joules={1: ms / 100}) for ms in (1, 2, 9)]
    cost = cost_of(rounds, 1_500_000)
    assert (cost.latency_ms, cost.size_mb, cost.energy_mj) == pytest.approx((2, 1.5, 20))
    assert cost_of([Round(seconds={1: (0.001,)})], 1).energy_mj is None
