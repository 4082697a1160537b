from pathlib import Path

import pytest
import torch

from model.errors import ModelError
from model.training.head import HeadOptions, sample_weights, train_head
from model.training.manifest import AI, REAL, Row

OPTIONS = HeadOptions(epochs=30, batch_size=64, learning_rate=1e-2)


def blobs(count: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    features = torch.randn(count, 20, generator=generator)
    features[:, 0] += 3 * labels
    return features * 0.1 + 5, labels


@pytest.mark.parametrize("bce_share", [1.0, 0.5])
def test_the_head_learns_what_separates_and_is_reproducible(bce_share: float) -> None:
    x, y = blobs()
    options = OPTIONS.model_copy(update={"bce_share": bce_share})
    weights = torch.full((len(x),), 1 / len(x), dtype=torch.float64)
    head = train_head(x[:200], y[:200], weights[:200], options, hidden=16)
    logits, embedding = head(x[200:])
    assert float(((logits > 0) == (y[200:] == 1)).float().mean()) > 0.85
    assert embedding.shape == (200, 16)
    again = train_head(x[:200], y[:200], weights[:200], options, hidden=16)
    assert torch.equal(again.embed.weight, head.embed.weight)


def test_the_contrast_pulls_a_class_together() -> None:
    x, y = blobs()
    weights = torch.full((len(x),), 1 / len(x), dtype=torch.float64)

    def gap(bce_share: float) -> float:
        options = OPTIONS.model_copy(update={"bce_share": bce_share, "temperature": 0.5})
        head = train_head(x, y, weights, options, hidden=16)
        z = torch.nn.functional.normalize(head(x)[1], dim=1)
        similar = z @ z.T
        same = y[:, None] == y
        return float(similar[same].mean() - similar[~same].mean())

    assert gap(0.2) > gap(1.0) + 0.1


def test_a_nan_in_the_features_stops_training() -> None:
    x, y = blobs()
    x[3, 4] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        train_head(x, y, torch.ones(len(x)), OPTIONS, hidden=16)


def test_sampling_balances_classes_and_tempers_large_groups() -> None:
    rows = [Row(Path(str(i)), AI, "big", "r") for i in range(100)]
    rows += [Row(Path(str(i)), AI, "small", "r") for i in range(4)]
    rows += [Row(Path(str(i)), REAL, "cam", "s") for i in range(10)]
    weights = sample_weights(rows, torch.arange(len(rows)))
    assert float(weights.sum()) == pytest.approx(1)
    assert float(weights[:104].sum()) == pytest.approx(0.5)
    # Groups of 100 and 4 are drawn as 10 : 2.
    assert float(weights[:100].sum() / weights[100:104].sum()) == pytest.approx(5)
