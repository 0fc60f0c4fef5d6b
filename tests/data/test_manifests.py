"""Image tables of spreadsheets and public data sets: read and described, or one sentence with the cause."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from chestx_cli.core.errors import DataError, UsageError
from chestx_cli.data.overlap import study_keys
from chestx_cli.data.sources.label_tables import LABEL_TABLES
from chestx_cli.data.sources.listing import Listing, find_images
from chestx_cli.data.sources.manifest_files import Wish
from chestx_cli.store.directory import Study
from conftest import TINY, Chestx, write_images

CASES = Path(__file__).parents[3] / "shared" / "cases" / "13-excel-manifests"
ROWS = [("img/N0.png", "NORMAL", "n0"), ("img/N1.png", "NORMAL", "n1"), ("img/P0.png", "PNEUMONIA", "p0")]
PLAIN = "path,label,group\n" + "".join(f"{','.join(row)}\n" for row in ROWS)


def read(path: Path, **wish: object) -> Listing:
    return find_images(path, leave_out=path.parent / "study", wish=Wish(**wish))  # type: ignore[arg-type]


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "how"),
    [
        (PLAIN, ()),
        ("\ufeff" + PLAIN.replace(",", ";").replace("\n", "\r\n"), ("columns separated by semicolons",)),
        (PLAIN.replace(",", "\t").encode("utf-16"), ("columns separated by tabs, UTF-16",)),
        (PLAIN.replace(",", "\t").encode("utf-16-le"), ("columns separated by tabs, UTF-16",)),
        (PLAIN.encode("utf-16-be"), ("UTF-16",)),
        ("sep=;\n" + PLAIN.replace(",", ";"), ("columns separated by semicolons",)),
        (PLAIN.replace(",", "|"), ("columns separated by bars",)),
        (PLAIN.replace("path,label,group", "Path, LABEL , Group"), ()),
        (PLAIN + ",,\n \n,,\n", ("3 blank lines left out",)),
        ("\n\n" + PLAIN, ()),
        (PLAIN.replace("img/", ".\\img\\"), ("folders and files",)),
        (PLAIN.replace("img/", "./img//"), ()),
        (re.sub(r"(?m)^img", " img", PLAIN), ()),
        ("group,note,label,path\n" + "".join(f'{g},"a, b",{c},{p}\n' for p, c, g in ROWS), ()),
        (PLAIN.replace("NORMAL,n1", "Normal,n1"), ("NORMAL",)),
    ],
)
def test_tables_of_spreadsheets_are_read_and_it_is_said_how(
    tmp_path: Path, content: bytes | str, how: tuple[str, ...]
) -> None:
    found = read(written(tmp_path / "m.csv", content))
    assert list(zip(found.paths, found.labels, found.groups or (), strict=True)) == ROWS
    assert tuple(row.taken_as for row in found.taken) == how


def test_names_in_a_western_encoding_are_read(tmp_path: Path) -> None:
    found = read(written(tmp_path / "m.csv", "path,label\nMüller é.png,gesund\nb.png,Pneumonie\n".encode("cp1252")))
    assert found.paths[0] == "Müller é.png"
    assert found.taken[0].taken_as == "not UTF-8: Windows-1252"


def test_a_name_with_a_backslash_stays_where_there_is_such_a_file(tmp_path: Path) -> None:
    (tmp_path / "a\\b.png").touch()
    assert read(written(tmp_path / "m.csv", "path,label\na\\b.png,X\nc.png,Y\n")).paths[0] == "a\\b.png"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("path,label\n./a.png,X\nb.png,Y\na.png,X\n", "lists a.png twice (lines 2 and 4)"),
        ("path,label\n\na.png,X\na.png,X\n", "twice (lines 3 and 4)"),
        ("sep=;\npath;label\na.png;\n", "no label in line 3"),
        ("path,label\na.png,X,9\n", "a line has more fields than the heading"),
        ("path,label\na.png,X\nb.png,Y,9,9\n", "line 3 has 4 fields, the heading has 2"),
        ('path,label\n"a.png,X\n', "a quotation mark is not closed"),
        ("path,path,label\na,b,c\n", "has the column 'path' twice"),
        ("filename,class\na.png,X\n", "lacks the column path and label; it has filename, class"),
        (b"\xff\xfep\0a\0t\0h\0,\xd8", "its encoding is damaged"),
        ("", "it is empty"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_sentence(tmp_path: Path, content: bytes | str, said: str) -> None:
    with pytest.raises(DataError) as refused:
        read(written(tmp_path / "m.csv", content))
    assert said in refused.value.fact
    assert len(refused.value.fact.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "remedy"), [("a.zip", "unpack it"), ("m.xlsx", "save it as CSV"), ("m.txt", "expected two class folders")]
)
def test_other_files_are_named_with_what_to_do(tmp_path: Path, name: str, remedy: str) -> None:
    with pytest.raises(DataError, match=remedy):
        read(written(tmp_path / name, "x"))


@pytest.mark.parametrize(
    ("cells", "parts"),
    [
        (("train", "valid", "test"), ("train", "val", "test")),
        (("Training", "Validation", "Testing"), ("train", "val", "test")),
        (("TRAIN", "TEST", "TEST"), ("train", "test", "test")),
    ],
)
def test_parts_in_a_table_have_their_common_names(
    tmp_path: Path, cells: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    rows = "".join(f"{i}.png,{'XY'[i % 2]},{cell}\n" for i, cell in enumerate(cells))
    path = written(tmp_path / "m.csv", "path,label,split\n" + rows)
    found = read(path)
    assert found.parts == parts
    odd = {f"{cell} is {part}" for cell, part in zip(cells, parts, strict=True) if cell.lower() != part}
    assert {row.taken_as for row in found.taken} == odd
    anew = read(path, resplit=True)
    assert (anew.parts, [row.taken_as for row in anew.taken]) == (None, ["not kept: divided again"])
    # Then it does not matter what stands there.
    assert read(written(path, "path,label,split\na.png,X,\nb.png,Y,fold9\n"), resplit=True).parts is None


def test_a_table_of_patients_is_read_like_any(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    names = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))
    lines = "".join(f".\\{name};p{index // 4}\r\n".replace("/", "\\") for index, name in enumerate(names))
    groups = written(tmp_path / "g.csv", ("\ufeffPath; Group\r\n" + lines + ";\r\n").encode())
    record = chestx("split", data, "--study", tmp_path / "s", "--groups", groups, "--image-size", 32, "--json").json()
    assert record["patients"] == 15


def nih(folder: Path, *, missing: int = 0) -> Path:
    """Write images and the NIH table that lists them, with additional missing ones."""
    write_images(folder / "images_001", n_normal=24, n_pneumonia=24)
    names = sorted(path for path in folder.rglob("*.png"))
    lines = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,OriginalImage[Width,Height],"]
    for number, path in enumerate(names):
        path.rename(path.with_name(f"{number:08d}_000.png"))
        finding = "No Finding" if path.parent.name == "NORMAL" else ("Pneumonia", "Effusion|Pneumonia")[number % 2]
        lines.append(f"{number:08d}_000.png,{finding},0,{number // 2},50,2000,2000,")
    lines += [f"{number:08d}_001.png,No Finding,1,{number},50,2000,2000," for number in range(missing)]
    lines += [f"9999999{number}_000.png,Cardiomegaly,1,99,50,2000,2000," for number in range(3)]
    return written(folder / "Data_Entry_2017.csv", "\n".join(lines) + "\n")


def test_the_table_of_nih_is_read_by_name(chestx: Chestx, tmp_path: Path) -> None:
    table = nih(tmp_path / "nih", missing=5)
    refused = chestx("split", table, "--study", tmp_path / "s", "--image-size", 32)
    assert "its columns are those of NIH ChestX-ray" in refused.err
    (command,) = re.findall(r'"(chestx [^"]+)"', refused.err)
    assert command.endswith("--labels-from nih")
    record = chestx(*shlex.split(command)[1:], "--json").json()
    assert (record["images"], record["classes"], record["positive"]) == (48, ["No Finding", "Pneumonia"], "Pneumonia")
    assert record["patients"] == 24
    assert record["group_rules"] == [{"rule": "manifest's group column", "images": 48}]
    labels, images = record["taken"]
    assert labels["taken_as"] == "Pneumonia and No Finding; 3 images with other findings only are left out"
    assert "label of interest Pneumonia" in labels["because"]
    assert images["because"] == "5 that are listed are not below the table's folder"
    # Patients are told again for other images.
    study = Study(tmp_path / "s")
    assert study_keys(study, study.read_split())[:3] == ["0", "0", "1"]
    again = chestx(*shlex.split(command)[1:])
    assert (again.code, "already done" in again.err) == (0, True)


def test_another_label_of_interest_is_named(tmp_path: Path) -> None:
    table = nih(tmp_path / "nih")
    found = read(table, labels_from="nih", finding="effusion")
    assert found.classes == ("Effusion", "No Finding")
    assert len(found.paths) == 36
    assert list(found.sifted.values()) == [12]
    assert "15 images with other findings only are left out" in found.taken[0].taken_as
    with pytest.raises(UsageError, match="name one of its findings with --positive: Cardiomegaly, Effusion, Pneumonia"):
        read(table, labels_from="nih", finding="Covid")


def test_the_table_of_rsna_has_a_line_per_box(chestx: Chestx, tmp_path: Path) -> None:
    folder = tmp_path / "rsna"
    write_images(folder / "stage_2_train_images", n_normal=12, n_pneumonia=12)
    lines = ["patientId,x,y,width,height,Target"]
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        path.rename(path.with_name(f"id-{number}.png"))
        target = int(path.parent.name == "PNEUMONIA")
        lines += [f"id-{number},{'264.0,152.0,213.0,379.0' if target else ',,,'},{target}"] * (1 + target)
    table = written(folder / "stage_2_train_labels.csv", "\n".join(lines) + "\n")
    words = ("split", table, "--study", tmp_path / "s", "--labels-from", "rsna", "--image-size", 32)
    record = chestx(*words, "--json").json()
    assert (record["images"], record["classes"]) == (24, ["No Pneumonia", "Pneumonia"])
    assert record["positive"] == "Pneumonia"
    assert any("several may be of one NIH patient" in row["because"] for row in record["taken"])
    other = chestx("split", table, "--study", tmp_path / "t", "--labels-from", "nih")
    assert "it lacks the column 'finding labels'" in other.err
    assert "give --labels-from rsna" in other.err
    written(table, "patientId,Target\nid-0,0\nid-0,1\n")
    with pytest.raises(DataError, match="two Targets for one image, in line 3"):
        read(table, labels_from="rsna")
    assert chestx("split", folder, "--study", tmp_path / "t", "--labels-from", "rsna").code == 1


def test_images_of_a_table_must_be_found_once(tmp_path: Path) -> None:
    table = nih(tmp_path / "nih")
    (tmp_path / "nih" / "copy").mkdir()
    (tmp_path / "nih" / "copy" / "00000000_000.png").touch()
    with pytest.raises(DataError, match=r"may both be the image 00000000_000\.png"):
        read(table, labels_from="nih")
    alone = written(tmp_path / "alone.csv", table.read_bytes())
    table.unlink()
    (tmp_path / "nih" / "copy" / "00000000_000.png").unlink()
    assert len(read(alone, labels_from="nih").paths) == 48
    away = tmp_path / "away"
    away.mkdir()
    alone.rename(away / "alone.csv")
    with pytest.raises(DataError, match="none of the 48 images"):
        read(away / "alone.csv", labels_from="nih")


def test_a_study_is_evaluated_on_a_public_sets_table(chestx: Chestx, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", first=3000)
    assert chestx("train", data, "--study", tmp_path / "s", *TINY, "--epochs", 1).code == 0
    table = nih(tmp_path / "nih")
    words = ("evaluate", "baseline", "--study", tmp_path / "s", "--data", table)
    record = chestx(*words, "--labels-from", "nih", "--json").json()
    # Pneumonia is the study's PNEUMONIA, and no finding its NORMAL.
    assert (record["images"], record["positive"], record["patients"]) == (48, "PNEUMONIA", 24)
    assert any(note.startswith("Labels: Pneumonia and No Finding") for note in record["notes"])
    assert '--labels-from nih"' in chestx(*words).err
    assert chestx("evaluate", "--study", tmp_path / "s", "--labels-from", "nih").code == 2


@pytest.mark.parametrize("name", LABEL_TABLES)
def test_every_public_table_is_known_by_its_columns(tmp_path: Path, name: str) -> None:
    entry = LABEL_TABLES[name]
    columns = sorted(entry.columns)
    path = written(
        tmp_path / "t.csv", ",".join(column.title() for column in columns) + "\n" + "1," * (len(columns) - 1) + "1\n"
    )
    with pytest.raises(DataError, match=re.escape(entry.title)):
        read(path)


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared inputs are not here")
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("03_semicolon_bom_crlf.csv", 40),
        ("04_utf16_tab.csv", 40),
        ("07_backslash.csv", 40),
        ("08b_dup_dotslash.csv", "lists img/N000.png twice (lines 2 and 42)"),
        ("09b_header_space.csv", 40),
        ("11_trailing_empty_rows.csv", 40),
        ("13_nih.csv", "its columns are those of NIH"),
        ("16_split_valid.csv", 40),
    ],
)
def test_tables_that_failed_are_read_or_explained(name: str, found: int | str) -> None:
    if isinstance(found, str):
        with pytest.raises(DataError, match=re.escape(found)):
            read(CASES / name)
    else:
        assert len(read(CASES / name).paths) == found
    if name == "13_nih.csv":
        assert len(read(CASES / name, labels_from="nih").paths) == 40


def test_what_was_taken_is_in_the_table_and_in_json(chestx: Chestx, data: Path, tmp_path: Path) -> None:
    names = sorted(data.rglob("*.png"))
    rows = "".join(
        f"{name};{name.parent.name.title() if i % 9 else 'normal'};p{i}\n" for i, name in enumerate(names[:40])
    )
    table = written(tmp_path / "m.csv", "path;label;group\n" + rows.replace("normal", "NORMAL"))
    words = ("split", table, "--study", tmp_path / "s", "--image-size", 32)
    shown = chestx(*words, "--full").out
    record = chestx(*words, "--json").json()
    assert [row["matter"] for row in record["taken"]] == ["Table", "Class"]
    for row in record["taken"]:
        (line,) = (line for line in shown.splitlines() if row["taken_as"] in line and row["because"][:20] in line)
        assert line.split()[0] == row["matter"]
    assert pd.read_csv(tmp_path / "s" / "split.csv")["label"].nunique() == 2
