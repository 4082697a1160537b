"""All that decides a checkpoint, next to the images and the projector."""

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.data.copies import DEGRADED, JUDGED, Copy
from model.data.degrade import Augmentation
from model.errors import ModelError
from model.network import NSNetConfig
from model.training.distil import DistilOptions
from model.training.lora import LoraOptions
from model.training.trainer import FitOptions
from model.verdicts import Margins, Promise
from model.views.patches import PatchRule
from model.views.plan import ViewPlan


class TrainOptions(BaseModel):
    """All that decides the checkpoint, next to the images and the projector."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: NSNetConfig
    views: ViewPlan = Field(description="what of an image is looked at")
    head: FitOptions | None = Field(
        FitOptions(), description="how the head is fitted to the frozen tower; None: not at first"
    )
    distil: DistilOptions | None = Field(
        None, description="adapters that make up for pooled tokens, fitted first; None: none"
    )
    lora: LoraOptions | None = Field(
        None, description="adapters that learn the classes; None: none do"
    )
    lora_fit: FitOptions = Field(
        FitOptions(steps=400, batch_size=32, learning_rate=1e-4),
        description="how adapters and head are fitted together, after the head alone",
    )
    live: bool = Field(
        False,
        description="draw every copy anew through the whole tower, instead of caching what the "
        "frozen blocks gave for a fixed number of copies: for a GPU",
    )
    degraded: int = Field(1, ge=0, description="degraded copies per image")
    augmentation: Augmentation = Augmentation()
    shares: tuple[float, float, float] = Field(
        (2.0, 2.0, 3.0),
        description="how often clean copies, half of them without their corner, equalised and "
        "degraded ones are drawn",
    )
    folds: int = Field(
        5, ge=2, description="folds of whole owners, for calibration and held-out figures"
    )
    measured_folds: int | None = Field(
        None, ge=1, description="folds that are trained without; None: all, else the first ones"
    )
    accused: float = Field(
        0.007,
        gt=0,
        lt=1,
        description="share of held-out photographs that may be accused, a mean over owners",
    )
    accused_images: float = Field(
        0.01, gt=0, lt=1, description="likewise of all of them, whoever published them"
    )
    accused_made: float = Field(
        0.03, gt=0, lt=1, description="likewise of pictures made without a camera"
    )
    missed: float = Field(
        0.05, gt=0, lt=1, description="share of held-out AI images that may be called real"
    )
    held_back: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="share of photographs, by each measurement of quality, that are never accused",
    )
    margins: Margins = Field(
        Margins(clearing=0.25, accusing=0.75),
        description="log-odds from the cuts at which the first look is enough",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "TrainOptions":
        if self.lora is None and (self.live or self.head is None):
            raise ValueError("a frozen tower is trained from cached features, its head alone")
        if self.distil is not None:
            self._check_distil(self.distil)
        if min(self.shares) < 0 or not any(self.shares[: 3 if self.degraded else 2]):
            raise ValueError("shares: at least one kind of copy that is made must be drawn")
        if self.live and self.head is not None:
            raise ValueError("live training has no cached features to fit a head to: head = None")
        first, last = (self.network.blocks or (math.inf,))[0], self.network.depth or math.inf
        if self.lora is not None and not self.live and not 1 <= self.frozen < first:
            raise ValueError("cached training needs a frozen block below all that are read")
        if self.lora is not None and max(self.lora.blocks) > last:
            raise ValueError("adapters past the last block that is read would never be trained")
        return self

    def _check_distil(self, distil: DistilOptions) -> None:
        pooled, depth = self.network.pooled_after, self.network.depth
        if not pooled or self.network.features != "blocks":
            raise ValueError("distil makes up for pooled tokens: network.pooled_after, of blocks")
        if not all(pooled < block <= (depth or 0) for block in distil.lora.blocks):
            raise ValueError("distil adapts blocks above the pooled tokens that are run")
        if self.lora is not None:
            raise ValueError("distil or lora: what one adapts the other would change")

    @property
    def promise(self) -> Promise:
        """What the checkpoint's rules are to hold to."""
        return Promise(
            accused=self.accused,
            accused_images=self.accused_images,
            accused_made=self.accused_made,
            missed=self.missed,
            held_back=self.held_back,
            min_side=self.views.canvas_size,  # a smaller picture is enlarged to fill one
            margins=self.margins,
        )

    @property
    def frozen(self) -> int:
        """The last block, from 1, below all adapters that learn the classes; 0: there is none."""
        return min(self.lora.blocks) - 1 if self.lora is not None else 0

    @property
    def measured(self) -> int:
        """How many folds are trained without."""
        return min(self.measured_folds or self.folds, self.folds)

    @property
    def kinds(self) -> tuple[Copy, ...]:
        """The copies of an image, those to train on and those to be judged by."""
        return (*JUDGED.values(), *[DEGRADED] * self.degraded, Copy.REDUCED)


# Middle blocks carry the artefacts, native windows stay in the frozen tower's domain, the whole
# image is the surer of the two views, and pooling costs little once the blocks above have learned
# to live with it. The contrast costs more than it gives on left-out groups: the default does
# without.
_DEFAULT = TrainOptions(
    network=NSNetConfig(
        backbone="ViT-B-16-quickgelu",
        features="blocks",
        blocks=(6, 7, 8, 9, 10, 11),
        pooled_after=6,
    ),
    views=ViewPlan(
        whole=True, whole_share=0.75, patches=PatchRule(patch_size=224, canvases=1, high_share=1.0)
    ),
    head=FitOptions(bce_share=1.0, smoothing=0.1),
    distil=DistilOptions(lora=LoraOptions(blocks=(7, 8, 9, 10, 11), rank=32, alpha=64)),
    shares=(3.0, 3.0, 2.0),
)
_PAPER = TrainOptions(
    network=NSNetConfig(backbone="ViT-L-14-quickgelu", features="joint"),
    views=ViewPlan(patches=PatchRule(patch_size=32)),
    head=None,
    live=True,
    lora=LoraOptions(blocks=tuple(range(1, 25)), rank=8),
    lora_fit=FitOptions(steps=20_000, batch_size=64, learning_rate=1e-4, dropout=0.0),
    measured_folds=1,
)
PRESETS: Mapping[str, TrainOptions] = {"default": _DEFAULT, "paper": _PAPER}


def preset(name: str) -> TrainOptions:
    """`default`: what the shipped checkpoint was trained by; `paper`: the paper's configuration.

    Raises:
        ModelError: no such preset.
    """
    if name not in PRESETS:
        raise ModelError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
