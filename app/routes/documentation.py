"""`GET /docs`: the OpenAPI document as a page, of files that fastapi-offline brings."""

import base64
import hashlib
import re

from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import HTMLResponse

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
