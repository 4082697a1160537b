import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from model.data.manifest import AI, REAL, Row
from model.figures.plots import reliability, roc, weakest_groups
from model.figures.predictions import Predictions
from model.figures.tables import (
    consistency,
    group_rows,
    group_table,
    overall,
    overall_table,
    owner_table,
    verdict_table,
    verdicts_by_group,
    weakest,
    worst,
    worst_table,
)
from model.verdicts import Thresholds, Verdict

CUTS = Thresholds(real_below=0.3, ai_above=0.7)
ART = "art"


def predicted(*images: tuple[str, int | str, float]) -> Predictions:
    """(group, label or kind of what people made, score) of each image."""
    rows = [
        Row(Path(f"{i}.png"), y, g, g)
        if isinstance(y, int)
        else Row(Path(f"{i}.png"), REAL, g, g, y)
        for i, (g, y, _) in enumerate(images)
    ]
    scores = np.array([score for _, _, score in images])
    return Predictions(
        rows=rows,
        labels=np.array([row.label for row in rows]),
        logits=np.zeros(len(rows)),
        scores=scores,
        verdicts=[CUTS.verdict(score) for score in scores.tolist()],
        low_quality=np.zeros(len(rows), dtype=bool),
        skipped={"image_too_small": 1},
    )


@pytest.fixture
def mixed() -> Predictions:
    """One generator with photographs of its own, one without, one source of photographs, one of
    drawings and of photographs."""
    return predicted(
        ("progan", REAL, 0.1),
        ("progan", REAL, 0.6),
        ("progan", AI, 0.9),
        ("progan", AI, 0.4),
        ("flux", AI, 0.8),
        ("flux", AI, 0.3),
        ("camera", REAL, 0.2),
        ("camera", REAL, 0.75),
        ("camera", REAL, 0.0),
        ("commons", REAL, 0.1),
        ("commons", ART, 0.9),
        ("commons", ART, 0.8),
        ("commons", ART, 0.1),
    )


def test_overall_counts_verdicts_by_the_thresholds(mixed: Predictions) -> None:
    figures = overall(mixed, repeats=20)
    assert figures["images"] == {"real": 6, "made": 3, "ai": 4}
    assert figures["verdicts"]["ai"] == {"ai_generated": 0.5, "real": 0, "uncertain": 0.5}
    assert figures["verdicts"]["real"] == pytest.approx(
        {"ai_generated": 1 / 6, "real": 4 / 6, "uncertain": 1 / 6}, abs=1e-4
    )
    assert figures["verdicts"]["made"]["ai_generated"] == pytest.approx(2 / 3, abs=1e-4)
    assert figures["made_called_ai"] == figures["verdicts"]["made"]["ai_generated"]
    assert figures["real_called_ai"] == figures["verdicts"]["real"]["ai_generated"]
    assert figures["uncertain"] == pytest.approx((1 / 6 + 1 / 2) / 2, abs=1e-4)
    low, high = figures["real_called_ai_95"]
    assert 0 <= low < 1 / 6 < high < 1
    assert figures["auc_95"][0] <= figures["auc"] <= figures["auc_95"][1]


def test_photographs_of_low_quality_are_counted(mixed: Predictions) -> None:
    low = np.array([row.group in ("camera", "flux") for row in mixed.rows])
    figures = overall(dataclasses.replace(mixed, low_quality=low), repeats=20)
    assert figures["held_back"] == 0.5


def test_intervals_are_over_owners() -> None:
    """Eight groups, but two owners: one's are always taken for generated, the other's never."""
    part = predicted(
        *[(f"camera{i}", REAL, 0.9 if i < 4 else 0.0) for i in range(8)], ("flux", AI, 0.5)
    )
    sites = [dataclasses.replace(row, owner=f"site{i // 4}") for i, row in enumerate(part.rows)]
    figures = overall(dataclasses.replace(part, rows=sites), repeats=100)
    assert figures["auc"] == 0.5
    assert figures["auc_95"] == [0, 1]
    assert figures["real_called_ai_95"] == [0, 1]


def test_pictures_people_made_are_no_photographs_in_the_plots(mixed: Predictions) -> None:
    own = ~mixed.made
    photographs = dataclasses.replace(
        mixed,
        rows=[row for row in mixed.rows if not row.made],
        labels=mixed.labels[own],
        scores=mixed.scores[own],
        verdicts=[v for v, kept in zip(mixed.verdicts, own, strict=True) if kept],
    )
    for draw in (roc, reliability):
        with_made, without = (
            np.unique(np.asarray(draw({"clean": part}).axes[0].lines[-1].get_xydata()), axis=0)
            for part in (mixed, photographs)
        )
        assert with_made.tolist() == without.tolist()


def test_reliability_is_drawn_as_if_the_classes_were_equally_frequent() -> None:
    images = [("camera", REAL, 0.55)] * 90 + [("flux", AI, 0.55)] * 10
    [_, curve] = reliability({"clean": predicted(*images)}).axes[0].lines
    assert curve.get_xydata() == pytest.approx(np.array([[0.55, 0.5]]))


def test_a_class_alone_has_no_auc_and_breaks_nothing() -> None:
    part = predicted(("camera", REAL, 0.2), ("camera", REAL, 0.9))
    figures = overall(part, repeats=20)
    for key in ("auc", "ece", "recall_at_1_percent_fpr", "acc", "made_called_ai", "ai_called_ai"):
        assert figures[key] is None
        assert figures[f"{key}_95"] == [None, None]
    assert figures["real_called_ai"] == 0.5
    assert figures["verdicts"]["ai"] == {"ai_generated": None, "real": None, "uncertain": None}
    json.dumps(figures, allow_nan=False)
    for draw in (roc, reliability, weakest_groups):
        draw({"clean": part, "jpeg60": part})


