import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.detector import (
    Detection,
    Detector,
    Doubt,
    ImageTooSmallError,
    ModelError,
    Prepared,
    Thresholds,
    Verdict,
    place,
)
from model.patches import Candidates, PatchRule, Selection, choose_patches, cut_candidates
from tests.model.test_checkpoint import rewrite


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def detector(checkpoint: Path, tiny_tower: Path) -> Detector:
    # In bfloat16 a tower as small as this one takes kernels by the size of the batch.
    return Detector.load(checkpoint, backbone=tiny_tower, device="cpu", dtype="float32")


def test_a_batch_scores_as_its_images_do_alone(detector: Detector) -> None:
    images = [photo(200, 300, seed) for seed in range(3)] + [photo(32, 40)]
    together = detector.detect(images)
    alone = [detector.detect([image])[0] for image in images]
    assert [d.score for d in together] == pytest.approx([d.score for d in alone], abs=1e-5)
    assert len({d.score for d in together}) == 4
    assert all(d.verdict == detector.thresholds.verdict(d.score) for d in together)
    assert [d.warnings for d in together] == [(), (), (), ("few_patches",)]
    assert detector.predict([]) == []


def test_scores_are_calibrated(checkpoint: Path, tiny_tower: Path) -> None:
    def load() -> Detector:
        return Detector.load(checkpoint, backbone=tiny_tower, canvases="all")

    image = photo(200, 200)
    raw = load().detect([image])[0].score
    logit = math.log(raw / (1 - raw))
    rewrite(checkpoint, metadata=lambda m: m["calibration"].update(slope=2.0, intercept=-0.5))
    moved = load().detect([image])[0].score
    assert moved == pytest.approx(1 / (1 + math.exp(-(2 * logit - 0.5))), abs=1e-6)


def test_thresholds_leave_doubt_in_between() -> None:
    cuts = Thresholds(real_below=0.3, ai_above=0.7)
    verdicts = [cuts.verdict(score) for score in (0.0, 0.2999, 0.3, 0.6999, 0.7, 1.0)]
    assert verdicts == [Verdict.REAL] * 2 + [Verdict.UNCERTAIN] * 2 + [Verdict.AI_GENERATED] * 2
    single = Thresholds(real_below=0.5, ai_above=0.5)
    assert {single.verdict(s) for s in (0.0, 0.5, 1.0)} == {Verdict.REAL, Verdict.AI_GENERATED}


def test_too_small_an_image_names_the_limit(detector: Detector) -> None:
    with pytest.raises(ImageTooSmallError, match=str(detector.min_side)):
        detector.prepare(photo(detector.min_side - 1, 500))


def test_non_finite_output_is_an_error_not_a_verdict(detector: Detector) -> None:
    item = detector.prepare(photo(100, 100))
    with torch.no_grad():
        detector._model.head.classify.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        detector.predict([item])


def test_another_copy_of_the_tower_is_accepted_with_a_warning(
    checkpoint: Path, tiny_tower: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = load_file(tiny_tower)
    tensors["conv1.weight"] = tensors["conv1.weight"] + 1e-4
    other = tmp_path / "other.safetensors"
    save_file(tensors, other)
    with caplog.at_level(logging.WARNING):
        Detector.load(checkpoint, backbone=other).warm_up([1, 3])
    assert "another copy" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [({"device": "cuda:99"}, "device"), ({"device": "toaster"}, "device"),
     ({"dtype": "int8"}, "dtype")],
)  # fmt: skip
def test_impossible_places_are_refused(
    options: dict[str, str], message: str, checkpoint: Path, tiny_tower: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        Detector.load(checkpoint, backbone=tiny_tower, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("native", "dtype"),
    [("avx512_vnni", "float32"), ("avx512_bf16", "bfloat16"), ("amx_bf16", "bfloat16")],
)
def test_auto_is_bfloat16_where_the_cpu_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, native: str, dtype: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, native: True})
    assert place("cpu", "auto") == (torch.device("cpu"), getattr(torch, dtype))


def test_bfloat16_keeps_the_score(checkpoint: Path, tiny_tower: Path) -> None:
    image = photo(200, 200)
    exact, short = (
        Detector.load(checkpoint, backbone=tiny_tower, device="cpu", dtype=dtype, engine="torch")
        for dtype in ("float32", "bfloat16")
    )
    assert short.dtype == "bfloat16"
    expected = exact.detect([image])[0].score
    assert short.detect([image])[0].score == pytest.approx(expected, abs=0.03)


def whole_and_window(metadata: dict[str, Any]) -> None:
    rule = PatchRule(patch_size=64, canvas_size=64, canvases=2, high_share=1.0, whole=True)
    metadata["network"] |= {"patches": rule.model_dump(), "whole_share": 0.75}


