"""Toy images that a random tower can tell apart, and the tower for processes of their own."""

import csv
from pathlib import Path

import numpy as np
import open_clip
from PIL import Image

from model.tower import sources
from tests.conftest import TINY


def know_tiny(tower: Path) -> None:
    """Make TINY known in a process that no fixture has prepared."""
    open_clip.add_model_config(tower.parent / f"{TINY}.json")
    sources.cached_path = lambda *_: tower


def toy_images(folder: Path, count: int = 48, size: int = 130) -> Path:
    """'AI' images carry stripes, photographs do not; 4 groups of each; with a manifest."""
    rng = np.random.default_rng(0)
    board = 100 * ((np.arange(size) // 8) % 2)[None, :, None]
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "group", "split"])
        for index in range(count):
            label = ("real", "ai")[index % 2]
            noise = rng.integers(0, 60, (size, size, 3)) + rng.integers(20, 90)
            pixels = noise + (board if label == "ai" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
            table.writerow([f"{index}.png", label, f"{label}{index // 2 % 4}", "train"])
    return folder / "manifest.csv"
