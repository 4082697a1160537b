import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from model.detector import Detector, ModelError
from model.errors import ImageTooSmallError
from model.evidence import Region
from model.hardware import Runtime
from model.verdicts import Reason, Verdict
from model.views.patches import PatchRule
from model.views.plan import ViewPlan
from tests.conftest import CPU
from tests.model.test_checkpoint import rewrite

# Nothing is settled by the first look.
NEVER_SETTLED = {"real_below": 0.0001, "ai_above": 0.0002}


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def load(checkpoint: Path, tower: Path, canvases: str = "adaptive") -> Detector:
    return Detector.load(checkpoint, backbone=tower, runtime=CPU, canvases=canvases)


@pytest.fixture
def detector(checkpoint: Path, tiny_tower: Path) -> Detector:
    return load(checkpoint, tiny_tower)


def test_a_batch_scores_as_its_images_do_alone(detector: Detector) -> None:
    images = [photo(200, 300, seed) for seed in range(3)] + [photo(32, 40)]
    together = detector.detect(images)
    alone = [detector.detect([image])[0] for image in images]
    assert [d.score for d in together] == pytest.approx([d.score for d in alone], abs=1e-5)
    assert len({d.score for d in together}) == 4
    assert all(d.verdict == detector.about.thresholds.verdict(d.score) for d in together)
    assert [d.warnings for d in together] == [(), (), (), ("few_patches",)]
    assert [d.looks for d in together] == [2, 2, 2, 1]
    assert detector.predict([]) == []


def test_scores_are_calibrated(checkpoint: Path, tiny_tower: Path) -> None:
    image = photo(200, 200)
    raw = load(checkpoint, tiny_tower).detect([image])[0].score
    logit = math.log(raw / (1 - raw))
    moved = {"slope": 2.0, "intercept": -0.5}
    rewrite(checkpoint, metadata=lambda m: m["verdicts"]["calibrations"]["all"].update(moved))
    score = load(checkpoint, tiny_tower).detect([image])[0].score
    assert score == pytest.approx(1 / (1 + math.exp(-(2 * logit - 0.5))), abs=1e-6)


def test_too_small_an_image_names_the_limit(detector: Detector) -> None:
    with pytest.raises(ImageTooSmallError, match=str(detector.about.min_side)):
        detector.look(photo(detector.about.min_side - 1, 500))


def test_non_finite_output_is_an_error_not_a_verdict(detector: Detector) -> None:
    look = detector.look(photo(100, 100))
    with torch.no_grad():
        detector._model.head.classify.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        detector.predict([look])


