"""What Ray's proxies do to every answer, and what is done about it."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_NAME = "x-request-id"


class OneRequestId:
    """ASGI middleware: a proxy of Ray's adds the request's id to the answer, so ours is left out.

    Where a client sent one that this service does not take, the proxy has it all the same, and
    ours stays beside it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Leave the id out where it is the one that the proxy knows."""

        async def once(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get(_NAME) == Headers(scope=scope).get(_NAME):
                    del headers[_NAME]
            await send(message)

        await self.app(scope, receive, once if scope["type"] == "http" else send)
