"""Serves the pages of a home over HTTP, so that links to them open from the Dagster UI.

Belongs here: which files may be read, and a small server for them. A page that came over HTTP may not open ``file://``
addresses, so a link in Dagster's metadata needs a server; this one reads reports and Data Docs, and nothing else of the
home: no manifest, no picture store, no database. ``genai up`` runs it beside Dagster; where that does not run,
``python -m genai_assets.pages`` serves this machine, and only this machine, at the port ``pages.port``.
"""

import contextlib
import html
import sys
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from genai_assets.loopback import LOOPBACK, asks_for_loopback
from genai_assets.settings import Settings

READY = "/ready"

_TEXT = "; charset=utf-8"
# What is shown, and as what: Markdown as it is written, for browsers would save it else.
_KINDS = {
    ".html": f"text/html{_TEXT}",
    ".md": f"text/plain{_TEXT}",
    ".css": f"text/css{_TEXT}",
    ".png": "image/png",
    ".gif": "image/gif",
    ".svg": "image/svg+xml",
    ".ico": "image/x-icon",
    ".otf": "font/otf",
    ".json": "application/json",
}
_FIGURES = ("readiness.json", "metrics.json", "validation.json")  # no other JSON is for people
# Pages are made of what others wrote: should markup ever get through, it can load and send nothing.
_PAGE = (
    "default-src 'none'; img-src 'self' data: blob:; font-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_NO_PAGE = "default-src 'none'; style-src 'unsafe-inline'; sandbox"  # a drawing opened by itself runs no script
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def address_of(page: Path, settings: Settings) -> str | None:
    """Where a page of the home is served; None for a file that is not."""
    if not may_be_read(page, settings):
        return None
    return f"http://{LOOPBACK}:{settings.pages.port}/{_place(page, settings)}"


def may_be_read(path: Path, settings: Settings) -> bool:
    """Whether a file is a page for people: below the artifacts or the Data Docs, and of a kind that is shown.

    Links are followed first: what lies elsewhere is not served, whatever leads to it.
    """
    return _real_page(path, settings) is not None


def _real_page(path: Path, settings: Settings) -> Path | None:
    """The file that a path leads to; None when it is no page for people."""
    path = path.absolute()
    if not path.is_relative_to(settings.home) or ".." in path.parts:
        return None
    try:
        real = path.resolve(strict=True)
        roots = [root.resolve() for root in (settings.paths.artifacts, _data_docs(settings))]
    except (OSError, RuntimeError, ValueError):  # not there, a link in circles, or no file could be called so
        return None
    root = next((root for root in roots if real.is_relative_to(root)), None)
    if root is None or any(part.startswith(".") for part in real.relative_to(root).parts):  # not yet finished
        return None
    shown = real.suffix in _KINDS and (real.suffix != ".json" or real.name in _FIGURES)
    return real if shown and real.is_file() else None


def make_server(settings: Settings, port: int) -> ThreadingHTTPServer:
    """A server of the home's pages on this machine's loopback address; port 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """

    class Pages(BaseHTTPRequestHandler):
        timeout = 30  # a reader that says nothing more is let go

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def _answer(self) -> None:
            if not asks_for_loopback(self.headers.get("Host")):
                return self._send(HTTPStatus.MISDIRECTED_REQUEST, b"This machine is called otherwise.\n")
            place = unquote(urlsplit(self.path).path)
            if place == READY:
                return self._send(HTTPStatus.OK, b"ready\n")
            if place == "/":
                return self._send(HTTPStatus.OK, _table_of_contents(settings).encode(), _KINDS[".html"])
            if found := _read(settings.home / place.lstrip("/"), settings):
                return self._send(HTTPStatus.OK, *found)
            return self._send(HTTPStatus.NOT_FOUND, b"There is no such page.\n")

        def _send(self, status: HTTPStatus, body: bytes, kind: str = f"text/plain{_TEXT}") -> None:
            self.send_response(status)
            policy = _PAGE if kind == _KINDS[".html"] else _NO_PAGE
            told = {"Content-Type": kind, "Content-Length": str(len(body)), "Content-Security-Policy": policy}
            for name, value in {**told, **_HEADERS}.items():
                self.send_header(name, value)
            with contextlib.suppress(ConnectionError):  # the reader has gone elsewhere
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: nobody reads it."""

    return ThreadingHTTPServer((LOOPBACK, port), Pages)


def _read(path: Path, settings: Settings) -> tuple[bytes, str] | None:
    """A page's bytes and what they are; None for what is not served, or has just gone."""
    page = _real_page(path, settings)
    try:
        return (page.read_bytes(), _KINDS[page.suffix]) if page else None
    except OSError:
        return None


def _table_of_contents(settings: Settings) -> str:
    """A page that links the Data Docs and every report, the newest of its kind first."""
    rows = []
    for title, pages in _reports(settings):
        links = [
            f'<li><a href="/{_place(page, settings)}">{html.escape(page.name)}</a> '
            f"<small>{html.escape(page.parent.name)}</small></li>"
            for page in pages
        ]
        rows.append(f"<h2>{html.escape(title)}</h2><ul>{''.join(links)}</ul>")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Reports</title><link rel="icon" href="data:,">'
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}"
        "small{color:#666}</style><h1>Reports</h1>"
        + ("".join(rows) or "<p>There are none yet: run <code>genai demo</code>.</p>")
    )


def _reports(settings: Settings) -> Iterator[tuple[str, list[Path]]]:
    """What there is to read: a title and its pages, the newest first."""
    sites = [page for page in _data_docs(settings).glob("*/index.html") if may_be_read(page, settings)]
    if sites:
        yield "Data Docs", sites
    for folder in sorted(settings.paths.artifacts.glob("*")):
        found = {}
        for page in [*folder.glob("*/*.html"), *folder.glob("*/*.md")]:
            with contextlib.suppress(OSError):  # it has just gone
                if may_be_read(page, settings):
                    found[page] = page.stat().st_mtime
        if found:
            yield folder.name, sorted(found, key=lambda page: (-found[page], page))


def _data_docs(settings: Settings) -> Path:
    return settings.paths.great_expectations / "gx" / "uncommitted" / "data_docs"


def _place(page: Path, settings: Settings) -> str:
    return quote(page.absolute().relative_to(settings.home).as_posix())


def main() -> None:
    """Serve until the process is stopped."""
    settings = Settings()
    port = settings.pages.port
    try:
        server = make_server(settings, port)
    except OSError as error:
        sys.exit(f"port {port}: {error.strerror}. Does `genai up` serve the pages already? Else set pages.port.")
    print(f"Reports and Data Docs of {settings.home}: http://{LOOPBACK}:{port}/ (Ctrl-C stops)")
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
