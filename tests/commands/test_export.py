"""`chestx export`: a bundle predicts like its variant and contains nothing about the machine or patients."""

from __future__ import annotations

import dataclasses
import getpass
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zstandard
from PIL import Image

from chestx_cli.data.images.decoding import at_network_size, decode_grey, refuse_mask
from chestx_cli.data.images.formats.refusals import UnreadableImageError
from chestx_cli.inference.bundles import SCRIPT
from chestx_cli.inference.device import chestx_bundle
from chestx_cli.records.benchmark import BenchmarkRecord
from chestx_cli.records.preprocessing import Preprocessing
from chestx_cli.store.documents import read_record
from chestx_cli.store.locks import locked
from conftest import Chestx, edit, lose_sensitivity, tree
from support.bundle_script import ENVIRONMENT, exported_baseline, loaded_script, run_script


@pytest.fixture(scope="module")
def bundle(chestx: Chestx, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of the baseline; tests must not change it."""
    return exported_baseline(chestx, finished, tmp_path_factory.mktemp("exporting"))


def require_refused(bundle: Path, image: Path, said: str) -> None:
    """Require that a damaged bundle's script predicts nothing of an image that it could read."""
    kinds_of_image()["grey.png"](image)
    done = run_script(bundle, "predict", image)
    assert done.returncode == 1
    assert said in done.stderr
    assert "copy the whole bundle again" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("variant", ["baseline", "dynamic-int8"])
def test_a_bundle_predicts_what_evaluate_does(chestx: Chestx, study: Path, tmp_path: Path, variant: str) -> None:
    evaluated = chestx("evaluate", variant, "--study", study, "--operating-point", "youden", "--temperature")
    out = tmp_path / "bundle"
    outcome = chestx("export", variant, "--study", study, "--out", out, "--json")
    assert outcome.code == 0, outcome.err + evaluated.err
    record = outcome.json()
    assert sorted(path.name for path in out.iterdir()) == sorted(record["files"])
    assert 0 < record["checked_images"] <= 16
    assert record["max_probability_difference"] < 1e-5
    split = json.loads((study / "split.json").read_text())
    lines = (study / "variants" / variant / "predictions.test.csv").read_text().splitlines()[1:]
    rows = [line.split(",") for line in lines]
    path_of = pd.read_csv(study / "split.csv").set_index("image_id")["path"]
    done = run_script(out, "predict", *(Path(split["data"]) / path_of[row[0]] for row in rows))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["notice"] == "Research software. Not a medical device."
    for said, row in zip(document["images"], rows, strict=True):
        assert said["probability"] == pytest.approx(float(row[3]), abs=1e-6)
        assert (said["label"] == "PNEUMONIA") == (row[4] == "1")


def test_what_is_inferior_leaves_only_with_anyway(chestx: Chestx, study: Path, tmp_path: Path) -> None:
    lose_sensitivity(study, "dynamic-int8")
    words = ("export", "dynamic-int8", "--study", study, "--out", tmp_path / "bundle")
    refused = chestx(*words)
    assert refused.code == 1
    assert "inferior to the baseline (sensitivity): sensitivity -80.0 points, 95 % CI -95.0 to -20.0, p = 0.03" in (
        " ".join(refused.err.split())
    )
    assert "--anyway" in refused.err
    assert not (tmp_path / "bundle").exists()
    assert chestx(*words, "--anyway").code == 0
    test = json.loads((tmp_path / "bundle" / "model.json").read_text())["test"]
    assert test["verdict"] == "inferior (sensitivity)"
    # The remedy is for this variant alone; the baseline is compared with none.
    assert chestx("export", "baseline", "--study", study, "--out", tmp_path / "other").code == 0


def test_a_bundle_tells_its_test_result(chestx: Chestx, study: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert chestx("export", "dynamic-int8", "--study", study, "--out", out).code == 0
    test = json.loads((out / "model.json").read_text())["test"]
    evaluation = json.loads((study / "variants" / "dynamic-int8" / "evaluation.test.json").read_text())
    (row,), (rates,) = evaluation["rows"], evaluation["operating_rows"]
    assert (test["images"], test["correct"], test["auroc"]) == (evaluation["images"], row["correct"], row["auroc"])
    assert test["sensitivity_interval"] == rates["sensitivity_interval"]
    assert test["verdict"] == evaluation["comparisons"][0]["short"]
    (study / "variants" / "dynamic-int8" / "evaluation.test.json").unlink()
    outcome = chestx("export", "dynamic-int8", "--study", study, "--out", tmp_path / "unknown")
    assert outcome.code == 0, outcome.err
    assert "was not evaluated on the test images" in outcome.out
    assert json.loads((tmp_path / "unknown" / "model.json").read_text())["test"] is None


def test_the_description_tells_labels_preprocessing_and_lineage(chestx: Chestx, study: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert chestx("export", "dynamic-int8", "--study", study, "--out", out).code == 0
    told = json.loads((out / "model.json").read_text())
    variants = [
        json.loads((study / "variants" / name / "variant.json").read_text()) for name in ("dynamic-int8", "baseline")
    ]
    assert told["labels"] == ["NORMAL", "PNEUMONIA"]
    assert told["positive"] == "PNEUMONIA"
    assert told["preprocessing"] == variants[0]["preprocessing"]
    assert (told["threshold"], told["temperature"]) == (variants[0]["threshold"], variants[0]["temperature"])
    assert [one["model_sha256"] for one in told["lineage"]] == [one["model_sha256"] for one in variants]
    assert told["split_sha256"] == variants[0]["split_sha256"]
    assert (out / "model.onnx").read_bytes() == (study / "variants" / "dynamic-int8" / "model.onnx").read_bytes()


def test_nothing_of_the_machine_or_the_patients_is_in_a_bundle(bundle: Path, data: Path) -> None:
    words = [str(data.parent), str(Path.home()), "person", "IM-0", "/tmp", os.uname().nodename]  # noqa: S108
    if len(user := getpass.getuser()) > 4:
        words.append(user)
    for name, content in tree(bundle).items():
        assert not [word for word in words if word.encode() in content], name


def test_only_a_bundle_is_replaced_and_only_when_asked(chestx: Chestx, study: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    words = ("export", "dynamic-int8", "--study", study, "--out", out)
    out.mkdir()
    (out / "patient.png").write_text("precious")
    outcome = chestx(*words, "--force")
    assert outcome.code == 1
    assert "is no bundle" in outcome.err
    shutil.rmtree(out)
    assert chestx(*words).code == 0
    before = tree(out)
    again = chestx(*words)
    assert again.code == 0
    assert "already done" in again.err
    assert chestx(*words, "--force").code == 0
    assert tree(out) == before
    other = ("export", "baseline", *words[2:])
    outcome = chestx(*other)
    assert outcome.code == 1
    assert "--force" in outcome.err
    assert tree(out) == before
    (out / "model.onnx").write_bytes(b"x")
    outcome = chestx(*words)
    assert outcome.code == 1
    assert "model.onnx was changed" in outcome.err


def test_one_bundle_is_made_by_one_command_at_a_time(chestx: Chestx, study: Path, tmp_path: Path) -> None:
    with locked(study, "bundle b", "chestx export baseline --out DIR"):
        outcome = chestx("export", "baseline", "--study", study, "--out", tmp_path / "b")
        assert outcome.code == 1
        assert f"bundle b in {study}/ is being written by process {os.getpid()} on " in outcome.err
        assert not (tmp_path / "b").exists()


def test_a_bundle_that_predicts_otherwise_is_not_made(chestx: Chestx, study: Path, tmp_path: Path) -> None:
    record = json.loads((study / "variants" / "baseline" / "variant.json").read_text())
    own = study / "cache" / f"onnx-{record['model_sha256'][:16]}.onnx"
    foreign = next(path for path in study.glob("cache/onnx-*.onnx") if path != own)
    edit(own, lambda _: foreign.read_bytes())
    out = tmp_path / "bundle"
    outcome = chestx("export", "baseline", "--study", study, "--out", out)
    assert outcome.code == 1
    assert "differs from the variant by" in outcome.err
    assert list(tmp_path.glob("*bundle*")) == []


def test_a_changed_validation_image_stops_the_export(chestx: Chestx, study: Path, data: Path, tmp_path: Path) -> None:
    own = tmp_path / "data"
    shutil.copytree(data, own)
    edit_json(study / "split.json", data=str(own))
    for path in own.rglob("*.png"):
        path.unlink()
    outcome = chestx("export", "baseline", "--study", study, "--out", tmp_path / "bundle")
    assert outcome.code == 1
    assert re.search(r"cannot read image img-\d+: missing: No such file", outcome.err)
    assert str(own) not in outcome.err
    assert not (tmp_path / "bundle").exists()


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON document."""
    edit(path, lambda content: json.dumps({**json.loads(content), **changes}).encode())


def kinds_of_image() -> dict[str, Callable[[Path], object]]:
    """Return by name what writes an image file in each of the ways that X-rays come in."""
    rng = np.random.default_rng(3)
    grey = Image.fromarray(rng.integers(0, 256, (53, 47), dtype=np.uint8))
    colour = Image.fromarray(rng.integers(0, 256, (61, 40, 3), dtype=np.uint8))
    wide = Image.fromarray(rng.integers(0, 65536, (45, 45), dtype=np.uint16))
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 16, 48, 40))
    alpha = colour.copy()
    alpha.putalpha(120)
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "grey.png": lambda path: grey.save(path),
        "colour.png": lambda path: colour.save(path),
        "alpha.png": lambda path: alpha.save(path),
        "palette.png": lambda path: colour.quantize(16).save(path),
        "bits.png": lambda path: grey.convert("1").save(path),
        "grey-alpha.png": lambda path: grey.convert("LA").save(path),
        "wide.png": lambda path: wide.save(path),
        "wide.tiff": lambda path: wide.save(path),
        "grey.jpg": lambda path: grey.save(path, quality=80),
        "colour.jpeg": lambda path: colour.save(path, quality=80, subsampling=2),
        "cmyk.jpg": lambda path: colour.convert("CMYK").save(path),
        "turned.jpg": lambda path: colour.save(path, exif=turned),
        "lossy.webp": lambda path: colour.save(path),
        "grey.bmp": lambda path: grey.save(path),
        "float.tif": lambda path: Image.fromarray(rng.random((20, 20)).astype(np.float32)).save(path),
        "long.tif": lambda path: Image.fromarray(np.arange(400, dtype=np.int32).reshape(20, 20) + 70000).save(path),
        "negative.tif": lambda path: Image.fromarray(-np.arange(400, dtype=np.int32).reshape(20, 20)).save(path),
        "small.png": lambda path: grey.crop((0, 0, 15, 53)).save(path),
        "one-grey.png": lambda path: Image.new("L", (40, 40), 90).save(path),
        "mask.png": lambda path: mask.save(path),
        "mask.jpg": lambda path: mask.save(path, quality=75),
        "labels.png": lambda path: mask.point([index // 100 for index in range(256)]).save(path),
        "animation.webp": lambda path: grey.save(path, save_all=True, append_images=[grey.rotate(90)]),
        "pages.tif": lambda path: grey.save(path, save_all=True, append_images=[grey]),
        "jpeg.tif": lambda path: grey.save(path, compression="jpeg"),
        "deep-colour.png": lambda path: path.write_bytes(deep_colour_png()),
        "picture.gif.png": lambda path: grey.save(path, format="GIF"),
        "empty.png": lambda path: path.write_bytes(b""),
        "text.jpg": lambda path: path.write_bytes(b"no image at all"),
        "half.png": lambda path: path.write_bytes(saved(colour)[:900]),
    }


# The others are refused, in the same words.
READABLE = {
    *("grey.png", "colour.png", "alpha.png", "palette.png", "bits.png", "grey-alpha.png", "wide.png", "wide.tiff"),
    *("grey.jpg", "colour.jpeg", "cmyk.jpg", "turned.jpg", "lossy.webp", "grey.bmp"),
}


def deep_colour_png() -> bytes:
    """Return a PNG of 16-bit colour whose values leave its upper bits empty."""
    rows = b"".join(b"\0" + b"".join(b"\0" + bytes([value]) for value in range(60)) for _ in range(20))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 20, 20, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def saved(image: Image.Image) -> bytes:
    """Return an image as the content of a PNG file."""
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


@pytest.mark.parametrize("name", kinds_of_image())
@pytest.mark.parametrize("side_px", [32, 224])
def test_the_script_decodes_as_chestx_does(tmp_path: Path, name: str, side_px: int) -> None:
    path, script = tmp_path / name, loaded_script()
    kinds_of_image()[name](path)
    preprocessing = Preprocessing(image_size_px=side_px)
    try:
        decoded, facts = decode_grey(path, preprocessing)
        refuse_mask(facts)
        expected = at_network_size(decoded, preprocessing)
    except UnreadableImageError as error:
        with pytest.raises(script.UnreadableImageError, match=f"^{re.escape(error.detail)}$"):
            script.grey_pixels(path, side_px)
        expected = None
    assert (expected is not None) == (name in READABLE)
    if expected is None:
        return
    found = script.grey_pixels(path, side_px)
    assert np.array_equal(found, expected)
    described = chestx_bundle.Preprocessing(
        version=preprocessing.version, image_size_px=side_px, mean=list(preprocessing.mean), std=list(preprocessing.std)
    )
    assert np.array_equal(chestx_bundle.network_input(found, described), preprocessing.normalised(expected[None]))


def test_the_script_needs_little_and_says_what_it_is(bundle: Path) -> None:
    done = run_script(bundle, "--help")
    assert done.returncode == 0
    assert "Research software. Not a medical device." in done.stdout
    assert "DICOM where pydicom 3 is installed" in done.stdout
    code = (
        f"import sys, runpy\nrunpy.run_path({str(bundle / SCRIPT.name)!r})\n"
        "print({'torch', 'chestx_cli', 'pandas', 'scipy'} & sys.modules.keys())"
    )
    said = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert said.stdout.splitlines()[-1] == "set()"


def test_folders_csv_and_unreadable_images(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("grey.png", "text.jpg"):
        kinds_of_image()[name](folder / name)
    (folder / "notes.txt").write_text("no image")
    done = run_script(bundle, "predict", "--csv", folder)
    assert done.returncode == 1
    heading, good, bad = done.stdout.splitlines()
    assert heading == "path,label,probability,unreadable,doubts"
    assert good.split(",")[1] in {"NORMAL", "PNEUMONIA"}
    assert bad.endswith(',,,"not a PNG, JPEG, BMP, TIFF or WebP image",')
    assert "cannot be read" in done.stderr
    assert run_script(bundle, "predict", tmp_path / "nowhere").returncode == 1
    assert run_script(bundle, "predict").returncode == 2
    assert run_script(bundle, "predict", "--threads", 0, folder).returncode == 2


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("model.onnx", lambda content: content + b"x", "model.onnx was changed"),
        ("model.json", lambda content: content[:50], "model.json is damaged"),
        (
            "model.json",
            lambda content: content.replace(b"chestx.bundle/1", b"chestx.bundle/9"),
            "is no chestx.bundle/1",
        ),
        ("model.json", lambda content: content.replace(b'"version": 4', b'"version": 5'), "older than the model"),
        ("model.json", None, "cannot read model.json"),
        ("model.onnx", None, "cannot read model.onnx"),
    ],
)
def test_a_damaged_bundle_predicts_nothing(
    bundle: Path, tmp_path: Path, file: str, change: Callable[[bytes], bytes] | None, said: str
) -> None:
    own = tmp_path / "bundle"
    shutil.copytree(bundle, own)
    if change is None:
        (own / file).unlink()
    else:
        edit(own / file, change)
    require_refused(own, tmp_path / "x.png", said)


@pytest.fixture(scope="module")
def compressed_bundle(chestx: Chestx, bundle: Path) -> tuple[Path, dict[str, Any]]:
    """Return a compressed bundle of the baseline, and what its export says; tests must not change it."""
    out = bundle.parent / "compressed"
    outcome = chestx("export", "baseline", "--study", bundle.parent / "study", "--out", out, "--zstd", "--json")
    assert outcome.code == 0, outcome.err
    return out, outcome.json()


def test_a_compressed_bundle_predicts_the_same_on_the_device_and_here(
    chestx: Chestx, bundle: Path, compressed_bundle: tuple[Path, dict[str, Any]], data: Path
) -> None:
    out, record = compressed_bundle
    # A script that has run leaves a cache of Python's beside it.
    files = [{path.name: path for path in folder.iterdir() if path.is_file()} for folder in (bundle, out)]
    assert files[1].keys() == files[0].keys() - {"model.onnx"} | {"model.onnx.zst"}
    model = (bundle / "model.onnx").read_bytes()
    assert record["model_bytes"] == len(model) > (out / "model.onnx.zst").stat().st_size
    assert record["bundle_bytes"] == sum(path.stat().st_size for path in files[1].values())
    assert record["added_memory_mb"] > 0
    sentence = record["answer"]["sentence"]
    assert re.search(r"\(model [\d.]+ MB, bundle [\d.]+ MB, [\d.]+ MB in memory\)", sentence), sentence
    films = sorted(data.rglob("*.png"))[::9]
    plain, packed = (run_script(folder, "predict", *films) for folder in (bundle, out))
    assert packed.returncode == 0, packed.stderr
    assert packed.stdout == plain.stdout
    assert run_script(out, "benchmark", "--rounds", 1, "--duration", 0.01).returncode == 0
    here = [chestx("predict", *films, "--bundle", folder, "--json").json()["rows"] for folder in (bundle, out)]
    assert here[0] == here[1]
    words = ("export", "baseline", "--study", bundle.parent / "study", "--out", out, "--zstd")
    assert "already done" in chestx(*words).err
    # The other kind is another bundle.
    assert "holds a bundle already" in chestx(*words[:-1]).err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _: zstandard.compress(b"another model"), "was changed since it was made"),
        (lambda content: zstandard.compress(zstandard.decompress(content) + bytes(10**6)), "was changed since"),
        (lambda content: content[:-100], "model.onnx.zst"),
        (lambda _: b"not compressed", "model.onnx.zst is damaged"),
        (None, "model.onnx.zst"),
    ],
)
def test_a_damaged_compressed_bundle_predicts_nothing(
    chestx: Chestx,
    compressed_bundle: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    change: Callable[[bytes], bytes] | None,
    said: str,
) -> None:
    own = tmp_path / "bundle"
    shutil.copytree(compressed_bundle[0], own)
    if change is None:
        (own / "model.onnx.zst").unlink()
    else:
        edit(own / "model.onnx.zst", change)
    require_refused(own, tmp_path / "x.png", said)
    here = chestx("predict", tmp_path / "x.png", "--bundle", own)
    assert here.code == 1
    assert "model.onnx.zst" in here.err
    assert "copy the whole bundle again" in here.err


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python has zstd itself")
def test_without_zstandard_a_compressed_bundle_says_what_to_install_and_none_is_made(
    chestx: Chestx,
    compressed_bundle: tuple[Path, dict[str, Any]],
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = compressed_bundle[0] / SCRIPT.name
    code = "import sys, runpy\nsys.modules['zstandard'] = None\n"
    code += f"sys.argv = [{str(script)!r}, 'predict', {str(tmp_path)!r}]\n"
    code += f"runpy.run_path({str(script)!r}, run_name='__main__')"
    line = [sys.executable, "-I", "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 1
    assert "-m pip install zstandard" in done.stderr
    monkeypatch.setitem(sys.modules, "zstandard", None)
    outcome = chestx("export", "baseline", "--study", study, "--out", tmp_path / "out", "--zstd")
    assert outcome.code == 2
    assert "pip install 'chestx-cli[zstd]'" in outcome.err
    assert not (tmp_path / "out").exists()


def test_missing_modules_are_told_with_the_command(bundle: Path) -> None:
    # Neither site-packages nor anything else: only the standard library.
    line = [sys.executable, "-I", "-S", str(bundle / SCRIPT.name), "--help"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 1
    assert "-m pip install numpy pillow onnxruntime" in done.stderr


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "program", "found"),
    [
        ("aarch64", "CPU implementer : 0x41", "python3.11", None),
        ("x86_64", "vendor_id : GenuineIntel", "python3.11", None),
        ("aarch64", "CPU implementer : 0x41", "qemu-aarch64-static", "qemu-aarch64-static"),
        ("aarch64", "vendor_id : AuthenticAMD", "python3.11", "a processor other than aarch64"),
        ("x86_64", "model name : QEMU TCG CPU version 2.5+", "python3.11", "QEMU"),
    ],
)
def test_an_emulated_processor_is_known(
    tmp_path: Path, machine: str, cpuinfo: str, program: str, found: str | None
) -> None:
    (tmp_path / "thread-self").mkdir()
    (tmp_path / "thread-self" / "exe").symlink_to(f"/usr/bin/{program}")
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert chestx_bundle.emulator(tmp_path, machine) == found
    assert chestx_bundle.emulator(tmp_path / "none", machine) is None


def test_a_bundle_times_itself_into_the_record_of_chestx(bundle: Path, finished: Path, tmp_path: Path) -> None:
    done = run_script(bundle, "benchmark", "--rounds", 2, "--duration", 0.01, "--batch-sizes", "4,1", "--threads", 1)
    assert done.returncode == 0, done.stderr
    (tmp_path / "times.json").write_text(done.stdout)
    record = read_record(BenchmarkRecord, tmp_path / "times.json")
    assert (record.rounds, record.threads, record.batch_sizes) == (2, 1, (1, 4))
    (row,), (cost,) = record.rows, record.cost_rows
    assert (row.variant, row.runtime, row.speedup_over_best_fp32) == ("baseline", "onnxruntime", None)
    if sys.platform == "linux":
        assert row.waited_share is not None
    assert 0 < row.latency_p50_ms <= row.latency_p90_ms <= row.latency_p99_ms
    assert [len(batch.round_p50_ms) for batch in row.batches] == [2, 2]
    here = read_record(BenchmarkRecord, finished / "variants" / "baseline" / "benchmark.cpu.json")
    (told,) = [other for other in here.cost_rows if other.runtime == "onnxruntime"]
    assert dataclasses.replace(told, peak_memory_mb=cost.peak_memory_mb, added_memory_mb=cost.added_memory_mb) == cost
    assert cost.added_memory_mb is None or cost.added_memory_mb > 0
    assert str(bundle) not in done.stdout
    assert os.uname().nodename not in done.stdout


def test_no_time_is_taken_on_an_emulated_processor(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    monkeypatch.setattr(chestx_bundle, "emulator", lambda *_: "qemu-aarch64")
    with pytest.raises(chestx_bundle.BundleError, match="emulated"):
        chestx_bundle.time_round(bundle, threads=1, batch_sizes=[1], duration_s=0.01, seed=1)
    with pytest.raises(chestx_bundle.BundleError, match="emulated"):
        chestx_bundle.benchmark(bundle, threads=1, rounds=1, batch_sizes=[1], duration_s=0.01, seed=1)
