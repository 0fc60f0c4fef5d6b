"""The processes of a data-parallel training: division of work, communication, and termination."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from chestx_cli.core.errors import LAUNCHER, ChestxError, LostRankError, UsageError
from chestx_cli.core.machine import available_threads
from chestx_cli.core.printable import counted

if TYPE_CHECKING:
    import torch
    from torch import nn

# How long other processes wait while the first one splits and decodes the images.
PATIENCE = timedelta(days=7)
# BatchNorm needs at least two images for a variance.
LEAST_LOCAL = 2
PARENT_CHECK_S, GREETING_S = 0.5, 0.05
# Same as torch's timeout for other processes at the start.
MEETING_S = 300.0
AGAIN = "the same command goes on from the last checkpoint"


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes of a training: their number `n`, and this process's rank. By default a single process.

    The first process writes and reports; all hold the same state between steps. sync_batchnorm: whether BatchNorm
    normalises over the images of all processes rather than of each. control: a process group for CPU tensors.
    """

    rank: int = 0
    n: int = 1
    sync_batchnorm: bool = False
    control: Any = None

    @property
    def is_first(self) -> bool:
        """Return whether this process writes and reports."""
        return self.rank == 0

    @property
    def batchnorm_parts(self) -> int:
        """Return the number of parts of a batch that BatchNorm normalises separately, which affects the result."""
        return 1 if self.sync_batchnorm else self.n

    @property
    def least_images(self) -> int:
        """Return the minimum number of images per process in a step."""
        return 1 if self.sync_batchnorm or self.n == 1 else LEAST_LOCAL

    def part(self, n_rows: int, *, least: int | None = None) -> slice:
        """Return this process's slice of `n_rows` rows; see `parts`."""
        return self._parts(n_rows, least)[self.rank]

    def gathered(self, local_values: torch.Tensor, n_rows: int, *, least: int | None = None) -> torch.Tensor:
        """Return the values [n_rows, C] of all processes; gradients flow only to this process's own rows."""
        if self.n == 1:
            return local_values
        import torch
        from torch import distributed as dist

        parts = self._parts(n_rows, least)
        largest = max(part.stop - part.start for part in parts)
        padded = local_values.new_zeros((largest, local_values.shape[1]))
        padded[: len(local_values)] = local_values.detach()
        received = [torch.empty_like(padded) for _ in parts]
        dist.all_gather(received, padded, group=None if local_values.is_cuda else self.control)
        values = [values[: part.stop - part.start] for values, part in zip(received, parts, strict=True)]
        values[self.rank] = local_values
        return torch.cat(values)

    def agreed(self, number: int) -> int:
        """Return the maximum of a number over all processes."""
        if self.n == 1:
            return number
        import torch
        from torch import distributed as dist

        numbers = torch.tensor([number])
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self.control)
        return int(numbers)

    def require_same(self, values: Mapping[str, object], remedy: str) -> None:
        """Raise ChestxError unless all processes have the same values."""
        if self.n == 1:
            return
        from torch import distributed as dist

        gathered: list[Any] = [None] * self.n
        dist.all_gather_object(gathered, dict(values), group=self.control)
        for other in gathered:
            for name, value in gathered[0].items():
                if other[name] != value:
                    raise ChestxError(f"the processes disagree on {name}: {value} and {other[name]}", remedy)

    def share_buffers(self, network: nn.Module) -> None:
        """Copy the first process's running statistics to all processes if each has its own."""
        if self.batchnorm_parts == 1:
            return
        from torch import distributed as dist

        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)

    def meet(self) -> None:
        """Wait until all processes have reached this point."""
        self.agreed(0)

    def _parts(self, n_rows: int, least: int | None) -> list[slice]:
        return parts(n_rows, self.n, self.least_images if least is None else least)


ALONE = Ranks()


