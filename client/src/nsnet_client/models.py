"""The answers, as the OpenAPI document of the service shows them: it says what each field means.

Fields that a newer server adds are left out; words that it adds, another warning say, are not.
"""

import functools
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

Verdict: TypeAlias = Literal["real", "ai_generated", "uncertain"]

Declares: TypeAlias = Literal["ai_generated", "ai_edited", "camera", "software", "nothing"]
"""What a file says of its own origin."""

Standing: TypeAlias = Literal["valid", "invalid", "unverified", "absent"]
"""Of a declaration: signed and sound, signed and broken, unsigned or not checked, not there."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Cuts that the verdict was taken by."""

    real_below: float
    ai_above: float


@dataclass(frozen=True, slots=True)
class Model:
    """Which model answered."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Image:
    """What was uploaded; width and height in pixels, upright."""

    sha256: str
    format: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds per stage."""

    decode: float
    patches: float
    queue: float
    inference: float


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in the upright original, pixels; right and bottom are the first beyond it."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, slots=True)
class View:
    """What the network says of one view of the image, alone."""

    box: Box
    entropy: float | None
    score: float | None
    log_odds: float
    logit: float
    calibration: str | None


@dataclass(frozen=True, slots=True)
class Legend:
    """What the heat-map's colours mean."""

    quantity: Literal["log_odds"]
    low: float
    high: float
    colours: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Heatmap:
    """Where the image looks generated; `image` is a PNG as a data URI."""

    image: str
    width: int
    height: int
    legend: Legend


@dataclass(frozen=True, slots=True)
class Uneven:
    """One region that stands out against the rest."""

    box: Box
    contrast: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """What in the image speaks for or against AI generation; it changes no score."""

    views: tuple[View, ...]
    combination: str
    windows: tuple[View, ...]
    uneven: Uneven | None
    heatmap: Heatmap | None


@dataclass(frozen=True, slots=True)
class Source:
    """One place where a file may declare where it comes from."""

    status: Standing
    declares: Declares


@dataclass(frozen=True, slots=True)
class Action:
    """A step in the making of an asset, as C2PA records it."""

    action: str
    digital_source_type: str | None
    software_agent: str | None


@dataclass(frozen=True, slots=True)
class Ingredient:
    """Another asset that went into this one, as C2PA records it."""

    relationship: str
    status: Standing
    declares: Declares


@dataclass(frozen=True, slots=True)
class ContentCredentials(Source):
    """C2PA: the active manifest of the file."""

    signer: str | None
    issuer: str | None
    trusted: bool | None
    signed_at: str | None
    claim_generator: str | None
    digital_source_type: str | None
    actions: tuple[Action, ...]
    ingredients: tuple[Ingredient, ...]
    failures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Iptc(Source):
    """IPTC photo metadata."""

    digital_source_type: str | None
    ai_system_used: str | None


@dataclass(frozen=True, slots=True)
class Xmp(Source):
    """XMP's own account of the software."""

    creator_tool: str | None


@dataclass(frozen=True, slots=True)
class Exif(Source):
    """EXIF's makers."""

    software: str | None
    make: str | None
    model: str | None


@dataclass(frozen=True, slots=True)
class Parameters(Source):
    """A generator's parameters in text of the file."""

    generator: str | None


@dataclass(frozen=True, slots=True)
class Provenance:
    """What the file says of itself; never part of the score."""

    declares: Declares
    c2pa: ContentCredentials
    iptc: Iptc
    xmp: Xmp
    exif: Exif
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class Detection:
    """One image's answer: evidence, not proof.

    `score` is a calibrated probability of AI generation; `uncertain` is no opinion.
    """

    id: str
    verdict: Verdict
    score: float
    looks: int
    thresholds: Thresholds
    model: Model
    image: Image
    warnings: tuple[str, ...]
    cached: bool
    timings_ms: Timings
    provenance: Provenance | None = None
    evidence: Evidence | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as the server tells it (RFC 9457); of an image that was not sent, in its words."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str


@dataclass(frozen=True, slots=True)
class ItemOk:
    """An image of a batch that was scored.

    `index` is its place among the images given, `filename` its name here, which is not sent.
    """

    index: int
    filename: str | None
    status: Literal["ok"]
    result: Detection


@dataclass(frozen=True, slots=True)
class ItemError:
    """An image of a batch that could not be scored; `index` and `filename` as of `ItemOk`."""

    index: int
    filename: str | None
    status: Literal["error"]
    error: Problem


Item: TypeAlias = ItemOk | ItemError


@dataclass(frozen=True, slots=True)
class Limits:
    """What an upload may be."""

    max_upload_bytes: int
    max_request_bytes: int
    max_files: int
    max_pixels: int
    max_aspect: float
    min_side: int
    explained: int | None
    formats: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Backbone:
    """The CLIP tower."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class QualityRule:
    """Measurements of which a picture is `low_quality` if any is out of bounds."""

    min_side: float
    min_sharpness: float
    max_blockiness: float


@dataclass(frozen=True, slots=True)
class Accused:
    """Shares that a cut calls AI-generated."""

    photographs_accused: float
    made_accused: float | None
    ai_found: float


@dataclass(frozen=True, slots=True)
class Cut:
    """What a `threshold` would do, by the condition of the images."""

    cut: float
    conditions: Mapping[str, Accused]


@dataclass(frozen=True, slots=True)
class ModelDetails(Model):
    """All there is to know of the loaded model."""

    backbone: Backbone
    device: str
    engine: str
    precision: str
    dtype: str
    canvases: str
    thresholds: Thresholds
    quality: QualityRule | None
    cuts: tuple[Cut, ...]
    calibration: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    limits: Limits


T = TypeVar("T")


def build(kind: type[T], value: Any) -> T:
    """Make a dataclass of this module of a JSON value.

    Args:
        kind: the dataclass.
        value: an object; fields of it that `kind` has not are left out.

    Raises:
        KeyError: a field is missing.
        TypeError: a value is of another type than its field.
        ValueError: the same, or a number is not finite.
        OverflowError: a number is too large for its field.
    """
    made: T = _build(kind, value)
    return made


def _build(kind: Any, value: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):  # of a type and None: there is no other here
        [inner] = [one for one in arguments if one is not types.NoneType]
        return None if value is None else _build(inner, value)
    if origin is Literal:
        return _checked(str, value)
    if origin is tuple:
        return tuple(_build(arguments[0], one) for one in _checked(list, value))
    if isinstance(kind, type) and is_dataclass(kind):
        given = _checked(dict, value)
        optional = _optional(kind)
        return kind(
            **{
                name: _build(inner, given[name])
                for name, inner in _hints(kind).items()
                if name in given or name not in optional
            }
        )
    if origin is not None:  # a mapping
        return {name: _build(arguments[1], one) for name, one in _checked(dict, value).items()}
    if kind is float and type(value) is int:  # JSON may write 1 for 1.0
        value = float(value)
    if kind is float and not math.isfinite(_checked(float, value)):
        raise ValueError("a finite number expected")
    return _checked(kind, value)


def _checked(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{kind.__name__} expected")
    return value


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


@functools.cache
def _optional(kind: Any) -> frozenset[str]:
    """The fields that have a default, which is None."""
    return frozenset(field.name for field in fields(kind) if field.default is None)
