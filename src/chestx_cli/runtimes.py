"""Runtimes: what computes a variant's logits. Everything else sees only the function that they return."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.errors import IntegrityError
from chestx_cli.files import storage_error
from chestx_cli.images import Preprocessing
from chestx_cli.model_files import read_onnx
from chestx_cli.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Network input [N, 3, H, W] to logits [N, classes].
Compute = Callable[["npt.NDArray[np.float32]"], "npt.NDArray[np.float32]"]

PREDICT_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model file as a runtime needs it; plain values, so that it can be sent to another process."""

    path: str
    kind: str
    backbone: str
    n_classes: int


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """How to open a model, which kind of file it needs (torch variants are exported for onnx), what it runs, where."""

    open: Callable[[Model, int, str], Compute]
    needs: str
    kinds: tuple[str, ...]
    devices: tuple[str, ...]


RUNTIMES: Registry[Runtime] = Registry("runtime")
EAGER = "pytorch"
NATIVE = {"torch": EAGER, "onnx": "onnxruntime"}


def _open_torch(model: Model, threads: int, device: str) -> Compute:
    import torch

    from chestx_cli.models import load_model_file

    network = load_model_file(Path(model.path), model.backbone, model.n_classes)
    # torch's stubs lack a device together with a memory format.
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def compute(inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.inference_mode(), _threads(threads):
            batch = torch.from_numpy(inputs).to(device, memory_format=torch.channels_last)
            logits: npt.NDArray[np.float32] = network(batch).cpu().numpy()
        return logits

    return compute


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """Let torch use n threads inside the block; what is trained afterwards must not come out differently."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _open_onnx(model: Model, threads: int, device: str) -> Compute:  # noqa: ARG001 - only the CPU is offered
    path = Path(model.path)
    try:
        bare = onnx_session(read_onnx(path, model.n_classes), threads)
    except OSError as error:
        raise storage_error(error, path) from error
    # ONNX Runtime has a type of its own for every refusal, and no base for them.
    except Exception as error:
        raise _refused(path, error) from error

    def compute(inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        try:
            return bare(inputs)
        except Exception as error:
            raise _refused(path, error) from error

    return compute


def _refused(path: Path, error: Exception) -> IntegrityError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return IntegrityError(f"{path} is refused: {reason}", "make the variant again with --force")


RUNTIMES.add(EAGER, Runtime(open=_open_torch, needs="torch", kinds=("torch",), devices=("cpu", "cuda")))
RUNTIMES.add("onnxruntime", Runtime(open=_open_onnx, needs="onnx", kinds=("torch", "onnx"), devices=("cpu",)))


def onnx_session(model: bytes, threads: int = 0, *, literal: bool = False) -> Compute:
    """Return the content of an ONNX file opened by ONNX Runtime on the CPU; 0 threads leaves the number to the runtime.

    `literal` computes node by node as the file says, without fusion: 8-bit layers then multiply in FP32.
    """
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin between calls would steal the processor from whatever else is measured.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # x86 processors without VNNI would saturate where 8-bit weights use their whole range; the others ignore this.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if literal:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()

    def compute(inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = session.run(None, {source.name: inputs})[0]
        return logits

    return compute


def predict(
    compute: Compute, pixels: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], preprocessing: Preprocessing
) -> npt.NDArray[np.float64]:
    """Return the class probabilities [len(rows), classes] of some of the images [N, H, W]."""
    import numpy as np

    logits = [
        compute(preprocessing.normalised(pixels[rows[start : start + PREDICT_BATCH]]))
        for start in range(0, len(rows), PREDICT_BATCH)
    ]
    return probabilities_of(np.concatenate(logits))


def probabilities_of(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the softmax [N, classes] of logits [N, classes]."""
    import numpy as np
    from scipy.special import softmax

    probabilities: npt.NDArray[np.float64] = softmax(logits.astype(np.float64), axis=1)
    return probabilities
