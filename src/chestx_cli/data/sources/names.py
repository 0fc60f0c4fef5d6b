"""The meaning of names of folders, classes and patients in data sets without other information."""

from __future__ import annotations

import itertools
import re
import unicodedata
from pathlib import PurePosixPath

from chestx_cli.records.split import TEST, TRAIN, VAL


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PARTS = {
    **dict.fromkeys(("train", "training", "trainset", "traindata", "trainval", "trn"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "validate", "valset", "validset", "dev", "devset", "tuning"), VAL),
    **dict.fromkeys(("test", "tests", "testing", "testset", "testdata", "tst", "holdout"), TEST),
}
# Ambiguous: the names beside it decide.
_EITHER_PART = frozenset({"eval", "evaluation", "evalset"})
# Filler words that do not change the meaning of a folder's name, as in `train_images` or `Lung masks`.
_FILLERS = _words(
    "set data dataset images image imgs img split folder part subset xray xrays x ray rays cxr chest png jpg jpeg "
    "dicom dcm tif tiff file files"
)
_CONTAINERS = _FILLERS | _words("all raw original originals films film scans pictures photos")
_MASKS = _words(
    "mask masks segmentation segmentations seg segs segm annotation annotations annot annots contour contours overlay "
    "overlays heatmap heatmaps bbox bboxes groundtruth gt label labels"
)
_MASK_FILLERS = (
    _FILLERS
    | _words("lung lungs heart infection lesion lesions left right manual binary pred predicted")
    | _PARTS.keys()
)
_MASK_FILE = re.compile(
    r"(.+?)[ _.-]+(?:(?:lungs?|left|right|infection)[ _.-]*)?"
    r"(?:masks?|seg|segm|segmentation|labels?|annotation|contour|overlay|gt)\d*"
)
_SYSTEM_FOLDERS = frozenset(
    {
        "__macosx",
        "@eadir",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "__pycache__",
        "thumbnails",
        "thumbs",
    }
)
_HEALTH = _words("normal normals healthy negative neg control controls uninfected unaffected unremarkable")
# Names of the healthy class where there is no other evidence.
_HEALTH_ALONE = _words("0 no none false absent absence clear clean health nothing n f nl")
_NEGATIONS = _words("no non not without")
_FINDINGS = _words(
    "pneumonia covid covid19 tuberculosis tb opacity opacities effusion cardiomegaly nodule nodules mass atelectasis "
    "infiltration consolidation edema abnormal positive pos infected sick disease diseased viral virus bacterial "
    "bacteria cancer malignant"
)
_CLASS_FILLERS = _FILLERS | _words("class label target lung lungs patient patients case cases the")
# Values of PatientID after its removal, reduced to letters and digits.
_NOBODY = _words(
    "anonymous anonymized anonymised anonym anon unknown unk none na nan null nil nobody noid noname removed deleted "
    "redacted deidentified private hidden test testpatient patient patientid default empty undefined notavailable "
    "notprovided dummy"
)


def words_of(name: str) -> tuple[str, ...]:
    """Return the words and numbers of a name in lower case, `TrainImages_2` as train, images, 2."""
    return tuple(re.findall(r"[^\W\d_]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", _plain(name)).casefold()))


def _plain(name: str) -> str:
    return unicodedata.normalize("NFKC", name)


def _said(name: str, fillers: frozenset[str]) -> str:
    """Return a name without filler words and numbers, as one word."""
    return "".join(word for word in words_of(name) if word not in fillers and not word.isdigit())


def part_of(name: str) -> str | None:
    """Return the part of a split (train, val or test) that a name means; None for another name."""
    return _PARTS.get(_said(name, _FILLERS))


def may_be_val_or_test(name: str) -> bool:
    """Return whether a name means the validation or the test part, depending on the names beside it."""
    return _said(name, _FILLERS) in _EITHER_PART


def is_part(name: str) -> bool:
    """Return whether a folder name means a part of a split and not a class."""
    return part_of(name) is not None or may_be_val_or_test(name)


def is_container(name: str) -> bool:
    """Return whether a folder name means only that it contains images."""
    words = words_of(name)
    return bool(words) and all(word in _CONTAINERS or word.isdigit() for word in words) and not name.isdigit()


def holds_masks(name: str) -> bool:
    """Return whether a folder name means masks, labels or the like, and not radiographs."""
    words = " ".join(words_of(name)).replace("ground truth", "groundtruth").split()
    return any(word in _MASKS for word in words) and all(
        word in _MASKS or word in _MASK_FILLERS or word.isdigit() for word in words
    )


def masked_film(name: str) -> str | None:
    """Return the stem of the image that a mask file belongs to, as `a` for `a_mask.png`; None for other files."""
    match = _MASK_FILE.fullmatch(PurePosixPath(name).stem.casefold())
    return match[1] if match else None


def is_of_the_system(name: str) -> bool:
    """Return whether a folder was created by the system or an archive tool and contains nothing of the user."""
    return name.casefold() in _SYSTEM_FOLDERS


def class_key(name: str) -> str:
    """Return the normal form of a class name, without case, spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]+", " ", _plain(name)).strip().casefold()


def is_health(name: str) -> bool:
    """Return whether a class name means the absence of disease."""
    words = [word for word in words_of(name) if word not in _CLASS_FILLERS]
    if not words or _denied_health(words):
        return False
    if words[0] in _NEGATIONS and len(words) > 1:
        return True
    return any(word in _HEALTH for word in words) or "".join(words) in _HEALTH_ALONE | {"nofinding", "nofindings"}


def is_finding(name: str) -> bool:
    """Return whether a class name means a disease or a finding."""
    words = words_of(name)
    return not is_health(name) and (any(word in _FINDINGS for word in words) or _denied_health(words))


def _denied_health(words: tuple[str, ...] | list[str]) -> bool:
    return any(before in _NEGATIONS and word in _HEALTH for before, word in itertools.pairwise(words))


def is_nobody(patient: str) -> bool:
    """Return whether a patient identifier is a placeholder for a removed one."""
    key = "".join(character for character in _plain(patient).casefold() if character.isalnum())
    return key in _NOBODY or not key.strip("0") or not key.strip("x")
