"""The browser check of the page: it detects content that is too wide, and ends cleanly without a browser."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tools import page_check

PAGE = '<!DOCTYPE html><html lang="en"><head><title>A page</title></head><body><main>{}</main></body></html>'


def test_without_a_browser_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert page_check.main([str(tmp_path / "index.html")]) == 0
    assert "skipped" in capsys.readouterr().out


@pytest.mark.skipif(not any(shutil.which(name) for name in page_check.BROWSERS), reason="needs Chromium")
@pytest.mark.parametrize(("width_px", "wrong"), [(200, 0), (900, 1)])
def test_a_page_wider_than_its_window_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width_px: int, wrong: int
) -> None:
    monkeypatch.setattr(page_check, "WIDTHS_PX", (400,))
    page = tmp_path / "index.html"
    page.write_text(PAGE.format(f'<div style="width:{width_px}px">Wide</div>'))
    assert page_check.main([str(page)]) == wrong
