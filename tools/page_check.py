"""Checks the report's page in headless Chromium: pictures at three widths, overflowing content, the rules of axe-core.

Usage: python -m tools.page_check PAGE [--out FOLDER] [--axe axe.min.js]

Without Chromium the check is skipped, with a message. Without --axe the rules of axe-core are not checked.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WIDTHS_PX = (1280, 800, 400)
HEIGHT_PX = 800
# Chromium's windows are never narrower than this, but a frame within one can be.
NARROWEST_WINDOW_PX = 500
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_S = 120
# Faults to find: elements that exceed the page or whose text is cut off, unless they scroll themselves.
LOOK = """
const doc = document.getElementById('page').contentDocument;
const wide = doc.documentElement.scrollWidth - doc.documentElement.clientWidth;
for (const one of doc.querySelectorAll('details')) one.open = true;
const clipped = [...doc.querySelectorAll('main *')].filter(one => {
  const style = doc.defaultView.getComputedStyle(one);
  return one.scrollWidth > one.clientWidth + 1 && one.clientWidth > 1 && style.overflowX === 'hidden';
}).map(one => one.tagName + ' ' + one.textContent.slice(0, 60));
const unfolded = doc.documentElement.scrollWidth - doc.documentElement.clientWidth;
const found = {wide, unfolded, clipped, violations: []};
const done = () => {
  const out = document.createElement('pre');
  out.id = 'found';
  out.textContent = JSON.stringify(found);
  document.body.append(out);
};
const axe = doc.defaultView.axe;
if (axe) axe.run(doc).then(result => {
  found.violations = result.violations.map(v => v.id + ': ' + v.nodes.length + ' × ' + v.nodes[0].html.slice(0, 160));
  done();
}); else done();
"""


def main(arguments: list[str] | None = None) -> int:
    """Check one page at each width; return 1 if it has any fault."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("page", type=Path)
    parser.add_argument("--out", type=Path, help="folder for a picture of each width, light and dark")
    parser.add_argument("--axe", type=Path, help="axe.min.js of the npm package axe-core")
    options = parser.parse_args(arguments)
    browser = next((program for name in BROWSERS if (program := shutil.which(name))), None)
    if browser is None:
        print("skipped: no Chromium")
        return 0
    wrong = 0
    for width in WIDTHS_PX:
        seen = look(browser, options.page, width, options.axe)
        faults = [*seen["violations"], *(f"cut: {text}" for text in seen["clipped"])]
        faults += [
            f"{seen[which]} px wider than the window ({which})" for which in ("wide", "unfolded") if seen[which] > 0
        ]
        print(f"{width} px: {'; '.join(faults) or 'nothing wrong'}")
        wrong += len(faults)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        for width in WIDTHS_PX:
            for scheme in ("light", "dark"):
                picture(browser, options.page, width, options.out / f"page-{width}-{scheme}.png", scheme)
    return int(wrong > 0)


def look(browser: str, page: Path, width_px: int, axe: Path | None) -> dict[str, Any]:
    """Return the faults of a page in a frame of one width."""
    # The page forbids every script, so the check runs on a copy without that rule.
    text = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", page.read_text())
    if axe:
        text = text.replace("</head>", f"<script>{axe.read_text()}</script></head>")
    with tempfile.TemporaryDirectory() as folder:
        outer = Path(folder, "outer.html")
        outer.write_text(
            '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><body style="margin:0">'
            f'<iframe id="page" style="border:0" width="{width_px}" height="{HEIGHT_PX}" '
            f'srcdoc="{html.escape(text)}"></iframe><script>'
            f"document.getElementById('page').onload = () => {{ {LOOK} }};</script></body></html>"
        )
        output = _run(
            browser, f"--window-size={max(width_px, NARROWEST_WINDOW_PX)},{HEIGHT_PX}", "--dump-dom", outer.as_uri()
        )
    match = re.search(r'<pre id="found">(.*?)</pre>', output, re.DOTALL)
    if match is None:
        raise SystemExit("Chromium did not finish loading the page")
    result: dict[str, Any] = json.loads(html.unescape(match.group(1)))
    return result


def picture(browser: str, page: Path, width_px: int, target: Path, scheme: str) -> None:
    """Save a picture of a page's first screen, in the light or dark colour scheme."""
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    with tempfile.TemporaryDirectory() as folder:
        outer = Path(folder, "outer.html")
        outer.write_text(
            f'<!DOCTYPE html><html><meta charset="utf-8"><body style="margin:0"><iframe style="border:0" '
            f'width="{width_px}" height="{HEIGHT_PX}" srcdoc="{html.escape(page.read_text())}"></iframe></body></html>'
        )
        size = f"--window-size={width_px},{HEIGHT_PX}"
        _run(browser, *dark, "--hide-scrollbars", size, f"--screenshot={target}", outer.as_uri())


def _run(browser: str, *arguments: str) -> str:
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--allow-file-access-from-files",
            "--virtual-time-budget=30000",
            f"--user-data-dir={profile}",
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
