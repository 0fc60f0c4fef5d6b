"""Names of files, folders and classes that attack the page, the tables or the terminal."""

from __future__ import annotations

import csv
import os
import re
import shutil
import sys
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chestx_cli.core.printable import printable
from chestx_cli.data.synthetic.sets import write_synthetic_set
from chestx_cli.store.directory import Study
from tools.harness.processes import Ended
from tools.reliability import studies
from tools.reliability.browser import Listener, active_in, listener, literal, opened, opened_together, parsed
from tools.reliability.children import Children
from tools.reliability.processes import TINY
from tools.reliability.registry import Setting
from tools.reliability.results import MAX_FAILURES, Figure

IMAGES, SIDE_PX = 40, 64
PLACES = ("file", "folder", "class")
CHANGED = "changed by a name"
# No file name contains a slash; browsers read a backslash as a slash in an address.
PAYLOADS = {
    "script": f"<script>document.title='{CHANGED}'",
    "image with a handler": f"<img src=x onerror=document.title='{CHANGED}'>",
    "image elsewhere": r"<img src=http:\\198.51.100.7\a>",
    "out of an attribute": f"\"'><svg onload=document.title='{CHANGED}'>",
    "frame": f"<iframe srcdoc=\"<img src=x onerror=parent.document.title='{CHANGED}'>\">",
    "style": r"<style>@import 'http:\\198.51.100.7\b';body{display:none}",
    "template": "{{ 7*7 }}{% include 'report.md.j2' %}{# #}",
    "Markdown": r"![a](http:\\198.51.100.7\c)|[b](javascript:1)|`x`|$\alpha$",
    "formula": r'=HYPERLINK("http:\\198.51.100.7","open")',
    "command for a spreadsheet": "+cmd|' -C calc'!A0",
    "at and minus": "@SUM(1+1)-2",
    "tab and formula": "\t=1+1\r-1",
    "terminal": "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x9b31m",
    "direction and lines": "\u202egnp.exe\u2066\nerror: nothing\u2028x",
    "rich markup": "[bold red]a[blink][link=http:x]b[reverse]",
}
# One name with payloads for page, spreadsheet and terminal.
SHORT = {"all at once": f"=1+1\"'><svg onload=document.title='{CHANGED}'>\x1b[31m[bold]\u202e"}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?", re.IGNORECASE)


@dataclass
class Tally:
    """The cases of one output: the number passed, and the failures."""

    passed: int = 0
    total: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, case: str, failure: str) -> None:
        """Count a case, which passed if it has no failure."""
        self.total += 1
        self.passed += not failure
        if failure:
            self.failures.append(f"{case}: {failure}")


def measure(setting: Setting) -> Sequence[Figure]:
    """Make a study for each name and inspect everything it writes and prints."""
    started_s = time.perf_counter()
    base = setting.work / "base"
    write_synthetic_set(base, images=IMAGES, seed=9, size_px=SIDE_PX)
    page, table, terminal = Tally(), Tally(), Tally()
    full = setting.length == "full"
    at = setting.at
    with listener() as proxy:
        if full:
            _require_effect(setting.work, proxy)
        for name, payload in setting.choose(short=SHORT, full=PAYLOADS).items():
            place = setting.work / "place"
            data = _data_named(base, place / "data", payload)
            ended_commands = _commands(at, place, data)
            study = Study(place / studies.STUDY)
            _check_page(name, payload, study, page, proxy if full else None)
            _check_tables(name, payload, study, table)
            _check_terminal(name, payload, ended_commands, terminal)
            shutil.rmtree(place)
    by = "in headless Chromium" if full else "parsed"
    seconds = time.perf_counter() - started_s
    whole = "no script runs and nothing is requested; names are shown literally, unprintable characters escaped"
    cells = "no text cell begins like a formula, numbers stay numbers, and chestx reads the original name back"
    plain = "nothing but text, line ends and, on a terminal, chestx's own colours; names are shown literally"
    made = ((f"page and figures {by}", whole, page), ("CSV", cells, table), ("terminal", plain, terminal))
    return [_figure(what, criterion, tally, seconds) for what, criterion, tally in made]


def _figure(what: str, criterion: str, tally: Tally, seconds: float) -> Figure:
    names = tally.total // len(PLACES)
    return Figure(
        test=f"{names} names that attack × {', '.join(PLACES)}: {what}",
        passed=tally.passed,
        total=tally.total,
        criterion=criterion,
        seconds=seconds,
        failures=tuple(tally.failures[:MAX_FAILURES]),
    )


def _require_effect(work: Path, proxy: Listener) -> None:
    """Raise HarnessError unless the attacks work without protection; otherwise the test would prove nothing."""
    page = work / "harmful.html"
    names = [f"<p>{text}</script></p>" if "<script" in text else f"<p>{text}</p>" for text in PAYLOADS.values()]
    page.write_text("<title>as it was</title>" + "".join(name for name in names if "<style" not in name))
    document, requests = opened(page, proxy)
    figure = work / "harmful.svg"
    figure.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg"><title>as it was</title>'
        f"<image href='http://198.51.100.7/d'/>{PAYLOADS['script']}</script></svg>"
    )
    (drawn,), more = opened_together([figure], proxy, work)
    if not all(CHANGED in parsed(text).title for text in (document, drawn)) or not requests or not more:
        raise studies.HarnessError("the attacks have no effect on an unprotected page")
    proxy.requests.clear()


