"""The report's pictures: figures, example images, and images whose decision changed."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestx_cli.core.errors import ChestxError
from chestx_cli.data.images.decoding import decode_grey
from chestx_cli.data.images.formats.refusals import UnreadableImageError
from chestx_cli.data.images.places import place_of
from chestx_cli.data.streams import open_images
from chestx_cli.data.value_range import preprocessing_of
from chestx_cli.evaluation.results import StudyResults
from chestx_cli.reporting.page.blocks import Picture

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from PIL.Image import Image

    from chestx_cli.core.progress import Reporter
    from chestx_cli.records.cells import ExemplarRow
    from chestx_cli.reporting.figures.drawing import DrawnFigure

EXAMPLES = 6
MOST_FLIPS = 12
# Longest side of the PNG; the page shows it smaller, and at screen size when opened.
THUMBNAIL_PX = 320


@dataclass(frozen=True, kw_only=True)
class Changed:
    """An image whose decision differs from the baseline's, with title and caption of its picture."""

    image_id: str
    title: str
    caption: str


def read_figures(drawn: Sequence[DrawnFigure]) -> dict[str, Picture]:
    """Return drawn figures as pictures, by name."""
    return {
        figure.name: Picture(
            title=figure.title,
            caption=figure.caption,
            uri="data:image/svg+xml;base64," + base64.b64encode(figure.svg.read_bytes()).decode(),
            link=f"figures/{figure.png.name}",
            width_px=_drawing_width_px(figure.svg),
            has_pixels=figure.has_pixels,
        )
        for figure in drawn
    }


def _drawing_width_px(svg: Path) -> int:
    """Return the width of an SVG figure in page pixels, from its width in points; 0 if it has none."""
    match = re.search(r'<svg [^>]*?width="([\d.]+)pt"', svg.read_text(encoding="utf-8")[:2000])
    return round(float(match.group(1)) * 96 / 72) if match else 0


def draw_examples(results: StudyResults, rng: np.random.Generator) -> dict[str, tuple[Picture, bytes]]:
    """Return some training images of each class as small PNG files, by file name.

    They are labelled with class and image id only. An image whose file no longer matches the split's hash is left out.
    """
    split = results.split
    shown = preprocessing_of(results.split_record, THUMBNAIL_PX)
    rows = split.indices("train")
    chosen = [
        row
        for label in range(len(split.classes))
        for row in rng.permutation(rows[split.labels[rows] == label])[: EXAMPLES // len(split.classes)]
    ]
    examples: dict[str, tuple[Picture, bytes]] = {}
    for row in chosen:
        try:
            grey, file_facts = decode_grey(place_of(split, row), shown)
        except UnreadableImageError:
            continue
        if file_facts.sha256 != split.image_sha256[row]:
            continue
        file = f"example-{len(examples) + 1}.png"
        examples[file] = _thumbnail(grey, file, split.classes[split.labels[row]], str(split.ids[row]))
    return examples


def draw_flips(results: StudyResults, reporter: Reporter) -> dict[str, dict[str, tuple[Picture, bytes]]]:
    """Return the first changed decisions of each variant as small PNG files, by variant and file name."""
    changed = {
        variant.name: [
            Changed(
                image_id=flip.image_id,
                title=flip.change,
                caption=f"{flip.image_id}: {flip.baseline_probability:.2f} → {flip.probability:.2f}",
            )
            for flip in variant.evaluation.flips
        ]
        for variant in results.variants
        if variant.evaluation
    }
    return _draw_changed(results, changed, reporter)


def draw_exemplars(
    results: StudyResults, exemplars: Sequence[ExemplarRow], reporter: Reporter
) -> dict[str, dict[str, tuple[Picture, bytes]]]:
    """Return the first exemplars of each variant as `draw_flips` does; `results`: of one of the cells."""
    split = results.split
    class_of = {image_id: split.classes[split.labels[row]] for row, image_id in enumerate(split.ids.tolist())}
    changed: dict[str, list[Changed]] = {}
    for row in exemplars:
        caption = f"{row.image_id}: {row.change}, in {row.seeds} of {row.of_seeds} seeds"
        one = Changed(image_id=row.image_id, title=class_of.get(row.image_id, ""), caption=caption)
        changed.setdefault(row.variant, []).append(one)
    return _draw_changed(results, changed, reporter)


def _draw_changed(
    results: StudyResults, changed: Mapping[str, Sequence[Changed]], reporter: Reporter
) -> dict[str, dict[str, tuple[Picture, bytes]]]:
    """Return the first changed decisions of each variant as small PNG files, by variant and file name.

    They come from the pixel cache, as the network sees them. Empty if neither the cache nor the images can be read.
    """
    from PIL import Image

    row_of = {image_id: row for row, image_id in enumerate(results.split.ids.tolist())}
    pictures_by_variant: dict[str, dict[str, tuple[Picture, bytes]]] = {}
    for number, variant in enumerate(results.variants):
        chosen = changed.get(variant.name, ())[:MOST_FLIPS]
        if not chosen:
            continue
        try:
            pixels = open_images(results.study, results.split, variant.record.preprocessing, reporter)
        except ChestxError as error:
            reporter.warn(f"no pictures of changed decisions: {error}")
            return {}
        pictures_by_variant[variant.name] = {}
        for i, one in enumerate(chosen):
            file = f"flip-{number}-{i + 1}.png"
            pictures_by_variant[variant.name][file] = _thumbnail(
                Image.fromarray(pixels[row_of[one.image_id]]), file, one.title, one.caption
            )
    return pictures_by_variant


def _thumbnail(grey: Image, file: str, title: str, caption: str) -> tuple[Picture, bytes]:
    """Return a thumbnail of a grey image as a picture, and the bytes of its PNG file."""
    from PIL import Image as PillowImage

    grey.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), PillowImage.Resampling.BILINEAR)
    # A new image, so that no metadata of the file, such as a patient's name, is copied.
    bare, buffer = PillowImage.frombytes("L", grey.size, grey.tobytes()), io.BytesIO()
    bare.save(buffer, format="PNG", optimize=True)
    content = buffer.getvalue()
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    picture = Picture(
        title=title,
        caption=caption,
        uri=uri,
        link=f"figures/{file}",
        width_px=bare.width,
        height_px=bare.height,
        has_pixels=True,
    )
    return picture, content
