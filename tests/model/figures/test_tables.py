import dataclasses
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from model.data.manifest import AI, REAL, Row
from model.figures.plots import group_accuracy, reliability, roc
from model.figures.predictions import Predictions
from model.figures.tables import (
    consistency,
    generator_mean,
    group_table,
    overall,
    overall_table,
    per_group,
    verdicts_by_group,
)
from model.verdicts import Thresholds, Verdict

CUTS = Thresholds(real_below=0.3, ai_above=0.7)


def predicted(*images: tuple[str, int, float]) -> Predictions:
    """(group, label, score) of each image."""
    rows = [Row(Path(f"{i}.png"), y, g, g) for i, (g, y, _) in enumerate(images)]
    scores = np.array([score for _, _, score in images])
    return Predictions(
        rows=rows,
        labels=np.array([row.label for row in rows]),
        logits=np.zeros(len(rows)),
        scores=scores,
        verdicts=[CUTS.verdict(score) for score in scores.tolist()],
        skipped={"image_too_small": 1},
    )


@pytest.fixture
def mixed() -> Predictions:
    """One generator with photographs of its own, one without, one source of photographs."""
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
        ("camera", REAL, 0.1),
    )


def test_groups_are_set_against_the_right_photographs(mixed: Predictions) -> None:
    groups = per_group(mixed)
    assert list(groups) == ["camera", "flux", "progan"]
    assert {k: groups["progan"][k] for k in ("r_acc", "f_acc", "acc", "auc")} == {
        "r_acc": 0.5,
        "f_acc": 0.5,
        "acc": 0.5,
        "auc": 0.75,
    }
    used = [i for i in range(10) if mixed.rows[i].group == "flux" or mixed.labels[i] == REAL]
    labels, scores = mixed.labels[used], mixed.scores[used]
    assert groups["flux"]["r_acc"] == pytest.approx(4 / 6, abs=1e-6)  # both sources'
    assert groups["flux"]["f_acc"] == 0.5
    assert groups["flux"]["ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-6)
    assert groups["flux"]["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert groups["camera"] == {"images": {"real": 4, "ai": 0}, "median_score": 0.15, "r_acc": 0.75}
    mean = generator_mean(groups)
    assert mean["acc"] == pytest.approx((0.5 + (4 / 6 + 0.5) / 2) / 2, abs=1e-6)


def test_overall_counts_verdicts_by_the_thresholds(mixed: Predictions) -> None:
    figures = overall(mixed, repeats=20)
    assert figures["images"] == {"real": 6, "ai": 4}
    assert figures["verdicts"]["ai"] == {"ai_generated": 0.5, "real": 0, "uncertain": 0.5}
    assert figures["verdicts"]["real"] == pytest.approx(
        {"ai_generated": 1 / 6, "real": 4 / 6, "uncertain": 1 / 6}, abs=1e-6
    )
    assert figures["real_called_ai"] == figures["verdicts"]["real"]["ai_generated"]
    low, high = figures["real_called_ai_95"]
    assert 0 < low < 1 / 6 < high < 1
    assert figures["auc_95"][0] <= figures["auc"] <= figures["auc_95"][1]


def test_intervals_are_over_repositories_of_photographs() -> None:
    """Eight groups, but two pipelines: one is always taken for generated, the other never."""
    part = predicted(
        *[(f"camera{i}", REAL, 0.9 if i < 4 else 0.0) for i in range(8)], ("flux", AI, 0.5)
    )
    sites = [
        dataclasses.replace(row, repository=f"site{i // 4}") for i, row in enumerate(part.rows)
    ]
    figures = overall(dataclasses.replace(part, rows=sites), repeats=100)
    assert figures["auc"] == 0.5
    assert figures["auc_95"] == [0, 1]


def test_reliability_is_drawn_as_if_the_classes_were_equally_frequent() -> None:
    images = [("camera", REAL, 0.55)] * 90 + [("flux", AI, 0.55)] * 10
    [_, curve] = reliability({"clean": predicted(*images)}).axes[0].lines
    assert curve.get_xydata() == pytest.approx(np.array([[0.55, 0.5]]))


def test_a_class_alone_has_no_auc_and_breaks_nothing() -> None:
    part = predicted(("camera", REAL, 0.2), ("camera", REAL, 0.9))
    figures = overall(part, repeats=20)
    assert figures["auc"] is None
    assert figures["auc_95"] == [None, None]
    assert figures["ece"] is None
    assert figures["recall_at_1_percent_fpr"] is None
    assert figures["r_acc"] == 0.5
    assert generator_mean(per_group(part))["acc"] is None
    for draw in (roc, reliability, group_accuracy):
        draw({"clean": part, "jpeg60": part})


def test_consistency_pairs_images_and_tells_doubt_from_reversal() -> None:
    clean = predicted(*[("g", AI, s) for s in (0.9, 0.9, 0.1, 0.5, 0.1, 0.9)])
    copy = predicted(*[("g", AI, s) for s in (0.9, 0.1, 0.9, 0.9, 0.5, 0.9)])
    assert [v for v in copy.verdicts if v is Verdict.UNCERTAIN] == [Verdict.UNCERTAIN]
    part = Predictions(  # the last image was too small in this condition
        copy.rows[:5], copy.labels[:5], copy.logits[:5], copy.scores[:5], copy.verdicts[:5], {}
    )
    assert consistency(clean, part) == {
        "images": 5,
        "changed": 0.8,
        "real<->ai_generated": 0.4,
        "to or from uncertain": 0.4,
    }
    assert consistency(clean, clean)["changed"] == 0


def test_verdicts_of_each_source_are_of_its_own_images(mixed: Predictions) -> None:
    by_group = verdicts_by_group(mixed)
    assert list(by_group["real"]) == ["camera", "progan"]
    assert list(by_group["ai"]) == ["flux", "progan"]
    assert by_group["real"]["camera"] == {
        "images": 4,
        "ai_generated": 0.25,
        "real": 0.75,
        "uncertain": 0,
    }
    assert by_group["ai"]["progan"] == {
        "images": 2,
        "ai_generated": 0.5,
        "real": 0,
        "uncertain": 0.5,
    }


def test_what_ranks_the_images_may_be_other_than_their_scores(mixed: Predictions) -> None:
    plain, ranked = overall(mixed, repeats=5), overall(mixed, ranks=-mixed.scores, repeats=5)
    assert ranked["auc"] == pytest.approx(1 - plain["auc"])
    assert ranked["ece"] == plain["ece"]


def test_tables_show_every_figure_with_its_interval(mixed: Predictions) -> None:
    figures = overall(mixed, repeats=20)
    header, [cells] = overall_table({"clean": figures})
    shown = dict(zip(header, cells, strict=True))
    assert (shown["condition"], shown["images"]) == ("clean", "10")
    low, high = (100 * end for end in figures["real_called_ai_95"])
    assert shown["real called AI"] == f"16.7 ({low:.1f}-{high:.1f})"
    assert shown["AUC"].startswith(f"{100 * figures['auc']:.1f} (")
    table = group_table(per_group(mixed)).splitlines()
    assert table[0] == "| group | real | AI | AUC | AP | R.Acc | F.Acc | Acc |"
    assert table[2] == "| camera | 4 | 0 | - | - | 75.0 | - | - |"
    assert table[-1].startswith("| **mean** |")
