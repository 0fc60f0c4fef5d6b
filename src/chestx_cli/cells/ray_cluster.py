"""Executor on a Ray cluster: one process per cell on any machine with capacity, restarted if a machine is lost."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import signal
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestx_cli import __version__
from chestx_cli.cells.processes import OnEnd, OnEvent, failure_of
from chestx_cli.cells.ray_task import INSTALL, POLL_S, Job, Made, files_to_send, look, make, put_files
from chestx_cli.cells.steps import CellFailure, StudyCell
from chestx_cli.core.errors import ChestxError, UsageError, again
from chestx_cli.core.files import write_atomic
from chestx_cli.core.signals import SIGNALS, waiting_for_others

if TYPE_CHECKING:
    from types import ModuleType

# Restarts of a cell whose machine was lost or whose worker was killed.
MAX_RETRIES = 3
# Less than the time that the command has after a signal.
CANCEL_WITHIN_S = 3.0
REACHED_WITHIN_S = 10.0
PROBE_WITHIN_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Requirements of every cell: memory, a GPU or not, and files that each machine must have at the same paths.

    `gpu` is None if a GPU is used only when the cluster has one.
    """

    memory_bytes: int
    gpu: bool | None
    files: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class _Machine:
    """A machine of the cluster, with the processors and the memory that Ray may use there."""

    node_id: str
    name: str
    processors: int
    memory_bytes: int
    has_gpu: bool


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """What a task requires of a machine, under the names of Ray's options; `memory` is in bytes."""

    num_cpus: int
    num_gpus: int
    memory: int


def require_ray() -> ModuleType:
    """Return ray with its usage reports disabled; raises ChestxError if it is not installed."""
    # Ray reads the variable when it is imported; a running cluster has its own setting.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise ChestxError("--ray needs Ray, which is not installed", f'run "{INSTALL}" on every machine') from error
    finally:
        _restore(handlers)
    return ray


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    """Restore signal handlers, since Ray installs its own for SIGTERM."""
    # Not possible outside of the main thread or for handlers not installed from Python.
    with contextlib.suppress(ValueError, TypeError):
        for number, handler in handlers.items():
            signal.signal(number, handler)


def make_cells(
    cells: Sequence[StudyCell],
    *,
    module: str,
    address: str,
    jobs: int,
    needs: Needs,
    on_event: OnEvent,
    on_end: OnEnd,
) -> None:
    """Run cells on the machines of the cluster at `address`, `jobs` at a time on the smallest; an `Executor`.

    All cells have the same number of processors: those of the smallest machine, divided by `jobs`. Raises ChestxError
    if there is no such cluster, or if one of its machines cannot run cells.
    """
    ray = require_ray()
    root = cells[0].root
    with _joined(ray, address), _marked(root) as marker:
        machines = _machines(ray, needs)
        requirement = _requirement(machines, jobs, needs)
        job = Job(
            cell=cells[0],
            module=module,
            processors=requirement.num_cpus,
            version=__version__,
            files=needs.files,
            marker=marker,
        )
        all_share = _probed(ray, machines, job)
        mailbox = _mailbox(ray)
        task = ray.remote(max_retries=MAX_RETRIES, **asdict(requirement))(make)
        left = {}
        for cell in cells:
            sent = None if all_share else [ray.put(files_to_send(cell))]
            left[task.remote(replace(job, cell=cell), sent, mailbox)] = cell
        with waiting_for_others():
            try:
                _follow(ray, left, mailbox, on_event, on_end)
            except BaseException:
                _cancel(ray, left)
                raise


@contextmanager
def _joined(ray: ModuleType, address: str) -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        _require_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, ValueError) as error:
        where = "on this machine" if address == "auto" else f"at {address}"
        raise ChestxError(
            f"no Ray cluster {where} can be joined: {str(error).strip().partition(chr(10))[0]}",
            'start one by "ray start --head", and join it from other machines: docs/scaling.md has the steps',
        ) from error
    finally:
        _restore(handlers)
    # Ray prints logs of lost machines, and stdout is reserved for the command's output.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            yield
        finally:
            ray.shutdown()


def _require_reachable(address: str) -> None:
    """Raise OSError if nothing answers at HOST:PORT; Ray itself would wait for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=REACHED_WITHIN_S).close()


@contextmanager
def _marked(root: Path) -> Iterator[Path]:
    """Yield a marker file in the study's folder, which other machines look for."""
    folder = root / ".locks"
    # Left by killed commands; this command holds the lock of the study.
    for left in folder.glob("seen-by-ray.*"):
        left.unlink(missing_ok=True)
    marker = folder / f"seen-by-ray.{uuid.uuid4().hex}"
    write_atomic(marker, "")
    try:
        yield marker
    finally:
        marker.unlink(missing_ok=True)


