import dataclasses
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from model.checkpoint import Thresholds, Verdict
from model.evaluation.evaluate import Scored
from model.evaluation.figures import consistency, generator_mean, overall, per_group
from model.evaluation.plots import group_accuracy, reliability, roc
from model.training.manifest import AI, REAL, Row

CUTS = Thresholds(real_below=0.3, ai_above=0.7)


def scored(*images: tuple[str, int, float]) -> Scored:
    """(group, label, score) of each image."""
    rows = [Row(Path(f"{i}.png"), y, g, g) for i, (g, y, _) in enumerate(images)]
    scores = np.array([score for _, _, score in images])
    return Scored(
        rows=rows,
        labels=np.array([row.label for row in rows]),
        logits=np.zeros(len(rows)),
        scores=scores,
        verdicts=[CUTS.verdict(score) for score in scores.tolist()],
        skipped={"too_small": 1},
    )


@pytest.fixture
def mixed() -> Scored:
    """One generator with photographs of its own, one without, one source of photographs."""
    return scored(
        ("progan", REAL, 0.1), ("progan", REAL, 0.6), ("progan", AI, 0.9), ("progan", AI, 0.4),
        ("flux", AI, 0.8), ("flux", AI, 0.3),
        ("camera", REAL, 0.2), ("camera", REAL, 0.75), ("camera", REAL, 0.0), ("camera", REAL, 0.1),
    )  # fmt: skip


def test_groups_are_set_against_the_right_photographs(mixed: Scored) -> None:
    found = per_group(mixed)
    assert list(found) == ["camera", "flux", "progan"]
    assert {k: found["progan"][k] for k in ("r_acc", "f_acc", "acc", "auc")} == {
        "r_acc": 0.5, "f_acc": 0.5, "acc": 0.5, "auc": 0.75,
    }  # fmt: skip
    used = [i for i in range(10) if mixed.rows[i].group == "flux" or mixed.labels[i] == REAL]
    labels, scores = mixed.labels[used], mixed.scores[used]
    assert found["flux"]["r_acc"] == pytest.approx(4 / 6, abs=1e-6)  # both sources'
    assert found["flux"]["f_acc"] == 0.5
    assert found["flux"]["ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-6)
    assert found["flux"]["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert found["camera"] == {
        "images": {"real": 4, "ai": 0}, "median_score": 0.15, "r_acc": 0.75,
    }  # fmt: skip
    mean = generator_mean(found)
    assert mean["acc"] == pytest.approx((0.5 + (4 / 6 + 0.5) / 2) / 2, abs=1e-6)


def test_overall_counts_verdicts_by_the_thresholds(mixed: Scored) -> None:
    found = overall(mixed, repeats=20)
    assert found["images"] == {"real": 6, "ai": 4}
    assert found["verdicts"]["ai"] == {"ai_generated": 0.5, "real": 0, "uncertain": 0.5}
    assert found["verdicts"]["real"] == pytest.approx(
        {"ai_generated": 1 / 6, "real": 4 / 6, "uncertain": 1 / 6}, abs=1e-6
    )
    assert found["real_called_ai"] == found["verdicts"]["real"]["ai_generated"]
    low, high = found["real_called_ai_95"]
    assert 0 < low < 1 / 6 < high < 1
    assert found["auc_95"][0] <= found["auc"] <= found["auc_95"][1]


def test_intervals_are_over_repositories_of_photographs() -> None:
    """Eight groups, but two pipelines: one is always taken for generated, the other never."""
    part = scored(*[(f"camera{i}", REAL, 0.9 if i < 4 else 0.0) for i in range(8)],
                  ("flux", AI, 0.5))  # fmt: skip
    sites = [dataclasses.replace(row, repository=f"site{i // 4}")
             for i, row in enumerate(part.rows)]  # fmt: skip
    found = overall(dataclasses.replace(part, rows=sites), repeats=100)
    assert found["auc"] == 0.5
    assert found["auc_95"] == [0, 1]


def test_reliability_is_drawn_as_if_the_classes_were_equally_frequent() -> None:
    images = [("camera", REAL, 0.55)] * 90 + [("flux", AI, 0.55)] * 10
    [_, curve] = reliability({"clean": scored(*images)}).axes[0].lines
    assert curve.get_xydata() == pytest.approx(np.array([[0.55, 0.5]]))


def test_a_class_alone_has_no_auc_and_breaks_nothing() -> None:
    part = scored(("camera", REAL, 0.2), ("camera", REAL, 0.9))
    found = overall(part, repeats=20)
    assert found["auc"] is None
    assert found["auc_95"] == [None, None]
    assert found["ece"] is None
    assert found["recall_at_1_percent_fpr"] is None
    assert found["r_acc"] == 0.5
    assert generator_mean(per_group(part))["acc"] is None
    for draw in (roc, reliability, group_accuracy):
        draw({"clean": part, "jpeg60": part})


def test_consistency_pairs_images_and_tells_doubt_from_reversal() -> None:
    clean = scored(*[("g", AI, s) for s in (0.9, 0.9, 0.1, 0.5, 0.1, 0.9)])
    copy = scored(*[("g", AI, s) for s in (0.9, 0.1, 0.9, 0.9, 0.5, 0.9)])
    assert [v for v in copy.verdicts if v is Verdict.UNCERTAIN] == [Verdict.UNCERTAIN]
    part = Scored(  # the last image was too small in this condition
        copy.rows[:5], copy.labels[:5], copy.logits[:5], copy.scores[:5], copy.verdicts[:5], {}
    )
    assert consistency(clean, part) == {
        "images": 5, "changed": 0.8, "real<->ai_generated": 0.4, "to or from uncertain": 0.4,
    }  # fmt: skip
    assert consistency(clean, clean)["changed"] == 0