def test_another_copy_of_the_tower_is_accepted_with_a_warning(
    checkpoint: Path, tiny_tower: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = load_file(tiny_tower)
    tensors["conv1.weight"] = tensors["conv1.weight"] + 1e-4
    other = tmp_path / "other.safetensors"
    save_file(tensors, other)
    with caplog.at_level(logging.WARNING):
        detector = Detector.load(checkpoint, backbone=other)
        detector.warm_up([1, 3])
    assert "another copy" in caplog.text
    usual = Detector.load(checkpoint, backbone=tiny_tower).about
    assert usual.tower_sha256 == usual.backbone_sha256
    assert detector.about.identity != usual.identity  # their scores are not to be mixed


def test_bfloat16_keeps_the_score(checkpoint: Path, tiny_tower: Path) -> None:
    image = photo(200, 200)
    exact, short = (
        Detector.load(
            checkpoint, backbone=tiny_tower, runtime=Runtime.resolve("cpu", dtype, "torch")
        )
        for dtype in ("float32", "bfloat16")
    )
    assert (short.about.engine, short.about.precision, short.about.dtype) == (
        "torch",
        "bfloat16",
        "bfloat16",
    )
    expected = exact.detect([image])[0].score
    assert short.detect([image])[0].score == pytest.approx(expected, abs=0.03)


def two_looks(cuts: dict[str, float], slope: float = 1.0) -> Any:
    """Change metadata to a plan of the whole image and a window, with these cuts."""
    rule = PatchRule(patch_size=64, canvas_size=64, canvases=1, high_share=1.0)
    views = ViewPlan(whole=True, whole_share=0.75, patches=rule)

    def change(metadata: dict[str, Any]) -> None:
        metadata["views"] = views.model_dump()
        metadata["verdicts"]["thresholds"] = cuts
        for kind in ("first", "all"):
            metadata["verdicts"]["calibrations"][kind]["slope"] = slope

    return change


def flags_everything(metadata: dict[str, Any]) -> None:
    """Change metadata to a rule by which every picture is of low quality."""
    metadata["verdicts"]["quality"] = {"min_side": 1e6, "min_sharpness": 0.0, "max_blockiness": 1.0}


@pytest.mark.parametrize(
    ("cuts", "looks"),
    [
        ({"real_below": 0.9999, "ai_above": 1.0}, 1),  # clearly real
        ({"real_below": 0.0001, "ai_above": 0.9999}, 1),  # clearly in between
        ({"real_below": 0.5, "ai_above": 0.9999}, 2),  # real, or in between?
        ({"real_below": 0.0001, "ai_above": 0.6}, 2),  # an accusation comes near
        ({"real_below": 0.0001, "ai_above": 0.0002}, 2),  # an accusation
        ({"real_below": 0.0, "ai_above": 1.0}, 1),
    ],
)
def test_other_canvases_are_looked_at_where_the_first_leaves_doubt(
    checkpoint: Path, tiny_tower: Path, cuts: dict[str, float], looks: int
) -> None:
    rewrite(checkpoint, metadata=two_looks(cuts, slope=0.2))  # all near 0.5
    adaptive, whole = (load(checkpoint, tiny_tower, canvases) for canvases in ("adaptive", "all"))
    assert (adaptive.about.canvases, whole.about.canvases) == ("adaptive", "all")
    images = [photo(200, 300, seed) for seed in range(3)]
    every = [whole.look(image) for image in images]
    both = [s.value for s in whole.predict(every)]
    glances = [replace(look, canvases=look.canvases[:1]) for look in every]
    first = [s.value for s in whole.predict(glances)]
    assert both != pytest.approx(first, abs=1e-6)
    scores = adaptive.predict([adaptive.look(image) for image in images])
    assert [s.value for s in scores] == pytest.approx(both if looks == 2 else first, abs=1e-6)
    assert {(s.looks, s.glance) for s in scores} == {(looks, looks == 1)}
    assert {d.looks for d in whole.detect(images)} == {2}


def test_a_glance_has_a_calibration_of_its_own(checkpoint: Path, tiny_tower: Path) -> None:
    cuts = {"real_below": 0.0001, "ai_above": 0.9999}
    rewrite(checkpoint, metadata=two_looks(cuts, slope=0.2))
    expected = load(checkpoint, tiny_tower).detect([photo(200, 300)])[0]
    moved = {"intercept": 0.3}
    rewrite(checkpoint, metadata=lambda m: m["verdicts"]["calibrations"]["all"].update(moved))
    assert load(checkpoint, tiny_tower).detect([photo(200, 300)])[0] == expected
    rewrite(checkpoint, metadata=lambda m: m["verdicts"]["calibrations"]["first"].update(moved))
    assert load(checkpoint, tiny_tower).detect([photo(200, 300)])[0].score > expected.score


def test_a_clients_cut_changes_neither_score_nor_looks_and_accuses_by_no_glance(
    checkpoint: Path, tiny_tower: Path
) -> None:
    rewrite(checkpoint, metadata=two_looks({"real_below": 0.0001, "ai_above": 0.9999}, slope=0.2))
    detector = load(checkpoint, tiny_tower)
    [score] = detector.predict([detector.look(photo(200, 300))])
    assert (score.looks, score.glance) == (1, True)
    assert detector.verdict(score) == Verdict.UNCERTAIN
    assert detector.verdict(score, cut=score.value + 0.1) == Verdict.REAL
    assert detector.verdict(score, cut=score.value - 0.1) == Verdict.UNCERTAIN
    assert detector.verdict(replace(score, glance=False), cut=score.value) == Verdict.AI_GENERATED


def test_what_is_in_doubt_is_scored_by_all_of_its_canvases_in_the_end(
    checkpoint: Path, tiny_tower: Path
) -> None:
    rewrite(checkpoint, metadata=two_looks(NEVER_SETTLED))
    detector = load(checkpoint, tiny_tower)
    images = [photo(200, 300), photo(40, 40)]
    doubtful = detector.submit([detector.look(image) for image in images]).result()
    looks = [score.more() for score in doubtful if score.more is not None]
    assert [len(look.seen) for look in looks] == [1, 1]
    assert [look.canvases.shape for look in looks] == [(1, 3, 64, 64)] * 2
    scores = detector.submit(looks).result()
    assert [s.value for s in scores] == [d.score for d in detector.detect(images)]
    assert [s.warnings for s in scores] == [(), ("few_patches",)]
    assert [(s.looks, s.glance, s.more) for s in scores] == [(2, False, None)] * 2


@pytest.mark.parametrize("canvases", ["adaptive", "all"])
def test_a_picture_of_low_quality_is_accused_by_no_cut(
    checkpoint: Path, tiny_tower: Path, canvases: str
) -> None:
    """After one look and after two; nothing else of its score is touched."""
    rewrite(checkpoint, metadata=two_looks(NEVER_SETTLED))
    images = [photo(200, 300), photo(40, 40)]
    freely = load(checkpoint, tiny_tower, canvases).detect(images)
    assert {d.verdict for d in freely} == {Verdict.AI_GENERATED}
    rewrite(checkpoint, metadata=flags_everything)
    detector = load(checkpoint, tiny_tower, canvases)
    held = detector.detect(images)
    assert {d.verdict for d in held} == {Verdict.UNCERTAIN}
    assert [d.warnings for d in held] == [("low_quality",), ("few_patches", "low_quality")]
    assert [(d.score, d.looks, d.logit) for d in held] == [
        (d.score, d.looks, d.logit) for d in freely
    ]
    firsts = detector.submit([detector.look(image) for image in images]).result()
    for score in (*firsts, *detector.predict([detector.look(image) for image in images])):
        assert score.reasons == (Reason.LOW_QUALITY,)
        assert detector.verdict(score) == Verdict.UNCERTAIN
        assert detector.verdict(score, cut=0.0) == Verdict.UNCERTAIN
        assert detector.verdict(score, cut=1.0) == Verdict.REAL


def test_what_is_in_bounds_is_held_back_by_nothing(checkpoint: Path, tiny_tower: Path) -> None:
    rewrite(checkpoint, metadata=two_looks(NEVER_SETTLED))
    freely = load(checkpoint, tiny_tower).detect([photo(200, 300)])
    bounds = {"min_side": 200, "min_sharpness": 1.0, "max_blockiness": 1.5}
    rewrite(checkpoint, metadata=lambda m: m["verdicts"].update(quality=bounds))
    detector = load(checkpoint, tiny_tower)
    assert detector.detect([photo(200, 300)]) == freely
    assert detector.detect([photo(199, 300)])[0].warnings == ("low_quality",)
    assert detector.about.quality is not None
    assert detector.about.quality.model_dump() == bounds


def test_a_blank_picture_warms_up_whatever_the_rule(checkpoint: Path, tiny_tower: Path) -> None:
    rewrite(checkpoint, metadata=two_looks(NEVER_SETTLED))
    rewrite(checkpoint, metadata=flags_everything)
    load(checkpoint, tiny_tower).warm_up([1, 2])


def test_an_unknown_choice_of_canvases_is_one_line(checkpoint: Path, tiny_tower: Path) -> None:
    with pytest.raises(ModelError, match="'most' is not one of"):
        load(checkpoint, tiny_tower, "most")


@pytest.mark.parametrize("canvases", ["adaptive", "all"])
def test_of_a_picture_with_nothing_in_it_nothing_is_said(
    checkpoint: Path, tiny_tower: Path, canvases: str
) -> None:
    """By no cut, and not by further looks at nothing either."""
    rewrite(checkpoint, metadata=two_looks(NEVER_SETTLED))
    detector = load(checkpoint, tiny_tower, canvases)
    noise = np.random.default_rng(0).normal(8, 3, (300, 400, 3)).clip(0, 255)
    nothing = [np.zeros((300, 400, 3)), np.full((300, 400, 3), 255), noise]
    for found in detector.detect([picture.astype(np.uint8) for picture in nothing]):
        assert (found.verdict, found.warnings) == (Verdict.UNCERTAIN, ("no_content",))
        assert found.looks == (2 if canvases == "all" else 1)
    [score] = detector.predict([detector.look(nothing[0].astype(np.uint8))])
    for cut in (0.0, 0.5, 1.0):
        assert detector.verdict(score, cut=cut) is Verdict.UNCERTAIN
    nothing[0][100:140, 200:260] = 200  # a lamp in the dark
    assert "no_content" not in detector.detect([nothing[0].astype(np.uint8)])[0].warnings


# --- evidence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("canvases", ["adaptive", "all"])
@pytest.mark.parametrize("cuts", [NEVER_SETTLED, {"real_below": 0.0001, "ai_above": 0.9999}])
def test_evidence_changes_no_score(
    checkpoint: Path, tiny_tower: Path, cuts: dict[str, float], canvases: str
) -> None:
    rewrite(checkpoint, metadata=two_looks(cuts, slope=0.2))
    detector = load(checkpoint, tiny_tower, canvases)
    images = [photo(200, 300), photo(40, 40), photo(700, 900)]
    plain, explained = detector.detect(images), detector.detect(images, explain=True)
    assert [d.evidence for d in plain] == [None] * 3
    for one, other in zip(plain, explained, strict=True):
        assert (other.score, other.verdict, other.looks) == (one.score, one.verdict, one.looks)
        assert set(other.warnings) - {"uneven"} == set(one.warnings)


@pytest.mark.parametrize("looks", [1, 2])
def test_the_score_can_be_made_again_of_the_evidence(
    checkpoint: Path, tiny_tower: Path, looks: int
) -> None:
    settled = {"real_below": 0.0001, "ai_above": 0.9999}
    rewrite(checkpoint, metadata=two_looks(settled if looks == 1 else NEVER_SETTLED, slope=0.2))
    [found] = load(checkpoint, tiny_tower).detect([photo(200, 300)], explain=True)
    assert found.evidence is not None
    logits = [judged.logit for judged in found.evidence.views]
    combined = logits[0] if looks == 1 else 0.75 * logits[0] + 0.25 * logits[1]
    assert len(logits) == found.looks == looks
    assert found.score == pytest.approx(1 / (1 + math.exp(-0.2 * combined)), abs=1e-6)
    whole, *windows = found.evidence.views
    assert (whole.view.box, whole.view.entropy, whole.kind) == ((50, 0, 250, 200), None, "first")
    assert found.evidence.combination.endswith("`first`" if looks == 1 else "`all`")
    for judged in windows:
        left, top, right, bottom = judged.view.box
        assert (right - left, bottom - top) == (64, 64)
        assert judged.view.entropy is not None
        assert (judged.kind, judged.score) == (None, None)  # the checkpoint has none for it


def test_windows_are_judged_as_the_network_judges_them_alone(
    checkpoint: Path, tiny_tower: Path
) -> None:
    rewrite(checkpoint, metadata=two_looks(NEVER_SETTLED))
    window = {"slope": 2.0, "intercept": -1.0, "fitted_on": "nothing"}
    rewrite(checkpoint, metadata=lambda m: m["verdicts"]["calibrations"].update(window=window))
    detector = load(checkpoint, tiny_tower, "all")
    image = photo(200, 100)
    [found] = detector.detect([image], explain=True)
    assert found.evidence is not None
    assert 4 <= len(found.evidence.windows) <= 14
    for judged in found.evidence.windows:
        left, top, right, bottom = judged.view.box
        [alone] = detector.submit([detector.look(image[top:bottom, left:right])]).result()
        assert judged.logit == pytest.approx(alone.logit, abs=1e-5)
        assert judged.log_odds == pytest.approx(2 * judged.logit - 1)
        assert judged.kind == "window"


def test_of_mosaics_each_is_one_view(detector: Detector) -> None:
    [found] = detector.detect([photo(200, 300)], explain=True)
    assert found.evidence is not None
    assert [judged.kind for judged in found.evidence.views] == [None, None]
    assert found.evidence.combination == "the views' mean logit, `all`"


def test_a_region_that_stands_out_is_warned_of(
    checkpoint: Path, tiny_tower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = load(checkpoint, tiny_tower, "all")
    image = photo(200, 300)
    assert "uneven" not in detector.detect([image], explain=True)[0].warnings
    monkeypatch.setattr("model.evidence.UNEVEN", -1e9)
    monkeypatch.setattr("model.evidence.contrast_of", lambda _: Region((0, 0, 64, 64), 1.0))
    found = detector.detect([image], explain=True)[0]
    assert "uneven" in found.warnings
    assert found.evidence is not None
    assert found.evidence.uneven == Region((0, 0, 64, 64), 1.0)
    assert "uneven" not in detector.detect([image])[0].warnings
