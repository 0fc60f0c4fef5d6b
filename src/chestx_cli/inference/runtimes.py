"""Runtimes that compute a variant's logits; all other code uses only the function they return."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.core.errors import IntegrityError, UsageError
from chestx_cli.core.files import storage_error, temporary_folder
from chestx_cli.core.machine import has_exact_products
from chestx_cli.core.progress import ignored
from chestx_cli.core.registry import Registry
from chestx_cli.data.streams import reading
from chestx_cli.networks.backbones import load_torchvision
from chestx_cli.networks.devices import move_to
from chestx_cli.networks.weights.safe_readers import read_onnx
from chestx_cli.records.benchmark import EAGER
from chestx_cli.records.preprocessing import Preprocessing

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnxruntime
    from torch import Tensor, nn

    from chestx_cli.core.machine import Waiting
    from chestx_cli.core.progress import Advance
    from chestx_cli.data.images.pixel_cache import Pixels
    from chestx_cli.data.streams import DecodedImages

# Network input [N, 3, H, W] to logits [N, classes].
Compute = Callable[["npt.NDArray[np.float32]"], "npt.NDArray[np.float32]"]

PREDICT_BATCH = 32
# How the profiler's events of a node's execution end; others are of its memory.
_EXECUTED = "_kernel_time"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model file as input of a runtime; plain values, so that it can be sent to another process."""

    path: str
    kind: str
    backbone: str
    n_classes: int
    # What to do about a file that is refused.
    remedy: str = "make the variant again with --force"


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A runtime: how to open a model, the file kind it needs, the variant kinds it runs, and its devices.

    load: imports the runtime's libraries, so that their memory is measured separately. package: must be installed;
    `extra` names the optional extra that installs it. needs: "torch" or "onnx" (torch variants are exported). compiles:
    whether the first calls of a process compile the network, for a minute or more unless it is in the disk cache; such
    a runtime is used only if named.
    """

    open: Callable[[Model, int, str], Compute]
    load: Callable[[], object]
    package: str
    needs: str
    kinds: tuple[str, ...]
    devices: tuple[str, ...]
    extra: str | None = None
    compiles: bool = False

    @property
    def installed(self) -> bool:
        """Return whether the runtime's package is installed."""
        return importlib.util.find_spec(self.package) is not None


RUNTIMES: Registry[Runtime] = Registry("runtime", of=Runtime)
NATIVE = {"torch": EAGER, "onnx": "onnxruntime"}


def chosen_runtimes(named: Sequence[str]) -> tuple[str, ...]:
    """Return the named runtimes; by default all that are installed and do not compile.

    Raises UsageError for a runtime that is unknown or not installed.
    """
    for name in named:
        require_installed(name, "or leave it out of --runtimes")
    usual = (name for name, runtime in RUNTIMES.items() if runtime.installed and not runtime.compiles)
    return tuple(dict.fromkeys(named or usual))


def require_installed(name: str, otherwise: str) -> Runtime:
    """Return a runtime; raises UsageError if it is not installed. `otherwise`: the remedy other than to install it."""
    runtime = RUNTIMES[name]
    if not runtime.installed:
        wanted = f"'chestx-cli[{runtime.extra}]'" if runtime.extra else runtime.package
        raise UsageError(
            f"runtime {name}: {runtime.package} is not installed", f'run "pip install {wanted}", {otherwise}'
        )
    return runtime


def _load_compiler() -> None:
    load_torchvision()
    import torch._inductor.compile_fx  # noqa: F401 - otherwise torch.compile imports it in the first call


def _load_onnx() -> None:
    import onnxruntime

    # In case ONNX Runtime was imported before chestx.
    onnxruntime.disable_telemetry_events()


def _load_openvino() -> None:
    # openvino reports its import over the network; without the telemetry package it uses a stub.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # None makes the import fail
    import openvino  # noqa: F401 - imported to load it


def _open_torch(model: Model, threads: int, device: str) -> Compute:
    return _torch_compute(_torch_network(model, device), threads, device)


def _open_compiled(model: Model, threads: int, device: str) -> Compute:
    import torch

    # One graph with static shapes: code that cannot be compiled is an error and never silently runs eagerly.
    network = torch.compile(_torch_network(model, device), fullgraph=True, dynamic=False)
    return _torch_compute(network, threads, device)


def _torch_network(model: Model, device: str) -> nn.Module:
    from chestx_cli.networks.weights.serialization import load_model_file

    network = load_model_file(Path(model.path), model.backbone, model.n_classes)
    return move_to(network, device)


