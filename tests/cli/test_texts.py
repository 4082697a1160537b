"""`nsnet caption` and `nsnet projector` in this process: from images to the null space."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from cli.texts import caption, projector
from model.errors import ModelError
from model.nullspace import PROMPTS, NullSpace, null_space, project, pull_back, read_projector
from model.tower.sources import encode_texts, load_backbone, random_backbone
from tests.conftest import TINY
from tests.images import jpeg
from tests.model.training.test_captions import save_tiny_blip

app = typer.Typer()
app.command()(caption)
app.command()(projector)


def nsnet(line: str) -> Result:
    return CliRunner().invoke(app, line.split(), catch_exceptions=False)


def of(clip: Path) -> str:
    return f"--backbone {TINY} --weights {clip}"


@pytest.fixture(scope="module")
def clip(tiny_tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP named TINY, both towers, untrained."""
    torch.manual_seed(0)
    model = open_clip.create_model(TINY, load_weights=False)
    model.visual.load_state_dict(random_backbone(TINY, seed=3).visual.state_dict())
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture
def features(tmp_path: Path) -> Path:
    path = tmp_path / "v.npy"
    np.save(path, np.random.default_rng(0).normal(size=(90, 24)) * np.logspace(0, -2, 24))
    return path


def test_images_become_captions_and_captions_a_projector(clip: Path, tmp_path: Path) -> None:
    blip = tmp_path / "blip"
    blip.mkdir()
    data = tmp_path / "data"
    for i, name in enumerate(("gan/cat/0_real/a.jpg", "gan/cat/1_fake/b.jpg", "gan/1_fake/c.jpg")):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(jpeg(seed=i))
    (data / "gan/1_fake/d.png").touch()
    to = tmp_path / "captions.txt"
    done = nsnet(f"caption {data} --to {to} --model {save_tiny_blip(blip)} --batch-size 3")
    assert "3 captions, 1 images without" in done.stdout
    lines = to.read_text().splitlines()
    assert [bool(line) for line in lines] == [True, False, True, True]  # d.png is the second

    file = tmp_path / "p.safetensors"
    nsnet(f"projector {to} --to {file} --rank 1 --space joint {of(clip)}")
    V = encode_texts([line for line in lines if line], TINY, path=clip)
    assert_same(file, V, rank=1)


def assert_same(file: Path, V: torch.Tensor, rank: int) -> None:
    assert_equal(read_projector(file).null_space, null_space(V, rank=rank))


def assert_equal(space: NullSpace, expected: NullSpace) -> None:
    """The same subspace is removed, whatever its basis."""
    identity = torch.eye(len(expected.basis))
    matrices = (project(identity, one.basis) for one in (space, expected))
    torch.testing.assert_close(*matrices, atol=1e-4, rtol=0)


def test_class_names_become_prompts(clip: Path, tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("cat\ndog\nkitchen\n")
    file = tmp_path / "p.safetensors"
    nsnet(f"projector {names} --prompts --to {file} --rank 2 --space joint {of(clip)}")
    V = torch.stack(
        [
            encode_texts([t.format(name) for t in PROMPTS], TINY, path=clip).mean(dim=0)
            for name in ("cat", "dog", "kitchen")
        ]
    )
    assert_same(file, V, rank=2)


def test_blocks_are_the_default_and_the_texts_are_pulled_back(
    tiny_tower: Path, features: Path, tmp_path: Path
) -> None:
    """Features alone need no text tower: a file of the image tower will do."""
    file = tmp_path / "p.safetensors"
    done = nsnet(f"projector {features} {features} --to {file} --energy 0.9 {of(tiny_tower)}")
    stored = read_projector(file)
    assert (stored.space, stored.backbone, stored.sources) == ("blocks", TINY, ("v.npy", "v.npy"))
    space = stored.null_space
    assert space.energy >= 0.9 > null_space_of(features, tiny_tower, space.rank - 1).energy
    assert f"rank {space.rank} of 32, energy {space.energy:.4f}" in done.stdout
    assert f"residual {space.residual:.4f}" in done.stdout
    expected = null_space_of(features, tiny_tower, space.rank)
    assert_equal(space, expected)


def null_space_of(features: Path, tower: Path, rank: int) -> NullSpace:
    V = torch.from_numpy(np.load(features)).float()
    proj = load_backbone(TINY, path=tower).visual.proj
    return null_space(pull_back(torch.cat([V, V]), proj), rank=rank)


def test_the_scree_plot_shows_the_rank_that_was_chosen(features: Path, tmp_path: Path) -> None:
    pictures = []
    for rank in (3, 12):
        plot = tmp_path / "plots" / f"{rank}.png"
        nsnet(
            f"projector {features} --to {tmp_path / 'p.safetensors'} --space joint --rank {rank} "
            f"--plot {plot}"
        )
        with Image.open(plot) as image:
            assert image.format == "PNG"
            pictures.append(np.asarray(image.convert("RGB")).astype(int))
    red = [(p[..., 0] > 180) & (p[..., 1] < 80) for p in pictures]
    half = pictures[0].shape[1] // 2
    # The mark stands in both panels, and moves right with the rank.
    for panel in (slice(0, half), slice(half, None)):
        columns = [int(np.argmax(r[:, panel].sum(axis=0))) for r in red]
        assert columns[0] < columns[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rank", "3", "--energy", "0.5"], "either a rank or an energy"),
        (["--space", "joint"], "rank 64 is outside"),
        (["narrow.npy", "--space", "joint"], "narrow.npy has 7 dimensions"),
        (["missing.txt"], "missing.txt"),
    ],
)
def test_a_mistake_is_a_clear_error(
    arguments: list[str], message: str, tiny_tower: Path, features: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "narrow.npy", np.ones((3, 7)))
    arguments = [str(tmp_path / a) if "." in a and a[0].isalpha() else a for a in arguments]
    to = tmp_path / "p.safetensors"
    with pytest.raises(ModelError, match=message):
        nsnet(f"projector {features} {' '.join(arguments)} --to {to} {of(tiny_tower)}")
    assert not to.exists()
