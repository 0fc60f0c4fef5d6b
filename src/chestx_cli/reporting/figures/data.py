"""Figures of the data: images and patients per class, the split, and near-duplicates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chestx_cli.core.printable import counted, paragraph
from chestx_cli.data.duplicates import NEAR, SAME_FILE
from chestx_cli.data.images.decoding import decode_grey
from chestx_cli.data.images.formats.refusals import UnreadableImageError
from chestx_cli.data.images.places import place_of
from chestx_cli.data.value_range import preprocessing_of
from chestx_cli.records.split import SPLITS
from chestx_cli.reporting.figures.registry import figure
from chestx_cli.reporting.figures.style import (
    BLUE,
    GREY,
    LONGEST_CLASS,
    NARROWEST_IN,
    ORANGE,
    SMALL_PT,
    WIDTH_IN,
    add_legend,
    new_figure,
    panel_grid,
    shown,
)
from chestx_cli.store.caveats import NO_LEAK
from chestx_cli.store.tables import read_csv_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from chestx_cli.data.images.places import Place
    from chestx_cli.evaluation.results import StudyResults
    from chestx_cli.records.preprocessing import Preprocessing
    from chestx_cli.store.split import Split

SHEET_PAIRS = 24
SHEET_PAIRS_PER_ROW = 4
TILE_PX = 160
SPLIT_TITLES = {"train": "training", "val": "validation", "test": "test"}


def _class_colours(split: Split) -> tuple[str, ...]:
    """Return one colour per class; the positive class has the same colour in all figures."""
    return tuple(ORANGE if index == split.positive else BLUE for index in range(len(split.classes)))


@figure(
    "class-distribution",
    title="Images and patients per class",
    caption="How many images, and how many patients, each class has in the whole data set (training, validation and "
    "test together). A patient with images of both classes counts in each.",
    model_stamps=(),
    shows=(),
)
def class_distribution(study: StudyResults) -> Figure | None:
    """Draw the images and the patients of each class."""
    split = study.split
    images = [int((split.labels == index).sum()) for index in range(len(split.classes))]
    patients = [len(set(split.groups[split.labels == index].tolist())) for index in range(len(split.classes))]
    n_patients = len(set(split.groups.tolist()))
    with_both = sum(patients) - n_patients
    note = paragraph(
        *study.split_caveats, f"{counted(with_both, 'patient')} with images of both classes." if with_both else ""
    )
    fig = new_figure(
        2.7, f"Data set: {counted(len(split.ids), 'image')} of {counted(n_patients, 'patient')}", note=note
    )
    left, right = fig.subplots(1, 2, sharey=True)
    names = [shown(name, LONGEST_CLASS) for name in split.classes]
    for axes, title, counts, total in (
        (left, "Images", images, len(split.ids)),
        (right, "Patients", patients, n_patients),
    ):
        axes.barh(range(len(names)), counts, height=0.62, color=_class_colours(split))
        for y, count in enumerate(counts):
            _annotate(axes, count, y, f"{count:,} ({count / total:.1%})")
        axes.set_title(title)
        axes.set_xlim(0, max(counts) * 1.42)
        _count_axis(axes)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    return fig


@figure(
    "split",
    title="Split",
    caption="Images of each class in the training, validation and test parts, with the number of their patients and "
    "the share of the class. The test images are used for nothing but the final evaluation.",
    model_stamps=(),
    shows=(),
)
def split_parts(study: StudyResults) -> Figure | None:
    """Draw images and patients of each class in each part."""
    from matplotlib.patches import Patch

    record, split = study.split_record, study.split
    fig = new_figure(
        3.7,
        f"Split of {counted(len(split.ids), 'image')} of {counted(record.patients, 'patient')}",
        note=" ".join(study.split_caveats) or NO_LEAK,
    )
    axes = fig.subplots()
    colours = _class_colours(split)
    counts = {(row.split, row.label): row for row in record.rows}
    ticks = []
    for i, part in enumerate(SPLITS):
        rows = split.indices(part)
        patients = len(set(split.groups[rows].tolist()))
        ticks.append(f"{SPLIT_TITLES[part]}\n{counted(len(rows), 'image')}\n{counted(patients, 'patient')}")
        for j, label in enumerate(split.classes):
            row = counts[part, label]
            y = i + (j - 0.5) * 0.38
            axes.barh(y, row.images, height=0.34, color=colours[j])
            text = f"{counted(row.images, 'image')} of {counted(row.patients, 'patient')}, {row.share:.1%} of class"
            _annotate(axes, row.images, y, text)
    axes.set_yticks(range(len(SPLITS)), ticks)
    axes.invert_yaxis()
    # Leave room for the text beside the longest bar.
    axes.set_xlim(0, max(row.images for row in record.rows) * 1.6)
    axes.set_xlabel("Images")
    _count_axis(axes)
    names = [shown(name) for name in split.classes]
    add_legend(
        axes, [Patch(color=colour) for colour in colours], names, loc="lower left", bbox_to_anchor=(0, 1), ncols=2
    )
    return fig


@figure(
    "near-duplicates",
    title="Images joined as copies",
    caption=(
        "Pairs of images judged to be the same radiograph, the least certain first: equal pixels in another file, "
        "and near-duplicates such as resized, recompressed or brightened copies, with the correlation of their "
        "details. chestx keeps their patients in one part; a split supplied with the data may not."
    ),
    model_stamps=(),
    shows=(),
    reads_images=True,
)
def near_duplicates(study: StudyResults) -> Figure | None:
    """Draw each pair of copies side by side; None if there are none."""
    duplicates = study.study.duplicates_csv
    if not duplicates.exists():
        return None
    pairs = read_csv_text(duplicates.read_bytes())
    pairs = pairs[pairs["kind"] != SAME_FILE].iloc[::-1]
    if pairs.empty:
        return None
    split, shown_as = study.split, preprocessing_of(study.split_record, TILE_PX)
    row_of = {image_id: row for row, image_id in enumerate(split.ids.tolist())}
    shown_pairs = pairs.iloc[:SHEET_PAIRS]
    rows, pairs_per_row = panel_grid(len(shown_pairs), SHEET_PAIRS_PER_ROW)
    fig = new_figure(
        0.9 + 1.5 * rows,
        f"Images joined as copies: {counted(len(pairs), 'pair')}",
        note=""
        if len(pairs) == len(shown_pairs)
        else f"The {len(shown_pairs)} least certain of them; duplicates.csv lists all.",
        width_in=max(NARROWEST_IN, WIDTH_IN * pairs_per_row / SHEET_PAIRS_PER_ROW),
    )
    grid = fig.subplots(rows, 2 * pairs_per_row, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, pair in enumerate(shown_pairs.to_dict("records")):
        left, right = grid[index // pairs_per_row, index % pairs_per_row * 2 :][:2]
        similarity = f"r = {float(pair['correlation']):.3f}" if pair["kind"] == NEAR else str(pair["kind"])
        for axes, image_id, part, heading in (
            (left, pair["first_image_id"], pair["first_split"], similarity),
            (right, pair["second_image_id"], pair["second_split"], ""),
        ):
            _show_radiograph(axes, place_of(split, row_of[image_id]), shown_as)
            axes.set_title(f"{heading}\n{image_id}\n{part}", fontsize=SMALL_PT - 2.5, fontweight="normal")
    return fig


def _show_radiograph(axes: Axes, place: Place, preprocessing: Preprocessing) -> None:
    """Draw a thumbnail of an image, or the error if it cannot be read."""
    import numpy as np
    from PIL import Image

    try:
        grey = decode_grey(place, preprocessing)[0]
    except UnreadableImageError as error:
        axes.text(
            0.5, 0.5, shown(error.fact), ha="center", va="center", fontsize=SMALL_PT - 2, transform=axes.transAxes
        )
        return
    grey.thumbnail((TILE_PX, TILE_PX), Image.Resampling.BILINEAR)
    axes.imshow(np.asarray(grey), cmap="gray", vmin=0, vmax=255)


def _annotate(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(
        text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=SMALL_PT + 0.5, color="#222222"
    )


def _count_axis(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", colors=GREY)
