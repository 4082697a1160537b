"""A tower whose patch tokens are pooled learns to give what the whole one gives.

Averaging tokens changes what the blocks above read, and they were never trained for it. Adapters on
them learn to give the whole tower's CLS tokens all the same, without a label: what tells the
classes apart is not learned here. The images are, those of left-out groups, too.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from open_clip.transformer import VisionTransformer
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from model.errors import ModelError
from model.nsnet import continue_tokens
from model.training import lora
from model.training.lora import LoraOptions
from model.training.trainer import FitOptions, TensorSource, fit, tower_arithmetic

_BATCH = 256


class DistilOptions(BaseModel):
    """How the blocks above the pooled tokens are adapted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lora: LoraOptions
    fit: FitOptions = FitOptions(
        steps=600, batch_size=96, lora_learning_rate=1e-3, weight_decay=0.0
    )


class Student(nn.Module):
    """The blocks above the pooled tokens: [n, L, width] -> [n, reads, width], float32.

    Args:
        visual: the tower.
        done: the block that pooling follows.
        reads: the blocks above it whose CLS tokens are read.
    """

    def __init__(self, visual: VisionTransformer, done: int, reads: Sequence[int]) -> None:
        super().__init__()
        self.visual = visual
        self.done = done
        self.reads = reads

    def forward(self, hidden: Tensor) -> Tensor:
        """What the blocks read, as `hidden_states` gives it after `done`."""
        with tower_arithmetic(self.visual, hidden.device) as dtype:
            tokens = continue_tokens(self.visual, hidden.to(dtype), self.done, self.reads)
        return tokens.float()


def distil(
    visual: VisionTransformer,
    hidden: Tensor,
    tokens: Tensor,
    done: int,
    reads: Sequence[int],
    options: DistilOptions,
    *,
    accelerator: Accelerator,
    run: Path | None = None,
) -> Tensor:
    """Fit adapters on the blocks above the pooled tokens, in place.

    The loss is the mean squared difference of the tokens, in deviations of each of their values.

    Args:
        visual: the tower; adapters stay attached (`lora.deltas`).
        hidden: float16 [n, L, width], pooled, as block `done + 1` reads them.
        tokens: float16 [n, len(reads), width], the whole tower's.
        done: the block that pooling follows.
        reads: blocks above it, from 1, rising.
        options: see `DistilOptions`.
        accelerator: device and processes.
        run: folder of the resumable state.

    Returns:
        The adapted tower's tokens for all of `hidden`: float16, of the shape of `tokens`.

    Raises:
        ModelError: as `lora.attach`, or as `fit`.
    """
    if not reads:
        raise ModelError("distil: no block that is read comes after the pooled tokens")
    device = accelerator.device
    torch.manual_seed(options.fit.seed)
    lora.attach(visual, options.lora)
    student = Student(visual, done, reads)
    deviation = tokens.float().std(dim=0).clamp_min(1e-4).to(device)

    def difference(found: Tensor, target: Tensor) -> Tensor:
        return ((found - target.float()) / deviation).square().mean()

    samples = TensorSource(hidden, torch.arange(len(hidden)))
    fit(student, samples, tokens, torch.ones(len(hidden), dtype=torch.float64), options.fit,
        criterion=difference, accelerator=accelerator, run=run, save_every=50,
        progress="distil")  # fmt: skip
    student.to(device)
    with torch.inference_mode():
        return torch.cat([student(p.to(device)).half().cpu() for p in torch.split(hidden, _BATCH)])
