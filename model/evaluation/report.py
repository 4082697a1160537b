"""An evaluation as JSON and as Markdown."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from model.checkpoint import Verdict
from model.detector import Detector
from model.evaluation.evaluate import Scored
from model.evaluation.figures import PER_GROUP, consistency, generator_mean, overall, per_group
from model.training.manifest import AI, REAL, Row, digest

SEEN = "The checkpoint was trained on these very images: the figures say nothing of others."
_NAMES = {
    "r_acc": "R.Acc", "f_acc": "F.Acc", "acc": "Acc", "ap": "AP", "auc": "AUC",
    "recall_at_1_percent_fpr": "recall at 1 % FPR", "recall_at_3_percent_fpr": "recall at 3 % FPR",
    "ece": "ECE", "real_called_ai": "real called AI",
}  # fmt: skip
_OVERALL = ("auc", "ap", "acc", "recall_at_1_percent_fpr", "recall_at_3_percent_fpr", "ece",
            "real_called_ai")  # fmt: skip


def build_report(
    rows: Sequence[Row],
    scored: Mapping[str, Scored],
    detector: Detector,
    *,
    data: str,
    command: str,
    seen: bool,
) -> dict[str, Any]:
    """Everything that is said of an evaluation; ready for `json.dumps`.

    Args:
        rows: the data set.
        scored: what `evaluate` returned.
        detector: the one that was judged.
        data: the data set and split, in words.
        command: what was run.
        seen: whether the checkpoint was trained on these images.
    """
    groups = {name: per_group(part) for name, part in scored.items()}
    clean = scored.get("clean")
    return {
        "command": command,
        "checkpoint": {
            "name": detector.name,
            "version": detector.version,
            "sha256": detector.sha256,
            "calibration": dict(detector.calibration),
            "thresholds": detector.thresholds.model_dump(),
            "device": str(detector.device),
            "engine": detector.engine,
            "canvases": detector.canvases,
            "dtype": detector.dtype,
        },
        "data": {
            "name": data,
            "sha256": digest(rows),
            "trained_on": seen,
            "images": {k: sum(r.label == v for r in rows) for k, v in _CLASSES},
            "groups": {k: len({r.group for r in rows if r.label == v}) for k, v in _CLASSES},
        },
        "conditions": {
            name: {
                "overall": overall(part),
                "generator_mean": generator_mean(groups[name]),
                "groups": groups[name],
            }
            for name, part in scored.items()
        },
        "consistency": {
            name: consistency(clean, part)
            for name, part in scored.items()
            if clean is not None and name != "clean"
        },
    }


_CLASSES = (("real", REAL), ("ai", AI))


def overall_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, one row per condition; figures in percent, with their 95 % intervals."""
    header = ["condition", "images", *(_NAMES[key] for key in _OVERALL), "AI called AI",
              "AI called real"]  # fmt: skip
    cells = []
    for name, condition in report["conditions"].items():
        found = condition["overall"]
        ai = found["verdicts"]["ai"]
        cells.append([
            name, str(sum(found["images"].values())),
            *(_with_interval(found[key], found[f"{key}_95"]) for key in _OVERALL),
            _percent(ai["ai_generated"]), _percent(ai["real"]),
        ])  # fmt: skip
    return header, cells


def to_markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    checkpoint, data = report["checkpoint"], report["data"]
    cuts = checkpoint["thresholds"]
    parts = [
        f"# Evaluation of {checkpoint['name']} {checkpoint['version']}",
        f"    {report['command']}",
        f"Checkpoint sha256 `{checkpoint['sha256']}`, run by {checkpoint['engine']} in "
        f"{checkpoint['dtype']} on {checkpoint['device']}, {checkpoint['canvases']} canvases; "
        f"`real` below {cuts['real_below']:.4f}, `ai_generated` from "
        f"{cuts['ai_above']:.4f} on.",
        f"Data: {data['name']}; {data['images']['ai']} AI images of {data['groups']['ai']} groups, "
        f"{data['images']['real']} photographs of {data['groups']['real']} groups; "
        f"sha256 of the list `{data['sha256']}`.",
        *([f"**{SEEN}**"] if data["trained_on"] else []),
        "## Overall",
        "In percent, with 95 % intervals: bootstraps over whole generators and repositories of "
        "photographs, but for `real called AI`, which has Wilson's. Acc is the mean of R.Acc and "
        "F.Acc at the cut 0.5, ECE for as many AI images as photographs; the last three columns "
        "are shares of verdicts.",
        _table(*overall_table(report)),
        *_skipped(report),
        "## Verdicts",
        "Shares of each class's images, in percent.",
        _verdict_table(report["conditions"]),
    ]
    if report["consistency"]:
        parts += [
            "## Consistency",
            "Images whose verdict differs from that of their clean copy, in percent.",
            _consistency_table(report["consistency"]),
        ]
    parts += [
        "## Groups",
        "In percent, at the cut 0.5. A group of AI images alone is set against all photographs; "
        "a group of photographs alone has R.Acc only. The mean is over groups with AI images.",
    ]
    for name, condition in report["conditions"].items():
        parts += [f"### {name}", _group_table(condition)]
    return "\n\n".join(parts) + "\n"


def _skipped(report: Mapping[str, Any]) -> list[str]:
    counts = {
        name: Counter(condition["overall"]["skipped"])
        for name, condition in report["conditions"].items()
    }
    said = [
        f"{name}: " + ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in count.items())
        for name, count in counts.items()
        if count
    ]
    return [f"Skipped: {'; '.join(said)}."] if said else []


def _verdict_table(conditions: Mapping[str, Any]) -> str:
    columns = [(key, said, verdict.value) for key, said in (("real", "photographs"), ("ai", "AI"))
               for verdict in Verdict]  # fmt: skip
    cells = [
        [name, *(_percent(found["overall"]["verdicts"][key][verdict])
                 for key, _, verdict in columns)]
        for name, found in conditions.items()
    ]  # fmt: skip
    return _table(["condition", *(f"{said}: {verdict}" for _, said, verdict in columns)], cells)


def _consistency_table(found: Mapping[str, Any]) -> str:
    columns = ("changed", "real<->ai_generated", "to or from uncertain")
    cells = [
        [name, str(part["images"]), *(_percent(part[column]) for column in columns)]
        for name, part in found.items()
    ]
    return _table(["condition", "images", *columns], cells)


def _group_table(condition: Mapping[str, Any]) -> str:
    cells = [
        [name, str(found["images"]["real"]), str(found["images"]["ai"]),
         *(_percent(found.get(key)) for key in PER_GROUP)]
        for name, found in condition["groups"].items()
    ]  # fmt: skip
    mean = condition["generator_mean"]
    cells.append(["**mean**", "", "", *(_percent(mean[key]) for key in PER_GROUP)])
    return _table(["group", "real", "AI", *(_NAMES[key] for key in PER_GROUP)], cells)


def _table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    escaped = ([cell.replace("|", r"\|") for cell in row] for row in (header, rule, *cells))
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _with_interval(share: float | None, interval: Sequence[float | None]) -> str:
    low, high = (_percent(v) for v in interval)
    return f"{_percent(share)} ({low}-{high})"
