"""Evidence as it is answered, of what the detector says."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from app.schemas import BoxOut, EvidenceOut, HeatmapOut, LegendOut, UnevenOut, ViewOut

if TYPE_CHECKING:  # torch comes with it
    from model.detector import Evidence, Judged


class Explain(Enum):
    """How much evidence is added to an answer."""

    NOTHING = auto()
    WITHOUT_HEATMAP = auto()
    WITH_HEATMAP = auto()


def write_evidence(evidence: Evidence, size: tuple[int, int] | None) -> EvidenceOut:
    """Write it; takes milliseconds.

    Args:
        evidence: of a picture.
        size: the picture's width and height, where the heat-map is to be drawn.
    """
    region = evidence.uneven
    heatmap = None if size is None else evidence.heatmap(*size)
    return EvidenceOut(
        views=[_view(judged) for judged in evidence.views],
        combination=evidence.combination,
        windows=[_view(judged) for judged in evidence.windows],
        uneven=region and UnevenOut(box=_box(region.box), contrast=_round(region.contrast)),
        heatmap=heatmap
        and HeatmapOut(
            image=heatmap.image,
            width=heatmap.width,
            height=heatmap.height,
            legend=LegendOut(
                quantity="log_odds",
                low=-heatmap.log_odds,
                high=heatmap.log_odds,
                colours=list(heatmap.colours),
            ),
        ),
    )


def _view(judged: Judged) -> ViewOut:
    return ViewOut(
        box=_box(judged.view.box),
        entropy=None if judged.view.entropy is None else _round(judged.view.entropy),
        logit=_round(judged.logit),
        log_odds=_round(judged.log_odds),
        score=None if judged.score is None else _round(judged.score),
        calibration=judged.kind,
    )


def _box(box: tuple[int, int, int, int]) -> BoxOut:
    left, top, right, bottom = box
    return BoxOut(left=left, top=top, right=right, bottom=bottom)


def _round(value: float) -> float:
    return round(value, 4)
