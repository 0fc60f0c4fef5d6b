"""Grad-CAM heatmaps of predicted images: where a torch network's features speak for the positive class.

Selvaraju et al., Grad-CAM, ICCV 2017, computed by captum. A variant without torch weights gets the heatmaps of the
torch variant that it was made from.
"""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from chestx_cli.core.errors import ChestxError, StudyError
from chestx_cli.core.files import make_folder, write_atomic
from chestx_cli.core.record import NOT_A_DEVICE
from chestx_cli.store.documents import require_hash

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from chestx_cli.inference.predictor import Predictor
    from chestx_cli.records.prediction import PredictionRow
    from chestx_cli.records.preprocessing import Preprocessing
    from chestx_cli.records.variant import VariantRecord
    from chestx_cli.store.directory import Study

INSTALL = "pip install 'chestx-cli[heatmap]'"
# Side of each of the two pictures, height of a line of text below them, and its size.
PICTURE_PX, LINE_PX, TEXT_PX, EDGE_PX = 448, 20, 14, 8
# Letters that fit below both pictures, at six tenths of their height each.
LINE_LETTERS = int((2 * PICTURE_PX - 2 * EDGE_PX) / (0.6 * TEXT_PX))
COLOURS, OPACITY = "inferno", 0.55


@dataclass(frozen=True, kw_only=True)
class Heatmaps:
    """Draws heatmaps of one torch network into a folder."""

    folder: Path
    # The torch variant whose network they are of, and the variant that predicts.
    source: str
    variant: str
    network: nn.Module
    layer: nn.Module
    positive: int
    label: str
    threshold: float
    preprocessing: Preprocessing

    @property
    def note(self) -> str:
        """Return whose heatmaps they are, and what they do not show."""
        whose = f"Heatmaps are Grad-CAMs of {self.source}"
        if self.source != self.variant:
            whose += f", the torch variant that {self.variant} was made from, and not of {self.variant} itself"
        return (
            f"{whose}. They show where features speak for {self.label}, coarsely and scaled image by image; not why, "
            "not where a finding is, and not that the prediction is right."
        )

    def draw(self, pixels: npt.NDArray[np.uint8], sha256: str, row: PredictionRow) -> str:
        """Write the heatmap of a predicted image, given as the network sees it [H, W]; return its file's name.

        The name is made of the image's id and hash, so no two images share one and none names a patient.
        """
        name = f"{row.image_id}-{sha256[:12]}-{self.variant}.png"
        write_atomic(self.folder / name, self._png(pixels, self._evidence(pixels), row))
        return name

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

    def _png(self, pixels: npt.NDArray[np.uint8], evidence: npt.NDArray[np.float32], row: PredictionRow) -> bytes:
        """Return film and overlay side by side, with the prediction below, as the content of a PNG file."""
        import numpy as np
        from matplotlib import colormaps
        from PIL import Image, ImageDraw, ImageFont

        grey = np.repeat(pixels[:, :, None], 3, axis=2).astype(np.float32)
        coloured = colormaps[COLOURS](evidence)[:, :, :3] * 255
        # Where there is no evidence the film is as it was.
        weight = (OPACITY * evidence)[:, :, None]
        overlay = (1 - weight) * grey + weight * coloured
        lines = self._caption(row, has_evidence=bool(evidence.max() > 0))
        page = Image.new("RGB", (2 * PICTURE_PX, PICTURE_PX + LINE_PX * len(lines) + EDGE_PX), "white")
        for number, picture in enumerate((grey, overlay)):
            square = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
            page.paste(square.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BILINEAR), (number * PICTURE_PX, 0))
        pen, font = ImageDraw.Draw(page), ImageFont.load_default(TEXT_PX)
        for number, line in enumerate(lines):
            pen.text((EDGE_PX, PICTURE_PX + EDGE_PX // 2 + number * LINE_PX), line, fill="black", font=font)
        content = io.BytesIO()
        page.save(content, format="PNG")
        return content.getvalue()

    def _caption(self, row: PredictionRow, *, has_evidence: bool) -> tuple[str, ...]:
        probability = row.probability[self.label] or 0.0
        decided = f"called {row.decision} at {self.threshold:.3g}"
        whose = self.source if self.source == self.variant else f"{self.source}, from which {self.variant} was made"
        what = f"Grad-CAM of {whose}" if has_evidence else f"no evidence for {self.label} in the Grad-CAM of {whose}"
        sentence = f"{row.image_id}: {self.label} {probability:.3f}, {decided}. Right: {what}."
        return (*textwrap.wrap(sentence, LINE_LETTERS), NOT_A_DEVICE)


def open_heatmaps(folder: Path, study: Study, record: VariantRecord, predictor: Predictor) -> Heatmaps:
    """Return what draws the heatmaps of a variant's predictions into a folder, which is made.

    Raises ChestxError without captum, StudyError if the torch weights that an ONNX variant was made from are gone.
    """
    if find_spec("captum") is None:
        raise ChestxError("heatmaps need captum, which is not installed", f"run {INSTALL}")
    from chestx_cli.networks.layers import last_feature_layer
    from chestx_cli.networks.weights.serialization import load_network

    source = _torch_source(study, record)
    network = load_network(study, source)
    for module in network.modules():
        # What is computed in place would change the features that the gradient is taken of.
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
        positive=predictor.classes.index(predictor.positive),
        label=predictor.positive,
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
