"""`GET /`: the page for people, and the files that it consists of. It asks for no key."""

import hashlib
import re
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import Receive, Scope, Send

from app.settings import Settings

POLICY: Final = (
    "default-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What a browser lets the page do: pictures are blobs, of files chosen, and data, the heat-maps."""

_FOLDER = Path(__file__).parent.parent / "page"
_LINK_TO_DOCS = '<a href="docs">API reference</a>'
_RELATIVE = re.compile(r'\b(href|src)="(?!#)')


class _Files(StaticFiles):
    """Files too small to send parts of: a Range is ignored, whatever it says."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


def add_page(app: FastAPI, settings: Settings) -> None:
    """Serve the page at the root, and its files below `/page`."""
    body = _written(settings).encode()
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    files = _Files(directory=_FOLDER / "files")

    async def page(request: Request) -> Response:
        """The page, or that a browser has it."""
        response: Response = HTMLResponse(body, headers={"ETag": etag})
        if files.is_not_modified(response.headers, Headers(scope=request.scope)):
            response = NotModifiedResponse(response.headers)
        # Of both: a browser takes the policy of the last answer for the page that it has kept.
        response.headers["Content-Security-Policy"] = POLICY
        return response

    route = Route("/", page, include_in_schema=False)
    route.path_regex = re.compile("^/?$")  # the root path itself, too, without a slash at its end
    app.router.routes.append(route)
    app.mount("/page", files, name="page")


def _written(settings: Settings) -> str:
    """The page's text. Below a root path its links say so: they hold with and without a slash.

    The scripts need no such thing: a module knows its own address.
    """
    text = (_FOLDER / "index.html").read_text()
    if not settings.docs:
        text = text.replace(_LINK_TO_DOCS, "")
    if settings.root_path:
        text = _RELATIVE.sub(rf"\g<0>{settings.root_path}/", text)
    return text
