"""The warning about images unlike the training images: signs, output, and stored statistics."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import chestx_cli
from chestx_cli.cli.console import show_record
from chestx_cli.core.errors import StorageError
from chestx_cli.data.images.decoding import FileFacts, at_network_size, decode_grey
from chestx_cli.data.likeness import rule, stored
from chestx_cli.data.likeness.rule import FEWEST_IMAGES, MEANINGS, Sign, TrainingImages
from chestx_cli.data.scanning import thumbnails
from chestx_cli.data.synthetic.radiographs import draw_anatomy, draw_opacity, draw_radiograph
from chestx_cli.records.preprocessing import SQUASH, Preprocessing
from chestx_cli.records.training_images import TrainingImagesRecord
from chestx_cli.store.documents import read_record
from conftest import IMAGE_SIZE_PX, TINY, Chestx, run_chestx

POSITIVE = "PNEUMONIA"
SIDE_PX = 64
Grey = np.ndarray


def draw(seed: int, *, ill: bool = False) -> Grey:
    rng = np.random.default_rng(seed)
    anatomy, opacity = draw_anatomy(rng), draw_opacity(rng)
    return draw_radiograph(anatomy, opacity if ill else None, rng, size_px=SIDE_PX)


def write_films(folder: Path, *, n: int, first: int) -> Path:
    for label in ("NORMAL", POSITIVE):
        (folder / label).mkdir(parents=True)
        for number in range(first, first + n):
            name = f"IM-{number:04d}-0001.png" if label == "NORMAL" else f"person{number}_virus_{number}.png"
            Image.fromarray(draw(2 * number + (label == POSITIVE), ill=label == POSITIVE)).save(folder / label / name)
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return films to train on; tests must not change them."""
    return write_films(tmp_path_factory.mktemp("films") / "data", n=60, first=0)


