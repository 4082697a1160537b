from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_no_owner_is_drawn_more_than_its_share() -> None:
    rows = [Row(Path(str(i)), AI, f"gan{i % 3}", "large") for i in range(300)]
    rows += [Row(Path(str(i)), AI, "gan0", "second") for i in range(100)]
    rows += [Row(Path(str(i)), AI, f"one{i}", f"owner{i}") for i in range(60)]
    rows += [Row(Path(str(i)), REAL, "cam", f"site{i % 4}") for i in range(13)]
    weights = sample_weights(rows, torch.arange(len(rows)))
    shares = {
        (label, owner): float(
            weights[[i for i, r in enumerate(rows) if (r.label, r.owner) == (label, owner)]].sum()
        )
        for label, owner in {(row.label, row.owner) for row in rows}
    }
    assert float(weights.sum()) == pytest.approx(1)
    assert shares[AI, "large"] == pytest.approx(0.5 * 0.03)
    assert max(share for (label, _), share in shares.items() if label == AI) <= 0.5 * 0.0300001
    # Fewer owners than could keep to that: each an even share.
    assert all(shares[REAL, f"site{i}"] == pytest.approx(0.5 / 4) for i in range(4))
    # Within an owner the groups keep their proportion.
    large = weights[:300].view(-1, 3).sum(dim=0)
    assert large[1] == pytest.approx(float(large[2]))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60))
@settings(deadline=None)
def test_what_the_largest_owners_lose_the_others_share(sizes: list[int]) -> None:
    rows = [
        Row(Path("a"), REAL, f"g{i}", f"o{i}") for i, size in enumerate(sizes) for _ in range(size)
    ]
    rows.append(Row(Path("b"), AI, "gan", "o0"))
    weights = sample_weights(rows, torch.arange(len(rows)))
    drawn = [2 * float(part.sum()) for part in torch.split(weights, [*sizes, 1])]
    assert drawn.pop() == pytest.approx(1)
    assert sum(drawn) == pytest.approx(1)
    assert max(drawn) <= max(0.03, 1 / len(sizes)) + 1e-6
    by_size = [share for _, share in sorted(zip(sizes, drawn, strict=True))]
    assert by_size == pytest.approx(sorted(drawn))  # a larger one never has less
