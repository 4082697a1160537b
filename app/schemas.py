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


class BoxOut(BaseModel):
    """A rectangle in the upright original, pixels; right and bottom are the first beyond it."""

    left: int
    top: int
    right: int
    bottom: int


class ViewOut(BaseModel):
    """What the network says of one view of the image, alone."""

    box: BoxOut = Field(description="what of the upright original it shows")
    entropy: float | None = Field(
        description="spectral entropy, nats; null: of the whole image none is taken"
    )
    score: float | None = Field(
        ge=0,
        le=1,
        description="calibrated probability of AI generation by this view alone; null: the "
        "checkpoint holds no calibration for such a view",
    )
    log_odds: float = Field(
        description="of the same: calibrated where `score` is, else the plain `logit`"
    )
    logit: float = Field(description="the network's output, before calibration")
    calibration: str | None = Field(
        examples=["reduced_window"],
        description="which of `calibration` in `GET /model` was used; null: none",
    )


class LegendOut(BaseModel):
    """What the heat-map's colours mean: evenly spaced stops between two log-odds."""

    quantity: Literal["log_odds"]
    low: float = Field(description="log-odds of the first colour, and of all below")
    high: float = Field(description="log-odds of the last colour, and of all above")
    colours: list[str] = Field(examples=[["#2166ac", "#f7f7f7", "#b35806"]])


class HeatmapOut(BaseModel):
    """Where the image looks generated: the windows' log-odds, averaged where they overlap."""

    image: str = Field(description="a PNG of the whole image's shape, as a data URI")
    width: int = Field(description="pixels of the PNG")
    height: int = Field(description="pixels of the PNG")
    legend: LegendOut


class UnevenOut(BaseModel):
    """One region that stands out against the rest."""

    box: BoxOut
    contrast: float = Field(description="log-odds of the region less those of the rest")


class EvidenceOut(BaseModel):
    """What in the image speaks for or against AI generation; it changes no score and no verdict."""

    views: list[ViewOut] = Field(
        description="what the score stands on, in the order of looking: the image's centre "
        "square, resized, first, where the model's plan begins with it"
    )
    combination: str = Field(
        description="how the score was made of `views`, and by which of `calibration` in `GET "
        "/model` it was calibrated",
        examples=["0.75 x the centre square's logit + 0.25 x the other views' mean logit, `all`"],
    )
    windows: list[ViewOut] = Field(
        description="a grid over the whole image, row by row; the score does not stand on them"
    )
    uneven: UnevenOut | None = Field(description="null: no region stands out")
    heatmap: HeatmapOut | None = Field(
        description="null with `heatmap=none`, and where the image is too small for its windows to "
        "tell parts of it apart (the longer side below 336 px)"
    )


Declares = Literal["ai_generated", "ai_edited", "camera", "software", "nothing"]
"""What a file says of its own origin."""

Standing = Literal["valid", "invalid", "unverified", "absent"]
"""Of a declaration: signed and sound, signed and broken, unsigned or not checked, not there."""


class SourceOut(BaseModel):
    """One place where a file may declare where it comes from."""

    status: Standing
    declares: Declares


class ActionOut(BaseModel):
    """A step in the making of an asset, as C2PA records it."""

    action: str = Field(examples=["c2pa.created"])
    digital_source_type: str | None = Field(examples=["trainedAlgorithmicMedia"])
    software_agent: str | None


class IngredientOut(BaseModel):
    """Another asset that went into this one, as C2PA records it."""

    relationship: str = Field(examples=["parentOf"])
    status: Standing = Field(description="of its own manifest")
    declares: Declares


class ContentCredentialsOut(SourceOut):
    """C2PA: the active manifest of the file. One that is elsewhere is never fetched."""

    signer: str | None = Field(description="common name of the certificate that signed it")
    issuer: str | None = Field(
        description="organisation that the certificate names as its holder, by C2PA tools' own word"
    )
    trusted: bool | None = Field(
        description="whether the signer's certificate is of an authority on the operator's trust "
        "list; null: there is no list, or the signature is not valid"
    )
    signed_at: str | None = Field(
        description="by a timestamp authority, whichever; RFC 3339. null: there is no such time"
    )
    claim_generator: str | None = Field(description="what wrote the manifest")
    digital_source_type: str | None = Field(examples=["trainedAlgorithmicMedia"])
    actions: list[ActionOut]
    ingredients: list[IngredientOut]
    failures: list[str] = Field(
        description="validation codes of what failed", examples=[["assertion.dataHash.mismatch"]]
    )


class IptcOut(SourceOut):
    """IPTC photo metadata, as XMP carries them."""

    digital_source_type: str | None = Field(examples=["trainedAlgorithmicMedia"])
    ai_system_used: str | None


class XmpOut(SourceOut):
    """XMP's own account of the software."""

    creator_tool: str | None


class ExifOut(SourceOut):
    """EXIF's makers; no serial number, no position."""

    software: str | None
    make: str | None
    model: str | None


class ParametersOut(SourceOut):
    """A generator's parameters in text of the file; the text itself, a prompt say, is left out."""

    generator: str | None = Field(examples=["ComfyUI"])


class ProvenanceOut(BaseModel):
    """What the file says of itself; never part of the score.

    Anybody can write or remove any of it but a valid, trusted signature: that nothing is declared
    is no evidence of a photograph.
    """

    declares: Declares = Field(
        description="the gravest of what the sources declare that are not `invalid`: ai_generated, "
        "ai_edited, camera, software, nothing"
    )
    c2pa: ContentCredentialsOut
    iptc: IptcOut
    xmp: XmpOut
    exif: ExifOut
    parameters: ParametersOut


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
        "pictures; `profile_ignored`: an embedded colour profile that is not applied; "
        "`uneven`: with `explain=true`, one region stands out, see `evidence`",
    )
    cached: bool = Field(
        description="whether the score comes from the result cache; false where it was shared "
        "with the same upload under way"
    )
    timings_ms: TimingsOut
    provenance: ProvenanceOut | None = Field(
        None, description="what the file declares; null: the operator has switched it off"
    )
    evidence: EvidenceOut | None = Field(None, description="null without `explain=true`")


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
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{ProblemOut.__name__}"}}}
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
    explained: int | None = Field(
        description="how many images one counts as with `explain=true`; null: none is explained"
    )
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
