"""Layouts of image folders: which folders are parts of a split, which are classes, which are neither, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chestx_cli.core.errors import DataError, again, quoted
from chestx_cli.core.printable import counted
from chestx_cli.data.images.sniffing import BY_CONTENT
from chestx_cli.data.sources.folders import A_STUDY, MASK_FOLDER, Folder, is_study, read_folder
from chestx_cli.data.sources.names import class_key, is_container, is_finding, is_health, is_part, part_of
from chestx_cli.records.split import SPLITS, TEST, TRAIN, VAL, TakenRow

LAYOUT_HELP = "expected two class folders with images in them, train/ val/ test/ with these inside, or a CSV manifest"
RESPLIT = "--resplit"
DIVIDE_AGAIN = f"{again(RESPLIT)} divides all images again by patient"
OUTSIDE = "outside the class folders"
NO_LABEL = "image without a class folder"
A_COPY = "in a copy of the parts"


class UnlabelledError(DataError):
    """Images without class folders: their labels are unknown."""


@dataclass(kw_only=True)
class FolderImages:
    """Labelled images of a folder, as paths below it; `parts` is None if they are to be divided.

    `taken`: decisions where names are ambiguous. `sifted`: number of files of each class that are not images by name,
    and of those left out.
    """

    layout: str
    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    parts: list[str] | None = None
    taken: list[TakenRow] = field(default_factory=list)
    sifted: Counter[tuple[str, str]] = field(default_factory=Counter)
    classes: set[Folder] = field(default_factory=set)
    copies: set[Folder] = field(default_factory=set)

    def add(self, folder: Folder, part: str | None = None) -> None:
        """Add the images of a class folder."""
        before = len(self.paths)
        self.classes.add(folder)
        self.paths.extend(folder.all_images())
        added = len(self.paths) - before
        kinds = folder.left_out()
        if not added:
            other_files = ", ".join(f"{n:,} × {kind}" for kind, n in kinds.most_common())
            raise DataError(
                f"class folder {folder.path} has no images{f', but {other_files}' if other_files else ''}",
                "name the folder that has the two class folders alone, or move this one elsewhere",
            )
        self.labels.extend([folder.own_name] * added)
        if self.parts is not None and part is not None:
            self.parts.extend([part] * added)
        self.sifted.update({(folder.own_name, kind): n for kind, n in kinds.items()})

    def count_outside(self, root: Folder, skipped: Counter[str]) -> None:
        """Count files outside the class folders: every file is a labelled image or counted as left out."""
        left_out = skipped.copy()
        waiting = [root]
        while waiting:
            folder = waiting.pop()
            if folder in self.classes:
                continue
            if folder in self.copies:
                left_out[A_COPY] += folder.count_files()
                continue
            left_out[NO_LABEL] += len(folder.images)
            left_out.update(kind for kind in folder.kinds.values() if kind != BY_CONTENT)
            left_out[MASK_FOLDER] += folder.masked_files()
            waiting.extend(folder.folders)
        self.sifted.update({(OUTSIDE, reason): n for reason, n in left_out.items() if n})

    def decide(self, matter: str, taken_as: str, because: str, images: int) -> None:
        """Record a decision and its reason."""
        self.taken.append(TakenRow(matter=matter, taken_as=taken_as, because=because, images=images))


def read_data_folder(data: Path, *, leave_out: Path) -> tuple[Folder, Counter[str]]:
    """Return the content of a folder of images, as `folders.read_folder` does; raises DataError for a study."""
    if is_study(data):
        raise DataError(f"{data} is a chestx study", "name the folder of the images")
    return read_folder(data, leave_out=leave_out)


def read_layout(data: Path, root: Folder, skipped: Counter[str], *, resplit: bool) -> FolderImages:
    """Return the labelled images of a folder in any supported layout; raises DataError for ambiguous layouts.

    A supplied split is kept, unless it is to be divided again (`resplit`).
    """
    images = FolderImages(layout="class folders")
    here = _entered(root, images)
    inside = _with_images(here)
    if not inside or all(_only_contains(folder) for folder in inside):
        raise _unlabelled(data, root, skipped)
    if any(is_part(folder.own_name) for folder in inside):
        _take_parts(data, here, images, resplit=resplit)
    else:
        for folder in _class_folders(data, here, images):
            images.add(folder)
    images.count_outside(root, skipped)
    return images


def _entered(folder: Folder, images: FolderImages, part: str | None = None) -> Folder:
    """Return the folder that contains the class folders or parts; a single intermediate folder is skipped.

    Inside a part, it may have the name of that part.
    """
    while not folder.images:
        inside = _with_images(folder)
        if len(inside) != 1 or not _is_between(inside[0], part):
            break
        folder = inside[0]
        # Without its name, which may identify a person.
        images.decide("Folder", "one folder level skipped", "the only one with images", _count_images([folder]))
    return folder


def _is_between(folder: Folder, part: str | None) -> bool:
    """Return whether a folder only encloses class folders or parts, and is none itself."""
    inside = _with_images(folder)
    name = folder.own_name
    if folder.images or is_health(name) or is_finding(name) or (is_part(name) and part_of(name) != part):
        return False
    return not all(_only_contains(inner) for inner in inside)


def _take_parts(data: Path, here: Folder, images: FolderImages, *, resplit: bool) -> None:
    """Add the images of the folders of parts; raises DataError if there are other images beside them."""
    inside = _with_images(here)
    part_folders = [folder for folder in inside if is_part(folder.own_name)]
    for other in (folder for folder in inside if not is_part(folder.own_name)):
        if not _is_copy(other, part_folders):
            named = ", ".join(f"{folder.own_name}/" for folder in part_folders)
            raise DataError(
                f"{data} has parts of a split ({named}), and beside them {other.own_name}/ with images",
                "move it elsewhere, or give a CSV manifest (path,label,split)",
            )
        images.copies.add(other)
    parts = _parts_of(part_folders)
    if not resplit:
        _require_parts(data, parts)
        images.parts = []
        images.layout = "train, val and test folders, kept as they are"
    else:
        images.layout = "folders of parts, divided again"
        named = ", ".join(f"{folder.own_name}/" for folder in part_folders)
        images.decide("Parts", f"not kept: {named} are divided again", RESPLIT, _count_images(part_folders))
    for part in SPLITS:
        for folder in part_folders:
            if parts[folder] != part:
                continue
            if images.parts is not None and folder.own_name.casefold() != part:
                because = "its name" if part_of(folder.own_name) else "its name, and the part beside it"
                images.decide("Part", f"{folder.own_name}/ is {part}", because, _count_images([folder]))
            _take_part(data, folder, images, part, resplit=resplit)
    if images.parts is not None and VAL not in images.parts:
        images.layout = "train and test folders, kept as they are; val drawn from train"


def _take_part(data: Path, folder: Folder, images: FolderImages, part: str, *, resplit: bool) -> None:
    here = _entered(folder, images, part)
    inside = _with_images(here)
    if inside and not all(_only_contains(inner) for inner in inside):
        for inner in _class_folders(data, here, images):
            images.add(inner, part)
        return
    if not resplit:
        raise DataError(
            f"{folder.path} has {_count_images([here]):,} images, and no class folders: their labels are unknown",
            f"move them into class folders; or {DIVIDE_AGAIN} that have a label, and leaves these out",
        )


def _parts_of(folders: Sequence[Folder]) -> dict[Folder, str]:
    """Return the part of each folder; `evaluation` stands for whichever of test and val is missing."""
    parts = {folder: part_of(folder.own_name) for folder in folders}
    either = VAL if TEST in parts.values() else TEST
    return {folder: part or either for folder, part in parts.items()}


def _require_parts(data: Path, parts: dict[Folder, str]) -> None:
    missing = [part for part in (TRAIN, TEST) if part not in parts.values()]
    if missing:
        there = ", ".join(f"{folder.own_name}/" for folder in parts)
        raise DataError(
            f"{data} is split already ({there}), but has no {' and no '.join(f'{part}/' for part in missing)}",
            f"add what is missing; or {DIVIDE_AGAIN}",
        )


def _is_copy(folder: Folder, beside: Sequence[Folder]) -> bool:
    """Return whether a folder repeats the files beside it, as in the archive of the public paediatric set."""
    above = beside[0].name.removesuffix(beside[0].own_name)
    theirs = {image.removeprefix(above) for other in beside for image in other.all_images()}
    while True:
        if theirs == {image.removeprefix(f"{folder.name}/") for image in folder.all_images()}:
            return True
        inside = _with_images(folder)
        if folder.images or len(inside) != 1:
            return False
        (folder,) = inside


def _class_folders(data: Path, here: Folder, images: FolderImages) -> Sequence[Folder]:
    """Return the class folders: those in `here`, or the ones inside them if these are not classes."""
    inside = _with_images(here)
    for folder in inside:
        if is_part(folder.own_name) or _only_contains(folder):
            what = "a part of a split" if is_part(folder.own_name) else "any folder of images"
            raise DataError(
                f"{folder.path} is among the class folders, but is named like {what}",
                "rename it if it is a class, or move it elsewhere",
            )
    divided = [folder for folder in inside if any(is_part(inner.own_name) for inner in _with_images(folder))]
    named = any(is_health(folder.own_name) or is_finding(folder.own_name) for folder in inside)
    if divided and not named:
        raise DataError(
            f"{data} has several folders with parts of a split in them: "
            + ", ".join(f"{folder.own_name}/" for folder in divided),
            f"name one of them, as {quoted(str(divided[0].path))}",
        )
    if divided:
        parts = sorted({inner.own_name for folder in divided for inner in folder.folders if is_part(inner.own_name)})
        images.decide(
            "Parts",
            f"not kept: {', '.join(f'{name}/' for name in parts)} are divided again",
            "they are inside the class folders; a manifest with a split column keeps them",
            _count_images(divided),
        )
    inner = [folder for outer in inside for folder in _with_images(outer)]
    known = [folder for folder in inner if is_health(folder.own_name) or is_finding(folder.own_name)]
    around = not named and not any(folder.images for folder in inside)
    if around and len({class_key(folder.own_name) for folder in inner}) == 2 and len(known) * 2 >= len(inner):
        images.decide(
            "Classes",
            "folders one level deeper",
            f"{' and '.join(sorted({folder.own_name for folder in known}))} are classes by their names, those around "
            "them are not",
            _count_images(inner),
        )
        return inner
    # Including empty ones: a class without images is an error.
    return here.folders


def _unlabelled(data: Path, root: Folder, skipped: Counter[str]) -> DataError:
    n = _count_images([root])
    if not n:
        fact = f"no images in {data}"
        if skipped[A_STUDY]:
            fact = f"{fact}: it contains a study of chestx ({counted(skipped[A_STUDY], 'file')})"
        return DataError(fact, LAYOUT_HELP)
    return UnlabelledError(
        f"{data} has {counted(n, 'image')}, and no class folders: their labels are unknown",
        "put them into two class folders, or list them in a CSV manifest (path,label)",
    )


def _with_images(folder: Folder) -> list[Folder]:
    return [inner for inner in folder.folders if inner.has_images]


def _only_contains(folder: Folder) -> bool:
    """Return whether neither the name of a folder nor those below it contain a label, as in `images/PNG/`."""
    return all(is_container(inner.own_name) for inner in folder.below() if inner.has_images)


def _count_images(folders: Sequence[Folder]) -> int:
    return sum(len(inner.images) for folder in folders for inner in folder.below())
