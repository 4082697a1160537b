"""What the document tells a reader who has nothing else."""

from app.schemas import DetectionOut, ModelDetailsOut
from model.verdicts import Reason


def test_every_reason_to_hold_back_a_verdict_is_named_where_answers_warn_of_it() -> None:
    warnings = DetectionOut.model_json_schema()["properties"]["warnings"]["description"]
    assert all(f"`{reason}`" in warnings for reason in Reason)
    assert "`few_patches`" in warnings


def test_what_a_threshold_is_chosen_by_is_described_to_the_last_share() -> None:
    schema = ModelDetailsOut.model_json_schema()
    assert {"cuts", "quality", "calibration"} <= set(schema["required"])
    for name in ("Cut", "Accused", "QualityRule"):
        fields = schema["$defs"][name]["properties"].values()
        assert all(field["description"] for field in fields)