def _torch_compute(network: Callable[[Tensor], Tensor], threads: int, device: str) -> Compute:
    import torch

    def compute(inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.inference_mode(), _threads(threads):
            batch = torch.from_numpy(inputs).to(device, memory_format=torch.channels_last)
            logits: npt.NDArray[np.float32] = network(batch).cpu().numpy()
        return logits

    return compute


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """Let torch use n threads inside the block; the number is restored so that later training is unaffected."""
    import torch

    former_threads = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(former_threads)


def _open_onnx(model: Model, threads: int, device: str) -> Compute:  # noqa: ARG001 - only the CPU is offered
    path = Path(model.path)
    try:
        bare = onnx_session(read_onnx(path, model.n_classes), threads)
    except OSError as error:
        raise storage_error(error, path) from error
    # ONNX Runtime's exception types have no common base.
    except Exception as error:
        raise _refused(model, error) from error

    def compute(inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        try:
            return bare(inputs)
        except Exception as error:
            raise _refused(model, error) from error

    return compute


def _refused(model: Model, error: Exception) -> IntegrityError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return IntegrityError(f"{model.path} is refused: {reason}", model.remedy)


def _open_openvino(model: Model, threads: int, device: str) -> Compute:  # noqa: ARG001 - only the CPU is offered
    _load_openvino()
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        # Otherwise processors with bf16 instructions would compute FP32 files in bf16.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = openvino.Core()
    # The checked bytes rather than the path, so that no other file can be read.
    compiled = core.compile_model(core.read_model(read_onnx(Path(model.path), model.n_classes), b""), "CPU", settings)

    def compute(inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        # The next call overwrites the memory of the result.
        logits: npt.NDArray[np.float32] = compiled(inputs, share_inputs=True)[0].copy()
        return logits

    return compute


RUNTIMES.add(
    EAGER,
    Runtime(
        open=_open_torch,
        load=load_torchvision,
        package="torch",
        needs="torch",
        kinds=("torch",),
        devices=("cpu", "cuda"),
    ),
)
RUNTIMES.add(
    "torch.compile",
    Runtime(
        open=_open_compiled,
        load=_load_compiler,
        package="torch",
        needs="torch",
        kinds=("torch",),
        devices=("cpu", "cuda"),
        compiles=True,
    ),
)
RUNTIMES.add(
    "onnxruntime",
    Runtime(
        open=_open_onnx,
        load=_load_onnx,
        package="onnxruntime",
        needs="onnx",
        kinds=("torch", "onnx"),
        devices=("cpu",),
    ),
)
RUNTIMES.add(
    "openvino",
    Runtime(
        open=_open_openvino,
        load=_load_openvino,
        package="openvino",
        needs="onnx",
        kinds=("torch", "onnx"),
        devices=("cpu",),
        extra="openvino",
    ),
)


def onnx_session(model: bytes, threads: int = 0, *, literal: bool = False) -> Compute:
    """Open ONNX file content in ONNX Runtime on the CPU; with 0 threads the runtime chooses their number.

    literal: execute the file node by node without fusion, so that 8-bit layers multiply in FP32.
    """
    _load_onnx()
    import onnxruntime

    options = _session_options(threads)
    if literal:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()

    def compute(inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = session.run(None, {source.name: inputs})[0]
        return logits

    return compute


def _session_options(threads: int) -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin between calls would take processor time from other measurements.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Avoids saturation on x86 processors without VNNI if weights use the full 8-bit range. With VNNI nothing saturates,
    # but ONNX Runtime would still use the slower kernels.
    if not has_exact_products():
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    return options


def profile_nodes(
    model: bytes, inputs: npt.NDArray[np.float32], threads: int, calls: int, waiting: Waiting
) -> list[tuple[str, tuple[float, ...]]]:
    """Return the nodes that ONNX Runtime executes for inputs [N, 3, H, W], in order, with their seconds in each call.

    Names are the runtime's, after it has fused nodes and changed layouts. The times are those of its own profiler.
    waiting: measures the calls, while the session's threads exist.
    """
    _load_onnx()
    import onnxruntime

    options = _session_options(threads)
    with temporary_folder() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "nodes")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        (source,) = session.get_inputs()
        with waiting:
            for _ in range(calls):
                session.run(None, {source.name: inputs})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    seconds: dict[str, list[float]] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith(_EXECUTED):
            seconds.setdefault(name.removesuffix(_EXECUTED), []).append(event["dur"] / 1e6)
    return [(name, tuple(own)) for name, own in seconds.items()]


def predict(
    compute: Compute,
    pixels: Pixels | DecodedImages,
    rows: npt.NDArray[np.int64],
    preprocessing: Preprocessing,
    advance: Advance = ignored,
) -> npt.NDArray[np.float64]:
    """Return the class probabilities [len(rows), classes] of the given rows of images [N, H, W].

    advance: called with the number of images of each finished batch.
    """
    import numpy as np

    logits = []
    with reading(pixels, rows) as take:
        for start in range(0, len(rows), PREDICT_BATCH):
            batch = take(min(PREDICT_BATCH, len(rows) - start))
            logits.append(compute(preprocessing.normalised(batch)))
            advance(len(batch))
    return probabilities_of(np.concatenate(logits))


def probabilities_of(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the softmax [N, classes] of logits [N, classes].

    Not `scipy.special.softmax`, which computes the same: importing it adds a tenth of a second to every prediction.
    """
    import numpy as np

    wide = logits.astype(np.float64)
    exponentials = np.exp(wide - wide.max(axis=1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
