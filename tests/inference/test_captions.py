"""Text in pictures: class names in available letters, and lines that fit."""

from __future__ import annotations

import itertools

import pytest
from PIL import ImageFont, features

from chestx_cli.inference.pictures.captions import can_be_drawn, class_names, font, note_on_names, wrapped

# A code point that no font has a letter for.
NO_LETTER = "\uffff"


@pytest.mark.parametrize("label", ["PNEUMONIA", "Lungenentzündung", "Пневмония", "Πνευμονία", "zápal plic", "Zápal"])
def test_names_whose_letters_the_font_has_are_drawn_as_they_are(label: str) -> None:
    assert can_be_drawn(label)
    box = bytes(font(20).getmask(NO_LETTER))
    assert all(bytes(font(20).getmask(letter)) != box for letter in label if letter != " ")


def test_names_in_other_scripts_are_shown_by_number_and_a_sentence_explains_it() -> None:
    classes = ("NORMAL", "肺炎")
    assert class_names(classes) == {"NORMAL": "NORMAL", "肺炎": "class 2 of 2"}
    (note,) = note_on_names(classes)
    assert "shown by its number" in note
    assert can_be_drawn(note)
    assert note_on_names(("NORMAL", "Пневмония")) == ()
    assert not any(map(can_be_drawn, ("न्यूमोनिया", "폐렴", "🫁")))


def test_letters_that_depend_on_their_neighbours_need_a_layout_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda _feature: False)
    assert class_names(("ذات الرئة", "NORMAL"))["ذات الرئة"] == "class 1 of 2"


@pytest.mark.parametrize("width_px", [60, 200, 880])
@pytest.mark.parametrize(
    "text", ["W" * 90, "WWWW iiii " * 12, "image-000000: PNEUMONIA 0.999, called PNEUMONIA at 0.5. Right: Grad-CAM."]
)
def test_lines_are_as_wide_as_they_may_be(text: str, width_px: int) -> None:
    drawn_in: ImageFont.FreeTypeFont = font(14)
    lines = wrapped(text, drawn_in, width_px)
    assert all(0 < drawn_in.getlength(line) <= width_px for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    # The next word, or letter, would not have fitted.
    for line, following in itertools.pairwise(lines):
        assert drawn_in.getlength(f"{line} {following.split()[0]}") > width_px


def test_a_place_narrower_than_a_letter_ends() -> None:
    assert wrapped("WWW", font(14), 2) == ["W", "W", "W"]
