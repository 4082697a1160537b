"""What goes over the wire, as the OpenAPI document shows it."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.errors import CATALOGUE, MEDIA_TYPE
from model.verdicts import Cut, QualityRule, Verdict


class ThresholdsOut(BaseModel):
    """Cuts that the verdict was taken by."""

    real_below: float = Field(examples=[0.3])
    ai_above: float = Field(examples=[0.7])


class ModelOut(BaseModel):
    """Which model answered."""

    name: str = Field(examples=["nsnet-vit-b-16"])
    version: str = Field(examples=["1.0.0"])
    sha256: str = Field(description="digest of the checkpoint file")


class ImageOut(BaseModel):
    """What was uploaded."""

    sha256: str = Field(description="digest of the uploaded bytes")
    format: str = Field(examples=["JPEG"], description="by content, not by name")
    width: int = Field(description="pixels, upright")
    height: int = Field(description="pixels, upright")


class TimingsOut(BaseModel):
    """Milliseconds per stage of the work that the score comes from; none, where it was cached."""

    decode: float
    patches: float
    queue: float
    inference: float


class DetectionOut(BaseModel):
    """One image's answer."""

    id: str = Field(description="the request's id; `-N` is added for image N of a batch")
    verdict: Verdict = Field(
        description="`uncertain` between the cuts, and in place of `ai_generated` where a warning "
        "or a single look of several holds it back, by whichever cuts"
    )
    score: float = Field(
        ge=0,
        le=1,
        description="calibrated probability of AI generation; the image's, whatever the request",
    )
    looks: int = Field(
        ge=1,
        description="how many views of the image the score stands on; on a first one of several, "
        "no threshold of the request's own gives ai_generated",
    )
    thresholds: ThresholdsOut
    model: ModelOut
    image: ImageOut
    warnings: list[str] = Field(
        examples=[["few_patches"]],
        description="`low_quality`: too small, blurred or compressed for its traces to be left, "
        "never `ai_generated`; `no_content`: there is nothing to see, neither `real` nor "
        "`ai_generated`; `few_patches`: smaller than a view; `animation`: judged by its first "
        "frame with content, of the first 32; `first_page`: one of several pages or "
        "pictures; `profile_ignored`: an embedded colour profile that is not applied. "
        "`first_frame_only`, `icc_profile_ignored`: older words for these, in this version still",
    )
    cached: bool = Field(
        description="whether the score comes from the result cache; false where it was shared "
        "with the same upload under way"
    )
    timings_ms: TimingsOut


class ProblemOut(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(examples=["urn:nsnet:problem:corrupt_image"])
    title: str
    status: int
    detail: str
    instance: str
    code: str = Field(description="stable, for programs", examples=["corrupt_image"])
    request_id: str


def problems(path: str) -> dict[int | str, dict[str, Any]]:
    """The errors that a route may answer, by status, for the OpenAPI document."""
    codes: dict[int, list[str]] = {}
    for code, row in CATALOGUE.items():
        if path in row.routes:
            codes.setdefault(row.status, []).append(code)
    content = {MEDIA_TYPE: {"schema": ProblemOut.model_json_schema()}}
    return {
        status: {"description": ", ".join(names), "content": content}
        for status, names in codes.items()
    }


class ItemOk(BaseModel):
    """An image of a batch that was scored."""

    index: int
    filename: str | None
    status: Literal["ok"]
    result: DetectionOut


class ItemError(BaseModel):
    """An image of a batch that could not be scored."""

    index: int
    filename: str | None
    status: Literal["error"]
    error: ProblemOut


class Summary(BaseModel):
    """How a batch went."""

    ok: int
    error: int


class BatchOut(BaseModel):
    """Results in the order of the upload."""

    model: ModelOut
    results: list[ItemOk | ItemError]
    summary: Summary


class Status(BaseModel):
    """A probe's answer."""

    status: Literal["ok"]


class LimitsOut(BaseModel):
    """What an upload may be."""

    max_upload_bytes: int
    max_request_bytes: int
    max_files: int
    max_pixels: int
    max_aspect: float
    min_side: int
    formats: list[str]


class BackboneOut(BaseModel):
    """The CLIP tower."""

    name: str
    sha256: str = Field(description="digest of the tower that the checkpoint was trained on")


class ModelDetailsOut(ModelOut):
    """All there is to know of the loaded model."""

    backbone: BackboneOut
    device: str
    engine: str = Field(description="what runs the tower", examples=["openvino"])
    precision: str = Field(
        description="what the tower's products multiply in", examples=["int8", "float"]
    )
    dtype: str = Field(description="what all else computes in", examples=["float32"])
    canvases: str
    thresholds: ThresholdsOut
    quality: QualityRule | None = Field(
        description="a picture with any measurement out of these bounds is `low_quality`: never "
        "`ai_generated`, by whichever cuts; null: none is"
    )
    cuts: list[Cut] = Field(
        description="what a `threshold` would do to images of sources that the network was not "
        "trained on: how many photographs it would accuse, and how many AI images it would find; "
        "empty: nobody measured it"
    )
    calibration: dict[str, Any] = Field(
        description="from logit to score: `first`, of the first look, and `all`, of every view; "
        "`window` and `reduced_window`, of one native view alone, where there are such"
    )
    evaluation: dict[str, Any] = Field(description="held-out figures; see the model card")
    limits: LimitsOut
