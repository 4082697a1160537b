"""`POST /detect` and `POST /detect/batch`."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from app.desk import within
from app.errors import ApiError
from app.evidence import Explain
from app.intake.uploads import Upload, read_many, read_one
from app.routes import authorized, known_query
from app.routes.admission import admit, begin, disconnected, gone, places_of_body, while_connected
from app.schemas import BatchOut, DetectionOut, ItemError, ItemOk, ProblemOut, Summary, problems
from app.service import Service

router = APIRouter(tags=["detection"], dependencies=[Depends(authorized), Depends(known_query)])

NDJSON = "application/x-ndjson"
_NDJSON_NAMES = (NDJSON, "application/jsonl")

_BINARY = {"type": "string", "format": "binary"}


def _form(field: dict[str, Any]) -> dict[str, Any]:
    return {"schema": {"type": "object", "required": list(field), "properties": field}}


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}}


Threshold = Annotated[
    float | None,
    Query(
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="one cut instead of the model's two, laid against the same score; what each "
        "does is listed in `cuts` of `GET /model`. Where one look of several was enough for the "
        "model's own cuts, and on a picture of `low_quality`, it gives `uncertain` for "
        "`ai_generated`",
    ),
]


ExplainQuery = Annotated[
    bool,
    Query(
        description="whether to add `evidence`: windows over the whole image, each with a score of "
        "its own. It changes neither score nor verdict, and counts as 16 images"
    ),
]
HeatmapQuery = Annotated[
    Literal["png", "none"] | None,
    Query(description="with `explain=true`: whether evidence has a heat-map; `png` by default"),
]


@router.post(
    "/detect",
    summary="Score one image",
    response_model=DetectionOut,
    responses=problems("/detect"),
    openapi_extra=_body(
        {
            "multipart/form-data": _form({"file": _BINARY}),
            "image/*": {"schema": _BINARY},
            "application/octet-stream": {"schema": _BINARY},
        }
    ),
)
async def detect(
    request: Request,
    threshold: Threshold = None,
    explain: ExplainQuery = False,
    heatmap: HeatmapQuery = None,
) -> Response:
    """Score an image sent as the multipart field `file`, or as the body itself."""
    service, deadline = begin(request)
    evidence, images = _explain(service, explain, heatmap)
    with service.places.hold(1) as held:  # while it arrives, it is one file, whatever is asked
        service.rates.take(request.state.client, images)
        async with within(deadline), held.arriving(request) as arriving:
            upload = await read_one(arriving, service.settings.max_upload_bytes)
        held.widen(images)
        answer = await while_connected(
            request,
            service.desk.answer(
                upload,
                identifier=request.state.request_id,
                threshold=threshold,
                deadline=deadline,
                explain=evidence,
            ),
        )
    if answer is None:
        return gone()
    timing = ", ".join(f"{name};dur={ms}" for name, ms in answer.timings_ms)
    return Response(
        answer.model_dump_json(), headers={"Server-Timing": timing}, media_type="application/json"
    )


@router.post(
    "/detect/batch",
    summary="Score several images",
    response_model=BatchOut,
    responses={
        200: {
            "description": "Results in input order; as NDJSON one line per image as it "
            "completes, then a line with the summary.",
            "content": {NDJSON: {"schema": {"type": "string"}}},
        },
        **problems("/detect/batch"),
    },
    openapi_extra=_body(
        {"multipart/form-data": _form({"files": {"type": "array", "items": _BINARY}})}
    ),
)
async def detect_batch(request: Request, threshold: Threshold = None) -> Response:
    """Score the images of a repeated field `files`; one bad image never fails the others."""
    service, deadline = begin(request)
    with service.places.hold(places_of_body(request, service)) as held:
        async with within(deadline), held.arriving(request) as arriving:
            uploads = await read_many(arriving, service.settings.max_files)
    work, everything = admit(
        request,
        service,
        len(uploads),
        lambda index: _item(
            service, index, uploads[index], request.state.request_id, threshold, deadline
        ),
    )
    if _wants_lines(request):
        return StreamingResponse(_stream(request, service, work), media_type=NDJSON)
    if await while_connected(request, everything) is None:
        return gone()
    results = [task.result() for task in work]
    body = BatchOut(model=service.desk.model(), results=results, summary=_summary(results))
    return JSONResponse(body.model_dump(mode="json"))


def _explain(service: Service, explain: bool, heatmap: str | None) -> tuple[Explain, int]:
    """What evidence is asked for, and how many images the request counts as.

    Raises:
        ApiError: validation_error.
    """
    if not explain:
        if heatmap is not None:
            raise ApiError("validation_error", "`heatmap` goes with `explain=true`.")
        return Explain.NOTHING, 1
    images = service.explained
    if images is None:
        raise ApiError("validation_error", "`explain` is switched off on this server.")
    return Explain.WITHOUT_HEATMAP if heatmap == "none" else Explain.WITH_HEATMAP, images


def _wants_lines(request: Request) -> bool:
    named = request.headers.get("accept", "").lower().split(",")
    return any(part.partition(";")[0].strip() in _NDJSON_NAMES for part in named)


async def _item(
    service: Service,
    index: int,
    upload: Upload,
    request_id: str,
    threshold: float | None,
    deadline: float,
) -> ItemOk | ItemError:
    identifier = f"{request_id}-{index}"
    try:
        answer = await service.desk.answer(
            upload, identifier=identifier, threshold=threshold, deadline=deadline
        )
    except ApiError as error:
        service.metrics.rejected.labels(error.code).inc()
        problem = ProblemOut.model_validate(error.problem(identifier))
        return ItemError(index=index, filename=upload.filename, status="error", error=problem)
    return ItemOk(index=index, filename=upload.filename, status="ok", result=answer)


def _summary(results: list[ItemOk | ItemError]) -> Summary:
    ok = sum(result.status == "ok" for result in results)
    return Summary(ok=ok, error=len(results) - ok)


async def _stream(
    request: Request, service: Service, work: list[asyncio.Task[ItemOk | ItemError]]
) -> AsyncIterator[bytes]:
    results = []
    left = asyncio.create_task(disconnected(request))
    pending: set[asyncio.Task[Any]] = {*work, left}
    try:
        while len(pending) > 1:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if left in done:
                return
            for task in done:
                results.append(task.result())
                yield _line(results[-1].model_dump(mode="json"))
        summary = _summary(results).model_dump()
        yield _line({"model": service.desk.model().model_dump(), "summary": summary})
    finally:
        for task in pending:
            task.cancel()


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
