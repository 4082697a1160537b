"""The Open Inference Protocol below `/v2`: what KServe and Triton clients ask for.

Each path of a model also exists below `/versions/{version}`; the document leaves those out.
"""

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final, NamedTuple

from fastapi import APIRouter, Depends, Request, Response

from app.desk import within
from app.errors import ApiError
from app.intake.tensors import read_images
from app.oip import (
    BINARY,
    HEAD_LENGTH,
    Datatype,
    InferenceRequest,
    InferenceResponse,
    ModelMetadata,
    ModelReady,
    OutputName,
    RequestOutput,
    ResponseOutput,
    ResponseOutputParameters,
    ServerLive,
    ServerMetadata,
    ServerReady,
    TensorMetadata,
    errors,
)
from app.routes import authorized
from app.routes.admission import admit, begin, gone, places_of_body, while_connected
from app.routes.system import livez, readyz
from app.schemas import DetectionOut, ModelOut
from app.service import Service

open_to_all = APIRouter(tags=["Open Inference Protocol"])
keyed = APIRouter(tags=["Open Inference Protocol"], dependencies=[Depends(authorized)])

_MODEL = "/v2/models/{name}"
_VERSION = _MODEL + "/versions/{version}"
# Read from the path by hand, so that no route documents that its name might not be text.
_NAME: Final[dict[str, Any]] = {
    "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
}
_BINARY_BODY: Final = {"schema": {"type": "string", "format": "binary"}}


class Output(NamedTuple):
    """One output: what it is of each image."""

    datatype: Datatype
    of: Callable[[DetectionOut], str | float | int]


OUTPUTS: Final[Mapping[OutputName, Output]] = {
    "score": Output("FP64", lambda answer: answer.score),
    "verdict": Output("BYTES", lambda answer: answer.verdict.value),
    "looks": Output("INT32", lambda answer: answer.looks),
    "warnings": Output("BYTES", lambda answer: json.dumps(answer.warnings)),
}
"""What is given of each image, in the order of the metadata."""


@open_to_all.get("/v2/", include_in_schema=False)
@open_to_all.get("/v2", summary="Which server this is", responses=errors("/v2"))
async def server_metadata() -> ServerMetadata:
    """Name, version and extensions."""
    return ServerMetadata(name="nsnet", version=version("nsnet"), extensions=[BINARY])


@open_to_all.get(
    "/v2/health/live", summary="The same as /livez", responses=errors("/v2/health/live")
)
async def server_live(request: Request) -> ServerLive:
    """200 while the model is being loaded and as long as device and decoders get on."""
    await livez(request)
    return ServerLive(live=True)


@open_to_all.get(
    "/v2/health/ready", summary="The same as /readyz", responses=errors("/v2/health/ready")
)
async def server_ready(request: Request) -> ServerReady:
    """200 once weights are loaded and warm, until draining; a full queue does not change it."""
    await readyz(request)
    return ServerReady(ready=True)


@open_to_all.get(_VERSION + "/ready", include_in_schema=False)
@open_to_all.get(
    _MODEL + "/ready",
    summary="Is the model ready?",
    responses=errors(_MODEL + "/ready"),
    openapi_extra=_NAME,
)
async def model_ready(request: Request) -> ModelReady:
    """As for the server; 404 for any model but the one that is loaded."""
    await readyz(request)
    return ModelReady(name=_asked(request).name, ready=True)


@keyed.get(_VERSION, include_in_schema=False)
@keyed.get(
    _MODEL, summary="What the model takes and gives", responses=errors(_MODEL), openapi_extra=_NAME
)
async def model_metadata(request: Request) -> ModelMetadata:
    """The name is that of `GET /model`."""
    model = _asked(request)
    return ModelMetadata(
        name=model.name,
        versions=[model.version],
        platform="nsnet",
        inputs=[TensorMetadata(name="image", datatype="BYTES", shape=[-1])],
        outputs=[
            TensorMetadata(name=name, datatype=output.datatype, shape=[-1])
            for name, output in OUTPUTS.items()
        ],
    )


@keyed.post(_VERSION + "/infer", include_in_schema=False)
@keyed.post(
    _MODEL + "/infer",
    summary="Score images",
    response_model=InferenceResponse,
    responses={
        200: {
            "description": f"Each output for all images, in their order; what is wanted as bytes "
            f"follows the JSON, which has {HEAD_LENGTH} bytes then.",
            "content": {"application/octet-stream": _BINARY_BODY},
        },
        **errors(_MODEL + "/infer"),
    },
    openapi_extra={
        **_NAME,
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": f"#/components/schemas/{InferenceRequest.__name__}"}
                },
                "application/octet-stream": _BINARY_BODY,
            },
        },
    },
)
async def infer(request: Request) -> Response:
    """Score the elements of the BYTES tensor `image`, each a file as it would be uploaded.

    The protocol knows no error of one element: an image that cannot be scored fails the request,
    and the error names the first. Sent again without it, the others' scores come from the cache.
    """
    service, deadline = begin(request)
    model = _asked(request)
    limits = service.settings
    with service.places.hold(places_of_body(request, service)) as held:
        async with within(deadline), held.arriving(request) as arriving:
            asked, uploads = await read_images(arriving, limits.max_files, limits.max_upload_bytes)
    work, everything = admit(
        request,
        service,
        len(uploads),
        lambda index: service.desk.answer(
            uploads[index],
            identifier=f"{request.state.request_id}-{index}",
            threshold=None,
            deadline=deadline,
        ),
    )
    if await while_connected(request, everything) is None:
        return gone()
    answers = []
    for index, one in enumerate(work):
        try:
            answers.append(one.result())
        except ApiError as error:
            detail = f"Image {index}: {error.detail}"
            raise ApiError(error.code, detail, headers=error.headers) from None
    return _written(model, asked, answers)


def _asked(request: Request) -> ModelOut:
    """The model that the path names.

    Raises:
        ApiError: not_found, not_ready.
    """
    service: Service = request.app.state.service
    model = service.desk.model()
    path = request.path_params
    if path["name"] != model.name or path.get("version", model.version) != model.version:
        raise ApiError("not_found", "No model of this name and version is served here.")
    return model


def _written(model: ModelOut, asked: InferenceRequest, answers: list[DetectionOut]) -> Response:
    """The answer, with the outputs that are wanted, each as JSON or as bytes behind it."""
    [tensor] = asked.inputs
    outputs, tensors = [], []
    for wanted in asked.outputs or [RequestOutput(name=name) for name in OUTPUTS]:
        datatype, of = OUTPUTS[wanted.name]
        values = [of(answer) for answer in answers]
        output = ResponseOutput(name=wanted.name, datatype=datatype, shape=tensor.shape)
        if asked.binary if wanted.binary is None else wanted.binary:
            tensors.append(_as_bytes(datatype, values))
            output.parameters = ResponseOutputParameters(binary_data_size=len(tensors[-1]))
        else:
            output.data = values
        outputs.append(output)
    head = InferenceResponse(
        model_name=model.name, model_version=model.version, id=asked.id, outputs=outputs
    )
    body = head.model_dump_json(exclude_none=True).encode()
    if not tensors:
        return Response(body, media_type="application/json")
    return Response(
        b"".join((body, *tensors)),
        headers={HEAD_LENGTH: str(len(body))},
        media_type="application/octet-stream",
    )


def _as_bytes(datatype: Datatype, values: Sequence[str | float | int]) -> bytes:
    if datatype == "BYTES":
        texts = [str(value).encode() for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    code = {"FP64": "d", "INT32": "i"}[datatype]
    return struct.pack(f"<{len(values)}{code}", *values)