def parts(n_rows: int, n: int, least: int) -> list[slice]:
    """Split rows into `n` consecutive slices whose sizes differ by at most 1; the last are empty if below `least`."""
    working = max(1, min(n, n_rows // least))
    sizes = [n_rows // working + (index < n_rows % working) for index in range(working)] + [0] * (n - working)
    return [slice(stop - size, stop) for size, stop in zip(sizes, accumulate(sizes), strict=True)]


def launched() -> bool:
    """Return whether a launcher (torchrun or this package's) started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def restarted() -> bool:
    """Return whether torchrun restarted this process."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def require_room(n_local: int, device: str, *, named: str) -> None:
    """Raise UsageError if there are more processes than processors or GPUs; `named`: their source in the message."""
    if device == "cuda":
        import torch

        available, noun, remedy = torch.cuda.device_count(), "GPU", "give one process per GPU, or --device cpu"
    else:
        available, noun, remedy = available_threads(), "processor", "give at most one process per processor"
    if n_local > available:
        raise UsageError(f"{named}: this machine has {counted(available, noun)}", remedy)


def require_possible(n: int, *, batch_size: int, sync_batchnorm: bool, compiled: bool) -> None:
    """Raise UsageError if a batch is too small for `n` processes or an option does not apply to them."""
    if sync_batchnorm and n == 1:
        raise UsageError(
            "--sync-batchnorm: one process has nothing to synchronise", "add --processes N, or leave it out"
        )
    if sync_batchnorm and compiled:
        raise UsageError(
            "--sync-batchnorm: torch compiles no layer that waits for other processes", "leave it out, or --compile"
        )
    least = Ranks(n=n, sync_batchnorm=sync_batchnorm).least_images * n
    if batch_size < least:
        remedy = f"--batch-size counts the images of all {n} processes together: raise it to {least}, or start fewer"
        raise UsageError(
            f"--batch-size {batch_size} leaves a process fewer than {least // n} images of each batch",
            remedy if sync_batchnorm else f"{remedy}, or add --sync-batchnorm",
        )


@contextmanager
def joined(device: str, named: int, *, batch_size: int, sync_batchnorm: bool, compiled: bool) -> Iterator[Ranks]:
    """Join the processes started by a launcher for the duration of the block; a single process without one.

    device: resolved. named: the number of processes given by the user, 1 by default. Raises UsageError for invalid
    options, LostRankError if another process has ended.
    """
    n = int(os.environ["WORLD_SIZE"]) if launched() else 1
    if named not in (1, n):
        raise UsageError(
            f"--processes {named}: torchrun has started {n}", "leave it out; --nproc-per-node sets the number"
        )
    require_possible(n, batch_size=batch_size, sync_batchnorm=sync_batchnorm, compiled=compiled)
    if launched():
        end_with_launcher()
    if n == 1:
        yield ALONE
        return
    import torch
    from torch import distributed as dist
    from torch.distributed.rendezvous import rendezvous

    n_local = int(os.environ["LOCAL_WORLD_SIZE"])
    require_room(n_local, device, named=f"{n_local} processes")
    # As set by the environment, but at most this process's share of the processors.
    torch.set_num_threads(min(torch.get_num_threads(), max(1, available_threads() // n_local)))
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        store, number, _ = next(rendezvous("env://"))
        store = fresh_part(store, number, n)
        dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=number, world_size=n)
        control = dist.new_group(timeout=PATIENCE, backend="gloo")
        yield Ranks(rank=number, n=n, sync_batchnorm=sync_batchnorm, control=control)
    except RuntimeError as error:
        # Gloo's errors have no class of their own; their messages start with a location in its source.
        if isinstance(error, dist.DistError) or "/gloo/" in str(error):
            raise LostRankError("another process of this training has ended", AGAIN) from error
        raise
    dist.destroy_process_group()


def fresh_part(store: Any, rank: int, n: int) -> Any:
    """Return a key prefix of the launcher's store that no earlier process has used; the same for all `n` processes.

    Processes restarted by torchrun find the previous store (torch 2.14, pytorch issue 135712) and would connect to
    addresses of ended processes. Restart counts do not help, because each machine counts its own. So the first process
    draws a name and answers each process's greeting with it until all have confirmed it; answers to ended processes
    have no effect. Raises LostRankError if processes are missing after `MEETING_S`.
    """
    from torch import distributed as dist

    # Typed as Any: torch's stubs do not export the class.
    distributed: Any = dist
    token = secrets.token_hex(8)
    if rank:
        store.set(f"greeting/{rank}", token)
        # Blocks until the answer is set.
        name = store.get(f"answer/{token}").decode()
        store.set(f"taken/{name}/{rank}", "")
        return distributed.PrefixStore(name, store)
    missing = set(range(1, n))
    deadline_s = time.monotonic() + MEETING_S
    while missing:
        if time.monotonic() > deadline_s:
            raise LostRankError(f"processes {', '.join(map(str, sorted(missing)))} of {n} did not join", AGAIN)
        for other in sorted(missing):
            if store.check([f"greeting/{other}"]):
                store.set(f"answer/{store.get(f'greeting/{other}').decode()}", token)
            if store.check([f"taken/{token}/{other}"]):
                missing.remove(other)
        time.sleep(GREETING_S)
    return distributed.PrefixStore(token, store)


def end_with_launcher() -> None:
    """End this process when its launcher ends, for example by SIGKILL, so that it is not orphaned.

    Each process has its own session, so no signal from the terminal or the kernel would reach it.
    """
    parent = int(os.environ.get(LAUNCHER, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        # Like a kill: writes are atomic, so files on disk stay intact.
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
