"""What LoRA adds to the tower's weights (paper, section 3.3), as a checkpoint keeps it."""

from collections.abc import Mapping

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor

from model.errors import CheckpointError

# Parameter name -> (down [r, in], up [out, r]), any scaling already in `up`.
Deltas = Mapping[str, tuple[Tensor, Tensor]]

_PARTS = ("down", "up")


@torch.no_grad()
def merge_lora(visual: VisionTransformer, deltas: Deltas) -> None:
    """Add low-rank deltas to the tower's weights in place: W <- W + up @ down.

    Args:
        visual: the tower.
        deltas: see `Deltas`.

    Raises:
        CheckpointError: no such parameter, shapes that do not fit, or no floating-point numbers.
    """
    parameters = dict(visual.named_parameters())
    for name, (down, up) in deltas.items():
        weight = parameters.get(name)
        fits = down.ndim == up.ndim == 2 and up.shape[1] == down.shape[0]
        fits = fits and down.is_floating_point() and up.is_floating_point()
        if weight is None or not fits or (up.shape[0], down.shape[1]) != tuple(weight.shape):
            raise CheckpointError(f"the LoRA delta for {name} does not fit the tower")
        # A new tensor: the loaded one may be a read-only view of the file.
        weight.data = weight + (up.float() @ down.float()).to(weight)


def named_tensors(deltas: Deltas) -> dict[str, Tensor]:
    """Deltas as tensors named `<parameter>.down` and `<parameter>.up`."""
    return {
        f"{name}.{part}": tensor
        for name, pair in deltas.items()
        for part, tensor in zip(_PARTS, pair, strict=True)
    }


def read_deltas(tensors: Mapping[str, Tensor]) -> Deltas:
    """Deltas from what `named_tensors` gives: [r, in] and [out, r] of each parameter.

    Raises:
        CheckpointError: half of a pair is missing, or of no pair.
    """
    left = dict(tensors)
    names = {name.rsplit(".", 1)[0] for name in left}
    try:
        deltas = {name: (left.pop(f"{name}.down"), left.pop(f"{name}.up")) for name in names}
    except KeyError as missing:
        raise CheckpointError(f"the checkpoint lacks lora.{missing.args[0]}") from None
    if left:
        raise CheckpointError(f"the checkpoint has an unknown tensor lora.{min(left)}")
    return deltas
