"""Scores that the default checkpoint gives to a few pictures, per engine: `tests/data/golden.json`.

    python -m tests.golden    # writes it anew, for a new checkpoint

The photographs are scikit-image's (public domain or CC0); the picture that the checkpoint accuses
is one of them, retouched here. Each is scored as it is and with red and blue swapped, as a bug
would read it.
"""

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import skimage.data
from PIL import Image, ImageFilter

from model.detector import Detector
from model.engines.registry import _NATIVE_INT8, ENGINES
from model.hardware import Runtime, cpu_has
from model.images import decode

FILE = Path(__file__).parent / "data" / "golden.json"
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
ACCUSED = "retouched"
# Others sum pairs of int8 products in int16, and round otherwise than the CPU that wrote the file.
NATIVE_INT8 = cpu_has(*_NATIVE_INT8)


def pictures() -> dict[str, Image.Image]:
    """The pictures by name, RGB."""
    named = {name: Image.fromarray(getattr(skimage.data, name)()) for name in PHOTOGRAPHS}
    return named | {ACCUSED: _retouched(named["astronaut"])}


def _retouched(photograph: Image.Image) -> Image.Image:
    """In false colours, its texture smoothed away and its edges sharpened: no camera's traces."""
    smooth = swapped(photograph).filter(ImageFilter.MedianFilter(7))
    return smooth.filter(ImageFilter.UnsharpMask(radius=3, percent=250, threshold=0))


def swapped(picture: Image.Image) -> Image.Image:
    """Red and blue in each other's place."""
    red, green, blue = picture.split()
    return Image.merge("RGB", (blue, green, red))


def engines() -> Iterator[tuple[str, Runtime]]:
    """Every engine and precision, by one name."""
    for engine, precisions in ENGINES.items():
        for precision in precisions:
            runtime = Runtime.resolve("cpu", "float32", engine, precision, threads=1)
            yield f"{engine} {precision}", runtime


def score(detector: Detector, picture: Image.Image) -> float:
    """By the whole way that an upload takes: a file's bytes, decoded, looked at, scored."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    pixels = decode(buffer.getvalue()).pixels
    return detector.detect([pixels])[0].score


def log_odds(probability: float) -> float:
    """Where a step says as much near 0 and 1 as between them."""
    return math.log(probability / (1 - probability))


def main() -> None:
    """Write the file."""
    golden: dict[str, dict[str, Any]] = {}
    for engine, runtime in engines():
        detector = Detector.load(runtime=runtime)
        for name, picture in pictures().items():
            entry = golden.setdefault(name, {"scores": {}, "swapped": {}})
            entry["scores"][engine] = round(score(detector, picture), 4)
            entry["swapped"][engine] = round(score(detector, swapped(picture)), 4)
    FILE.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
