"""Answers as they look, for the OpenAPI document: one of every kind, held against its schema."""

import json
from collections.abc import Mapping
from typing import Any, Final

from app.errors import ApiError

_REQUEST: Final = "5f0c3b0e7d6a4f0c9a4b1d2e3f405162"

DETAILS: Final[Mapping[str, str]] = {
    "malformed_multipart": "The multipart body ends before its last boundary.",
    "missing_file": "Send the image as the field `file` of a form, or as the body.",
    "empty_file": "The file has no bytes.",
    "bad_request": "The body ended early.",
    "not_found": "No model of this name and version is served here.",
    "unauthorized": "Send an API key as `Authorization: Bearer KEY`.",
    "request_timeout": "The body came too slowly while others waited for its place.",
    "payload_too_large": "One image may have 33554432 bytes at most.",
    "too_many_files": "A request may carry 32 files.",
    "too_many_pixels": "An image may have 64000000 pixels at most, in every part of its file.",
    "too_expensive": "To decode the image takes more time or memory than one image may.",
    "unsupported_media_type": "Send JPEG, PNG, WebP, AVIF, HEIC, GIF, TIFF or BMP: the content "
    "decides.",
    "corrupt_image": "The image data are damaged or cut off.",
    "unsupported_variant": "This variant of TIFF is not read: send the image in a common one.",
    "image_too_small": "Both sides must have 64 pixels or more to be judged; this image has 48 x "
    "48.",
    "validation_error": "The query parameter `threshold` is given twice.",
    "queue_full": "Every place in the queue is taken.",
    "rate_limited": "600 images a minute are allowed per client.",
    "internal_error": "The request could not be handled.",
    "inference_failed": "The network could not score this image.",
    "not_ready": "The model is being loaded.",
    "draining": "This server is shutting down.",
    "overloaded": "The server has no memory left for this image now.",
    "deadline_exceeded": "The image was not scored in time.",
}
"""Of each error that a route documents, one detail that it is told with."""


def problem(code: str, request_id: str = _REQUEST) -> dict[str, Any]:
    """An error as a client gets it."""
    return ApiError(code, DETAILS[code]).problem(request_id)


def inference_error(code: str) -> dict[str, str]:
    """The same, as the Open Inference Protocol has it."""
    return {"error": f"{code}: {DETAILS[code]}"}


_THRESHOLDS: Final = {"real_below": 0.1928, "ai_above": 0.9261}
_MODEL: Final = {
    "name": "nsnet-vit-b-16",
    "version": "0.5.0",
    "sha256": "9a5b3ce22f9d01874d94dfcca23d3f9dea47e29a5819628cf83c5ca60afcda2c",
}
_ABSENT: Final = {"status": "absent", "declares": "nothing"}
_SAYS_NOTHING: Final = {
    "declares": "nothing",
    "c2pa": _ABSENT
    | {
        "signer": None,
        "issuer": None,
        "trusted": None,
        "signed_at": None,
        "claim_generator": None,
        "digital_source_type": None,
        "actions": [],
        "ingredients": [],
        "failures": [],
    },
    "iptc": _ABSENT | {"digital_source_type": None, "ai_system_used": None},
    "xmp": _ABSENT | {"creator_tool": None},
    "exif": _ABSENT | {"software": None, "make": None, "model": None},
    "parameters": _ABSENT | {"generator": None},
}

_PHOTOGRAPH: Final[Mapping[str, Any]] = {
    "id": _REQUEST,
    "verdict": "real",
    "score": 0.0417,
    "looks": 1,
    "thresholds": _THRESHOLDS,
    "model": _MODEL,
    "image": {
        "sha256": "c0535e4be2b79ffd93291305436bf889314e4a3faec05ecffcbb7df31ad9e51a",
        "format": "JPEG",
        "width": 4032,
        "height": 3024,
    },
    "warnings": [],
    "cached": False,
    "timings_ms": {"decode": 58.2, "patches": 9.4, "queue": 0.3, "inference": 14.9},
    "provenance": _SAYS_NOTHING
    | {
        "declares": "camera",
        "exif": {
            "status": "unverified",
            "declares": "camera",
            "software": "17.5.1",
            "make": "Apple",
            "model": "iPhone 15",
        },
    },
    "evidence": None,
}

