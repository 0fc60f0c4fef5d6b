"""The images of a split as network input, batch by batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.progress import ignored
from chestx_cli.data.streams import DecodedImages, open_images, reading
from chestx_cli.networks.augmentation import normalise
from chestx_cli.networks.devices import autocast

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import nn

    from chestx_cli.core.progress import Advance, Reporter
    from chestx_cli.data.images.pixel_cache import Pixels
    from chestx_cli.records.preprocessing import Preprocessing
    from chestx_cli.store.directory import Study
    from chestx_cli.store.split import Split

# Maps a batch's loss, network input and logits to the loss that is minimised.
LossHook = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]
# Maps the network to be fitted and the side of its images in pixels to the hook, which is used inside the context.
MixLoss = Callable[["nn.Module", int], "AbstractContextManager[LossHook]"]

# Small enough on a CPU for a batch's activations to stay in its cache.
PREDICT_BATCH = {"cpu": 8, "cuda": 256}
# Images shuffled at a time if images are read in order: 0.2 GB at 224 px, twice that with the images read ahead.
SHUFFLE_BUFFER = 4096
# The network and its gradients need the rest of a GPU's memory.
RESIDENT_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class FitData:
    """Data for fitting: the images [N, H, W] by rows, their split, and the preprocessing for network input.

    `mix_loss`, if set, replaces a batch's loss for the gradient; recorded losses do not include it.
    `resident` is a copy of the pixels on the GPU, if one is used and has room. With a `shuffle_buffer` an
    epoch reads runs of neighbouring images and shuffles that many at a time; without one it reads in random order.
    """

    pixels: Pixels | DecodedImages
    split: Split
    preprocessing: Preprocessing
    mix_loss: MixLoss | None = None
    resident: torch.Tensor | None = None
    shuffle_buffer: int | None = None

    def moved_to(self, device: str) -> FitData:
        """Return the data with its pixels on the device if that is a GPU with room for them."""
        import numpy as np
        import torch

        if device != "cuda" or isinstance(self.pixels, DecodedImages):
            return self
        if self.pixels.nbytes > RESIDENT_SHARE * torch.cuda.mem_get_info()[0]:
            return self
        # Copied: torch warns about read-only memory, such as the cache's.
        return dataclasses.replace(self, resident=torch.from_numpy(np.array(self.pixels)).to(device))

    def grey(self, rows: npt.NDArray[np.int64], device: str) -> torch.Tensor:
        """Return images [N, 1, H, W] scaled to 0-1, on the device."""
        import torch

        if self.resident is not None:
            picked = self.resident[torch.from_numpy(rows).to(device)]
        else:
            picked = torch.from_numpy(self.pixels[rows]).to(device)
        return picked[:, None].float().div_(255)

    @contextmanager
    def greys(
        self, rows: npt.NDArray[np.int64], device: str, *, at_once: int | None = None
    ) -> Iterator[Callable[[int], torch.Tensor]]:
        """Yield a function that returns the next n images of `rows` [n, 1, H, W], while later ones are read ahead.

        The images are on the device and scaled as by `grey`. `at_once` is the parameter of `streams.reading`.
        """
        import torch

        if self.resident is not None:
            left = rows

            def take_resident(n: int) -> torch.Tensor:
                nonlocal left
                now, left = left[:n], left[n:]
                return self.grey(now, device)

            yield take_resident
            return
        with reading(self.pixels, rows, at_once=at_once) as take:
            yield lambda n: torch.from_numpy(take(n)).to(device)[:, None].float().div_(255)


def read_fit_data(
    study: Study,
    split: Split,
    preprocessing: Preprocessing,
    reporter: Reporter,
    *,
    shuffle_buffer: int | None = None,
) -> FitData:
    """Return the data of a study for networks with this preprocessing; images in shards are read in order."""
    return FitData(
        pixels=open_images(study, split, preprocessing, reporter),
        split=split,
        preprocessing=preprocessing,
        shuffle_buffer=buffer_of(split, shuffle_buffer),
    )


def buffer_of(split: Split, requested: int | None) -> int | None:
    """Return how many images of a split are shuffled at a time in training; None for all."""
    buffer = requested or (SHUFFLE_BUFFER if split.spans is not None else None)
    return None if buffer is None or buffer >= len(split.indices("train")) else buffer


def network_input(data: FitData, rows: npt.NDArray[np.int64], device: str) -> torch.Tensor:
    """Return images as network input [N, 3, H, W] without augmentation, on the device."""
    return normalise(data.grey(rows, device), data.preprocessing)


def predict_logits(
    compute: Callable[[torch.Tensor], torch.Tensor],
    data: FitData,
    rows: npt.NDArray[np.int64],
    *,
    device: str,
    precision: str,
    advance: Advance = ignored,
) -> torch.Tensor:
    """Return the logits [len(rows), classes] of a network in evaluation mode, on the CPU.

    advance: called with the number of images of each finished batch.
    """
    import torch

    batch = PREDICT_BATCH[device]
    sizes = [len(rows[start : start + batch]) for start in range(0, max(1, len(rows)), batch)]
    with (
        torch.inference_mode(),
        autocast(device, precision),
        data.greys(rows, device) as take,
    ):
        logits = []
        for n in sizes:
            logits.append(compute(normalise(take(n), data.preprocessing)).float())
            advance(n)
        return torch.cat(logits).cpu()


def positive_probability(logits: torch.Tensor, positive: int) -> npt.NDArray[np.float64]:
    """Return the softmax probability [N] of the positive class."""
    probability: npt.NDArray[np.float64] = logits.double().softmax(dim=1)[:, positive].numpy()
    return probability


def plain_batches(
    data: FitData, rows: npt.NDArray[np.int64], batch_size: int, device: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield network input [n, 3, H, W] and labels [n] in batches of nearly equal size, without augmentation."""
    import numpy as np
    import torch

    for part in np.array_split(rows, max(1, math.ceil(len(rows) / batch_size))):
        yield network_input(data, part, device), torch.from_numpy(data.split.labels[part]).to(device)
