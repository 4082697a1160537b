"""HTTP routes: `detect` for images, `system` for operators, `documentation` for people."""

import difflib
from collections import Counter

from fastapi import Request
from fastapi.routing import APIRoute
from structlog.contextvars import bind_contextvars

from app.errors import ApiError
from app.intake.keys import network_of
from app.service import Service


async def authorized(request: Request) -> None:
    """Dependency of every route that is not for orchestrators: an API key, where any is set.

    `request.state.client` is whom a rate is kept for: the key's name, or the address.
    """
    service: Service = request.app.state.service
    address = network_of(request.client.host if request.client else "")
    name = service.keys.check(request.headers, address)
    request.state.client = name or address
    if name:
        bind_contextvars(key=name)


async def known_query(request: Request) -> None:
    """Dependency: no query parameter is ignored, be it misspelt or one of two.

    Raises:
        ApiError: validation_error.
    """
    route = request.scope["route"]
    assert isinstance(route, APIRoute)  # noqa: S101  (of which this is a dependency)
    known = [field.alias for field in route.dependant.query_params]
    for name, times in Counter(name for name, _ in request.query_params.multi_items()).items():
        if name not in known:
            [nearest] = difflib.get_close_matches(name[:64], known, n=1, cutoff=0)
            detail = f"A query parameter is unknown; the nearest is `{nearest}`."
            raise ApiError("validation_error", detail)
        if times > 1:
            raise ApiError("validation_error", f"The query parameter `{name}` is given twice.")
