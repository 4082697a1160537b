"""The training loop: one for heads on frozen features, for LoRA, and for a tower's own tokens.

What a step reads and draws depends on the seed and the step's number alone, so a run that was
killed goes on exactly where its last saved step was.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field
from pytorch_metric_learning.losses import SupConLoss
from rich.progress import track
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from model.data.ahead import ahead
from model.errors import ModelError
from model.training.trainee import Source

_STATE = "state.pt"
_PRIME = 1_000_003  # keeps the draws of neighbouring seeds apart


class FitOptions(BaseModel):
    """How weights are fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bce_share: float = Field(0.5, ge=0.0, le=1.0, description="the paper's lambda")
    temperature: float = Field(0.1, gt=0.0, description="of the supervised contrast")
    steps: int = Field(800, ge=1, description="optimiser steps")
    batch_size: int = Field(256, ge=2, description="samples a step, over all processes")
    learning_rate: float = Field(1e-3, gt=0.0, description="of the head")
    lora_learning_rate: float = Field(3e-4, gt=0.0)
    warm_up: float = Field(0.1, ge=0.0, lt=1.0, description="share of the steps; cosine follows")
    weight_decay: float = Field(0.1, ge=0.0)
    dropout: float = Field(0.3, ge=0.0, lt=1.0, description="of the features the head reads")
    smoothing: float = Field(0.05, ge=0.0, lt=0.5, description="of labels")
    ema: float = Field(0.99, ge=0.0, lt=1.0, description="decay of the averaged weights; 0: none")
    seed: int = 0


def fit(
    model: nn.Module,
    source: Source,
    targets: Tensor,
    weights: Tensor,
    options: FitOptions,
    *,
    criterion: Callable[[Any, Tensor], Tensor] | None = None,
    run: Path | None = None,
    save_every: int = 100,
    accelerator: Accelerator | None = None,
    progress: str | None = None,
) -> list[float]:
    """Train in place; at the end the model holds the averaged weights.

    Args:
        model: its parameters that require a gradient are trained.
        source: the samples.
        targets: [n, ...], what the criterion compares with; without one int64 [n], 1 = AI.
        weights: float64 [n], how often each sample is drawn.
        options: see `FitOptions`.
        criterion: the loss of the model's outputs beside a step's targets; without one the paper's,
            of logits and embeddings.
        run: folder for the resumable state, the loss curve and TensorBoard's events. A run that
            it holds goes on.
        save_every: steps between saved states.
        accelerator: device and processes; one CPU process without.
        progress: shows a bar of this name.

    Returns:
        The loss of every step.

    Raises:
        ModelError: the loss is not finite, or `run` holds another run's state.
    """
    accelerator = accelerator or Accelerator(cpu=True)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    others = [p for name, p in trained.items() if "lora_" not in name]
    adapters = [p for name, p in trained.items() if "lora_" in name]
    optimiser = torch.optim.AdamW(
        [
            {"params": others, "lr": options.learning_rate},
            {"params": adapters, "lr": options.lora_learning_rate},
        ],
        weight_decay=options.weight_decay,
    )
    rates = [group["lr"] for group in optimiser.param_groups]
    factor = _cosine(options)
    average = {name: p.detach().clone() for name, p in trained.items()}
    state = _State(run, _fingerprint(targets, weights, options, trained))
    losses = state.load(trained, average, optimiser)
    wrapped, prepared = accelerator.prepare(model, optimiser)
    average = {name: average[name].to(p.device) for name, p in trained.items()}
    writer = None
    if run is not None and accelerator.is_main_process:
        writer = SummaryWriter(run, purge_step=len(losses))
    criterion = criterion or _PaperLoss(options)
    share = slice(accelerator.process_index, None, accelerator.num_processes)

    steps = range(len(losses), options.steps)
    batches = _batches(source, weights, options, steps, share)
    wrapped.train()
    hidden = progress is None or not accelerator.is_main_process
    for step in track(steps, description=progress or "", disable=hidden):
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * factor(step)
        drawn, inputs = next(batches)
        inputs, y = inputs.to(accelerator.device), targets[drawn].to(accelerator.device)
        torch.manual_seed(_seed(options, step) + accelerator.process_index)  # of dropout
        loss = criterion(wrapped(inputs), y)
        # Over all processes: every one of them stops at the same step.
        value = float(accelerator.reduce(loss.detach(), "mean"))
        if not math.isfinite(value):
            raise ModelError(
                f"the training loss is not finite at step {step}; lower the learning rate"
            )
        prepared.zero_grad()
        accelerator.backward(loss)
        prepared.step()
        losses.append(value)
        decay = min(options.ema, (step + 1) / (step + 10))  # the first steps are no average's due
        with torch.no_grad():
            for name, p in trained.items():
                average[name].lerp_(p.detach().to(average[name]), 1 - decay)
        if writer is not None:
            writer.add_scalar("loss", value, step)
            writer.add_scalar("learning_rate", rates[0] * factor(step), step)
        last = step + 1 == options.steps
        if accelerator.is_main_process and (last or (step + 1) % save_every == 0):
            state.save(losses, trained, average, optimiser)
    if writer is not None:
        writer.close()
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(average[name])
    model.eval()
    return losses