def _machines(ray: ModuleType, needs: Needs) -> list[_Machine]:
    """Return the machines of the cluster that can run cells; raises ChestxError if there is none."""
    alive = [
        _Machine(
            node_id=node["NodeID"],
            name=f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
            processors=int(node["Resources"].get("CPU", 0)),
            memory_bytes=int(node["Resources"].get("memory", 0)),
            has_gpu=node["Resources"].get("GPU", 0) >= 1,
        )
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
    ]
    with_gpu = [machine for machine in alive if machine.has_gpu]
    if needs.gpu and not with_gpu:
        raise ChestxError("no machine of the Ray cluster has a GPU", 'train with device = "cpu", or add one that has')
    usable = with_gpu if needs.gpu or (needs.gpu is None and with_gpu) else alive
    if not usable:
        raise ChestxError("no machine of the Ray cluster has a processor", "start one with --num-cpus")
    return usable


def _requirement(machines: Sequence[_Machine], jobs: int, needs: Needs) -> Requirement:
    """Return what each task requires; raises UsageError if the smallest machine has too few processors."""
    least = min(machine.processors for machine in machines)
    if jobs > least:
        raise UsageError(
            f"--jobs {jobs} is more than the {least} processors of the smallest machine of the Ray cluster",
            f"{again(f'--jobs {least}')} uses all",
        )
    # A task that requires more than any machine has would never start, and the estimate may be too high.
    largest = max(machine.memory_bytes for machine in machines)
    has_gpus = all(machine.has_gpu for machine in machines)
    return Requirement(
        num_cpus=least // jobs,
        num_gpus=int(has_gpus and needs.gpu is not False),
        memory=min(needs.memory_bytes, largest),
    )


def _probed(ray: ModuleType, machines: Sequence[_Machine], job: Job) -> bool:
    """Return whether all machines share the study's folder; raises ChestxError naming one that cannot run cells."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(look)
    seen = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(machine.node_id, soft=False)).remote(
            job
        ): machine.name
        for machine in machines
    }
    shares_folder = []
    for reference, name in seen.items():
        try:
            fault, shares = ray.get(reference, timeout=PROBE_WITHIN_S)
        except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
            # The machine was lost before, and Ray notices only now.
            continue
        except ray.exceptions.RayError as error:
            raise ChestxError(
                f"{name} of the Ray cluster cannot run chestx: {_last_line(error)}",
                f'install the same version there: "{INSTALL}"',
            ) from error
        if fault:
            raise ChestxError(*fault)
        shares_folder.append(shares)
    if not shares_folder:
        raise ChestxError("all machines of the Ray cluster have been lost", "start them again")
    return all(shares_folder)


def _mailbox(ray: ModuleType) -> Any:
    """Return a queue on this machine, so that events survive the loss of the machine that sent them."""
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def _follow(ray: ModuleType, left: dict[Any, StudyCell], mailbox: Any, on_event: OnEvent, on_end: OnEnd) -> None:
    """Forward events until all tasks have ended; ended tasks are removed from `left`."""
    by_name = {cell.name: cell for cell in left.values()}
    while left:
        ended, _ = ray.wait(list(left), num_returns=len(left), timeout=POLL_S)
        for name, event in mailbox.get_nowait_batch(mailbox.qsize()):
            on_event(by_name[name], event)
        for reference in ended:
            cell = left.pop(reference)
            on_end(cell, _ended(ray, reference, cell))


def _ended(ray: ModuleType, reference: Any, cell: StudyCell) -> CellFailure | None:
    try:
        made: Made = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return failure_of(cell, f"the task failed: {_last_line(error)}")
    except ray.exceptions.RayError as error:
        return failure_of(
            cell, f"its machine was lost, or its worker killed, {MAX_RETRIES + 1} times: {_last_line(error)}"
        )
    if made.files is not None:
        put_files(cell, made.files)
    return made.failure


def _cancel(ray: ModuleType, left: Mapping[Any, StudyCell]) -> None:
    """Stop all tasks after their step, with a checkpoint; those that take too long end with this process."""
    for reference in left:
        ray.cancel(reference, recursive=False)
    ray.wait(list(left), num_returns=len(left), timeout=CANCEL_WITHIN_S)


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2].strip()
