"""HTTP routes: `detect` for images, `system` for operators."""

from fastapi import Request

from app.service import Service


async def authorized(request: Request) -> None:
    """Dependency of every route that is not for orchestrators: an API key, where any is set."""
    service: Service = request.app.state.service
    request.state.client_key = service.keys.check(request.headers)
