"""MkDocs hooks: add pages generated from the code, and refuse dead links and external resources."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

from tools.site.reference import python_page, records_page

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

MADE = {"reference/python.md": python_page, "reference/records.md": records_page}
# A link to a file of the repository that is not a page.
OUTSIDE = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#]+)(?:#[^)]*)?\)")
# Resources that a page loads by itself, as opposed to links that users follow.
LOADS = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
}
LOADED_LINKS = {"stylesheet", "icon", "preload", "preconnect", "modulepreload", "manifest", "dns-prefetch", "prefetch"}
FROM_A_STYLE = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])((?:https?:)?//[^'\")\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages generated from the code."""
    for place, page in MADE.items():
        files.append(File.generated(config, place, content=page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Replace links to files outside docs/, which the site lacks, by their names; refuse dead links."""
    docs = Path(config.docs_dir)
    root = docs.parent

    def named(found: re.Match[str]) -> str:
        target = (docs / page.file.src_uri).parent.joinpath(found[2]).resolve()
        if target.is_relative_to(docs) or not target.is_relative_to(root):
            return found[0]
        if not target.exists():
            raise PluginError(f"{page.file.src_uri} links to {found[2]}, which does not exist")
        place = target.relative_to(root).as_posix()
        return f"{found[1]} (`{place}`)" if found[1].strip("`") != place else f"`{place}`"

    return OUTSIDE.sub(named, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that loads external resources."""
    site = Path(config.site_dir)
    addresses = [
        f"{path.relative_to(site)}: {address}"
        for path in sorted(site.rglob("*"))
        if path.suffix in {".html", ".css"}
        for address in loaded_from_elsewhere(path)
    ]
    if addresses:
        raise PluginError("the site loads from elsewhere:\n" + "\n".join(addresses))


def loaded_from_elsewhere(path: Path) -> list[str]:
    """Return the external addresses that a page or style sheet loads by itself."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        return FROM_A_STYLE.findall(text)
    loads = _Loads()
    loads.feed(text)
    return [address for address in loads.addresses if address.startswith(("http:", "https:", "//"))]


class _Loads(HTMLParser):
    """Collects the resources that a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag in LOADS:
            self.addresses.append(attributes.get(LOADS[tag]) or "")
        elif tag == "link" and LOADED_LINKS & set((attributes.get("rel") or "").split()):
            self.addresses.append(attributes.get("href") or "")
        self.addresses += FROM_A_STYLE.findall(attributes.get("style") or "")