_GENERATED: Final[Mapping[str, Any]] = {
    "id": _REQUEST,
    "verdict": "ai_generated",
    "score": 0.9887,
    "looks": 2,
    "thresholds": _THRESHOLDS,
    "model": _MODEL,
    "image": {
        "sha256": "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
        "format": "PNG",
        "width": 1024,
        "height": 1024,
    },
    "warnings": [],
    "cached": False,
    "timings_ms": {"decode": 21.7, "patches": 12.8, "queue": 0.4, "inference": 41.6},
    "provenance": _SAYS_NOTHING
    | {
        "declares": "ai_generated",
        "c2pa": {
            "status": "valid",
            "declares": "ai_generated",
            "signer": "Example Images",
            "issuer": "Example Images Inc.",
            "trusted": True,
            "signed_at": "2026-05-04T09:12:31+00:00",
            "claim_generator": "Example Images/3.1",
            "digital_source_type": "trainedAlgorithmicMedia",
            "actions": [
                {
                    "action": "c2pa.created",
                    "digital_source_type": "trainedAlgorithmicMedia",
                    "software_agent": "Example Images",
                }
            ],
            "ingredients": [],
            "failures": [],
        },
    },
    "evidence": None,
}


def _view(
    left: int,
    top: int,
    side: int,
    entropy: float | None,
    logit: float,
    log_odds: float,
    score: float,
) -> dict[str, Any]:
    return {
        "box": {"left": left, "top": top, "right": left + side, "bottom": top + side},
        "entropy": entropy,
        "score": score,
        "log_odds": log_odds,
        "logit": logit,
        "calibration": "first" if entropy is None else "window",
    }


_EXPLAINED: Final[Mapping[str, Any]] = {
    **_GENERATED,
    "evidence": {
        "views": [
            _view(0, 0, 1024, None, 2.733, 3.71, 0.9761),
            _view(416, 640, 224, 6.91, 3.692, 4.12, 0.984),
        ],
        "combination": "0.75 x the centre square's logit + 0.25 x the other views' mean logit, "
        "`all`",
        "windows": [
            _view(0, 0, 224, 6.02, 2.561, 2.94, 0.9498),
            _view(200, 0, 224, 6.34, 2.791, 3.18, 0.9601),
        ],
        "uneven": None,
        "heatmap": {
            "image": "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFUlE"
            "QVR4nGNQTFvz/ft3BiDeHMEGADk8CA9Y9F5mAAAAAElFTkSuQmCC",
            "width": 2,
            "height": 2,
            "legend": {
                "quantity": "log_odds",
                "low": -6.0,
                "high": 6.0,
                "colours": [
                    "#053061",
                    "#2166ac",
                    "#92c5de",
                    "#f7f7f7",
                    "#fdb863",
                    "#b35806",
                    "#7f3b08",
                ],
            },
        },
    },
}

_ITEMS: Final = [
    {
        "index": 0,
        "filename": "photo.jpg",
        "status": "ok",
        "result": {**_PHOTOGRAPH, "id": f"{_REQUEST}-0"},
    },
    {
        "index": 1,
        "filename": "half.png",
        "status": "error",
        "error": problem("corrupt_image", f"{_REQUEST}-1"),
    },
]
_SUMMARY: Final = {"model": _MODEL, "summary": {"ok": 1, "error": 1}}

