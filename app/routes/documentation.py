"""The OpenAPI document with examples; its page `GET /docs`, of files that fastapi-offline has."""

import base64
import hashlib
import re
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import HTMLResponse

from app.errors import CATALOGUE, MEDIA_TYPE
from app.examples import ANSWERS, inference_error, problem
from app.oip import request_schemas

_FILES = "/static-offline-docs"
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


async def docs(request: Request) -> HTMLResponse:
    """Swagger UI, and a policy by which a browser loads nothing but what it consists of."""
    root = request.scope.get("root_path", "")
    page = get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title="NS-Net",
        swagger_js_url=f"{root}{_FILES}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{_FILES}/swagger-ui.css",
        swagger_favicon_url=f"{root}{_FILES}/favicon.png",
        swagger_ui_parameters={"validatorUrl": None},  # it would be sent this document's address
    )
    scripts = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"
        for script in _SCRIPT.findall(bytes(page.body))
    )
    page.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return page


def add_examples(app: FastAPI) -> None:
    """Have the document show answers as they look; FastAPI leaves the nulls out of its examples."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        document["components"]["schemas"].update(request_schemas())
        for path, operations in document["paths"].items():
            for operation in operations.values():
                for status, answer in operation["responses"].items():
                    for kind, content in answer["content"].items():
                        if int(status) >= 400:
                            content["examples"] = _problems(path, int(status), kind)
                        else:
                            content["examples"] = ANSWERS[path][kind]
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI has it done


def _problems(path: str, status: int, kind: str) -> dict[str, Any]:
    written = problem if kind == MEDIA_TYPE else inference_error
    return {
        code: {"summary": row.title, "value": written(code)}
        for code, row in CATALOGUE.items()
        if path in row.routes and row.status == status
    }
