"""`nsnet caption` and `nsnet projector`: from training images to the null space of their texts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.environment import Data, log_progress

if TYPE_CHECKING:
    from model.nullspace import NullSpace

DEFAULT_RANK = 64


def caption(
    data: Data,
    to: Annotated[Path, typer.Option(help="text file; captions already there are kept")],
    split: Annotated[str, typer.Option(help="images to caption")] = "train",
    model: Annotated[
        str, typer.Option(help="BLIP: a local folder, or a name on the hub")
    ] = "Salesforce/blip-image-captioning-base",
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    device: Annotated[str, typer.Option()] = "cpu",
) -> None:
    """Caption the training images by BLIP, one line per image, for `nsnet projector`."""
    from model.data.manifest import read_datasets
    from model.training.captions import Captioner, write_captions

    log_progress()
    paths = [row.path for row in read_datasets(data, split)]
    captioner = Captioner.load(model, device=device)
    empty = write_captions(paths, captioner, to, batch_size=batch_size)
    print(f"{to}: {len(paths) - empty} captions, {empty} images without")


def projector(
    sources: Annotated[
        list[Path], typer.Argument(help=".npy features (n x d), or captions, one a line")
    ],
    to: Annotated[Path, typer.Option(help="the projector to write")],
    rank: Annotated[
        int | None, typer.Option(help=f"text directions removed; without both, {DEFAULT_RANK}")
    ] = None,
    energy: Annotated[
        float | None, typer.Option(help="instead of a rank: the share of ||V||^2 removed, 0..1")
    ] = None,
    space: Annotated[
        Literal["blocks", "joint"],
        typer.Option(help="blocks (the tower's width) or joint, as the network's features"),
    ] = "blocks",
    backbone: Annotated[str, typer.Option(help="open_clip architecture")] = "ViT-B-16-quickgelu",
    weights: Annotated[
        Path | None, typer.Option(help="safetensors of the whole CLIP, instead of cache and hub")
    ] = None,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="text files hold class names, not captions")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="PNG of the singular values")] = None,
) -> None:
    """Compute the null space of texts and write it for `nsnet train --projector`."""
    from model.nullspace import projector_of_texts, save_projector

    if rank is None and energy is None:
        rank = DEFAULT_RANK
    stored = projector_of_texts(
        sources,
        backbone=backbone,
        space=space,
        rank=rank,
        energy=energy,
        prompts=prompts,
        weights=weights,
    )
    save_projector(to, stored)
    removed = stored.null_space
    print(
        f"{to}: rank {removed.rank} of {len(removed.basis)}, energy {removed.energy:.4f}, "
        f"residual {removed.residual:.4f}"
    )
    if plot:
        _plot_scree(removed, plot)


def _plot_scree(space: "NullSpace", path: Path) -> None:
    """Singular values and the residual of every rank, with the chosen rank marked."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    S, residuals = space.singular_values, space.residuals()
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    values, left = figure.subplots(1, 2)
    values.semilogy(range(1, len(S) + 1), S, color="C0")
    values.set(
        title="Singular values of V",
        xlabel="index",
        ylabel="singular value",
        ylim=(1e-4 * float(S[0]), None),
    )  # what is lower is rounding
    left.plot(range(len(residuals)), residuals, color="C0")
    left.plot(space.rank, space.residual, "o", color="C3")
    left.set(
        title="Text left after projection",
        xlabel="removed rank r",
        ylim=(0, 1.03),
        ylabel=r"residual $\|VP\|_F\,/\,\|V\|_F$",
    )
    label = f"r = {space.rank}: residual {space.residual:.3f}"
    for axes in (values, left):
        axes.axvline(space.rank, color="C3", linestyle="--", linewidth=1, label=label)
        axes.grid(alpha=0.3)
    left.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
