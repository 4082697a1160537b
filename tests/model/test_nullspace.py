from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.errors import ModelError
from model.nullspace import (
    StoredProjector,
    null_space,
    project,
    pull_back,
    read_projector,
    read_text_features,
    save_projector,
)


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
    P = torch.eye(len(space.basis)) - space.basis @ space.basis.T
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


def test_texts_of_another_width_than_the_tower_are_refused() -> None:
    with pytest.raises(ModelError, match=r"31 dimensions.* 32"):
        pull_back(torch.ones(2, 31), torch.ones(48, 32))


def test_the_residual_of_every_rank_is_known_from_the_singular_values() -> None:
    V = texts(20, 32)
    space = null_space(V, rank=5)
    residuals = space.residuals()
    assert len(residuals) == len(space.singular_values) + 1 == 21
    assert residuals[0] == 1
    for rank in (0, 5, 17, 20):
        expected = null_space(V, rank=rank).residual
        assert float(residuals[rank]) == pytest.approx(expected, abs=1e-4)


def stored(rank: int = 3) -> StoredProjector:
    return StoredProjector(null_space(texts(9, 16), rank=rank), "blocks", "ViT", ("a.txt", "b.npy"))


@pytest.mark.parametrize("rank", [0, 3, 9])
def test_a_projector_file_gives_back_what_was_written(rank: int, tmp_path: Path) -> None:
    path = tmp_path / "new" / "projector.safetensors"
    save_projector(path, stored(rank))
    found = read_projector(path)
    assert (found.space, found.backbone, found.sources) == ("blocks", "ViT", ("a.txt", "b.npy"))
    expected = stored(rank).null_space
    assert torch.equal(found.null_space.basis, expected.basis)
    assert torch.equal(found.null_space.singular_values, expected.singular_values)
    assert found.null_space.energy == pytest.approx(expected.energy)
    assert found.null_space.residual == expected.residual


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"basis": torch.eye(16, 2)}, r"\[16, 2\], not \[d, 3\]"),
        ({"basis": torch.ones(16, 3)}, "orthonormal"),
        ({"basis": torch.full((16, 3), torch.nan)}, "orthonormal"),
        ({"singular_values": torch.arange(9.0)}, "falling"),
        ({"singular_values": torch.full((9,), torch.nan)}, "falling"),
        ({"singular_values": torch.ones(2)}, "falling"),
        ({"singular_values": torch.ones(17)}, "falling"),
        ({"head.mean": torch.ones(1)}, "holds .*head.mean"),
    ],
)
def test_a_projector_that_is_none_is_refused(
    changes: dict[str, torch.Tensor], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "p.safetensors"
    save_projector(path, stored())
    with safe_open(path, "pt") as file:
        metadata = {"nsnet-projector": file.metadata()["nsnet-projector"]}  # no digest
    save_file(load_file(path) | changes, path, metadata=metadata)
    with pytest.raises(ModelError, match=message):
        read_projector(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "not a projector"),
        ({"nsnet-projector": "{}"}, "field space"),
        (
            {
                "nsnet-projector": '{"space":"pixels","backbone":"a","rank":3,"energy":0,'
                '"residual":0,"sources":[]}'
            },
            "field space",
        ),
    ],
)
def test_a_projector_of_unknown_origin_is_refused(
    metadata: dict[str, str] | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "p.safetensors"
    save_file({"basis": torch.eye(4, 3), "singular_values": torch.ones(3)}, path, metadata)
    with pytest.raises(ModelError, match=message):
        read_projector(path)


def test_no_projector_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no projector"):
        read_projector(tmp_path / "none")
    (tmp_path / "text").write_text("captions")
    with pytest.raises(ModelError, match="not a safetensors"):
        read_projector(tmp_path / "text")


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
    np.save(tmp_path / "flat.npy", np.ones(3))
    for name in ("empty.txt", "bad.npy", "missing.txt", "flat.npy"):
        with pytest.raises(ModelError, match=name):
            read_text_features(tmp_path / name, encode)