def load(checkpoint: Path, tower: Path, canvases: str) -> Detector:
    return Detector.load(
        checkpoint, backbone=tower, device="cpu", dtype="float32", engine="torch",
        canvases=canvases,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("cuts", "looks_at"),
    [
        ({"real_below": 0.9999, "ai_above": 1.0}, "first"),  # clearly real
        ({"real_below": 0.0001, "ai_above": 0.9999}, "first"),  # clearly in between
        ({"real_below": 0.5, "ai_above": 0.9999}, "all"),  # real, or in between?
        ({"real_below": 0.0001, "ai_above": 0.6}, "all"),  # an accusation comes near
        ({"real_below": 0.0001, "ai_above": 0.0002}, "all"),  # an accusation
        ({"real_below": 0.0, "ai_above": 1.0}, "first"),
    ],
)
def test_other_canvases_are_looked_at_where_the_first_leaves_doubt(
    checkpoint: Path, tiny_tower: Path, cuts: dict[str, float], looks_at: str
) -> None:
    rewrite(checkpoint, metadata=lambda m: m["thresholds"].update(cuts))
    rewrite(checkpoint, metadata=lambda m: m["calibration"].update(slope=0.2))  # all near 0.5
    rewrite(checkpoint, metadata=whole_and_window)
    adaptive, whole = (load(checkpoint, tiny_tower, canvases) for canvases in ("adaptive", "all"))
    assert (adaptive.canvases, whole.canvases) == ("adaptive", "all")
    images = [photo(200, 300, seed) for seed in range(3)]
    items = [whole.prepare(image) for image in images]
    both = [d.score for d in whole.predict(items)]
    first = [d.score for d in whole.predict([Prepared(i.canvases[:1], ()) for i in items])]
    assert both != pytest.approx(first, abs=1e-6)
    expected = both if looks_at == "all" else first
    assert [d.score for d in adaptive.detect(images)] == pytest.approx(expected, abs=1e-6)


def test_what_is_in_doubt_is_scored_by_all_of_its_canvases_in_the_end(
    checkpoint: Path, tiny_tower: Path
) -> None:
    cuts = {"real_below": 0.0001, "ai_above": 0.0002}  # nothing is settled
    rewrite(checkpoint, metadata=lambda m: m["thresholds"].update(cuts))
    rewrite(checkpoint, metadata=whole_and_window)
    detector = load(checkpoint, tiny_tower, "adaptive")
    images = [photo(200, 300), photo(40, 40)]
    doubts = detector.submit([detector.prepare(image) for image in images]).result()
    looks = [doubt.look() for doubt in doubts if isinstance(doubt, Doubt)]
    assert [len(look.seen) for look in looks] == [1, 1]
    assert [look.canvases.shape for look in looks] == [(1, 3, 64, 64)] * 2
    found = detector.submit(looks).result()
    assert found == detector.detect(images)
    assert [of.warnings for of in found if isinstance(of, Detection)] == [(), ("few_patches",)]


def test_a_window_is_chosen_only_once_it_is_looked_at(
    checkpoint: Path, tiny_tower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = {"real_below": 0.0001, "ai_above": 0.0002}  # nothing is settled
    rewrite(checkpoint, metadata=lambda m: m["thresholds"].update(cuts))
    rewrite(checkpoint, metadata=whole_and_window)
    detector = load(checkpoint, tiny_tower, "adaptive")
    cut, chosen = [], []

    def cut_out(images: torch.Tensor, rule: PatchRule) -> Candidates:
        cut.append(images.shape[2:])
        return cut_candidates(images, rule)

    def choose(candidates: Candidates, rule: PatchRule) -> Selection:
        chosen.append(candidates.patches.shape)
        return choose_patches(candidates, rule)

    monkeypatch.setattr("model.detector.cut_candidates", cut_out)
    monkeypatch.setattr("model.detector.choose_patches", choose)
    pixels = photo(2000, 300)
    item, small = detector.prepare(pixels), detector.prepare(photo(40, 40))
    assert (cut, chosen) == ([(2000, 300)], [])
    # What waits for the network does not keep a large image: 16 windows at most, and one canvas.
    pixels[:] = 0
    assert item.canvases.shape == (1, 3, 64, 64)
    scores = [found.score for found in detector.predict([item, small])]
    assert chosen == [(1, 10, 1, 3, 64, 64), (1, 1, 1, 3, 64, 64)]
    expected = load(checkpoint, tiny_tower, "all").detect([photo(2000, 300), photo(40, 40)])
    assert scores == pytest.approx([d.score for d in expected], abs=1e-6)
    assert item.others is not None
    assert [d.warnings for d in expected] == [(), ("few_patches",)]
    assert (item.warnings, small.warnings) == ((), ("few_patches",))


def test_rules_without_the_whole_image_look_at_everything(
    checkpoint: Path, tiny_tower: Path
) -> None:
    detector = load(checkpoint, tiny_tower, "adaptive")
    item = detector.prepare(photo(200, 300))
    assert (len(item.canvases), item.others) == (2, None)


def test_an_unknown_choice_of_canvases_is_one_line(checkpoint: Path, tiny_tower: Path) -> None:
    with pytest.raises(ModelError, match="'most' is not one of"):
        Detector.load(checkpoint, backbone=tiny_tower, canvases="most")
