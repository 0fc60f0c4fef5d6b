"""The processes that train together, as each of them sees them: who does what, what they exchange, how they end."""

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

if TYPE_CHECKING:
    import torch
    from torch import nn

# How long the others wait while the first one splits and decodes the images.
PATIENCE = timedelta(days=7)
# BatchNorm has no variance over one image.
LEAST_LOCAL = 2
PARENT_CHECK_S, GREETING_S = 0.5, 0.05
# As long as torch waits for the others at the start.
MEETING_S = 300.0
AGAIN = "the same command goes on from the last checkpoint"


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes of one training: `n` of them, and this one's number. By default one that is alone.

    The first writes and reports; all hold the same state between two steps. With `sync_batchnorm` BatchNorm normalises
    over the images of all, otherwise over those of each. `control` is a process group for tensors on the CPU.
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
        """Return into how many parts a batch falls that BatchNorm normalises apart: what changes the result."""
        return 1 if self.sync_batchnorm else self.n

    @property
    def least_images(self) -> int:
        """Return how many images of a batch a process needs to take part in its step."""
        return 1 if self.sync_batchnorm or self.n == 1 else LEAST_LOCAL

    def part(self, n_rows: int, *, least: int | None = None) -> slice:
        """Return this process's rows of some: parts in order, of equal size up to one; see `parts`."""
        return self._parts(n_rows, least)[self.rank]

    def gathered(self, own: torch.Tensor, n_rows: int, *, least: int | None = None) -> torch.Tensor:
        """Return the values [n_rows, C] of all processes from each one's rows; gradients flow to its own."""
        if self.n == 1:
            return own
        import torch
        from torch import distributed as dist

        parts = self._parts(n_rows, least)
        largest = max(part.stop - part.start for part in parts)
        padded = own.new_zeros((largest, own.shape[1]))
        padded[: len(own)] = own.detach()
        found = [torch.empty_like(padded) for _ in parts]
        dist.all_gather(found, padded, group=None if own.is_cuda else self.control)
        values = [values[: part.stop - part.start] for values, part in zip(found, parts, strict=True)]
        values[self.rank] = own
        return torch.cat(values)

    def agreed(self, number: int) -> int:
        """Return the largest of all processes' numbers."""
        if self.n == 1:
            return number
        import torch
        from torch import distributed as dist

        numbers = torch.tensor([number])
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self.control)
        return int(numbers)

    def require_same(self, values: Mapping[str, object], remedy: str) -> None:
        """Raise ChestxError where the processes do not all have these values."""
        if self.n == 1:
            return
        from torch import distributed as dist

        found: list[Any] = [None] * self.n
        dist.all_gather_object(found, dict(values), group=self.control)
        for other in found:
            for name, value in found[0].items():
                if other[name] != value:
                    raise ChestxError(f"the processes disagree on {name}: {value} and {other[name]}", remedy)

    def share_buffers(self, network: nn.Module) -> None:
        """Give all processes the first one's running statistics, where each has its own."""
        if self.batchnorm_parts == 1:
            return
        from torch import distributed as dist

        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)

    def meet(self) -> None:
        """Return when all processes have come here."""
        self.agreed(0)

    def _parts(self, n_rows: int, least: int | None) -> list[slice]:
        return parts(n_rows, self.n, self.least_images if least is None else least)


ALONE = Ranks()


def parts(n_rows: int, n: int, least: int) -> list[slice]:
    """Return `n` slices of some rows, in order, of equal size up to one; the last are empty, not below `least`."""
    working = max(1, min(n, n_rows // least))
    sizes = [n_rows // working + (index < n_rows % working) for index in range(working)] + [0] * (n - working)
    return [slice(stop - size, stop) for size, stop in zip(sizes, accumulate(sizes), strict=True)]


def launched() -> bool:
    """Return whether a launcher, torchrun's or this package's, started this process as one of several or alone."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def restarted() -> bool:
    """Return whether torchrun has started this process in the place of one that ended."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def require_room(n_local: int, device: str, *, named: str) -> None:
    """Raise UsageError where this machine has fewer processors, or GPUs, than processes; `named` is what says so."""
    if device == "cuda":
        import torch

        there, what, remedy = torch.cuda.device_count(), "GPU", "give one process per GPU, or --device cpu"
    else:
        there, what, remedy = available_threads(), "processor", "give at most one process per processor"
    if n_local > there:
        raise UsageError(f"{named}: this machine has {there} {what}{'' if there == 1 else 's'}", remedy)


def require_possible(n: int, *, batch_size: int, sync_batchnorm: bool, compiled: bool) -> None:
    """Raise UsageError where a batch has too few images for `n` processes, or an option makes no sense for them."""
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
        also = "" if sync_batchnorm else ", or add --sync-batchnorm"
        raise UsageError(
            f"--batch-size {batch_size} leaves a process fewer than {least // n} images of each batch",
            f"--batch-size is that of all {n} processes together: raise it to {least}, or start fewer{also}",
        )


@contextmanager
def joined(device: str, named: int, *, batch_size: int, sync_batchnorm: bool, compiled: bool) -> Iterator[Ranks]:
    """Be one of the processes that a launcher started, within the block; alone where none did.

    `device` is resolved, `named` the number of processes that was typed, 1 for none. Raises UsageError, and
    LostRankError where another process is gone.
    """
    n = int(os.environ["WORLD_SIZE"]) if launched() else 1
    if named not in (1, n):
        raise UsageError(
            f"--processes {named}: torchrun has started {n}", "leave it out; --nproc-per-node says how many"
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
    # What the environment allows, but never more than there are processors for all.
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
        # Gloo's errors have no class of their own; their texts begin with the place in its source.
        if isinstance(error, dist.DistError) or "/gloo/" in str(error):
            raise LostRankError("another process of this training has ended", AGAIN) from error
        raise
    dist.destroy_process_group()


def fresh_part(store: Any, rank: int, n: int) -> Any:
    """Return a part of the launcher's store into which no earlier process has written; all `n` get the same.

    Processes that torchrun starts again find the store of before (torch 2.14, pytorch issue 135712), and would connect
    to addresses of the dead. Counting restarts does not help: each machine counts its own. So the first process
    draws a name and gives it to those that greet it until each has taken it. Greetings of the dead are answered in
    vain.
    """
    from torch import distributed as dist

    # Typed as its module: torch's stubs do not export the class.
    distributed: Any = dist
    own = secrets.token_hex(8)
    if rank:
        store.set(f"greeting/{rank}", own)
        # Waits for the answer.
        name = store.get(f"answer/{own}").decode()
        store.set(f"taken/{name}/{rank}", "")
        return distributed.PrefixStore(name, store)
    missing = set(range(1, n))
    deadline_s = time.monotonic() + MEETING_S
    while missing:
        if time.monotonic() > deadline_s:
            raise LostRankError(f"processes {', '.join(map(str, sorted(missing)))} of {n} have not come", AGAIN)
        for other in sorted(missing):
            if store.check([f"greeting/{other}"]):
                store.set(f"answer/{store.get(f'greeting/{other}').decode()}", own)
            if store.check([f"taken/{own}/{other}"]):
                missing.remove(other)
        time.sleep(GREETING_S)
    return distributed.PrefixStore(own, store)


def end_with_launcher() -> None:
    """End this process when the one that started it ends, as by SIGKILL: it would be an orphan otherwise.

    Each process is in a session of its own, so that no signal of the terminal or the kernel reaches it then.
    """
    parent = int(os.environ.get(LAUNCHER, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        # As after a kill: what is on the disk is whole.
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
