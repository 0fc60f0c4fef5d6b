"""Headless Chromium: how it renders a page, and its network requests."""

from __future__ import annotations

import html
import re
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps"),
)
LIMIT_S = 120.0
# Chromium contacts Google for updates and the time whatever the page; no flag stops all of these requests.
OWN = re.compile(r"\w+ (https?://)?([\w-]+[.])+(google|googleapis|gstatic|gvt1)[.]com[:/ ]")
SHOW_FRAMES = (
    'onload = () => document.querySelectorAll("iframe").forEach(frame => {'
    ' const shown = document.createElement("pre");'
    " shown.textContent = frame.contentDocument.documentElement.outerHTML;"
    " document.body.append(shown); })"
)
ACTIVE = frozenset({"script", "iframe", "object", "embed", "base", "form", "link", "audio", "video"})


@dataclass
class Listener:
    """A proxy that accepts every connection of Chromium and answers none."""

    port: int
    requests: list[str] = field(default_factory=list)


@contextmanager
def listener() -> Iterator[Listener]:
    """Yield a listener on a free local port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = Listener(port=server.getsockname()[1])

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(2)
                    try:
                        line = connection.recv(4096).split(b"\r\n")[0].decode(errors="replace")
                    except OSError:
                        line = "a connection"
                    proxy.requests.append(line)

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield proxy
        finally:
            server.shutdown(socket.SHUT_RDWR)


@dataclass
class Page(HTMLParser):
    """A parsed document: elements, attributes that contain code, text and title."""

    elements: set[str] = field(default_factory=set)
    handlers: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    text: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        """Initialise the parser."""
        super().__init__(convert_charrefs=True)
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect an element."""
        self.elements.add(tag)
        self._open.append(tag)
        for name, value in attrs:
            if name.startswith("on") or name in {"srcdoc", "formaction"}:
                self.handlers.add(f"{tag} {name}")
            if name in {"src", "href", "xlink:href", "action", "data"} and value:
                self.links.add(value)
            if name == "alt" and value:
                self.text += f" {value}"

    def handle_data(self, data: str) -> None:
        """Collect text."""
        if self._open and self._open[-1] == "title":
            self.title += data
        self.text += data

    def handle_endtag(self, tag: str) -> None:
        """Close an element."""
        while self._open and self._open.pop() != tag:
            pass


def parsed(document: str) -> Page:
    """Return a parsed document."""
    page = Page()
    page.feed(document)
    page.close()
    return page


def active_in(page: Page) -> str:
    """Return descriptions of everything in a document that could run or load something."""
    odd = sorted(page.elements & ACTIVE) + sorted(page.handlers)
    # A report links to its own files, in the same folder.
    safe = r"data:image/|#|model-card\.md$|tables/[a-z0-9-]+\.csv$"
    odd += sorted(link[:60] for link in page.links if not re.match(safe, link))
    return ", ".join(odd)


def opened(path: Path, proxy: Listener, *options: str) -> tuple[str, list[str]]:
    """Return a document after Chromium has run its scripts, and the network requests made."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise FileNotFoundError("no chromium on this machine: install it, or use --length short")
    before = len(proxy.requests)
    # Chromium may still write to its profile after it has ended.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = [
            *(program, *QUIET, f"--user-data-dir={profile}", f"--proxy-server=http://127.0.0.1:{proxy.port}"),
            *("--proxy-bypass-list=<-loopback>", "--virtual-time-budget=3000", *options, "--dump-dom", path.as_uri()),
        ]
        ended = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=LIMIT_S, check=True)
    return ended.stdout, [line for line in proxy.requests[before:] if not OWN.match(line)]


def opened_together(paths: Sequence[Path], proxy: Listener, work: Path) -> tuple[list[str], list[str]]:
    """Return several documents as `opened` does, in frames of one page, since Chromium takes seconds to start."""
    page = work / "frames.html"
    frames = "".join(f'<iframe src="{path.as_uri()}"></iframe>' for path in paths)
    page.write_text(f"<title>frames</title>{frames}<script>{SHOW_FRAMES}</script>", encoding="utf-8")
    document, requests = opened(page, proxy, "--allow-file-access-from-files")
    texts = [html.unescape(text) for text in re.findall(r"<pre>(.*?)</pre>", document, re.DOTALL)]
    if len(texts) != len(paths):
        raise RuntimeError(f"Chromium showed {len(texts)} of {len(paths)} documents")
    return texts, requests


def literal(text: str, page: Page) -> bool:
    """Return whether a document shows a text literally."""
    return re.sub(r"\s+", " ", text) in re.sub(r"\s+", " ", page.text)
