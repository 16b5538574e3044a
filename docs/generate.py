"""Pages of the site that are not files of docs/: the reference, and files elsewhere in the repository.

A hook of MkDocs (`mkdocs.yml`): nothing is written to disk and nothing needs a network. The page of a repository's
file, such as README.md, is that file with its links turned to the site's pages; a link to a file that does not
exist stops the build.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from reference.cli import cli_page
from reference.http import http_page
from reference.specs import spec_pages

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "findings/README.md": "findings.md",
    "tests/README.md": "tests.md",
}
"""Files outside docs/ that are pages of the site too."""
_LINK = re.compile(r"(?<=\]\()(?!https?://|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
_NOWHERE = "not-a-page"


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site."""
    from mkdocs.structure.files import File

    for uri, text in pages().items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that leave docs/ to pages of the site."""
    source = next((name for name, uri in PAGES.items() if uri == page.file.src_uri), f"docs/{page.file.src_uri}")
    return without_escapes(relinked(markdown, source, page.file.src_uri))


def pages() -> dict[str, str]:
    """Every generated page by its path in the site."""
    copied = {uri: (ROOT / name).read_text(encoding="utf-8") for name, uri in PAGES.items() if (ROOT / name).exists()}
    return copied | spec_pages() | {"reference/cli.md": cli_page(), "reference/http.md": http_page()}


def relinked(markdown: str, source: str, uri: str) -> str:
    """Markdown of the repository's file `source` with its links as they are right on the site's page `uri`.

    A link to a file that is not a page becomes its text alone.

    Raises:
        FileNotFoundError: the repository has no such file.
    """

    def target(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        page = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if page is None:
            if not (ROOT / path).exists():
                raise FileNotFoundError(f"{source}: link to {match[1]}, but there is no {path}")
            return _NOWHERE
        return posixpath.relpath(page, posixpath.dirname(uri) or ".") + (match[2] or "")

    linked = _LINK.sub(target, markdown)
    return re.sub(rf"\[([^\]]*)\]\({_NOWHERE}\)", r"\1", linked)


def without_escapes(markdown: str) -> str:
    """Markdown whose tables have plain bars in code: GitHub wants them escaped, MkDocs shows the backslash."""

    def plain(row: re.Match[str]) -> str:
        return re.sub(r"`[^`]*`", lambda code: code[0].replace(r"\|", "|"), row[0])

    return re.sub(r"(?m)^\|.*$", plain, markdown)