def _data_named(base: Path, data: Path, payload: str) -> Path:
    """Return images in which a class, a good file, a broken file and a folder have the name."""
    shutil.copytree(base, data, copy_function=os.link)
    named = data / payload
    (data / "NORMAL").rename(named)
    good = sorted(named.glob("*.png"))[:2]
    (named / payload).mkdir()
    good[0].rename(named / f"{payload}{good[0].name}")
    good[1].rename(named / payload / good[1].name)
    (named / f"{payload}broken.png").write_bytes(b"no image")
    (named / payload / "broken.png").write_bytes(b"no image")
    return data


def _commands(at: Children, place: Path, data: Path) -> list[Ended]:
    """Run the commands with output to a file and with colours; return how they ended."""
    split = ("split", str(data), *studies.AT, "--image-size", "32", "--allow-ungrouped")
    ended_commands = [at.run(split, place), at.run(split, place, call="tools.reliability.groups.payloads:coloured")]
    train = ("train", *studies.AT, *TINY, "--epochs", "1", "--batch-size", "16")
    whole = ((*split, "--skip-bad"), train, studies.EVALUATE, (*studies.REPORT, "--show-paths"))
    ended_commands += [studies.require(at.run(words, place)) for words in whole]
    ended_commands.append(studies.require(at.run((*split, "--skip-bad", "--force", "--json"), place)))
    force = (*split, "--skip-bad", "--force")
    ended_commands.append(studies.require(at.run(force, place, call="tools.reliability.groups.payloads:coloured")))
    return ended_commands


def coloured(*words: str) -> None:
    """Run a command as on a terminal with colours."""
    from chestx_cli.cli.main import main

    os.environ.update(FORCE_COLOR="1", TERM="xterm-256color", COLUMNS="160")
    sys.argv = ["chestx", *words]
    main()


def _expected_texts(payload: str) -> dict[str, str]:
    """Return the text that must appear in each place."""
    return {"file": f"{payload}broken.png", "folder": f"{payload}/broken.png", "class": payload}


def _check_page(name: str, payload: str, study: Study, tally: Tally, proxy: Listener | None) -> None:
    source = (study.report / "index.html").read_text()
    page, requests = parsed(source), list[str]()
    odd = active_in(page) or ("" if "Content-Security-Policy" in source else "no policy")
    if proxy is not None:
        document, requests = opened(study.report / "index.html", proxy)
        page = parsed(document)
        odd = odd or active_in(page)
        figures = sorted(study.report.glob("figures/*.svg"))
        drawn, more = opened_together(figures, proxy, study.root)
        requests += more
        for shown in map(parsed, drawn):
            odd = odd or active_in(shown) or (CHANGED if CHANGED in shown.title else "")
    odd = odd or (CHANGED if page.title.endswith(CHANGED) else "") or "; ".join(requests)
    for place, wanted in _expected_texts(payload).items():
        unread = "" if literal(printable(wanted), page) else f"{printable(wanted)!r} is not shown"
        tally.add(f"{name} as {place}", odd or unread)


def _check_tables(name: str, payload: str, study: Study, tally: Tally) -> None:
    odd = ""
    for path in sorted(study.root.rglob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        risky = [cell for cell in cells if cell[:1] in {*"=+-@\t\r\n"} and not _NUMBER.fullmatch(cell)]
        odd = odd or (f"{path.name} has {risky[0]!r}" if risky else "")
    split = study.read_split()
    paths = split.paths.tolist()
    read = {
        "file": any(path.startswith(f"{payload}/{payload}") and path.count("/") == 1 for path in paths),
        "folder": any(path.startswith(f"{payload}/{payload}/") for path in paths),
        "class": payload in split.classes and payload in {split.classes[label] for label in split.labels},
    }
    for place, found in read.items():
        tally.add(f"{name} as {place}", odd or ("" if found else "it is not read back"))


def _check_terminal(name: str, payload: str, ended_commands: list[Ended], tally: Tally) -> None:
    texts = [ended.out + ended.err for ended in ended_commands]
    odd = ""
    for text in texts:
        control = {
            c for c in _COLOUR.sub("", text) if c != "\n" and unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
        }
        odd = odd or (f"it prints {', '.join(map(repr, sorted(control)))}" if control else "")
    flat = [re.sub(r"\s+", "", _COLOUR.sub("", text)) for text in texts]
    for place, wanted in _expected_texts(payload).items():
        read = re.sub(r"\s+", "", printable(wanted))
        # Output to a file, and output with colours.
        at = (0, 1) if place != "class" else (2, -1)
        tally.add(f"{name} as {place}", odd or ("" if all(read in flat[i] for i in at) else f"{read!r} is not shown"))
