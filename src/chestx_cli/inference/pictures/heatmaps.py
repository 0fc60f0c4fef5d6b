"""Grad-CAM heatmaps of predicted images: where a torch network's features support the positive class.

Selvaraju et al., Grad-CAM, ICCV 2017, computed by captum. A variant without torch weights gets the heatmaps of the
torch variant that it was made from.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.core.errors import ChestxError, StudyError
from chestx_cli.core.files import make_folder, write_atomic
from chestx_cli.core.record import NOT_A_DEVICE
from chestx_cli.inference.pictures.captions import class_names, font, note_on_names, wrapped
from chestx_cli.records.preprocessing import SQUASH
from chestx_cli.store.documents import require_hash

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image
    from torch import nn

    from chestx_cli.inference.predictor import Predictor
    from chestx_cli.records.prediction import PredictionRow
    from chestx_cli.records.preprocessing import Preprocessing
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.directory import Study

INSTALL = "pip install 'chestx-cli[heatmap]'"
# Side of each of the two pictures, height of a line of text below them, and its size.
PICTURE_PX, LINE_PX, TEXT_PX, EDGE_PX = 448, 20, 14, 8
COLOURS, OPACITY = "inferno", 0.55


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """The image as the network sees it, square and in colour, overlaid with its Grad-CAM, and a description."""

    picture: Image
    meaning: str
    # Whether it has to be stretched to the film's shape.
    is_squashed: bool


@dataclass(frozen=True, kw_only=True)
class Heatmaps:
    """Draws heatmaps of one torch network into a folder."""

    folder: Path
    # The torch variant whose network is explained, and the variant that predicts.
    source: str
    variant: str
    network: nn.Module
    layer: nn.Module
    classes: tuple[str, ...]
    positive: int
    threshold: float
    preprocessing: Preprocessing

    @property
    def label(self) -> str:
        """Return the positive class."""
        return self.classes[self.positive]

    @property
    def note(self) -> str:
        """Return a description of the heatmaps: the model, and their limits."""
        whose = f"Heatmaps are Grad-CAMs of {self.source}"
        if self.source != self.variant:
            whose += f", the torch variant that {self.variant} was made from, and not of {self.variant} itself"
        return (
            f"{whose}. They show where features support {self.label}, coarsely and scaled image by image; not why, "
            "not where a finding is, and not that the prediction is right."
        )

    def file_of(self, row: PredictionRow, sha256: str) -> Path:
        """Return the file of an image's heatmap.

        Its name is made of the image's id and hash, so no two images share one and none names a patient.
        """
        return self.folder / f"{row.image_id}-{sha256[:12]}-{self.variant}.png"

    def draw(self, pixels: npt.NDArray[np.uint8], overlay: Overlay, row: PredictionRow, sha256: str) -> str:
        """Write the heatmap of a predicted image, given as the network sees it [H, W]; return its file's name."""
        path = self.file_of(row, sha256)
        write_atomic(path, self._png(pixels, overlay, row))
        return path.name

    def overlay_of(self, pixels: npt.NDArray[np.uint8]) -> Overlay:
        """Return the overlay of an image, given as the network sees it [H, W]."""
        import numpy as np
        from matplotlib import colormaps
        from PIL import Image

        evidence = self._evidence(pixels)
        grey = np.repeat(pixels[:, :, None], 3, axis=2).astype(np.float32)
        coloured = colormaps[COLOURS](evidence)[:, :, :3] * 255
        # Where there is no evidence, the film is unchanged.
        weight = (OPACITY * evidence)[:, :, None]
        blended = (1 - weight) * grey + weight * coloured
        whose = self.source if self.source == self.variant else f"{self.source}, from which {self.variant} was made"
        label = class_names(self.classes)[self.label]
        none = "" if evidence.max() > 0 else f"no evidence for {label} in the "
        return Overlay(
            picture=Image.fromarray(blended.clip(0, 255).astype(np.uint8)),
            meaning=f"{none}Grad-CAM of {whose}",
            is_squashed=self.preprocessing.resize == SQUASH,
        )

    def _evidence(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the Grad-CAM [H, W] of the log-odds of the positive class, from 0 to its maximum, which is 1."""
        import torch
        from captum.attr import LayerAttribution, LayerGradCam

        def log_odds(inputs: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.network(inputs)
            return logits[:, self.positive] - logits[:, 1 - self.positive]

        inputs = torch.from_numpy(self.preprocessing.normalised(pixels[None]))
        coarse = LayerGradCam(log_odds, self.layer).attribute(inputs, relu_attributions=True)
        fine = LayerAttribution.interpolate(coarse, pixels.shape, "bilinear")[0, 0].detach().numpy()
        evidence: npt.NDArray[np.float32] = fine / fine.max() if fine.max() > 0 else fine
        return evidence

    def _png(self, pixels: npt.NDArray[np.uint8], overlay: Overlay, row: PredictionRow) -> bytes:
        """Return film and overlay side by side, with the prediction below, as the content of a PNG file."""
        from PIL import Image, ImageDraw

        letters = font(TEXT_PX)
        width = 2 * PICTURE_PX
        lines = [line for one in self._caption(row, overlay) for line in wrapped(one, letters, width - 2 * EDGE_PX)]
        page = Image.new("RGB", (width, PICTURE_PX + LINE_PX * len(lines) + EDGE_PX), "white")
        for number, square in enumerate((Image.fromarray(pixels), overlay.picture)):
            page.paste(square.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BILINEAR), (number * PICTURE_PX, 0))
        pen = ImageDraw.Draw(page)
        for number, line in enumerate(lines):
            pen.text((EDGE_PX, PICTURE_PX + EDGE_PX // 2 + number * LINE_PX), line, fill="black", font=letters)
        content = io.BytesIO()
        page.save(content, format="PNG")
        return content.getvalue()

    def _caption(self, row: PredictionRow, overlay: Overlay) -> tuple[str, ...]:
        names = class_names(self.classes)
        probability = row.probability[self.label] or 0.0
        decided = f"called {names[row.decision or self.label]} at {self.threshold:.3g}"
        sentence = f"{row.image_id}: {names[self.label]} {probability:.3f}, {decided}. Right: {overlay.meaning}."
        return (sentence, *note_on_names(self.classes), NOT_A_DEVICE)


def open_heatmaps(folder: Path, study: Study, record: VariantRecord, predictor: Predictor) -> Heatmaps:
    """Return the writer of the heatmaps of a variant's predictions; creates their folder.

    Raises ChestxError without captum, StudyError if the torch weights that an ONNX variant was made from are gone.
    """
    if find_spec("captum") is None:
        raise ChestxError("heatmaps need captum, which is not installed", f"run {INSTALL}")
    from chestx_cli.networks.layers import last_feature_layer
    from chestx_cli.networks.weights.serialization import load_network

    source = _torch_source(study, record)
    network = load_network(study, source)
    for module in network.modules():
        # In-place operations would change the features whose gradient is computed.
        if isinstance(getattr(module, "inplace", None), bool):
            module.inplace = False  # type: ignore[assignment]  # a plain attribute
    layer = last_feature_layer(network, source.preprocessing.image_size_px)
    if layer is None:
        raise ChestxError(f"{source.name} has no convolution to make heatmaps of", "leave --heatmap out")
    make_folder(folder)
    return Heatmaps(
        folder=folder,
        source=source.name,
        variant=record.name,
        network=network,
        layer=layer,
        classes=predictor.classes,
        positive=predictor.classes.index(predictor.positive),
        threshold=predictor.threshold,
        preprocessing=predictor.preprocessing,
    )


def _torch_source(study: Study, record: VariantRecord) -> VariantRecord:
    """Return the variant itself, or the nearest ancestor with torch weights, with its file's hash checked."""
    source = record
    while source.kind != "torch":
        parent = study.read_variant(source.parent or "")
        if parent.model_sha256 != source.parent_sha256:
            raise StudyError(
                f"{parent.name} was made again since {source.name}, so its heatmaps would be of another network",
                "make the variant again, or leave --heatmap out",
            )
        source = parent
    path = study.variant(source.name) / source.model_file
    require_hash(path, source.model_sha256, "make the variant again with --force")
    return source
