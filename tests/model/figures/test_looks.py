"""How well each kind of look is calibrated is told of images that did not calibrate it."""

import dataclasses

import numpy as np
import pytest

from model.data.manifest import folds
from model.figures.looks import look_figures
from model.verdicts import Logits
from tests.model.figures.test_crossfit import PROMISE, listed, logits


def shown(windows: bool) -> tuple[list[int], dict[str, Logits], Logits]:
    rows = listed(owners=20, images=20)
    clean = logits(rows, shift=3.0, seed=5)
    window = clean.all + np.random.default_rng(6).normal(0, 1, len(rows))
    clean = dataclasses.replace(clean, window=window if windows else clean.window)
    reduced = logits(rows, shift=1.5, seed=7)
    return folds(rows, 4), {"clean": clean, "corner": clean}, reduced


def test_each_kind_of_look_is_calibrated_by_itself() -> None:
    fold, conditions, reduced = shown(windows=True)
    figures = look_figures(fold, conditions, reduced, PROMISE)
    assert set(figures["ece"]) == {"first", "all", "window", "reduced_window"}
    assert all(error < 0.06 for error in figures["ece"].values())
    # Ten times the log-odds of a look are no look's calibration any more.
    overconfident = dataclasses.replace(reduced, all=np.where(np.array(fold) == 0, 10.0, 1.0))
    overconfident = dataclasses.replace(overconfident, all=overconfident.all * reduced.all)
    told = look_figures(fold, conditions, overconfident, PROMISE)
    assert told["ece"]["reduced_window"] > 1.5 * figures["ece"]["reduced_window"]


def test_what_there_is_no_look_of_has_no_figure() -> None:
    fold, conditions, _ = shown(windows=False)
    ece = look_figures(fold, conditions, None, PROMISE)["ece"]
    assert ece["window"] is None
    assert ece["reduced_window"] is None
    assert ece["all"] is not None


def test_second_looks_are_counted_by_class() -> None:
    fold, conditions, reduced = shown(windows=True)
    again = look_figures(fold, conditions, reduced, PROMISE)["second_looks"]
    assert again["made"] is None
    # Photographs are cleared by one look; nobody is accused by one.
    assert 0 < again["real"] < 0.5 < again["ai"] <= 1
    assert again["ai"] == pytest.approx(1, abs=0.2)
