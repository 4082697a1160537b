"""A tower whose patch tokens are pooled learns to give what the whole one gives.

Averaging tokens changes what the blocks above read, and they were never trained for it. Adapters on
them learn to give the whole tower's CLS tokens all the same, without a label: what tells the
classes apart is not learned here. The images are, those of left-out groups, too.
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from open_clip.transformer import VisionTransformer
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from model.errors import ModelError
from model.tower.tokens import TowerSpec, continue_tokens
from model.training import lora
from model.training.lora import LoraOptions
from model.training.trainee import TensorSource, tower_arithmetic
from model.training.trainer import FitOptions, fit


class DistilOptions(BaseModel):
    """How the blocks above the pooled tokens are adapted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lora: LoraOptions
    images: int = Field(
        4096, ge=1, description="at least how many, spread evenly, one canvas is drawn of"
    )
    fit: FitOptions = FitOptions(
        steps=400, batch_size=64, lora_learning_rate=1e-3, weight_decay=0.0
    )


class Student(nn.Module):
    """The blocks above the pooled tokens: [n, L, width] -> [n, len(reads), width], float32.

    Args:
        visual: the tower.
        spec: what is read of it, all of it above `pooled_after`.
    """

    def __init__(self, visual: VisionTransformer, spec: TowerSpec) -> None:
        super().__init__()
        self.visual = visual
        self.spec = spec

    def forward(self, hidden: Tensor) -> Tensor:
        """Of what the blocks read, float [n, L, width], pooled by `pool_tokens`."""
        with tower_arithmetic(self.visual, hidden.device) as dtype:
            tokens = continue_tokens(
                self.visual, hidden.to(dtype), self.spec.pooled_after, self.spec
            )
        return tokens.float()


def distil(
    visual: VisionTransformer,
    hidden: TensorSource,
    tokens: Tensor,
    spec: TowerSpec,
    options: DistilOptions,
    *,
    accelerator: Accelerator,
    run: Path | None = None,
) -> None:
    """Fit adapters on the blocks above the pooled tokens, in place.

    The loss is the mean squared difference of the tokens, in deviations of each of their values.

    Args:
        visual: the tower; adapters stay attached (`lora.deltas`).
        hidden: of n canvases, float16 [L, width] each, pooled, as block `pooled_after + 1` reads
            them.
        tokens: float16 [n, len(reads), width], the whole tower's.
        spec: what is read, all of it above `pooled_after`.
        options: see `DistilOptions`.
        accelerator: device and processes.
        run: folder of the resumable state.

    Raises:
        ModelError: as `lora.attach`, or as `fit`.
    """
    if not spec.reads:
        raise ModelError("distil: no block that is read comes after the pooled tokens")
    device = accelerator.device
    torch.manual_seed(options.fit.seed)
    lora.attach(visual, options.lora)
    student = Student(visual, spec)
    deviation = tokens.float().std(dim=0).clamp_min(1e-4).to(device)

    def difference(given: Tensor, target: Tensor) -> Tensor:
        return ((given - target.float()) / deviation).square().mean()

    fit(
        student,
        hidden,
        tokens,
        torch.ones(len(hidden), dtype=torch.float64),
        options.fit,
        criterion=difference,
        accelerator=accelerator,
        run=run,
        save_every=50,
        progress="distil",
    )
