from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ModelError
from model.nullspace import null_space, project, pull_back, read_text_features


def texts(count: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.logspace(0, -2, width)
    return torch.randn(count, width, generator=generator) * spectrum + 0.3 * spectrum


@given(count=st.integers(2, 80), width=st.integers(4, 48), data=st.data())
@settings(deadline=None, max_examples=40)
def test_projector_properties(count: int, width: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, min(count, width - 1)))
    V = texts(count, width)
    space = null_space(V, rank=rank)
    P = space.matrix()
    assert space.rank == rank
    assert torch.allclose(P, P.T, atol=1e-6)
    assert torch.allclose(P @ P, P, atol=1e-5)
    assert float(P.trace()) == pytest.approx(width - rank, abs=1e-3)
    assert float((space.basis.T @ P).abs().max() if rank else 0.0) < 1e-5
    features = torch.randn(7, width, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(project(features, space.basis), features @ P, atol=1e-5)
    # Eckart-Young: what is left of V is what the kept singular values do not hold.
    assert space.residual**2 + space.energy == pytest.approx(1.0, abs=1e-6)


def test_removing_every_text_direction_leaves_no_text() -> None:
    V = texts(10, 32)
    space = null_space(V, rank=10)
    normalised = torch.nn.functional.normalize(V, dim=1)
    assert float(project(normalised, space.basis).norm(dim=1).max()) < 1e-5
    assert space.residual < 1e-6


def test_energy_chooses_the_smallest_rank_that_holds_it() -> None:
    V = texts(200, 32)
    space = null_space(V, energy=0.9)
    assert space.energy >= 0.9
    assert null_space(V, rank=space.rank - 1).energy < 0.9


def test_more_texts_than_dimensions_still_leaves_a_null_space() -> None:
    """The replication that took 'singular value = 0' literally was left with nothing."""
    space = null_space(texts(5000, 32), rank=8)
    assert 32 - space.rank == 24


@pytest.mark.parametrize(
    ("V", "options", "message"),
    [
        (torch.ones(3), {"rank": 1}, "matrix"),
        (torch.full((3, 4), float("nan")), {"rank": 1}, "finite"),
        (torch.eye(4), {"rank": 4}, "0..3"),
        (torch.eye(4), {"rank": -1}, "0..3"),
        (torch.eye(4), {}, "either"),
        (torch.eye(4), {"rank": 1, "energy": 0.5}, "either"),
    ],
)
def test_nonsense_is_refused(V: torch.Tensor, options: dict[str, float], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        null_space(V, **options)  # type: ignore[arg-type]


def test_pulled_back_directions_carry_the_joint_space_inner_products() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, proj = torch.randn(5, 48, generator=generator), torch.randn(48, 32, generator=generator)
    V = torch.randn(9, 32, generator=generator)
    assert torch.allclose((hidden @ proj) @ V.T, hidden @ pull_back(V, proj).T, atol=1e-4)
    space = null_space(pull_back(V, proj), rank=9)
    decoupled = project(hidden, space.basis)
    assert float(((decoupled @ proj) @ V.T).abs().max()) < 1e-3


def test_texts_come_from_features_captions_or_class_names(tmp_path: Path) -> None:
    def encode(lines: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[len(line), line.count("a")] for line in lines], dtype=torch.float32)

    np.save(tmp_path / "v.npy", np.eye(3))
    assert torch.equal(read_text_features(tmp_path / "v.npy", encode), torch.eye(3))
    (tmp_path / "captions.txt").write_text("a cat\n\n two dogs \n")
    assert read_text_features(tmp_path / "captions.txt", encode).tolist() == [[5, 2], [8, 0]]
    prompted = read_text_features(tmp_path / "captions.txt", encode, ("{}", "a {}"))
    assert prompted.tolist() == [[6, 2.5], [9, 0.5]]
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY nonsense")
    for name in ("empty.txt", "bad.npy", "missing.txt"):
        with pytest.raises(ModelError, match=name):
            read_text_features(tmp_path / name, encode)
