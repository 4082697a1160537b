"""How images are admitted, for every route that takes several of them."""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any, TypeVar

from fastapi import Request, Response

from app.errors import ApiError
from app.service import Service

T = TypeVar("T")


def begin(request: Request) -> tuple[Service, float]:
    """The service, where it takes work, and the deadline of this request.

    Raises:
        ApiError: not_ready, draining.
    """
    service: Service = request.app.state.service
    service.check_open()
    return service, time.monotonic() + service.settings.deadline_s


def places_of_body(request: Request, service: Service) -> int:
    """Places to hold while a body arrives: each stands for `max_upload_bytes` of memory."""
    limits = service.settings
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdigit() else limits.max_request_bytes
    return min(limits.max_queue, max(1, math.ceil(size / limits.max_upload_bytes)))


def admit(
    request: Request, service: Service, images: int, one: Callable[[int], Coroutine[Any, Any, T]]
) -> tuple[list[asyncio.Task[T]], asyncio.Future[list[T | BaseException]]]:
    """Start the work on images that are here; places are taken until all of it is done.

    Args:
        request: that brought them.
        service: that takes them.
        images: how many.
        one: gives the work on an image by its index.

    Returns:
        The work on each image, and on all of them; to cancel the latter cancels each.

    Raises:
        ApiError: queue_full, rate_limited, too_many_files.
    """
    places = ExitStack()
    places.enter_context(service.places.hold(images))
    try:
        service.rates.take(request.state.client, images)
    except ApiError:
        places.close()
        raise
    work = [asyncio.create_task(one(index)) for index in range(images)]
    # Done when all of them are, also where one was cancelled: their places are taken until then.
    everything = asyncio.gather(*work, return_exceptions=True)

    def answered(done: asyncio.Future[Any]) -> None:
        places.close()  # not a `with`: a streamed answer outlives its route's function
        if not done.cancelled():
            done.exception()  # a client has left: nobody else asks, and asyncio would log it

    everything.add_done_callback(answered)
    return work, everything


async def disconnected(request: Request) -> None:
    """Wait until the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def while_connected(
    request: Request, work: Coroutine[Any, Any, T] | asyncio.Future[T]
) -> T | None:
    """Run `work`, or cancel it and give None once the client has gone.

    A server does not cancel a handler whose client disconnects; its place would stay taken.
    """
    task = asyncio.ensure_future(work)
    left = asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return None
        return await task
    finally:
        left.cancel()
        task.cancel()


def gone() -> Response:
    """Nobody reads this answer; 499 is what proxies log for it."""
    return Response(status_code=499)
