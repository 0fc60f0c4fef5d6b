"""Executor on a Ray cluster: one process per cell on any machine with capacity, restarted if a machine is lost.

A task starts the same process as `cells/local` does, with the same number of processors, on its machine. If that
machine can reach the study's folder, the cell is made there. Otherwise the cell's files are sent to a temporary folder
and sent back as bytes.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import queue
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestx_cli import __version__
from chestx_cli.cells.processes import Event, OnEnd, OnEvent, failure_of, run_cell, stop
from chestx_cli.cells.steps import CellFailure, StudyCell, seed_folder
from chestx_cli.core.errors import ChestxError, StudyError, UsageError, again
from chestx_cli.core.files import folder_appears_whole, write_atomic
from chestx_cli.core.signals import SIGNALS, waiting_for_others
from chestx_cli.store.directory import Study
from chestx_cli.store.locks import locked

if TYPE_CHECKING:
    from types import ModuleType

INSTALL = "pip install 'chestx-cli[ray]'"
# Restarts of a cell whose machine was lost or whose worker was killed.
MAX_RETRIES = 3
POLL_S = 0.2
# Less than the time that the command has after a signal.
CANCEL_WITHIN_S = 3.0
REACHED_WITHIN_S = 10.0
PROBE_WITHIN_S = 120.0
# Locks and caches are not sent.
NOT_SENT = (".locks", "cache")


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


@dataclass(frozen=True, kw_only=True)
class Job:
    """Input of a task: the cell, the module that runs it, its processors, and its requirements."""

    cell: StudyCell
    module: str
    processors: int
    version: str
    files: tuple[Path, ...]
    # A file in the study's folder: a machine that has it shares the folder.
    marker: Path


@dataclass(frozen=True, kw_only=True)
class Made:
    """Result of a task: a failure if any, and the cell's files if they were made outside the study's folder."""

    failure: CellFailure | None
    files: Mapping[str, bytes] | None = None


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
        task = ray.remote(max_retries=MAX_RETRIES, **asdict(requirement))(_make)
        left = {}
        for cell in cells:
            sent = None if all_share else [ray.put(_files_to_send(cell))]
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

    task = ray.remote(num_cpus=0, max_retries=0)(_look)
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


def _look(job: Job) -> tuple[tuple[str, str] | None, bool]:
    """Return why this machine cannot run cells, or None, and whether it shares the study's folder."""
    here = socket.gethostname()
    if job.version != __version__:
        fault = (
            f"machine {here} of the Ray cluster has chestx {__version__}, and this one has {job.version}",
            f'install the same version there: "{INSTALL}"',
        )
        return fault, False
    for path in job.files:
        if not path.exists():
            fault = (
                f"machine {here} of the Ray cluster has no {path}",
                "put it there under the same path, as on storage that all share",
            )
            return fault, False
    return None, job.marker.exists()


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
        _put_files(cell, made.files)
    return made.failure


def _cancel(ray: ModuleType, left: Mapping[Any, StudyCell]) -> None:
    """Stop all tasks after their step, with a checkpoint; those that take too long end with this process."""
    for reference in left:
        ray.cancel(reference, recursive=False)
    ray.wait(list(left), num_returns=len(left), timeout=CANCEL_WITHIN_S)


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2].strip()


def _make(job: Job, sent: list[Any] | None, mailbox: Any) -> Made:
    """Run a cell on this machine."""
    fault, shares = _look(job)
    if fault:
        return Made(failure=failure_of(job.cell, *fault))
    if shares:
        return Made(failure=_run(job, job.cell, mailbox))
    if sent is None:
        return Made(
            failure=failure_of(
                job.cell,
                f"{socket.gethostname()} joined the Ray cluster later and does not see {job.cell.root}",
                "start the command again, or mount the folder there under the same path",
            )
        )
    import ray

    with tempfile.TemporaryDirectory(prefix="chestx-cell-") as folder:
        cell = replace(job.cell, root=Path(folder))
        for name, content in ray.get(sent[0]).items():
            write_atomic(cell.root / name, content)
        failure = _run(job, cell, mailbox)
        files = {name: path.read_bytes() for name, path in _files_of(cell.study.root)}
    if failure is not None:
        failure = replace(failure, command=failure.command.replace(folder, str(job.cell.root)))
    return Made(failure=failure, files=files)


def _run(job: Job, cell: StudyCell, mailbox: Any) -> CellFailure | None:
    """Run the cell's process, passing on its events, until it ends or the task is cancelled."""
    events: queue.SimpleQueue[tuple[str, Event]] = queue.SimpleQueue()
    events.put((cell.name, {"machine": socket.gethostname()}))
    alive: set[subprocess.Popen[bytes]] = set()
    with ThreadPoolExecutor(1) as pool, _own_processors(job.processors) as processors:
        end = pool.submit(
            run_cell,
            cell,
            module=job.module,
            processors=processors,
            on_event=lambda cell, event: events.put((cell.name, event)),
            alive=alive,
        )
        try:
            # Short waits, because Ray's request to stop is handled between them.
            while wait([end], timeout=POLL_S).not_done:
                _send(events, mailbox)
        except BaseException:
            stop(alive)
            raise
        _send(events, mailbox)
        return end.result()


def _send(events: queue.SimpleQueue[tuple[str, Event]], mailbox: Any) -> None:
    batch = [events.get() for _ in range(events.qsize())]
    if batch:
        mailbox.put_nowait_batch(batch)


@contextmanager
def _own_processors(n: int) -> Iterator[tuple[int, ...]]:
    """Yield `n` processors of this machine, preferably ones that no other cell uses."""
    every = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    shares = [tuple(every[start : start + n]) for start in range(0, len(every) - n + 1, n)]
    folder = Path(tempfile.gettempdir()) / f"chestx-processors-{os.getuid() if hasattr(os, 'getuid') else ''}"
    with contextlib.ExitStack() as held:
        for share in shares:
            with contextlib.suppress(StudyError):
                held.enter_context(locked(folder, f"processors {share[0]} of {n}", "chestx study --ray"))
                yield share
                return
        # The cluster was started with more processors than the machine has.
        yield tuple(every[:n])


def _files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not path.is_symlink() and not set(NOT_SENT) & set(name.parts):
            yield name.as_posix(), path


def _files_to_send(cell: StudyCell) -> dict[str, bytes]:
    """Return the input files of a cell by path within the study: the plan, the folds and the cell as it is."""
    above = (Study(cell.root).plan_json, seed_folder(cell.root, cell.seed).folds_json)
    own = {f"{cell.name}/{name}": path for name, path in _files_of(cell.study.root)}
    return {
        **{path.relative_to(cell.root).as_posix(): path.read_bytes() for path in above},
        **{name: path.read_bytes() for name, path in own.items()},
    }


def _put_files(cell: StudyCell, files: Mapping[str, bytes]) -> None:
    """Replace a cell's folder in one step by the files that another machine sent."""
    with folder_appears_whole(cell.study.root) as folder:
        for name, content in files.items():
            path = folder / name
            if ".." in Path(name).parts or Path(name).is_absolute():
                raise ChestxError(f"a machine of the cluster sent the file {name!r}, which lies outside of its cell")
            write_atomic(path, content)
