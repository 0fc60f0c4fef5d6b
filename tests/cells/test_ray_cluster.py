"""Cells as tasks of a Ray cluster: same results as on one machine, lost machines, machines without the study."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chestx_cli.cells import ray_cluster, ray_task
from chestx_cli.cells.ray_cluster import Needs, Requirement
from chestx_cli.core.errors import ChestxError, UsageError
from conftest import Chestx, run_chestx
from support import planned_study
from support.planned_study import results_without_times, weights_of, write_plan

# The tests' plan with one more seed, without its slowest variant.
PLAN = planned_study.PLAN.replace("seeds = [1, 2]", "seeds = [1, 2, 3]").partition('\n[[variants]]\nname = "twice"')[0]
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}
NEEDS = Needs(memory_bytes=1_000, gpu=None, files=())
LIMIT_S = 900.0
# An environment variable of the cluster's machines, which all processes that they start inherit.
MARK = "CHESTX_TEST_CLUSTER"


def may_hide_folders() -> bool:
    """Return whether this user may mount something in a namespace."""
    program = shutil.which("unshare")
    return program is not None and subprocess.run([program, "-m", "true"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def mark() -> Iterator[str]:
    value = uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, value)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield value


@pytest.fixture(scope="module")
def cluster(mark: str) -> Iterator[Any]:  # noqa: ARG001 - in the environment of its machines
    """Return a cluster whose first machine runs no cells; tests add other machines."""
    utils = pytest.importorskip("ray.cluster_utils")
    made = utils.Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
    yield made
    made.shutdown()


@pytest.fixture
def add(cluster: Any) -> Iterator[Callable[[], Any]]:
    """Return a function that adds a machine with one processor to the cluster, for one test."""
    added = []

    def add_one() -> Any:
        added.append(cluster.add_node(**NODE))
        return added[-1]

    yield add_one
    for machine in added:
        if machine in cluster.list_all_nodes():
            cluster.remove_node(machine, allow_graceful=False)


def cells_processes(mark: str) -> list[str]:
    """Return the processes of cells that machines of this test's cluster have started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
        except OSError:
            continue
        if b"chestx_cli.commands.study" in words and f"{MARK}={mark}".encode() in environment.split(b"\0"):
            found.append(path.name)
    return found


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


