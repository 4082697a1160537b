"""The two clients: what is sent and received, and nothing that could be shared."""

import asyncio
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from contextlib import aclosing
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx
import tenacity

from nsnet_client._wire import (
    Answer,
    Batch,
    Heatmap,
    ImageLike,
    Retries,
    batches,
    broken_off,
    detect_request,
    load,
    options,
    transport_errors,
)
from nsnet_client.models import Detection, Item, ItemError, Limits, ModelDetails

T = TypeVar("T")

_MODEL: Final = {"method": "GET", "url": "model"}


class Client:
    """Asks one NS-Net service; close it, or use it in a `with` statement.

    May be shared between threads. Images, their names and the key are never logged, and the names
    never sent.

    Args:
        base_url: where the service is, with the path that it is under, if any.
        api_key: sent as Bearer token.
        timeout: seconds to connect, and without a byte sent or received.
        retries: repetitions where no connection holds, or the server is busy (429, 503).
        retry_for: seconds after which none begins; a server that asks to wait longer is not waited
            for.

    Raises:
        ValueError: `base_url` or `api_key` is none.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 4,
        retry_for: float = 120.0,
    ) -> None:
        self._http = httpx.Client(**options(base_url, api_key, timeout))
        self._retries = Retries(retries, retry_for)
        self._limits: Limits | None = None

    def detect(
        self,
        image: ImageLike,
        *,
        threshold: float | None = None,
        explain: bool = False,
        heatmap: Heatmap | None = None,
    ) -> Detection:
        """Score one image.

        Args:
            image: path, bytes, or binary file.
            threshold: one cut instead of the model's two, 0 to 1; `model().cuts` tells what each
                does.
            explain: whether evidence is wanted; counts as 16 images.
            heatmap: whether evidence has one; by default, it has.

        Raises:
            ApiError: the server refuses.
            TransportError: no answer came.
            OSError: the file cannot be read.
        """
        request = detect_request(load(image), threshold, explain, heatmap)
        return self._answer(Detection, request)

    def detect_batch(
        self, images: Iterable[ImageLike], *, threshold: float | None = None
    ) -> Iterator[Item]:
        """Score many images, one request after another of as many as the server allows.

        Args:
            images: as `detect` takes them; read when their turn comes.
            threshold: as of `detect`.

        Yields:
            Each image's answer or error as soon as it is known, so not in order. One that fails,
            even as a file, never fails the others.

        Raises:
            ApiError: the server refuses a whole request.
            TransportError: no answer came.
        """
        if self._limits is None:
            self._limits = self.model().limits
        for batch in batches(images, self._limits, threshold):
            if isinstance(batch, ItemError):
                yield batch
            else:
                yield from self._items(batch)

    def model(self) -> ModelDetails:
        """Which model answers, its thresholds, the server's limits.

        Raises:
            ApiError: the server refuses.
            TransportError: no answer came.
        """
        return self._answer(ModelDetails, _MODEL)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _answer(self, kind: type[T], request: dict[str, Any]) -> T:
        for attempt in tenacity.Retrying(**self._retries.arguments()):
            with attempt, transport_errors(), self._http.stream(**request) as response:
                return _read(response).parse(kind)
        raise AssertionError  # the last attempt returns or raises

    def _items(self, batch: Batch) -> Iterator[Item]:
        """Every answer to a batch. Each has its own attempts, for those before it succeeded."""
        stream = self._stream(batch)
        try:
            while True:
                for attempt in tenacity.Retrying(**self._retries.arguments()):
                    with attempt:
                        item = next(stream, None)
                        if item is None and batch.missing:  # it broke off before
                            stream = self._stream(batch)
                            item = next(stream)
                if item is None:
                    return
                yield item
        finally:
            stream.close()

    def _stream(self, batch: Batch) -> Generator[Item]:
        """What comes in answer to one request for all that is missing."""
        with transport_errors(), self._http.stream(**batch.request()) as response:
            if response.status_code != 200:
                raise _read(response).error()
            for part in response.iter_raw():
                yield from batch.take(part)
            yield from batch.take(b"\n")  # of the last line, which may lack it
        if batch.missing:
            raise broken_off()


class AsyncClient:
    """`Client`, for asyncio: the same methods, awaited.

    Files are read in a thread of their own.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 4,
        retry_for: float = 120.0,
    ) -> None:
        self._http = httpx.AsyncClient(**options(base_url, api_key, timeout))
        self._retries = Retries(retries, retry_for)
        self._limits: Limits | None = None

    async def detect(
        self,
        image: ImageLike,
        *,
        threshold: float | None = None,
        explain: bool = False,
        heatmap: Heatmap | None = None,
    ) -> Detection:
        """As `Client.detect`."""
        data = await asyncio.to_thread(load, image)
        return await self._answer(Detection, detect_request(data, threshold, explain, heatmap))

    async def detect_batch(
        self, images: Iterable[ImageLike], *, threshold: float | None = None
    ) -> AsyncGenerator[Item]:
        """As `Client.detect_batch`; whoever leaves it early closes it (`contextlib.aclosing`)."""
        if self._limits is None:
            self._limits = (await self.model()).limits
        plan = batches(images, self._limits, threshold)
        while (batch := await asyncio.to_thread(next, plan, None)) is not None:
            if isinstance(batch, ItemError):
                yield batch
                continue
            async with aclosing(self._items(batch)) as items:
                async for item in items:
                    yield item

    async def model(self) -> ModelDetails:
        """As `Client.model`."""
        return await self._answer(ModelDetails, _MODEL)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _answer(self, kind: type[T], request: dict[str, Any]) -> T:
        async for attempt in tenacity.AsyncRetrying(**self._retries.arguments()):
            with attempt, transport_errors():
                async with self._http.stream(**request) as response:
                    return (await _aread(response)).parse(kind)
        raise AssertionError  # the last attempt returns or raises

    async def _items(self, batch: Batch) -> AsyncGenerator[Item]:
        stream = self._stream(batch)
        try:
            while True:
                async for attempt in tenacity.AsyncRetrying(**self._retries.arguments()):
                    with attempt:
                        item = await anext(stream, None)
                        if item is None and batch.missing:
                            stream = self._stream(batch)
                            item = await anext(stream)
                if item is None:
                    return
                yield item
        finally:
            await stream.aclose()

    async def _stream(self, batch: Batch) -> AsyncGenerator[Item]:
        with transport_errors():
            async with self._http.stream(**batch.request()) as response:
                if response.status_code != 200:
                    raise (await _aread(response)).error()
                async for part in response.aiter_raw():
                    for item in batch.take(part):
                        yield item
                for item in batch.take(b"\n"):  # of the last line, which may lack it
                    yield item
        if batch.missing:
            raise broken_off()


def _read(response: httpx.Response) -> Answer:
    answer = Answer(response)
    for part in response.iter_raw():
        answer.take(part)
    return answer


async def _aread(response: httpx.Response) -> Answer:
    answer = Answer(response)
    async for part in response.aiter_raw():
        answer.take(part)
    return answer
