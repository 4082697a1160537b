"""The Open Inference Protocol's objects, version 2: what KServe and Triton clients send and read.

Of the request only what is used is looked at: clients add parameters that mean something elsewhere.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from app.schemas import problems

BINARY = "binary_tensor_data"
"""The extension by which tensors follow the JSON as bytes, as Triton names it."""

HEAD_LENGTH = "Inference-Header-Content-Length"
"""The header that says how many bytes are JSON, where tensors follow it."""

Shape = list[int]
OutputName = Literal["score", "verdict", "looks", "warnings"]
Datatype = Literal["BYTES", "FP64", "INT32"]

# No batch is larger: `max_files` is not.
_MOST_IMAGES = 1000


class _Sent(BaseModel):
    """What clients send: nothing is taken for what it is not, null for nothing.

    Where a member may be left out, some serializers write null.
    """

    model_config = ConfigDict(strict=True, extra="ignore")


class InputParameters(_Sent):
    """How an input is sent."""

    binary_data_size: int | None = Field(
        None, ge=0, description="bytes of the tensor behind the JSON"
    )
    shared_memory_region: None = Field(None, description="not supported")


class RequestInput(_Sent):
    """The images."""

    name: Literal["image"]
    datatype: Literal["BYTES"]
    shape: list[Annotated[int, Field(ge=0)]] = Field(
        min_length=1, max_length=2, description="[n] or [n, 1]: so many images"
    )
    parameters: InputParameters | None = None
    data: list[str | tuple[str]] | None = Field(
        None,
        max_length=_MOST_IMAGES,
        description="files in base64, where they do not follow the JSON as bytes",
    )


class OutputParameters(_Sent):
    """How an output is wanted."""

    binary_data: bool | None = Field(None, description="as bytes behind the JSON")
    classification: None = Field(None, description="not supported")
    shared_memory_region: None = Field(None, description="not supported")


class RequestOutput(_Sent):
    """An output that is wanted."""

    name: OutputName
    parameters: OutputParameters | None = None

    @property
    def binary(self) -> bool | None:
        """Whether it is wanted as bytes, where it says so itself."""
        return self.parameters.binary_data if self.parameters else None


class RequestParameters(_Sent):
    """How all outputs are wanted that do not say it themselves."""

    binary_data_output: bool | None = Field(None, description="as bytes behind the JSON")


class InferenceRequest(_Sent):
    """The JSON of a request."""

    id: str | None = Field(None, max_length=1024, description="comes back with the answer")
    inputs: list[RequestInput] = Field(min_length=1, max_length=1)
    outputs: list[RequestOutput] | None = Field(
        None, max_length=16, description="those that are wanted, in this order; none named: all"
    )
    parameters: RequestParameters | None = None

    @property
    def binary(self) -> bool:
        """Whether outputs are wanted as bytes that do not say it themselves."""
        return bool(self.parameters and self.parameters.binary_data_output)


class TensorMetadata(BaseModel):
    """What an input or output is."""

    name: str
    datatype: Datatype
    shape: Shape = Field(description="-1: as many as there are images")


class ServerMetadata(BaseModel):
    """Which server answers."""

    name: Literal["nsnet"]
    version: str = Field(description="the package's")
    extensions: list[str]


class ModelMetadata(BaseModel):
    """What the model takes and gives."""

    name: str
    versions: list[str]
    platform: Literal["nsnet"]
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerLive(BaseModel):
    """A probe's answer."""

    live: Literal[True]


class ServerReady(BaseModel):
    """A probe's answer."""

    ready: Literal[True]


class ModelReady(BaseModel):
    """A probe's answer."""

    name: str
    ready: Literal[True]


class ResponseOutputParameters(BaseModel):
    """How an output is sent."""

    binary_data_size: int = Field(description="bytes of the tensor behind the JSON")


class ResponseOutput(BaseModel):
    """One output, of all images."""

    name: OutputName
    datatype: Datatype
    shape: Shape = Field(description="the input's")
    parameters: ResponseOutputParameters | None = None
    data: list[str | float | int] | None = None


class InferenceResponse(BaseModel):
    """The JSON of an answer."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseOutput]


class InferenceError(BaseModel):
    """An error, in the protocol's shape."""

    error: str = Field(
        description="the stable code, a colon, and a sentence, which names an image that it is "
        "about by its place: `corrupt_image: Image 0: ...`"
    )


def errors(path: str) -> dict[int | str, dict[str, Any]]:
    """The errors that a route may answer, by status, for the OpenAPI document."""
    return {
        status: {"description": answer["description"], "model": InferenceError}
        for status, answer in problems(path).items()
    }


def request_schemas() -> dict[str, Any]:
    """Of what clients send, for the OpenAPI document: FastAPI does not read it, and knows none."""
    _, schemas = models_json_schema(
        [(InferenceRequest, "validation")], ref_template="#/components/schemas/{model}"
    )
    found: dict[str, Any] = schemas["$defs"]
    return found