@pytest.fixture(scope="module")
def trained(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = tmp_path_factory.mktemp("unlike") / "study"
    outcome = run_chestx("train", films, "--study", study, *TINY, "--epochs", 1, "--batch-size", 16)
    assert outcome.code == 0, outcome.err
    return study


@pytest.fixture
def study(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "study")
    return tmp_path / "study"


@pytest.fixture(scope="module")
def known(trained: Path) -> TrainingImages:
    return TrainingImages(read_record(TrainingImagesRecord, document_of(trained)))


def document_of(study: Path) -> Path:
    (path,) = study.glob("training-images.*.json")
    return path


def facts_of(grey: Grey, **changes: int) -> FileFacts:
    height, width = grey.shape
    plain = {"sha256": "0" * 64, "size_bytes": 1, "mode": "L", "file_type": "PNG"}
    return FileFacts(**{**plain, "width_px": width, "height_px": height, **changes})


def thumbs_of(greys: list[Grey]) -> Grey:
    """Return thumbnails of images as the network sees them."""
    size = Preprocessing(image_size_px=IMAGE_SIZE_PX)
    squares = [at_network_size(Image.fromarray(np.ascontiguousarray(grey)), size) for grey in greys]
    return thumbnails(np.stack(squares), SQUASH)


def signs_of(known: TrainingImages, greys: list[Grey]) -> list[tuple[Sign, ...]]:
    return known.signs([facts_of(grey) for grey in greys], thumbs_of(greys))


def unlike_share(known: TrainingImages, greys: list[Grey]) -> float:
    return float(np.mean([bool(signs) for signs in signs_of(known, greys)]))


@pytest.fixture(scope="module")
def unseen() -> list[Grey]:
    return [draw(seed, ill=bool(seed % 2)) for seed in range(5000, 5200)]


def test_other_films_are_like_the_training_images(known: TrainingImages, unseen: list[Grey]) -> None:
    assert unlike_share(known, unseen) <= 0.05


def test_negatives_turned_films_and_noise_are_found_by_their_thumbnail(
    known: TrainingImages, unseen: list[Grey]
) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (SIDE_PX, SIDE_PX)).astype(np.uint8) for _ in range(20)]
    ramp = np.tile(np.linspace(0, 255, SIDE_PX).astype(np.uint8), (SIDE_PX, 1))
    for greys in ([255 - film for film in unseen], [np.rot90(film) for film in unseen], noise, [ramp]):
        assert unlike_share(known, greys) >= 0.95
    inverted = signs_of(known, [255 - film for film in unseen])
    assert np.mean([Sign.INVERTED in signs for signs in inverted]) >= 0.9
    dark = signs_of(known, [film // 8 for film in unseen])
    assert np.mean([Sign.GREYS in signs for signs in dark]) >= 0.95


def test_colour_shape_and_size_are_signs_of_the_file(known: TrainingImages, unseen: list[Grey]) -> None:
    film = next(grey for grey in unseen if not signs_of(known, [grey])[0])
    thumbs = thumbs_of([film])

    def signs(**changes: int) -> tuple[Sign, ...]:
        return known.signs([facts_of(film, **changes)], thumbs)[0]

    assert signs() == ()
    assert signs(colour=rule.GREY_COLOUR) == ()
    assert signs(colour=rule.GREY_COLOUR + 1) == (Sign.COLOUR,)
    assert signs(width_px=120, height_px=61) == ()
    assert signs(width_px=130, height_px=60) == signs(width_px=60, height_px=130) == (Sign.SHAPE,)
    # The network sees 32 px: half of that is little.
    assert signs(width_px=16, height_px=16) == ()
    assert signs(width_px=15, height_px=15) == (Sign.SIZE,)


@pytest.mark.parametrize(
    ("kind", "mode", "is_colour"),
    [("png", "RGB", True), ("jpg", "RGB", True), ("png", "P", True), ("png", "RGBA", True), ("png", "L", False)],
)
def test_colour_is_seen_in_every_mode_and_grey_in_colour_files_is_none(
    tmp_path: Path, kind: str, mode: str, is_colour: bool
) -> None:
    photo = np.zeros((80, 90, 3), dtype=np.uint8)
    photo[:, :45, 0] = photo[40:, :, 1] = 200
    path = tmp_path / f"a.{kind}"
    Image.fromarray(photo).convert(mode).save(path)
    assert (decode_grey(path)[1].colour > 50) == is_colour
    Image.fromarray(draw(1)).convert(mode).save(path)
    assert decode_grey(path)[1].colour <= 2


@pytest.fixture
def inbox(tmp_path: Path, known: TrainingImages, unseen: list[Grey]) -> Path:
    """Return a folder of a film that is like the training images, its negative, and a file that is no image."""
    (tmp_path / "inbox").mkdir()
    film = next(grey for grey in unseen if not signs_of(known, [grey])[0])
    Image.fromarray(film).save(tmp_path / "inbox" / "a.png")
    Image.fromarray(255 - film).save(tmp_path / "inbox" / "b.png")
    return tmp_path / "inbox"


def test_predict_marks_it_and_says_so_and_does_not_fail(chestx: Chestx, study: Path, inbox: Path) -> None:
    words = ("predict", inbox, "--study", study)
    outcome = chestx(*words)
    assert outcome.code == 0, outcome.err
    shown = outcome.out + outcome.err
    assert "Unlike" in outcome.out
    assert "Unlike the training images: 1 image, such as image-000001" in " ".join(shown.split())
    assert MEANINGS[Sign.INVERTED] in " ".join(shown.split())
    document = chestx(*words, "--json").json()
    first, second = document["rows"]
    assert (document["unlike_training"], first["unlike_training"]) == (1, None)
    assert "inverted" in second["unlike_training"].split(", ")
    assert second["probability"][POSITIVE] is not None
    alone = chestx("predict", inbox / "a.png", "--study", study)
    assert alone.code == 0
    assert "nlike" not in alone.out + alone.err


def test_the_answer_of_unlike_and_unreadable_images_fits_80_columns(
    study: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(inbox.parent)
    Image.fromarray(np.dstack([255 - draw(900), draw(901), draw(902)])).save(
        inbox / "photograph-of-a-film-in-colour.png"
    )
    (inbox / "not-an-image-at-all-by-its-content.png").write_text("no image")
    record = chestx_cli.predict((inbox,), study=study, show_paths=True)
    shown = io.StringIO()
    show_record(record, Console(file=shown, width=80))
    table = shown.getvalue().partition(" images: ")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert any(" +" in line and "colour" in line for line in table)
    assert any("unreadable" in line for line in table)


def test_the_table_of_predictions_has_it_and_counts_it_when_it_goes_on(
    chestx: Chestx, study: Path, inbox: Path, tmp_path: Path
) -> None:
    table = tmp_path / "p.csv"
    words = ("predict", inbox, "--study", study, "--csv", table, "--json")
    first = chestx(*words).json()
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [bool(row["unlike_training"]) for row in rows] == [False, True]
    again = chestx(*words).json()
    assert (again["resumed"], again["unlike_training"]) == (2, first["unlike_training"]) == (2, 1)


def test_python_and_evaluate_judge_as_predict_does(chestx: Chestx, study: Path, inbox: Path, tmp_path: Path) -> None:
    model = chestx_cli.open_study(study).variant("baseline")
    by_path = [row.unlike_training for row in model.predict(inbox).rows]
    pixels = [np.asarray(Image.open(path)) for path in sorted(inbox.iterdir())]
    assert [row.unlike_training for row in model.predict(pixels).rows] == by_path
    other = write_films(tmp_path / "other", n=6, first=3000)
    whole = chestx_cli.predict((other,), study=study)
    plain = chestx("evaluate", "--study", study, "--data", other, "--name", "plain", "--json").json()
    assert plain["unlike_training"] == whole.unlike_training
    shutil.copy(inbox / "b.png", other / "NORMAL" / "IM-9000-0001.png")
    found = chestx("evaluate", "--study", study, "--data", other, "--name", "mixed", "--json")
    assert found.code == 0, found.err
    assert found.json()["unlike_training"] == plain["unlike_training"] + 1
    assert any("Unlike the training images" in note for note in found.json()["notes"])


def test_the_statistics_are_made_by_training_and_read_afterwards(
    chestx: Chestx, study: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = read_record(TrainingImagesRecord, document_of(study))
    assert record.images == len(
        [row for row in csv.DictReader((study / "split.csv").open()) if row["split"] == "train"]
    )
    assert record.held_out > record.images
    assert record.held_out_unlike <= 0.02
    before = document_of(study).read_bytes()
    monkeypatch.setattr(stored, "fit", lambda *_: pytest.fail("made again"))
    assert chestx("predict", inbox, "--study", study).code == 0
    assert document_of(study).read_bytes() == before


def test_an_older_study_gets_them_at_first_use(
    chestx: Chestx, study: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = document_of(study)
    before = read_record(TrainingImagesRecord, path)
    path.unlink()
    assert chestx("predict", inbox, "--study", study, "--json").json()["unlike_training"] == 1
    after = read_record(TrainingImagesRecord, path)
    assert (after.layout_limit, after.greys_limit) == pytest.approx((before.layout_limit, before.greys_limit))
    assert after.stamp.inputs == before.stamp.inputs == {"split.csv": after.split_sha256}
    path.unlink()

    def full(*_: object) -> None:
        raise StorageError("the disk is read-only", "")

    monkeypatch.setattr(stored, "write_record", full)
    assert chestx("predict", inbox, "--study", study, "--json").json()["unlike_training"] == 1
    assert not path.exists()


def test_where_nothing_is_known_it_says_so(
    chestx: Chestx, films: Path, study: Path, inbox: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few"
    for label in ("NORMAL", POSITIVE):
        (few / label).mkdir(parents=True)
        for path in sorted((films / label).iterdir())[: FEWEST_IMAGES // 2]:
            shutil.copy(path, few / label)
    at = ("--study", tmp_path / "small")
    assert chestx("train", few, *at, *TINY, "--epochs", 1, "--batch-size", 4).code == 0
    document = chestx("predict", inbox, *at, "--json").json()
    assert document["unlike_training"] is None
    assert f"fewer than {FEWEST_IMAGES} training images" in " ".join(document["notes"])
    assert chestx("export", "baseline", "--study", study, "--out", tmp_path / "bundle").code == 0
    document = chestx("predict", inbox, "--bundle", tmp_path / "bundle", "--json").json()
    assert document["unlike_training"] is None
    assert "a bundle has no statistics" in " ".join(document["notes"])
    # Neither the document, nor the pixels, nor the images.
    document_of(study).unlink()
    shutil.rmtree(study / "cache")
    record = json.loads((study / "split.json").read_text())
    (study / "split.json").write_text(json.dumps({**record, "data": str(tmp_path / "gone")}))
    outcome = chestx("predict", inbox, "--study", study, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json()["unlike_training"] is None
    assert "Not compared with the training images" in " ".join(outcome.json()["notes"])


def test_a_document_that_was_changed_is_refused(chestx: Chestx, study: Path, inbox: Path) -> None:
    path = document_of(study)
    document = json.loads(path.read_text())
    for changes in ({"layout_mean": "AAAA"}, {"greys_mean": [1.0]}, {"schema": "chestx.training-images/2"}):
        path.write_text(json.dumps({**document, **changes}))
        outcome = chestx("predict", inbox, "--study", study)
        assert outcome.code == 1
        assert path.name in outcome.err
