"""Another process of this package that answers questions, for work of the interpreter, which threads cannot share."""

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

from chestx_cli.core import errors
from chestx_cli.core.errors import ChestxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Beside:
    """The asking side. One question at a time: one line of JSON, answered by another and, where asked for, by bytes."""

    def __init__(self, process: subprocess.Popen[bytes], said: IO[bytes], what: str) -> None:
        self.process, self._said, self._what = process, said, what

    def give(self, value: object) -> None:
        """Hand a value over, which the process takes by `given` before it answers anything."""
        assert self.process.stdin is not None  # noqa: S101 - asked for below
        content = pickle.dumps(value)
        # One that has ended is found when it is asked.
        with contextlib.suppress(OSError):
            self.process.stdin.write(b"%d\n" % len(content) + content)
            self.process.stdin.flush()

    def ask(self, question: object) -> tuple[Any, bytes]:
        """Return the answer and the bytes behind it.

        Raises the ChestxError or MemoryError that answering raised, and ChestxError where the process ended.
        """
        assert self.process.stdin is not None  # noqa: S101 - asked for below
        assert self.process.stdout is not None  # noqa: S101 - asked for below
        line = b""
        # Nobody reads it any more; systems differ in what they say then.
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        if line:
            answer = json.loads(line)
            if "failed" in answer:
                _raise_again(*answer["failed"])
            content = self.process.stdout.read(answer["n_bytes"])
            if len(content) == answer["n_bytes"]:
                return answer["answer"], content
        self._said.seek(0)
        last = self._said.read().decode(errors="replace").strip().rpartition("\n")[2]
        raise ChestxError(f"the process that {self._what} ended with code {self.process.wait()}: {last}")


@contextmanager
def beside(module: str, *words: str, what: str) -> Iterator[Beside]:
    """Run a module of this package beside the block, which calls `answer` when it is run; `what` it does, for errors.

    It is started by its command line, and not by multiprocessing: that would run the script of a caller again. It ends
    with the block, or with this process, whose end closes its questions.
    """
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as held:
        try:
            said = held.enter_context(tempfile.TemporaryFile())
            process = held.enter_context(
                subprocess.Popen(
                    [sys.executable, "-P", "-m", module, *words],
                    stdin=pipe,
                    stdout=pipe,
                    stderr=said,
                    # There is one such process per processor already.
                    env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                )
            )
        except OSError as error:
            raise ChestxError(f"cannot start a process that {what}: {error.strerror or error}") from error
        assert process.stdin is not None  # noqa: S101 - asked for above
        assert process.stdout is not None  # noqa: S101 - asked for above
        try:
            yield Beside(process, said, what)
        finally:
            process.kill()
            # A question that did not get through would be sent once more, in vain.
            with contextlib.suppress(OSError):
                process.stdin.close()


def given() -> Any:
    """Return the value that `Beside.give` handed over."""
    size = int(sys.stdin.buffer.readline() or 0)
    # From the process that started this one, and from no file.
    return pickle.loads(sys.stdin.buffer.read(size))  # noqa: S301 - see above


def answer(answer_to: Callable[[Any], tuple[object, list[memoryview]]]) -> None:
    """Answer every question on stdin by what `answer_to` returns for it: plain data, and bytes to follow them."""
    for line in sys.stdin.buffer:
        contents: list[memoryview] = []
        try:
            found, contents = answer_to(json.loads(line))
            told: dict[str, object] = {"answer": found, "n_bytes": sum(content.nbytes for content in contents)}
        except ChestxError as error:
            kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
            told = {"failed": [kind, error.fact, error.remedy]}
        except MemoryError:
            told = {"failed": [MemoryError.__name__]}
        sys.stdout.buffer.write(json.dumps(told).encode() + b"\n")
        for content in contents:
            sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()


def _raise_again(kind: str, *words: str) -> None:
    if kind == MemoryError.__name__:
        raise MemoryError
    raise getattr(errors, kind)(*words)
