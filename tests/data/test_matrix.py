"""The matrix of image files: each is decoded by its standard or refused with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.reliability.groups.matrix import CONTAINERS, failure_of, script_of_bundle
from tools.reliability.image_matrix import Case


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_kind_of_image_is_read_or_refused(container: str, tmp_path: Path) -> None:
    cases = list(CONTAINERS[container]())
    assert len({case.name for case in cases}) == len(cases) > 5
    script = script_of_bundle(tmp_path)
    assert [failure for case in cases if (failure := failure_of(case, tmp_path, script))] == []


def test_the_matrix_can_fail(tmp_path: Path) -> None:
    cases = list(CONTAINERS["TIFF"]())
    case = next(case for case in cases if "16 bits, white is zero" in case.name)
    other = next(case for case in cases if "16 bits, black is zero" in case.name)
    wrong = Case(name="wrong", content=case.content, expected=other.expected)
    assert failure_of(wrong, tmp_path, script_of_bundle(tmp_path)).startswith("wrong: greys differ by up to 2")