Begin = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def begin(cluster: Any) -> Iterator[Begin]:
    """Return a function that starts a study on the cluster; its process ends with the test."""
    with contextlib.ExitStack() as begun:

        def begin_one(path: Path, study: Path, *words: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-m", "chestx_cli", "study", path, "--study", study, "--ray", cluster.address, *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            begun.callback(process.wait)
            begun.callback(process.kill)
            return process

        yield begin_one


@pytest.mark.slow
def test_the_loss_of_a_machine_does_not_change_the_results(
    cluster: Any, add: Callable[[], Any], begin: Begin, tmp_path: Path, data: Path
) -> None:
    path, study = write_plan(tmp_path, data, PLAN), tmp_path / "ray"
    machines = [add() for _ in range(3)]
    process = begin(path, study, "--json")
    wait_until(lambda: len(list(study.glob("seed-*/fold-*/variants/baseline"))) >= 2, process)
    cluster.remove_node(machines[0], allow_graceful=False)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    assert "6 of 6 cells" in err
    # Ray's messages are not on stdout.
    assert out.startswith("{")
    assert len(list(study.glob("seed-*/fold-*/variants/oneshot-50/evaluation.test.json"))) == 6
    local = run_chestx("study", path, "--study", tmp_path / "local", "--jobs", "2")
    assert local.code == 0, local.err
    assert results_without_times(study) == results_without_times(tmp_path / "local")
    assert weights_of(study) == weights_of(tmp_path / "local")
    again = run_chestx("study", "--study", study, "--ray", cluster.address)
    assert "already done: 6 of 6 cells" in again.err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_no_process_is_left_when_the_command_is_ended(
    add: Callable[[], Any],
    begin: Begin,
    mark: str,
    tmp_path: Path,
    data: Path,
    number: signal.Signals,
    code: int,
) -> None:
    add()
    path, study = write_plan(tmp_path, data, PLAN.replace("epochs = 2", "epochs = 2000")), tmp_path / "ray"
    process = begin(path, study)
    checkpoint = study / "seed-1" / "fold-1" / "checkpoints" / "baseline"
    wait_until(checkpoint.exists, process)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    deadline_s = time.monotonic() + 30
    while cells_processes(mark) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert not cells_processes(mark)
    assert list(checkpoint.iterdir())


def add_machine_without(cluster: Any, hidden: Path) -> subprocess.Popen[bytes]:
    """Add a machine to a cluster on which a folder is empty."""
    words = f"mount -t tmpfs none {hidden} && exec {sys.executable} -m ray.scripts.scripts start --block"
    words += f" --address={cluster.address} --num-cpus=1 --object-store-memory=80000000 --disable-usage-stats"
    return subprocess.Popen(
        ["unshare", "-m", "sh", "-c", words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
    )


@pytest.fixture
def elsewhere(cluster: Any, tmp_path: Path) -> Iterator[Path]:
    """Return a folder that is empty on the only machine of the cluster that makes cells."""
    if not may_hide_folders():
        pytest.skip("no mounts in a namespace here")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    import ray

    ray.init(cluster.address, log_to_driver=False)
    before = {node["NodeID"] for node in ray.nodes()}
    machine = add_machine_without(cluster, hidden)
    deadline_s = time.monotonic() + LIMIT_S
    while not any(node["Alive"] and node["NodeID"] not in before for node in ray.nodes()):
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
    ray.shutdown()
    yield hidden
    os.killpg(machine.pid, signal.SIGKILL)
    machine.wait()


@pytest.mark.slow
def test_cells_are_copied_to_and_from_machines_without_the_study(
    cluster: Any, elsewhere: Path, tmp_path: Path, data: Path
) -> None:
    path, study = write_plan(tmp_path, data, PLAN.replace("seeds = [1, 2, 3]", "seeds = [1]")), elsewhere / "study"
    outcome = run_chestx("study", path, "--study", study, "--ray", cluster.address)
    assert outcome.code == 0, outcome.err
    local = run_chestx("study", path, "--study", tmp_path / "local")
    assert local.code == 0, local.err
    assert results_without_times(study) == results_without_times(tmp_path / "local")
    assert weights_of(study) == weights_of(tmp_path / "local")
    left = {path.name for path in study.glob("seed-1/fold-*/*")} | {path.name for path in study.glob("seed-1/.*")}
    assert not {name for name in left if name.startswith(".") and name != ".locks"}


@pytest.mark.slow
def test_a_machine_without_the_images_is_named(cluster: Any, elsewhere: Path, tmp_path: Path, data: Path) -> None:
    shutil.copytree(data, elsewhere / "data")
    path = write_plan(tmp_path, elsewhere / "data", PLAN)
    outcome = run_chestx("study", path, "--study", tmp_path / "study", "--ray", cluster.address)
    assert outcome.code == 1
    assert f"of the Ray cluster has no {elsewhere / 'data'}" in outcome.err
    assert "same path" in outcome.err
    assert not list((tmp_path / "study").glob("seed-*/fold-*/variants"))


def test_more_jobs_than_a_machine_has_processors_are_refused_and_no_cluster_is_an_error(
    tmp_path: Path, data: Path, chestx: Chestx
) -> None:
    pytest.importorskip("ray")
    path = write_plan(tmp_path, data, PLAN)
    outcome = chestx("study", path, "--study", tmp_path / "study", "--ray", "127.0.0.1:1")
    assert outcome.code == 1
    assert "no Ray cluster at 127.0.0.1:1" in outcome.err
    assert "ray start --head" in outcome.err


def test_without_ray_the_error_names_what_installs_it(
    tmp_path: Path, data: Path, chestx: Chestx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = chestx("study", write_plan(tmp_path, data, PLAN), "--study", tmp_path / "study", "--ray", "auto")
    assert outcome.code == 1
    assert "pip install 'chestx-cli[ray]'" in outcome.err
    assert not (tmp_path / "study").exists()


def machine(cpus: float, *, gpus: float = 0, memory: float = 8e9) -> dict[str, Any]:
    resources = {"CPU": cpus, "memory": memory, **({"GPU": gpus} if gpus else {})}
    named = {"NodeID": "1", "NodeManagerHostname": "host", "NodeManagerAddress": "10.0.0.1"}
    return {"Alive": True, "Resources": resources, **named}


class Ray:
    def __init__(self, *machines: dict[str, Any]) -> None:
        self._machines = machines

    def nodes(self) -> tuple[dict[str, Any], ...]:
        return self._machines


def test_cells_share_the_processors_of_the_smallest_machine_and_have_a_gpu_each_if_there_are_any() -> None:
    def required(jobs: int, needs: Needs, *machines: dict[str, Any]) -> Requirement:
        ray: Any = Ray(*machines)
        return ray_cluster._requirement(ray_cluster._machines(ray, needs), jobs, needs)

    assert required(1, NEEDS, machine(8), machine(4)) == Requirement(num_cpus=4, num_gpus=0, memory=1_000)
    assert required(3, NEEDS, machine(8), machine(4), machine(0)).num_cpus == 1
    with pytest.raises(UsageError, match="--jobs 5 is more than the 4 processors"):
        required(5, NEEDS, machine(8), machine(4))
    # Machines without a GPU make no cells where others have one.
    mixed = (machine(64, gpus=8), machine(4))
    assert required(8, NEEDS, *mixed) == Requirement(num_cpus=8, num_gpus=1, memory=1_000)
    assert required(1, Needs(memory_bytes=1, gpu=False, files=()), *mixed).num_gpus == 0
    with pytest.raises(ChestxError, match="has a GPU"):
        required(1, Needs(memory_bytes=1, gpu=True, files=()), machine(4))
    # Ray would never start a task that requires more memory than any machine has.
    assert required(1, Needs(memory_bytes=10**12, gpu=None, files=()), machine(4), machine(4, memory=9e9)).memory == 9e9
    with pytest.raises(ChestxError, match="has a processor"):
        required(1, NEEDS)


def test_cells_on_one_machine_have_processors_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)), raising=False)
    with (
        ray_task.own_processors(2) as first,
        ray_task.own_processors(2) as second,
        ray_task.own_processors(2) as third,
    ):
        assert (first, second) == ((0, 1), (2, 3))
        assert len(third) == 2
    with ray_task.own_processors(2) as again:
        assert again == (0, 1)
