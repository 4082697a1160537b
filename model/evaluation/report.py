"""An evaluation as JSON and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from model.data.manifest import CLASSES, Row, digest
from model.detector import Detector
from model.figures.predictions import Predictions
from model.figures.tables import (
    consistency,
    consistency_table,
    generator_mean,
    group_table,
    markdown,
    overall,
    overall_table,
    per_group,
    verdict_table,
)

SEEN = "The checkpoint was trained on these very images: the figures say nothing of others."


def build_report(
    rows: Sequence[Row],
    predictions: Mapping[str, Predictions],
    detector: Detector,
    *,
    data: str,
    command: str,
    seen: bool,
) -> dict[str, Any]:
    """Everything that is said of an evaluation; ready for `json.dumps`.

    Args:
        rows: the data set.
        predictions: what `evaluate` returned.
        detector: the one that was judged.
        data: the data set and split, in words.
        command: what was run.
        seen: whether the checkpoint was trained on these images.
    """
    groups = {name: per_group(part) for name, part in predictions.items()}
    clean = predictions.get("clean")
    return {
        "command": command,
        "checkpoint": {
            "name": detector.about.name,
            "version": detector.about.version,
            "sha256": detector.about.sha256,
            "calibration": dict(detector.about.calibration),
            "thresholds": detector.about.thresholds.model_dump(),
            "device": detector.about.device,
            "engine": detector.about.engine,
            "precision": detector.about.precision,
            "dtype": detector.about.dtype,
            "canvases": detector.about.canvases,
        },
        "data": {
            "name": data,
            "sha256": digest(rows),
            "trained_on": seen,
            "images": {k: sum(r.label == v for r in rows) for k, v in CLASSES.items()},
            "groups": {k: len({r.group for r in rows if r.label == v}) for k, v in CLASSES.items()},
        },
        "conditions": {
            name: {
                "overall": overall(part),
                "generator_mean": generator_mean(groups[name]),
                "groups": groups[name],
            }
            for name, part in predictions.items()
        },
        "consistency": {
            name: consistency(clean, part)
            for name, part in predictions.items()
            if clean is not None and name != "clean"
        },
    }


def summary(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a report's figures over all images, one row per condition."""
    return overall_table(_overall(report))


def to_markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    checkpoint, data = report["checkpoint"], report["data"]
    cuts = checkpoint["thresholds"]
    parts = [
        f"# Evaluation of {checkpoint['name']} {checkpoint['version']}",
        f"    {report['command']}",
        f"Checkpoint sha256 `{checkpoint['sha256']}`, run by {checkpoint['engine']}, products in "
        f"{checkpoint['precision']}, all else in {checkpoint['dtype']}, on {checkpoint['device']}, "
        f"{checkpoint['canvases']} canvases; `real` below {cuts['real_below']:.4f}, "
        f"`ai_generated` from {cuts['ai_above']:.4f} on.",
        f"Data: {data['name']}; {data['images']['ai']} AI images of {data['groups']['ai']} groups, "
        f"{data['images']['real']} photographs of {data['groups']['real']} groups; "
        f"sha256 of the list `{data['sha256']}`.",
        *([f"**{SEEN}**"] if data["trained_on"] else []),
        "## Overall",
        "In percent, with 95 % intervals: bootstraps over whole generators and repositories of "
        "photographs, but for `real called AI`, which has Wilson's. Acc is the mean of R.Acc and "
        "F.Acc at the cut 0.5, ECE for as many AI images as photographs; columns with `called` are "
        "shares of verdicts.",
        markdown(*summary(report)),
        *_skipped(report),
        "## Verdicts",
        "Shares of each class's images, in percent.",
        verdict_table(_overall(report)),
    ]
    if report["consistency"]:
        parts += [
            "## Consistency",
            "Images whose verdict differs from that of their clean copy, in percent.",
            consistency_table(report["consistency"]),
        ]
    parts += [
        "## Groups",
        "In percent, at the cut 0.5. A group of AI images alone is set against all photographs; "
        "a group of photographs alone has R.Acc only. The mean is over groups with AI images.",
    ]
    for name, condition in report["conditions"].items():
        parts += [f"### {name}", group_table(condition["groups"])]
    return "\n\n".join(parts) + "\n"


def _overall(report: Mapping[str, Any]) -> dict[str, Any]:
    return {name: condition["overall"] for name, condition in report["conditions"].items()}


def _skipped(report: Mapping[str, Any]) -> list[str]:
    said = [
        f"{name}: "
        + ", ".join(f"{n} {code.replace('_', ' ')}" for code, n in figures["skipped"].items())
        for name, figures in _overall(report).items()
        if figures["skipped"]
    ]
    return [f"Skipped: {'; '.join(said)}."] if said else []