def test_consistency_pairs_images_and_tells_doubt_from_reversal() -> None:
    clean = predicted(*[("g", AI, s) for s in (0.9, 0.9, 0.1, 0.5, 0.1, 0.9)])
    copy = predicted(*[("g", AI, s) for s in (0.9, 0.1, 0.9, 0.9, 0.5, 0.9)])
    assert [v for v in copy.verdicts if v is Verdict.UNCERTAIN] == [Verdict.UNCERTAIN]
    part = dataclasses.replace(  # the last image was too small in this condition
        copy, rows=copy.rows[:5], verdicts=copy.verdicts[:5]
    )
    assert consistency(clean, part) == {
        "images": 5,
        "changed": 0.8,
        "real<->ai_generated": 0.4,
        "to or from uncertain": 0.4,
    }
    assert consistency(clean, clean)["changed"] == 0


def test_verdicts_of_each_group_are_of_its_own_images(mixed: Predictions) -> None:
    by_group = verdicts_by_group(mixed)
    assert {of: list(groups) for of, groups in by_group.items()} == {
        "real": ["camera", "commons", "progan"],
        "made": ["commons"],
        "ai": ["flux", "progan"],
    }
    third = {"ai_generated": 0.3333, "real": 0.6667, "uncertain": 0.0}  # four digits
    assert by_group["real"]["camera"] == {"images": 3, **third}
    assert by_group["real"]["commons"]["images"] == 1
    assert by_group["made"]["commons"]["ai_generated"] == 0.6667
    assert by_group["ai"]["progan"] == {
        "images": 2,
        "ai_generated": 0.5,
        "real": 0,
        "uncertain": 0.5,
    }


def test_every_group_is_a_row_by_label_and_kind(mixed: Predictions) -> None:
    lines = group_rows(mixed)
    assert [(line["group"], line["label"], line["kind"], line["images"]) for line in lines] == [
        ("camera", "real", "", 3),
        ("commons", "real", "", 1),
        ("commons", "real", "art", 3),
        ("flux", "ai", "", 2),
        ("progan", "ai", "", 2),
        ("progan", "real", "", 2),
    ]
    assert lines[2] == {
        "group": "commons",
        "label": "real",
        "kind": "art",
        "images": 3,
        "ai_generated": 0.6667,
        "real": 0.3333,
        "uncertain": 0.0,
        "mean_score": 0.6,
    }


@pytest.fixture
def sources() -> Predictions:
    """Twelve generators and sources of twenty images, of which so many are called generated as
    their number says; small ones and art, that do worse, beside them."""
    images: list[tuple[str, int | str, float]] = []
    for of, label in (("gan", AI), ("camera", REAL), ("painter", ART)):
        for count in range(12):
            name = f"{of}{count:02}"
            images += [(name, label, 0.9 if index < count else 0.5) for index in range(20)]
    images += [("small", AI, 0.5)] * 9 + [("tiny", REAL, 0.9)] * 9 + [("few", REAL, 0.9)] * 19
    return predicted(*images)


def test_ten_groups_of_either_side_are_the_weakest(sources: Predictions) -> None:
    weak = weakest(verdicts_by_group(sources))
    assert list(weak["ai"]) == [f"gan{count:02}" for count in range(10)]
    assert list(weak["real"]) == ["few", *(f"camera{count:02}" for count in range(11, 2, -1))]
    assert weak["ai"]["gan03"]["ai_generated"] == 0.15
    bars = weakest_groups({"clean": sources}).axes[0]
    assert len(bars.patches) == 20
    assert len(group_table(weak["real"]).splitlines()) == 12


def test_sources_with_more_than_a_tenth_accused_are_named(sources: Predictions) -> None:
    """Of twenty photographs or more; two of twenty are a tenth, art is none."""
    named = worst(verdicts_by_group(sources))
    assert [source["group"] for source in named] == [f"camera{n:02}" for n in range(11, 2, -1)]
    assert named[0] == {"group": "camera11", "images": 20, "accused": 0.55}
    table = worst_table({"clean": named, "jpeg60": []}).splitlines()
    assert table[2] == "| clean | camera11 | 20 | 55.0 |"
    assert len(table) == 2 + 9


def test_what_ranks_the_images_may_be_other_than_their_scores(mixed: Predictions) -> None:
    plain, ranked = overall(mixed, repeats=5), overall(mixed, ranks=-mixed.scores, repeats=5)
    assert ranked["auc"] == pytest.approx(1 - plain["auc"])
    assert ranked["ece"] == plain["ece"]


def test_tables_show_every_figure_with_its_interval(mixed: Predictions) -> None:
    figures = overall(mixed, repeats=20)
    header, [cells] = overall_table({"clean": figures})
    shown = dict(zip(header, cells, strict=True))
    assert (shown["condition"], shown["images"]) == ("clean", "13")
    low, high = (100 * end for end in figures["real_called_ai_95"])
    assert shown["real called AI"] == f"16.7 ({low:.1f}-{high:.1f})"
    assert shown["art called AI"].startswith("66.7 (")
    assert shown["AUC"].startswith(f"{100 * figures['auc']:.1f} (")
    by_owner = owner_table({"clean": figures}).splitlines()
    # None of progan's two photographs, one of camera's three, not the one of commons.
    assert by_owner[2].startswith("| clean | 11.1 (")
    verdicts = verdict_table({"clean": figures}).splitlines()
    assert "art, renders and screens: ai_generated" in verdicts[0]
    assert verdicts[2] == ("| clean | 16.7 | 66.7 | 16.7 | 66.7 | 33.3 | 0.0 | 50.0 | 0.0 | 50.0 |")