def _seed(options: FitOptions, step: int) -> int:
    return options.seed * _PRIME + step


def _batches(
    source: Source, weights: Tensor, options: FitOptions, steps: range, share: slice
) -> Iterator[tuple[Tensor, Tensor]]:
    """Members and inputs of each step, read in the background while the step before it runs."""

    def read(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(_seed(options, step))
        drawn = torch.multinomial(
            weights, options.batch_size, replacement=True, generator=generator
        )[share]
        return drawn, source.read(drawn, step)

    return ahead(read, steps, 1)


class _PaperLoss:
    """(1 - lambda) * supervised contrast + lambda * binary cross-entropy (paper, section 3.4)."""

    def __init__(self, options: FitOptions) -> None:
        self._options = options
        self._contrast = SupConLoss(temperature=options.temperature)

    def __call__(self, outputs: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        logits, embedding = outputs
        share, smoothing = self._options.bce_share, self._options.smoothing
        target = labels.float() * (1 - 2 * smoothing) + smoothing
        loss = share * nn.functional.binary_cross_entropy_with_logits(logits, target)
        if share < 1:
            loss = loss + (1 - share) * self._contrast(embedding, labels)
        return loss


def _cosine(options: FitOptions) -> Callable[[int], float]:
    warm_up = round(options.warm_up * options.steps)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        done = (step - warm_up) / max(1, options.steps - warm_up)
        return 0.5 * (1 + math.cos(math.pi * done))

    return factor


def _fingerprint(
    targets: Tensor, weights: Tensor, options: FitOptions, trained: dict[str, nn.Parameter]
) -> str:
    """Of all that decides a run but the samples themselves, which the caller's cache names."""
    shapes = {name: list(p.shape) for name, p in trained.items()}
    text = options.model_dump_json() + json.dumps(shapes)
    data = targets.numpy().tobytes() + weights.double().numpy().tobytes()
    return hashlib.sha256(text.encode() + data).hexdigest()


@dataclass(frozen=True, slots=True)
class _State:
    """What a run needs to go on, in one file that is replaced whole."""

    run: Path | None
    fingerprint: str

    def save(
        self,
        losses: list[float],
        trained: dict[str, nn.Parameter],
        average: dict[str, Tensor],
        optimiser: torch.optim.Optimizer,
    ) -> None:
        if self.run is None:
            return
        self.run.mkdir(parents=True, exist_ok=True)
        part = self.run / (_STATE + ".part")
        torch.save(
            {
                "fingerprint": self.fingerprint,
                "losses": losses,
                "trained": {name: p.detach() for name, p in trained.items()},
                "average": average,
                "optimiser": optimiser.state_dict(),
            },
            part,
        )
        part.replace(self.run / _STATE)
        (self.run / "losses.json").write_text(json.dumps([round(v, 6) for v in losses]))

    def load(
        self,
        trained: dict[str, nn.Parameter],
        average: dict[str, Tensor],
        optimiser: torch.optim.Optimizer,
    ) -> list[float]:
        """The losses so far; none where nothing was saved."""
        if self.run is None or not (self.run / _STATE).exists():
            return []
        saved = torch.load(self.run / _STATE, map_location="cpu", weights_only=True)
        if saved["fingerprint"] != self.fingerprint:
            raise ModelError(f"{self.run} holds a run of other data or options; choose another")
        with torch.no_grad():
            for name, p in trained.items():
                p.copy_(saved["trained"][name])
                average[name].copy_(saved["average"][name])
        optimiser.load_state_dict(saved["optimiser"])
        losses: list[float] = saved["losses"]
        return losses
