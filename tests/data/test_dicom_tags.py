"""DICOM files as found in practice: empty elements, contradictions, padding, syntaxes without a decoder."""

from __future__ import annotations

import ast
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import JPEGLosslessSV1

import chestx_cli
from chestx_cli.data.images.decoding import decode_grey
from chestx_cli.data.images.formats import dicom_frames
from chestx_cli.data.images.formats.dicom import read_dicom, read_patient
from chestx_cli.data.images.formats.readings import MEANINGS, Reading
from chestx_cli.data.images.formats.refusals import Reason, UnreadableImageError
from chestx_cli.records.preprocessing import Preprocessing
from conftest import Chestx, write_images
from support.dicom_files import without_decoders
from tools.reliability.dicom_matrix import ABSENT, EXPLICIT, JPEG_LOSSLESS_1, JPEG_LS, dicom, table
from tools.reliability.encoders import jpeg_frame, lossless_jpeg

SOURCE = Path(chestx_cli.__file__).parent
WINDOW: dict[str, Any] = {"WindowCenter": 900, "WindowWidth": 300}
RESCALED: dict[str, Any] = {"RescaleSlope": 2, "RescaleIntercept": 5}
FILM = np.random.default_rng(4).integers(0, 4096, (40, 48)).astype(np.uint16)
PLAIN: dict[str, Any] = {"BitsStored": 12, "HighBit": 11}
# Elements without which an image means nothing; all others that are read are optional.
REQUIRED = {
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "PixelData",
}
PALETTE = {
    f"{colour}PaletteColorLookupTable{what}" for colour in ("Red", "Green", "Blue") for what in ("Descriptor", "Data")
}
# Of colours alone.
COLOUR = {"PlanarConfiguration", *PALETTE}
IN_TABLES = {"LUTDescriptor", "LUTData"}
# Of items of a sequence, where they may be absent.
IN_ITEMS = {"LUTExplanation", "CodeValue"}
IN_META = {"TransferSyntaxUID", "MediaStorageSOPClassUID"}
OPTIONAL = {
    "FloatPixelData",
    "DoubleFloatPixelData",
    "NumberOfFrames",
    "HighBit",
    "PatientID",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "WindowCenterWidthExplanation",
    "Modality",
    "BodyPartExamined",
    "ViewPosition",
    "ViewCodeSequence",
    "PatientOrientation",
    "PresentationIntentType",
    "PresentationLUTShape",
    "PixelIntensityRelationshipSign",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
}


def pixels(**elements: Any) -> np.ndarray:
    """Return the greys of a film with these elements more."""
    return read_dicom(dicom(FILM, **{**PLAIN, **elements})).pixels


