"""Untrusted files: each bad one is refused with its own reason, at once, and nothing in it is executed."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEGBaseline8Bit

from chestx_cli.core.errors import ChestxError, DataError, IntegrityError, WeightsError
from chestx_cli.core.files import read_json
from chestx_cli.data.images.decoding import decode_grey
from chestx_cli.data.images.formats.dicom import read_dicom
from chestx_cli.data.images.formats.refusals import Reason, UnreadableImageError
from chestx_cli.data.sources.folders import read_folder
from chestx_cli.data.sources.listing import find_images
from chestx_cli.networks.backbones import BACKBONES
from chestx_cli.networks.weights.pretrained import load_weights
from chestx_cli.networks.weights.serialization import load_model_file
from chestx_cli.records.variant import BASELINE
from chestx_cli.store.directory import Study
from chestx_cli.store.split import parse_manifest
from conftest import Chestx, edit, write_images
from tools.reliability.bad_images import KINDS, content_of, radiograph

BIG_BOMBS = {"bomb of pixels", "bomb of scans", "bomb of text"}


@pytest.mark.parametrize("name", [name for name in KINDS if name not in BIG_BOMBS])
def test_every_kind_of_bad_image_is_refused_for_its_reason(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = kind.put(tmp_path)
    # Root reads what it likes; the harness takes that from it.
    if kind.reason is None or (kind.reason == Reason.NO_PERMISSION and os.geteuid() == 0):
        decode_grey(path)
        return
    started_s = time.perf_counter()
    with pytest.raises(UnreadableImageError) as refused:
        decode_grey(path)
    assert refused.value.reason == kind.reason
    assert time.perf_counter() - started_s < 10


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_upright_once(tmp_path: Path, form: str) -> None:
    pixels = np.zeros((24, 40), dtype=np.uint8)
    pixels[:12, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, form, exif=exif)
    grey, facts = decode_grey(path)
    assert (facts.width_px, facts.height_px) == (24, 40)
    bright = np.asarray(grey) > 128
    # What lay in the upper left is now in the upper right.
    assert bright[2:18, 14:22].all()
    assert not bright[22:, :].any()


def _jpeg_of_many_scans() -> bytes:
    content = content_of(Image.new("L", (3000, 3000), 77), "JPEG", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * 120 + content[-2:]


def _tiff(compression: str | None, pages: int = 1) -> bytes:
    more = [radiograph() for _ in range(pages - 1)]
    return content_of(radiograph(), "TIFF", compression=compression, save_all=pages > 1, append_images=more)


def _animated_png() -> bytes:
    return content_of(radiograph(), "PNG", save_all=True, append_images=[radiograph().rotate(90)])


def _run_length_bmp() -> bytes:
    whole = bytearray(content_of(radiograph(), "BMP"))
    whole[30:34] = (1).to_bytes(4, "little")
    return bytes(whole)


COSTLY: dict[str, tuple[Callable[[], bytes], Reason]] = {
    "scans": (_jpeg_of_many_scans, Reason.TOO_LARGE),
    "pages": (lambda: _tiff(None, pages=2), Reason.SEVERAL_IMAGES),
    "JPEG in TIFF": (lambda: _tiff("jpeg"), Reason.UNSUPPORTED),
    "animated PNG": (_animated_png, Reason.SEVERAL_IMAGES),
    "run-length BMP": (_run_length_bmp, Reason.UNSUPPORTED),
    "floating point": (lambda: content_of(radiograph().convert("F"), "TIFF"), Reason.UNSUPPORTED),
    "GIF": (lambda: content_of(radiograph(), "GIF"), Reason.WRONG_FORMAT),
    "PostScript": (lambda: content_of(radiograph(), "EPS"), Reason.WRONG_FORMAT),
}


@pytest.mark.parametrize("name", COSTLY)
def test_what_would_cost_or_is_not_meant_is_refused_before_it_is_decoded(name: str, tmp_path: Path) -> None:
    make, reason = COSTLY[name]
    (tmp_path / "a.png").write_bytes(make())
    with pytest.raises(UnreadableImageError) as refused:
        decode_grey(tmp_path / "a.png")
    assert refused.value.reason == reason


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chestx_cli.data.images.places.MAX_FILE_BYTES", 100)
    (tmp_path / "a.png").write_bytes(content_of(radiograph()))
    with pytest.raises(UnreadableImageError, match="too-large: larger than"):
        decode_grey(tmp_path / "a.png")


def _dicom(syntax: str, pixels: bytes | np.ndarray, side_px: int) -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = UID("1.2.3")
    dataset.Rows = dataset.Columns = side_px
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = pixels if isinstance(pixels, bytes) else pixels.tobytes()
    dataset["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_dicom_frames_are_jpeg_of_the_size_told_and_nothing_is_inflated_unseen() -> None:
    jpeg, larger, script = (
        _dicom(JPEGBaseline8Bit, encapsulate([frame]), 96)
        for frame in (
            content_of(radiograph(), "JPEG"),
            content_of(radiograph(128), "JPEG"),
            content_of(radiograph(), "EPS"),
        )
    )
    assert read_dicom(jpeg).pixels.shape == (96, 96)
    for content, reason in (
        (larger, Reason.DAMAGED),
        (script, Reason.DAMAGED),
        (_dicom(DeflatedExplicitVRLittleEndian, bytes(96 * 96), 96), Reason.UNSUPPORTED),
        (_dicom(ExplicitVRLittleEndian, bytes(50), 96), Reason.DAMAGED),
    ):
        with pytest.raises(UnreadableImageError) as refused:
            read_dicom(content)
        assert refused.value.reason == reason


@pytest.fixture
def deep() -> Iterator[Path]:
    """A folder nested deeper than Python recurses, and longer than a path may be."""
    # Not in tmp_path, which pytest clears by recursion.
    outermost = Path(tempfile.mkdtemp(prefix="chestx-deep-"))
    here = os.open(outermost, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    yield outermost
    subprocess.run(["rm", "-rf", outermost], check=True)


def test_folders_that_lie_in_themselves_and_deep_ones_are_listed_once(deep: Path) -> None:
    (deep / "b").mkdir()
    (deep / "x.png").touch()
    (deep / "b" / "back").symlink_to(deep)
    (deep / "folder.png").mkdir()
    assert list(read_folder(deep, leave_out=deep / "s")[0].all_images()) == ["folder.png", "x.png"]
    assert (deep / "d").is_dir()


def test_names_that_no_file_can_have_are_bad_rows(tmp_path: Path) -> None:
    for name in ("a\0b.png", "a" * 300 + ".png"):
        with pytest.raises(UnreadableImageError) as refused:
            decode_grey(tmp_path / name)
        assert refused.value.reason == Reason.BAD_NAME


def test_refused_images_are_counted_by_code(chestx: Chestx, finished: Path, tmp_path: Path) -> None:
    others = write_images(tmp_path / "others", first=5000)
    for index, name in enumerate(("empty", "FIFO", "non-UTF-8 name")):
        (tmp_path / str(index)).mkdir()
        path = KINDS[name].put(tmp_path / str(index))
        path.rename(others / "NORMAL" / path.name.replace("00009999_000", f"IM-990{index}-0001"))
    study = tmp_path / "study"
    shutil.copytree(finished, study)
    outcome = chestx("evaluate", "baseline", "--study", study, "--data", others)
    assert outcome.code == 0, outcome.err
    said = " ".join((outcome.out + outcome.err).split())
    assert "3 images could not be read and are left out (1 bad-name, 1 empty, 1 not-a-file)" in said
    outcome = chestx("split", others, "--study", tmp_path / "s")
    assert outcome.code == 1
    assert "empty: the file has no bytes" in outcome.err
    assert "not-a-file: not a regular file" in outcome.err


def test_a_manifest_with_more_fields_than_its_heading_is_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,label\na,b.png,NORMAL\n")
    with pytest.raises(DataError, match="cannot read manifest"):
        find_images(manifest, leave_out=tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("NORMAL,", "STRANGE,", 1),
        lambda text: text.replace("train", "trains", 1),
        lambda text: text.replace("image_id", "image", 1),
        lambda text: text + '"',
        lambda text: text.replace(",", ";"),
    ],
)
def test_a_damaged_manifest_of_a_split_is_told(finished: Path, change: Callable[[str], str]) -> None:
    content = change((finished / "split.csv").read_text()).encode()
    with pytest.raises(IntegrityError, match="split"):
        parse_manifest(content, root=finished, classes=("NORMAL", "PNEUMONIA"), positive="PNEUMONIA")


@pytest.mark.parametrize("content", ["[" * 5000, '{"a": NaN}', '{"a": 1e999}', "{", '"\\', b"\xff"])
def test_json_is_strict(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"."):
        read_json(path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("schema", "chestx.variant/99", "was made by a newer chestx (schema chestx.variant/99); update chestx"),
        ("schema", "chestx.variant/0", "was made by an older chestx (schema chestx.variant/0)"),
        ("schema", "chestx.variant/2/..", "is no chestx.variant record"),
        ("preprocessing", {"version": 99}, "was made by a newer chestx (preprocessing 99); update chestx"),
        (
            "preprocessing",
            {"version": 1},
            "was made by an older chestx (preprocessing 1); run the command that made it",
        ),
        ("preprocessing", {"image_size_px": 10**9}, "damaged at preprocessing"),
        ("model_file", "../../../../etc/passwd", "damaged at model_file"),
        ("model_file", "model.onnx", "is damaged: a torch variant whose file is model.onnx"),
        ("threshold", 7, "is damaged at threshold: "),
        ("temperature", 0, "is damaged at temperature: "),
        ("positive", "A", "is damaged: the classes NORMAL, PNEUMONIA, of which A is positive"),
        ("backbone", "strange", "unknown backbone"),
        ("classes", ["A", "PNEUMONIA"], "has other classes"),
    ],
)
def test_a_variant_that_cannot_be_is_refused(study: Path, key: str, value: object, said: str) -> None:
    def change(content: bytes) -> bytes:
        document = json.loads(content)
        document[key] = {**document[key], **value} if isinstance(value, dict) else value
        return json.dumps(document).encode()

    edit(study / "variants" / BASELINE / "variant.json", change)
    place = Study(study)
    with pytest.raises(ChestxError) as refused:
        record = place.read_usable_variant(BASELINE, place.read_split())
        load_model_file(place.variant(BASELINE) / record.model_file, record.backbone, 2)
    assert said in str(refused.value)


def test_a_pixel_cache_that_is_another_file_is_made_again(chestx: Chestx, study: Path) -> None:
    (cache,) = (study / "cache").glob("*.npy")
    archive = io.BytesIO()
    np.savez(archive, a=np.zeros(3))
    edit(cache, lambda _: archive.getvalue())
    outcome = chestx("sensitivity", "--study", study, "--amounts", "0.5", "--layers", "conv1")
    assert "is damaged; rebuilding it" in outcome.err
    assert outcome.code == 0


def test_compressed_and_unsafely_read_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = BACKBONES["tiny"].build()
    path = tmp_path / "w.pth"
    torch.save(network.state_dict(), path)
    assert load_weights(network, path, "fc").dropped == ()
    with zipfile.ZipFile(path) as stored:
        records = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in records.items():
            packed.writestr(name, content)
    with pytest.raises(WeightsError, match="compressed"):
        load_weights(network, path, "fc")
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    with pytest.raises(WeightsError, match=r"2\.13 can"):
        load_weights(network, path, "fc")


def test_weights_must_be_dense_and_finite(tmp_path: Path) -> None:
    network = BACKBONES["tiny"].build()
    for change in (
        lambda weight: weight.to_sparse(),
        lambda weight: weight.to(torch.complex64),
        lambda weight: torch.full_like(weight, float("inf")),
        lambda weight: weight.int(),
    ):
        state = network.state_dict()
        torch.save({**state, "conv1.weight": change(state["conv1.weight"])}, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=r"conv1\.weight"):
            load_weights(network, tmp_path / "w.pth", "fc")


def test_a_network_whose_widths_do_not_fit_is_refused(study: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = study / "variants" / BASELINE / "model.safetensors"
    tensors = load_file(path)
    tensors["bn1.weight"] = tensors["bn1.weight"][:3].clone()
    tensors["bn1.bias"] = tensors["bn1.bias"][:3].clone()
    for name in ("running_mean", "running_var"):
        tensors[f"bn1.{name}"] = tensors[f"bn1.{name}"][:3].clone()
    save_file(tensors, study / "bad.safetensors")
    with pytest.raises(IntegrityError, match="does not fit tiny"):
        load_model_file(study / "bad.safetensors", "tiny", 2)


def test_static_int8_files_are_valid_onnx(chestx: Chestx, study: Path) -> None:
    assert chestx("quantize", "--study", study, "--method", "static").code == 0
    onnx.checker.check_model(str(study / "variants" / "static-int8" / "model.onnx"))
