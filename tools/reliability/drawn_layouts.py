"""Random but realistic folders of images, each with the expected result of reading it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

TRAIN, VAL, TEST = "train", "val", "test"
CLASSES = (
    ("NORMAL", "PNEUMONIA"),
    ("Normal", "COVID"),
    ("healthy", "Tuberculosis"),
    ("No Finding", "Pneumonia"),
    ("negative", "positive"),
    ("0", "1"),
    ("control", "Viral Pneumonia"),
    ("non-pneumonia", "pneumonia"),
    ("clear", "Lung Opacity"),
)
PART_NAMES = {
    TRAIN: ("train", "Train", "TRAIN", "Training", "training_set", "train_images", "TrainData", "trainset"),
    VAL: ("val", "valid", "Validation", "VAL", "val_set", "dev", "validation-images"),
    TEST: ("test", "Test", "Testing", "TEST", "test_set", "test images", "holdout"),
}
WRAPPERS = ("chest_xray", "Dataset v2", "archive (1)", "lungs-2024", "CXR", "kaggle", "ChestXRay2017")
MASK_FOLDERS = ("masks", "Mask", "lung masks", "labels", "segmentations", "Ground Truth", "annotations")
INSIDE = ("", "images/", "patient7/", "a/b/", "PNG/")
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"
# For names without an image extension the content decides.
IMAGE_NAMES: tuple[tuple[str, bytes], ...] = (
    ("{}.png", b""),
    ("{}.PNG", b""),
    ("{}.jpeg", b""),
    ("{}.JPG", b""),
    ("{}.dcm", b""),
    ("{}.tif", b""),
    ("{}.jfif", JPEG),
    ("{}", PNG),
    ("person{}_virus_6 (1).jpeg", b""),
    ("IM-{}-0001.jpeg", b""),
    ("ähnlich {} é.png", b""),
)
OTHER_FILES = ("notes.txt", "Thumbs.db", "labels.csv", "volume.nii.gz", "README", "report.pdf")


@dataclass(kw_only=True)
class Layout:
    """Files and links to write below a folder, and the expected content of its folder `data`.

    `images` are the images by path, each with its class and part; None if reading must fail with `error` in its
    message. `n_files` is the number of files to account for.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    images: dict[str, tuple[str, str | None]] | None = field(default_factory=dict)
    error: str = ""
    resplit: bool = False
    n_files: int = 0
    description: str = ""

    def write(self, root: Path) -> Path:
        """Write the layout and return the data folder."""
        for name in self.folders:
            (root / name).mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for name, target in self.links.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(root / target)
        return root / "data"

    def must_fail(self, error: str) -> None:
        """Record that reading must fail."""
        self.images, self.error = None, error


def draw_layout(rng: random.Random) -> Layout:
    """Return a layout with or without parts, of random nesting and spelling, with clutter and sometimes a fault."""
    layout = Layout(resplit=rng.random() < 0.25)
    classes = rng.choice(CLASSES)
    inner = "/".join(["data", *rng.sample(WRAPPERS, rng.choice((0, 0, 0, 1, 1, 2)))])
    shape = rng.choice((_plain, _plain, _in_parts, _in_parts, _in_parts, _parts_inside, _by_site))
    layout.description = shape.__name__
    shape(rng, layout, inner, classes)
    if rng.random() < 0.6:
        _clutter(rng, layout, inner)
    if layout.images is not None and rng.random() < 0.2:
        _link(rng, layout)
    if layout.images is not None and rng.random() < 0.25:
        _fault(rng, layout, inner)
    layout.n_files += sum(name.startswith("data/") for name in layout.files)
    return layout


def _spelled(rng: random.Random, name: str) -> str:
    """Return a name in another spelling."""
    return rng.choice((str, str, str.lower, str.upper, lambda text: text.replace(" ", "_")))(name)


def _class_folder(
    rng: random.Random, layout: Layout, folder: str, label: str, part: str | None, *, at_least: int = 1
) -> None:
    """Put images into a class folder, with masks and other files."""
    assert layout.images is not None  # noqa: S101 - faults come last
    inside = rng.choice(INSIDE)
    for _ in range(rng.randint(at_least, 4)):
        pattern, content = rng.choice(IMAGE_NAMES)
        name = f"{folder}/{inside}{pattern.format(rng.randrange(10**6))}"
        layout.files[name] = content + rng.randbytes(8)
        layout.images[name.removeprefix("data/")] = (label, part)
        if rng.random() < 0.1:
            masked = PurePosixPath(name)
            layout.files[str(masked.with_name(f"{masked.stem}_mask.png"))] = rng.randbytes(8)
        elif rng.random() < 0.2:
            masks = rng.choice(MASK_FOLDERS)
            layout.files[f"{folder}/{masks}/{PurePosixPath(name).stem}.png"] = rng.randbytes(8)
    if rng.random() < 0.2:
        layout.files[f"{folder}/{rng.choice(OTHER_FILES)}"] = b"x" + rng.randbytes(8)


def _plain(rng: random.Random, layout: Layout, inner: str, classes: tuple[str, str]) -> None:
    for label in classes:
        _class_folder(rng, layout, f"{inner}/{_spelled(rng, label)}", label, None)