def test_all_elements_that_are_read_are_known_here() -> None:
    named = set()
    for path in (SOURCE / "data" / "images" / "formats").glob("dicom*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            texts = [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []
            texts += [node.attr] if isinstance(node, ast.Attribute) else []
            named |= {text for text in texts if text and tag_for_keyword(text) is not None}
    built = {name for name in named if name.startswith("MediaStorage")} | PALETTE
    assert named | built == REQUIRED | COLOUR | IN_TABLES | IN_ITEMS | IN_META | OPTIONAL


@pytest.mark.parametrize("keyword", sorted(OPTIONAL))
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_an_empty_element_is_an_absent_one(keyword: str, photometric: str) -> None:
    absent: dict[str, Any] = {"HighBit": ABSENT} if keyword == "HighBit" else {}
    empty: dict[str, Any] = {keyword: None}
    plain = read_dicom(dicom(FILM, **{**PLAIN, **absent}, PhotometricInterpretation=photometric))
    found = read_dicom(dicom(FILM, **{**PLAIN, **empty}, PhotometricInterpretation=photometric))
    assert np.array_equal(found.pixels, plain.pixels)
    assert (found.readings, found.patient, found.mode) == (plain.readings, plain.patient, plain.mode)


@pytest.mark.parametrize(
    ("given", "same_as"),
    [
        ({"WindowCenter": None, "WindowWidth": None}, {}),
        ({"WindowCenter": 900, "WindowWidth": None}, {}),
        ({"WindowCenter": None, "WindowWidth": 300}, {}),
        ({"WindowCenter": ("DS", ["", "900"]), "WindowWidth": ("DS", ["", "300"])}, WINDOW),
        ({**WINDOW, "VOILUTFunction": None}, WINDOW),
        ({"RescaleSlope": 2, "RescaleIntercept": None}, {"RescaleSlope": 2, "RescaleIntercept": 0}),
        ({"RescaleSlope": None, "RescaleIntercept": None, **WINDOW}, WINDOW),
        ({"VOILUTSequence": ("SQ", [])}, {}),
        ({"VOILUTSequence": ("SQ", [Dataset()])}, {}),
        ({"VOILUTSequence": ("SQ", [Dataset()]), **WINDOW}, WINDOW),
        ({"ModalityLUTSequence": ("SQ", [])}, {}),
        ({"ModalityLUTSequence": ("SQ", [Dataset()]), **RESCALED}, RESCALED),
        ({"PixelPaddingValue": None, "PixelPaddingRangeLimit": 30}, {}),
        ({"PixelPaddingValue": 30, "PixelPaddingRangeLimit": None}, {"PixelPaddingValue": 30}),
    ],
)
def test_what_is_half_empty_is_what_is_left(given: dict[str, Any], same_as: dict[str, Any]) -> None:
    assert np.array_equal(pixels(**given), pixels(**same_as))


@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("missing", sorted(IN_TABLES))
@pytest.mark.parametrize("state", ["absent", "empty"])
def test_a_table_without_content_is_none(keyword: str, missing: str, state: str) -> None:
    (item,) = table(list(range(256)) * 16)
    if state == "absent":
        delattr(item, missing)
    else:
        item[missing].value = None
    given: dict[str, Any] = {keyword: ("SQ", [item])}
    assert np.array_equal(pixels(**given), pixels())


@pytest.mark.parametrize("keyword", sorted(REQUIRED - {"PixelData"}))
@pytest.mark.parametrize("state", [None, ABSENT])
def test_what_an_image_cannot_be_without_is_named(keyword: str, state: object) -> None:
    changed: dict[str, Any] = {keyword: state}
    with pytest.raises(UnreadableImageError) as refused:
        pixels(**changed)
    assert str(refused.value) == f"damaged: it lacks {keyword}"


def test_a_file_without_transfer_syntax_is_read_as_it_is_encoded() -> None:
    whole = dicom(FILM, **PLAIN)
    dataset = dcmread(io.BytesIO(whole))
    for value in (None, ABSENT):
        if value is ABSENT:
            del dataset.file_meta.TransferSyntaxUID
        else:
            dataset.file_meta["TransferSyntaxUID"].value = None
        buffer = io.BytesIO()
        dataset.save_as(buffer, implicit_vr=False, little_endian=True)
        assert np.array_equal(read_dicom(buffer.getvalue()).pixels, read_dicom(whole).pixels)


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"WindowCenter": ("LO", "middle"), "WindowWidth": 4}, "damaged: its WindowCenter is not a number"),
        ({"WindowCenter": 5, "WindowWidth": ("FD", float("nan"))}, "damaged: its WindowWidth is not a finite number"),
        ({"PixelPaddingValue": ("LO", "none")}, "damaged: its PixelPaddingValue is not a number"),
        ({"VOILUTSequence": ("SQ", table([1, 2, 3], bits=99))}, "damaged: the LUTDescriptor of its VOILUTSequence"),
        ({"BitsStored": 20}, "damaged: its BitsStored is 20, of 16 bits allocated"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11"}, "no-image: it has no image: a DICOM object of the class"),
        ({"PixelData": ABSENT}, "no-image: it has no image: no PixelData"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(elements: dict[str, Any], said: str) -> None:
    with pytest.raises(UnreadableImageError) as refused:
        pixels(**elements)
    assert str(refused.value).startswith(said)


def test_no_text_of_an_exception_is_a_reason() -> None:
    """Walk the source: no refusal of an image is made with a caught error's text."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        for handler in [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ExceptHandler)]:
            raised = [
                node
                for statement in handler.body
                for node in ast.walk(statement)
                if isinstance(node, ast.Call)
                and getattr(node.func, "id", "") in ("UnreadableImageError", "_unsupported")
            ]
            found += [
                f"{path.name}:{call.lineno}"
                for call in raised
                if any(isinstance(node, ast.Name) and node.id == handler.name for node in ast.walk(call))
            ]
    # A bundle's script has no codes; it passes on what the system itself says of a file, and nothing else.
    assert [place for place in found if not place.startswith("chestx_bundle.py")] == []
    script = (SOURCE / "inference" / "device" / "chestx_bundle.py").read_text()
    assert re.findall(r"UnreadableImageError\([^)]*error[^)]*\)", script) == [
        'UnreadableImageError(error.strerror or "the system cannot read it")',
        # A reason of chestx's own, from the module that reads images.
        "UnreadableImageError(error.detail)",
    ]


def test_a_decoder_that_raises_anything_gives_a_reason_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TypeError("unsupported operand type(s) for *: 'float' and 'NoneType'")

    path = tmp_path / "a"
    path.write_bytes(dicom(FILM, **PLAIN))
    monkeypatch.setattr("pydicom.pixels.utils.pixel_array", fail)
    with pytest.raises(UnreadableImageError) as refused:
        decode_grey(path)
    assert str(refused.value) == "damaged: its pixel data are cut or broken"
    Image.fromarray(FILM.astype(np.uint8)).save(path, "PNG")
    monkeypatch.setattr("PIL.Image.Image.getexif", fail)
    with pytest.raises(UnreadableImageError) as refused:
        decode_grey(path)
    assert str(refused.value) == "damaged: it is cut or broken"


SIGN = "PixelIntensityRelationshipSign"


@pytest.mark.parametrize(
    ("elements", "readings"),
    [
        ({"PhotometricInterpretation": "MONOCHROME1"}, [Reading.MONOCHROME1]),
        ({"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}, [Reading.MONOCHROME1]),
        (
            {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"},
            [Reading.MONOCHROME1, Reading.MONOCHROME1_IDENTITY],
        ),
        ({"PresentationLUTShape": "IDENTITY"}, []),
        ({"PresentationLUTShape": "INVERSE"}, [Reading.MONOCHROME2_INVERSE]),
        ({SIGN: -1}, []),
        ({SIGN: 1}, [Reading.MONOCHROME2_SIGN]),
        ({SIGN: 1, "RescaleSlope": -1, "RescaleIntercept": 0}, []),
        ({"PhotometricInterpretation": "MONOCHROME1", SIGN: 1}, [Reading.MONOCHROME1]),
        ({"PhotometricInterpretation": "MONOCHROME1", SIGN: -1}, [Reading.MONOCHROME1, Reading.MONOCHROME1_SIGN]),
        ({SIGN: 1, "VOILUTSequence": ("SQ", table(list(range(255, -1, -1)) * 16))}, []),
    ],
)
def test_polarity_is_that_of_the_photometric_interpretation_and_conflicts_are_found(
    elements: dict[str, Any], readings: list[Reading]
) -> None:
    found = read_dicom(dicom(FILM, **{**PLAIN, **elements}))
    about = [one for one in found.readings if MEANINGS[one].matter == "Polarity"]
    assert about == readings


def test_every_reading_has_a_meaning() -> None:
    assert set(MEANINGS) == set(Reading)
    assert len({(one.taken_as, one.because) for one in MEANINGS.values()}) == len(Reading)


def to_dicom(data: Path, elements_of: Callable[[int, Path], dict[str, Any]]) -> Path:
    """Turn a folder of images into DICOM of 12 bits, each with its own elements more."""
    for index, path in enumerate(sorted(data.rglob("*.png"))):
        values = np.asarray(Image.open(path)).astype(np.uint16) * 16
        extra = elements_of(index, path)
        path.with_suffix(".dcm").write_bytes(dicom(values, **{**PLAIN, "PatientID": f"P{index}", **extra}))
        path.unlink()
    return data


def test_empty_windows_are_neither_copies_of_each_other_nor_one_grey(chestx: Chestx, tmp_path: Path) -> None:
    data = to_dicom(
        write_images(tmp_path / "data"),
        lambda index, _: {"WindowCenter": None, "WindowWidth": None} if index % 3 == 0 else {},
    )
    record = chestx("split", data, "--study", tmp_path / "s", "--image-size", 40, "--json").json()
    assert (record["images"], record["patients"]) == (60, 60)
    assert [row["pairs"] for row in record["audit"]["duplicates"]] == [0, 0, 0]
    (cache,) = (tmp_path / "s" / "cache").glob("*.npy")
    assert all(grey.std() > 10 for grey in np.load(cache))


def test_what_was_taken_is_in_the_table_and_in_json(chestx: Chestx, tmp_path: Path) -> None:
    def elements(index: int, path: Path) -> dict[str, Any]:
        of_class: dict[str, Any] = {"PhotometricInterpretation": "MONOCHROME1"} if path.parent.name == "NORMAL" else {}
        if index % 4 == 0:
            of_class["PresentationLUTShape"] = "IDENTITY" if of_class else "INVERSE"
        return {**of_class, "PixelPaddingValue": 0} if index < 10 else of_class

    data = to_dicom(write_images(tmp_path / "data"), elements)
    outcome = chestx("split", data, "--study", tmp_path / "s", "--json")
    rows = {row["because"]: (row["matter"], row["images"]) for row in outcome.json()["taken"]}
    assert rows["DICOM with MONOCHROME1"] == ("Polarity", 32)
    assert rows["conflict: MONOCHROME1 with PresentationLUTShape IDENTITY"] == ("Polarity", 8)
    assert rows["conflict: MONOCHROME2 with PresentationLUTShape INVERSE"] == ("Polarity", 7)
    assert rows["DICOM without a window or table"] == ("Shown values", 60)
    shown = chestx("split", data, "--study", tmp_path / "s", "--full").out
    for because, (_, images) in rows.items():
        assert re.search(rf"{re.escape(because)} +{images}\b", shown), because
    assert (
        chestx("train", data, "--study", tmp_path / "s", "--backbone", "tiny", "--weights", "none", "--epochs", 1).code
        == 0
    )
    assert chestx("report", "--study", tmp_path / "s").code == 0
    assert "conflict: MONOCHROME2 with PresentationLUTShape INVERSE" in (tmp_path / "s/report/report.md").read_text()


LOSSLESS = dicom(FILM, syntax=JPEG_LOSSLESS_1, frame=lossless_jpeg(FILM, 12), **PLAIN)


def test_a_syntax_without_decoder_is_named_with_the_package_and_counted(
    chestx: Chestx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_decoders(monkeypatch, JPEG_LOSSLESS_1, JPEG_LS)
    data = write_images(tmp_path / "data")
    frame = jpeg_frame(0xF7, bits=12, width=48, height=40)
    for index in range(12):
        (data / "NORMAL" / f"IM-{900 + index}-0001.dcm").write_bytes(LOSSLESS)
    for index in range(5):
        content = dicom(FILM, syntax=JPEG_LS, frame=frame, **PLAIN)
        (data / "PNEUMONIA" / f"person{900 + index}_virus_1.dcm").write_bytes(content)
    outcome = chestx("split", data, "--study", tmp_path / "s")
    assert outcome.code == 1
    lines = outcome.err.splitlines()
    assert lines[0] == "error: 17 images cannot be read:"
    assert lines[1].startswith(
        "  12 images, NORMAL/IM-900-0001.dcm, NORMAL/IM-901-0001.dcm, NORMAL/IM-902-0001.dcm and 9 "
    )
    assert lines[1].endswith(
        "more: unsupported: DICOM compressed as JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 "
        "[Selection Value 1]) (1.2.840.10008.1.2.4.70); install python-gdcm, or save it without compression"
    )
    assert lines[2].startswith("  5 images, PNEUMONIA/person900_virus_1.dcm, ")
    assert "JPEG-LS Lossless Image Compression (1.2.840.10008.1.2.4.80); install python-gdcm" in lines[2]
    assert "BytesIO" not in outcome.err
    record = chestx("split", data, "--study", tmp_path / "s", "--skip-bad", "--json").json()
    assert [(row["code"], row["images"]) for row in record["refusals"]] == [("unsupported", 12), ("unsupported", 5)]
    assert record["refusals"][0]["first"] == "NORMAL/IM-900-0001.dcm"
    assert len(record["bad_images"]) == 17
    shown = chestx("split", data, "--study", tmp_path / "s", "--skip-bad", "--full").out
    assert shown.count("DICOM compressed as JPEG Lossless, Non-Hierarchical") == 1
    assert "IM-905" not in shown


def test_packages_that_are_proposed_are_free_to_use() -> None:
    assert not [path for path in SOURCE.rglob("*.py") if "pylibjpeg-libjpeg" in path.read_text()]


def test_a_decoder_that_is_installed_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that pydicom finds is enough: nothing of chestx knows it."""
    package = ModuleType("made_up_decoder")
    package.is_available = lambda _uid: True  # type: ignore[attr-defined]
    package.decode = lambda _frame, _runner: FILM.tobytes()  # type: ignore[attr-defined]
    package.DECODER_DEPENDENCIES = {JPEGLosslessSV1: ("made-up",)}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_up_decoder", package)
    decoder = get_decoder(JPEGLosslessSV1)
    without_decoders(monkeypatch, JPEGLosslessSV1)
    with pytest.raises(UnreadableImageError, match="unsupported"):
        read_dicom(LOSSLESS)
    decoder.add_plugin("made-up", ("made_up_decoder", "decode"))
    assert np.array_equal(read_dicom(LOSSLESS).pixels, pixels())


def test_a_frame_is_held_to_its_header_whatever_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_frames, "_require_decoder", lambda _: None)
    for frame, said in (
        (lossless_jpeg(FILM[:-1], 12), "its frame has 48×39 pixels"),
        (jpeg_frame(0xF7, bits=12, width=48, height=40, components=3), "its frame has 3 components"),
        (lossless_jpeg(FILM, 12) + b"\xff\xda" * 600_000, "too many JPEG scans"),
        (b"no frame", "not a JPEG"),
    ):
        with pytest.raises(UnreadableImageError, match=said):
            read_dicom(dicom(FILM, syntax=JPEG_LOSSLESS_1, frame=frame, **PLAIN))


def test_jpeg_lossless_is_read_where_gdcm_is_installed() -> None:
    pytest.importorskip("gdcm")
    assert np.array_equal(read_dicom(LOSSLESS).pixels, pixels())


def test_jpeg_ls_is_read_where_a_decoder_is_installed() -> None:
    frame = pytest.importorskip("jpeg_ls").encode_array(FILM)
    assert np.array_equal(read_dicom(dicom(FILM, syntax=JPEG_LS, frame=bytes(frame), **PLAIN)).pixels, pixels())


def test_padding_is_background_for_preprocessing_3_alone() -> None:
    framed = FILM.copy()
    framed[:5] = 4095
    content = dicom(framed, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=4095, **PLAIN)
    assert (read_dicom(content).pixels[:5] == 0).all()
    ranged = dicom(framed, PixelPaddingValue=4095, PixelPaddingRangeLimit=4000, **PLAIN)
    assert (read_dicom(ranged).pixels[:5] == 0).all()
    assert (read_dicom(ranged, legacy=True).pixels[:5] == 255).all()
    assert Reading.PADDING in read_dicom(ranged).readings


def test_two_patients_of_one_identifier_each_stay_two(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    for told, expected in (("A", "A"), (["A", "B"], "A\\B"), ("  ", None), ("", None)):
        path.write_bytes(dicom(FILM, **PLAIN, PatientID=("LO", told)))
        assert read_patient(path) == read_dicom(path.read_bytes()).patient == expected


def test_the_tags_of_the_matrix_are_written_as_asked() -> None:
    dataset = dcmread(io.BytesIO(dicom(FILM, syntax=EXPLICIT, **PLAIN, WindowCenter=None)))
    assert "WindowCenter" in dataset
    assert dataset.WindowCenter is None
    assert keyword_for_tag(0x00281050) == "WindowCenter"


@pytest.mark.parametrize("values", [FILM, np.zeros((40, 48), dtype=np.uint16)])
def test_preprocessing_2_takes_an_image_of_one_grey(values: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom(values, **PLAIN))
    assert decode_grey(path, Preprocessing(version=2))[0].size == (48, 40)
    if not values.any():
        with pytest.raises(UnreadableImageError) as refused:
            decode_grey(path)
        assert refused.value.reason == Reason.ONE_GREY
