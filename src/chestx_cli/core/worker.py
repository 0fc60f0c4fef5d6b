"""A worker process for CPU-bound Python work that the GIL would serialise."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from chestx_cli.core.errors import ChestxError, error_of, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Beside:
    """The parent's side of a worker: each request is a line of JSON; each answer a line of JSON and optional bytes."""

    def __init__(self, process: subprocess.Popen[bytes], stderr: IO[bytes], what: str) -> None:
        self.process, self._stderr, self._what = process, stderr, what

    def send(self, value: object) -> None:
        """Send a value to the worker, which reads it with `receive` before it answers requests."""
        assert self.process.stdin is not None  # noqa: S101 - a pipe, see below
        content = pickle.dumps(value)
        # If the worker has ended, the next request reports it.
        with contextlib.suppress(OSError):
            self.process.stdin.write(b"%d\n" % len(content) + content)
            self.process.stdin.flush()

    def ask(self, question: object) -> tuple[Any, bytes]:
        """Send a request; return the answer and the bytes that follow it.

        Raises the worker's ChestxError or MemoryError, and ChestxError if the worker has ended.
        """
        assert self.process.stdin is not None  # noqa: S101 - a pipe, see below
        assert self.process.stdout is not None  # noqa: S101 - a pipe, see below
        line = b""
        # Writing to a worker that has ended raises different errors on different systems.
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        if line:
            answer = json.loads(line)
            if "failed" in answer:
                raise error_of(*answer["failed"])
            content = self.process.stdout.read(answer["n_bytes"])
            if len(content) == answer["n_bytes"]:
                return answer["answer"], content
        self._stderr.seek(0)
        last = self._stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
        raise ChestxError(f"the process that {self._what} ended with code {self.process.wait()}: {last}")


@contextmanager
def beside(module: str, *words: str, what: str) -> Iterator[Beside]:
    """Run a module that calls `answer` as a worker during the block; `what` says what it does, for error messages.

    Started as a command, not by multiprocessing, which would run the caller's script again. The worker ends with the
    block, or with this process, whose end closes its stdin.
    """
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as held:
        try:
            stderr = held.enter_context(tempfile.TemporaryFile())
            process = held.enter_context(
                subprocess.Popen(
                    [sys.executable, "-P", "-m", module, *words],
                    stdin=pipe,
                    stdout=pipe,
                    stderr=stderr,
                    # There is already one worker per processor.
                    env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                )
            )
        except OSError as error:
            raise ChestxError(f"cannot start a process that {what}: {error.strerror or error}") from error
        assert process.stdin is not None  # noqa: S101 - a pipe, see above
        assert process.stdout is not None  # noqa: S101 - a pipe, see above
        try:
            yield Beside(process, stderr, what)
        finally:
            process.kill()
            # Closing flushes again, which fails if a request was not delivered.
            with contextlib.suppress(OSError):
                process.stdin.close()


def receive() -> Any:
    """Return the value sent by `Beside.send`."""
    size = int(sys.stdin.buffer.readline() or 0)
    # Safe: it comes from the process that started this one, not from a file.
    return pickle.loads(sys.stdin.buffer.read(size))  # noqa: S301 - see above


def answer(answer_to: Callable[[Any], tuple[object, list[memoryview]]]) -> None:
    """Answer every request on stdin with the result of `answer_to`: plain data, followed by bytes."""
    for line in sys.stdin.buffer:
        contents: list[memoryview] = []
        try:
            result, contents = answer_to(json.loads(line))
            reply: dict[str, object] = {"answer": result, "n_bytes": sum(content.nbytes for content in contents)}
        except ChestxError as error:
            reply = {"failed": [kind_of(error), error.fact, error.remedy]}
        except MemoryError:
            reply = {"failed": [MemoryError.__name__]}
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        for content in contents:
            sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