def _in_parts(rng: random.Random, layout: Layout, inner: str, classes: tuple[str, str]) -> None:
    parts = rng.choice(((TRAIN, VAL, TEST), (TRAIN, VAL, TEST), (TRAIN, TEST), (TRAIN, TEST), (TRAIN, VAL), (TRAIN,)))
    for part in parts:
        name = rng.choice(PART_NAMES[part])
        # As in some archives: a part's folder inside itself, or another folder around the classes.
        around = rng.choice(("", "", "", f"{part}/", "chest/"))
        for label in classes:
            folder = f"{inner}/{name}/{around}{_spelled(rng, label)}"
            _class_folder(rng, layout, folder, label, None if layout.resplit else part)
    if not layout.resplit and TEST not in parts:
        layout.must_fail("has no test/")
    elif "/" in inner and rng.random() < 0.2:
        _copied(layout, inner)


def _copied(layout: Layout, inner: str) -> None:
    """Repeat the parts in a folder beside them, as in the archive of the public paediatric set."""
    copied = {name.replace(inner, f"{inner}/again", 1): content for name, content in layout.files.items()}
    layout.files.update(copied)


def _parts_inside(rng: random.Random, layout: Layout, inner: str, classes: tuple[str, str]) -> None:
    """Put parts inside the class folders, where they are ignored."""
    for label in classes:
        folder = f"{inner}/{_spelled(rng, label)}"
        for part in rng.sample((TRAIN, VAL, TEST), 2):
            _class_folder(rng, layout, f"{folder}/{rng.choice(PART_NAMES[part])}", label, None)


def _by_site(rng: random.Random, layout: Layout, inner: str, classes: tuple[str, str]) -> None:
    """Put class folders into folders that are neither parts nor classes."""
    for site in rng.sample(("hospital-a", "Ward 3", "site2", "Leipzig", "scanner_B"), rng.choice((2, 3))):
        for label in classes:
            _class_folder(rng, layout, f"{inner}/{site}/{_spelled(rng, label)}", label, None)


def _clutter(rng: random.Random, layout: Layout, inner: str) -> None:
    """Add files of operating systems, archives and chestx itself; each counts as one file."""
    for _ in range(rng.randint(1, 3)):
        rng.choice(
            (
                lambda: layout.files.update({f"{inner}/__MACOSX/NORMAL/a.png": b"x"}),
                lambda: layout.files.update({f"{inner}/.DS_Store": b"x"}),
                lambda: layout.files.update({f"{inner}/._hidden.png": b"x"}),
                lambda: layout.files.update({f"{inner}/@eaDir/thumb.jpg": b"x"}),
                lambda: layout.files.update({f"{inner}/{rng.choice(OTHER_FILES)}": b"y"}),
                lambda: layout.files.update({f"{inner}/study/split.json": b'{\n  "schema": "chestx.split/5"\n}'}),
                lambda: layout.files.update({f"{inner}/{rng.choice(MASK_FOLDERS)}/m.png": b"x"}),
                lambda: layout.folders.append(f"{inner}/.ipynb_checkpoints/inside"),
            )
        )()
    # A hidden folder counts as one.
    layout.n_files += any(name.endswith("inside") for name in layout.folders)


def _link(rng: random.Random, layout: Layout) -> None:
    """Move an image elsewhere and link to it, or add a link to a parent folder."""
    assert layout.images is not None  # noqa: S101 - faults come last
    name = f"data/{rng.choice(sorted(layout.images))}"
    if rng.random() < 0.5:
        layout.links[f"{PurePosixPath(name).parent}/around"] = "data"
        return
    target = f"elsewhere/{PurePosixPath(name).name}"
    layout.files[target] = layout.files.pop(name)
    layout.links[name] = target
    layout.n_files += 1


def _fault(rng: random.Random, layout: Layout, inner: str) -> None:
    """Make the layout invalid, and record the expected error."""
    in_parts = layout.description == _in_parts.__name__ and not any("/again/" in name for name in layout.files)
    plain = layout.description == _plain.__name__
    faults: list[tuple[bool, Callable[[], str]]] = [
        (plain, lambda: _third(layout, inner, "Fibrosis", "exactly two")),
        (plain, lambda: _third(layout, inner, "images", "is named like any folder of images")),
        (plain, lambda: _third(layout, inner, rng.choice(PART_NAMES[TEST]), "has parts of a split")),
        (plain, lambda: _hollow(layout, inner)),
        (in_parts, lambda: _third(layout, inner, "more", "has parts of a split")),
        (in_parts and not layout.resplit, lambda: _flat_part(layout, inner)),
        (True, lambda: _flat(layout)),
    ]
    layout.must_fail(rng.choice([make for fits, make in faults if fits])())


def _third(layout: Layout, inner: str, name: str, error: str) -> str:
    layout.files[f"{inner}/{name}/one.png"] = b"x"
    return error


def _hollow(layout: Layout, inner: str) -> str:
    layout.files[f"{inner}/Fibrosis/nothing.txt"] = b"x"
    return "Fibrosis has no images"


def _flat_part(layout: Layout, inner: str) -> str:
    layout.files[f"{inner}/evaluation/unlabelled.png"] = b"x"
    return "no class folders"


def _flat(layout: Layout) -> str:
    """Put images in one folder without class names."""
    layout.links.clear()
    names = [name for name in layout.files if name.startswith("data/")]
    layout.files = {f"data/{index}.png": layout.files[name] for index, name in enumerate(names)}
    return "no class folders"
