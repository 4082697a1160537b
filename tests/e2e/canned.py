"""Evidence and provenance, as the server's contract has them."""

import base64
from typing import Any

import numpy as np
from PIL import Image

from tests.images import encoded

ABSENT = {"status": "absent", "declares": "nothing"}


def evidence(width: int, height: int, columns: int = 4, rows: int = 3) -> dict[str, Any]:
    """Of an image of this size, with so many windows."""
    windows = []
    for row in range(rows):
        for column in range(columns):
            box = {
                "left": column * width // (columns + 1),
                "top": row * height // (rows + 1),
                "right": (column + 2) * width // (columns + 1),
                "bottom": (row + 2) * height // (rows + 1),
            }
            odds = 0.5 * (column - row)
            windows.append(view(box, 4 + 0.1 * column, odds, "reduced_window"))
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    centre = {"left": left, "top": top, "right": left + side, "bottom": top + side}
    grid = np.linspace(0, 255, 40 * 30).reshape(30, 40).astype(np.uint8)
    heat = np.stack([grid, grid // 2, 255 - grid], axis=-1)
    png = base64.b64encode(encoded(Image.fromarray(heat), "PNG")).decode()
    return {
        "views": [view(centre, None, 1.25, "first"), windows[0]],
        "combination": "sigmoid of 0.75 x the whole image's log-odds + 0.25 x the window's",
        "windows": windows,
        "uneven": {"box": windows[-1]["box"], "contrast": 2.5},
        "heatmap": {
            "image": f"data:image/png;base64,{png}",
            "width": 40,
            "height": 30,
            "legend": {
                "quantity": "log_odds",
                "low": -4.0,
                "high": 4.0,
                "colours": ["#2166ac", "#f7f7f7", "#b35806"],
            },
        },
    }


def view(
    box: dict[str, int], entropy: float | None, odds: float, calibration: str
) -> dict[str, Any]:
    return {
        "box": box,
        "entropy": entropy,
        "score": round(1 / (1 + np.exp(-odds)), 4),
        "log_odds": odds,
        "calibration": calibration,
    }


PROVENANCE: dict[str, Any] = {
    "declares": "ai_generated",
    "c2pa": {
        "status": "valid",
        "declares": "ai_generated",
        "signer": "Example Generator",
        "issuer": "Example Authority",
        "trusted": None,
        "signed_at": "2026-05-04T03:02:01Z",
        "claim_generator": "Example 1.0",
        "digital_source_type": "trainedAlgorithmicMedia",
        "actions": [
            {
                "action": "c2pa.created",
                "digital_source_type": "trainedAlgorithmicMedia",
                "software_agent": "Example",
            }
        ],
        "ingredients": [{"relationship": "parentOf", "status": "absent", "declares": "nothing"}],
        "failures": [],
    },
    "iptc": {**ABSENT, "digital_source_type": None, "ai_system_used": None},
    "xmp": {**ABSENT, "creator_tool": None},
    "exif": {
        "status": "unverified",
        "declares": "camera",
        "software": None,
        "make": "Example",
        "model": "E-1",
    },
    "parameters": {**ABSENT, "generator": None},
}
