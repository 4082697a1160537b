"""What is listed of a cut is what it does."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from model.data.manifest import AI, REAL, Row
from model.figures.crossfit import rules_of
from model.figures.cuts import ACCUSED, cuts
from model.verdicts import Cut, Logits, Quality, Verdict, VerdictRules
from tests.model.figures.test_crossfit import PROMISE, listed, logits


def sample() -> dict[str, Logits]:
    """Photographs, drawings and AI images, under two promised conditions and another."""
    rows = listed(owners=10, images=300)
    rows += [Row(Path(f"art-{i}.png"), REAL, "painter", "painter", "art") for i in range(200)]
    conditions = {"clean": logits(rows, 3.0, seed=0), "equalised": logits(rows, 2.0, seed=1)}
    rng = np.random.default_rng(0)
    for name, part in conditions.items():
        quality = part.quality + rng.normal(0, 0.1, part.quality.shape)
        conditions[name] = dataclasses.replace(part, quality=quality)
    return {**conditions, "corner": logits(rows, -3.0, seed=2)}


def accused(
    part: Logits, rules: VerdictRules, cut: float
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Bool [n], by the rule itself, an image at a time."""
    verdicts = [
        rules.verdict(
            rules.score(logit, glance=False),
            glance=False,
            reasons=rules.reasons(Quality(*quality)),
            cut=cut,
        )
        for logit, quality in zip(part.all.tolist(), part.quality.tolist(), strict=True)
    ]
    return np.array([verdict is Verdict.AI_GENERATED for verdict in verdicts])


def test_each_cut_keeps_its_share_under_the_worst_promised_condition() -> None:
    conditions = sample()
    rules = rules_of(conditions, "", PROMISE)
    listed_cuts = cuts(conditions, rules)
    TypeAdapter(list[Cut]).validate_python(listed_cuts)
    places = [cut["cut"] for cut in listed_cuts]
    assert places == sorted(set(places))
    assert places == [round(place, 4) for place in places]
    assert len(places) == len(ACCUSED)
    for share, cut in zip(sorted(ACCUSED, reverse=True), listed_cuts, strict=True):
        assert cut["conditions"].keys() == {"clean", "equalised"}
        photographs = []
        for name, shares in cut["conditions"].items():
            part = conditions[name]
            called = accused(part, rules, cut["cut"])
            photographs.append(called[part.photographs].mean())
            assert shares == pytest.approx(
                {
                    "photographs_accused": called[part.photographs].mean(),
                    "made_accused": called[part.made].mean(),
                    "ai_found": called[part.labels == AI].mean(),
                },
                abs=1e-4,
            )
        # As many as may be, but for the last digit of the cut.
        assert 0.6 * share <= max(photographs) <= share


def test_pictures_of_low_quality_are_found_by_no_cut() -> None:
    conditions = sample()
    rules = rules_of(conditions, "", PROMISE)
    poor = {
        name: dataclasses.replace(part, quality=part.quality * [1, 0.1, 1])
        for name, part in conditions.items()
    }
    [cut] = cuts(poor, rules)  # the same for all shares
    assert cut["cut"] == 0
    for shares in cut["conditions"].values():
        assert set(shares.values()) == {0}


def test_cuts_that_fall_together_are_listed_once() -> None:
    """Scores of 1 are accused by every cut; there is no higher one."""
    rows = listed(owners=2, images=50)
    part = logits(rows, 6.0, seed=0)
    rules = rules_of({"clean": part}, "", PROMISE)
    certain = dataclasses.replace(part, all=np.where(part.labels == AI, 200.0, -200.0))
    certain.all[:10] = 200.0  # a tenth of the photographs
    listed_cuts = cuts({"clean": certain}, rules)
    assert [cut["cut"] for cut in listed_cuts] == [0.0001, 1.0]
    for cut in listed_cuts:
        assert cut["conditions"]["clean"] == {
            "photographs_accused": 0.1,
            "made_accused": None,
            "ai_found": 1.0,
        }
