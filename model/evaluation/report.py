"""An evaluation as JSON and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from model.data.manifest import Row, digest
from model.detector import Detector
from model.figures.predictions import Predictions
from model.figures.tables import (
    TITLES,
    consistency,
    consistency_table,
    group_table,
    markdown,
    overall,
    overall_table,
    owner_table,
    verdict_table,
    verdicts_by_group,
    weakest,
    worst,
    worst_table,
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
    groups = {name: verdicts_by_group(part) for name, part in predictions.items()}
    listed = {name: [row for row in rows if row.category == name] for name in TITLES}
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
            "images": {name: len(own) for name, own in listed.items()},
            "groups": {name: len({row.group for row in own}) for name, own in listed.items()},
            "owners": len({row.owner for row in rows}),
        },
        "conditions": {
            name: {
                "overall": overall(part),
                "weakest": weakest(groups[name]),
                "worst": worst(groups[name]),
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
        f"Data: {data['name']}; {', '.join(_counts(data))}; of {data['owners']} owners; sha256 of "
        f"the list `{data['sha256']}`.",
        *([f"**{SEEN}**"] if data["trained_on"] else []),
        "## Overall",
        "In percent, with 95 % intervals: bootstraps over whole owners; a class that is all of one "
        "owner is drawn by image, and a share of none or of all has Wilson's, of as many trials as "
        f"there are owners. {TITLES['made'].capitalize()} count under `art called AI` alone, `real`"
        " are photographs. Acc is the mean of both classes' accuracies at the cut 0.5, ECE for as "
        "many AI images as photographs, `uncertain` the mean of both classes' shares, `held back` "
        "the share of photographs of low quality, which no score accuses; columns with `called` "
        "are shares of verdicts.",
        markdown(*summary(report)),
        *_skipped(report),
        "## By owner",
        "The shares of verdicts again, each owner counting once.",
        owner_table(_overall(report)),
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
    return "\n\n".join([*parts, *_groups(report["conditions"])]) + "\n"


def _groups(conditions: Mapping[str, Any]) -> list[str]:
    first, *_ = conditions
    weak = conditions[first]["weakest"]
    named = {name: condition["worst"] for name, condition in conditions.items()}
    return [
        "## Groups",
        "Shares of verdicts, in percent, of the ten weakest groups of either side, each of ten "
        f"images or more, {first} copies. `groups.csv` lists all groups under all conditions.",
        "### AI images found least",
        group_table(weak["ai"]),
        "### Photographs accused most",
        group_table(weak["real"]),
        "### Sources with more than a tenth accused",
        worst_table(named) if any(named.values()) else "None of twenty photographs or more.",
    ]


def _counts(data: Mapping[str, Any]) -> list[str]:
    """How many images of how many groups each class has that is there."""
    return [
        f"{images} {'AI images' if name == 'ai' else TITLES[name]} of {data['groups'][name]} groups"
        for name, images in data["images"].items()
        if images
    ]


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