_BATCH: Final[Mapping[str, Any]] = {**_SUMMARY, "results": _ITEMS}
_LINES: Final = "".join(f"{json.dumps(line)}\n" for line in [*_ITEMS[::-1], _SUMMARY])
_MODEL_DETAILS: Final[Mapping[str, Any]] = {
    **_MODEL,
    "backbone": {
        "name": "ViT-B-16-quickgelu",
        "sha256": "604fe530eface1389829afeffe15d957bc671c1d6b2883a2604d00451b3ea131",
    },
    "device": "cpu",
    "engine": "openvino",
    "precision": "int8",
    "dtype": "float32",
    "canvases": "adaptive",
    "thresholds": _THRESHOLDS,
    "quality": {"min_side": 224.0, "min_sharpness": 0.6422, "max_blockiness": 2.4183},
    "cuts": [
        {
            "cut": 0.6666,
            "conditions": {
                "clean": {
                    "photographs_accused": 0.0406,
                    "made_accused": 0.1047,
                    "ai_found": 0.8624,
                },
                "jpeg60": {
                    "photographs_accused": 0.0452,
                    "made_accused": 0.1122,
                    "ai_found": 0.804,
                },
            },
        }
    ],
    "calibration": {
        "first": {"slope": 1.2629, "intercept": 0.2587},
        "all": {"slope": 1.3965, "intercept": 0.3192},
        "window": {"slope": 1.0431, "intercept": 0.2686},
        "reduced_window": {"slope": 1.3046, "intercept": 0.0637},
    },
    "evaluation": {"left_out_owners": {"clean": {"auc": 0.9761, "auc_95": [0.969, 0.9826]}}},
    "limits": {
        "max_upload_bytes": 33554432,
        "max_request_bytes": 134217728,
        "max_files": 32,
        "max_pixels": 64000000,
        "max_aspect": 32.0,
        "min_side": 64,
        "explained": 16,
        "formats": ["JPEG", "PNG", "WEBP", "AVIF", "HEIF", "GIF", "TIFF", "BMP"],
    },
}

_STATUS: Final = {"status": "ok"}

_METRICS: Final = """# HELP nsnet_images_total Images by outcome: ok, error, cancelled.
# TYPE nsnet_images_total counter
nsnet_images_total{outcome="ok"} 1204.0
"""

_PROBE: Final = {"application/json": {"up": {"value": _STATUS}}}

_TENSORS: Final = (
    ("score", "FP64"),
    ("verdict", "BYTES"),
    ("looks", "INT32"),
    ("warnings", "BYTES"),
)
_INFERENCE: Final = {"model_name": _MODEL["name"], "model_version": _MODEL["version"], "id": "42"}
_AS_JSON: Final[Mapping[str, Any]] = {
    **_INFERENCE,
    "outputs": [
        {"name": name, "datatype": datatype, "shape": [2], "data": data}
        for (name, datatype), data in zip(
            _TENSORS,
            ([0.0417, 0.9887], ["real", "ai_generated"], [1, 2], ["[]", "[]"]),
            strict=True,
        )
    ],
}
_AS_BYTES: Final[Mapping[str, Any]] = {
    **_INFERENCE,
    "outputs": [
        {"name": "score", "datatype": "FP64", "shape": [2], "parameters": {"binary_data_size": 16}}
    ],
}
_OIP: Final[Mapping[str, Any]] = {
    "/v2": {"name": "nsnet", "version": "0.8.0", "extensions": ["binary_tensor_data"]},
    "/v2/health/live": {"live": True},
    "/v2/health/ready": {"ready": True},
    "/v2/models/{name}/ready": {"name": _MODEL["name"], "ready": True},
    "/v2/models/{name}": {
        "name": _MODEL["name"],
        "versions": [_MODEL["version"]],
        "platform": "nsnet",
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in _TENSORS
        ],
    },
}

ANSWERS: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    "/detect": {
        "application/json": {
            "photograph": {"summary": "A photograph", "value": _PHOTOGRAPH},
            "generated": {"summary": "A generated image that says so", "value": _GENERATED},
            "explained": {"summary": "The same with `explain=true`", "value": _EXPLAINED},
        }
    },
    "/detect/batch": {
        "application/json": {"mixed": {"summary": "One could not be read", "value": _BATCH}},
        "application/x-ndjson": {"mixed": {"summary": "As it is streamed", "value": _LINES}},
    },
    "/model": {"application/json": {"loaded": {"value": _MODEL_DETAILS}}},
    "/livez": _PROBE,
    "/healthz": _PROBE,
    "/readyz": _PROBE,
    "/metrics": {"text/plain": {"counter": {"value": _METRICS}}},
    "/v2/models/{name}/infer": {
        "application/json": {"two": {"summary": "Two images", "value": _AS_JSON}},
        "application/octet-stream": {
            "score": {
                "summary": "Their scores as bytes",
                "value": f"{json.dumps(_AS_BYTES)}<16 bytes>",
            }
        },
    },
    **{path: {"application/json": {"up": {"value": value}}} for path, value in _OIP.items()},
}
"""What is answered if all is well: by path and media type, named as OpenAPI names examples."""
