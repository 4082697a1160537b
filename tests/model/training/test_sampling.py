from pathlib import Path

import pytest
import torch

from model.data.manifest import AI, REAL, Row
from model.training.sampling import sample_weights


def test_sampling_balances_classes_and_tempers_large_groups() -> None:
    rows = [Row(Path(str(i)), AI, "big", "r") for i in range(100)]
    rows += [Row(Path(str(i)), AI, "small", "r") for i in range(4)]
    rows += [Row(Path(str(i)), REAL, "cam", "s") for i in range(10)]
    weights = sample_weights(rows, torch.arange(len(rows)))
    assert float(weights.sum()) == pytest.approx(1)
    assert float(weights[:104].sum()) == pytest.approx(0.5)
    # Groups of 100 and 4 are drawn as 10 : 2.
    assert float(weights[:100].sum() / weights[100:104].sum()) == pytest.approx(5)
