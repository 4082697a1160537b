"""Low-rank adapters on the image tower (paper, section 3.3), through peft.

`nn.MultiheadAttention` keeps q, k and v in one bare parameter and never calls its output layer.
peft reaches them by adding the deltas to the weights for each forward and taking them away again:
the output's twice, and in bfloat16 the weights drift with every step. So each adapted block gets
the same attention made of two plain linear layers, which peft adapts as any other.
"""

from collections.abc import Sequence
from typing import Any

from open_clip.transformer import VisionTransformer
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from model.errors import ModelError
from model.tower.adapters import Deltas

_ADAPTER = "default"


class LoraOptions(BaseModel):
    """Which weights get adapters, and how wide."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: tuple[int, ...] = Field(min_length=1, description="blocks adapted, counted from 1")
    rank: int = Field(8, ge=1)
    alpha: int = Field(16, ge=1, description="the adapter counts alpha / rank times")
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    attention: bool = Field(True, description="q, k, v and the output projection")
    mlp: bool = Field(True, description="both layers")


class _Attention(nn.Module):
    """Self-attention with the weights of an `nn.MultiheadAttention`, as two linear layers."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.in_proj = _linear(attention.in_proj_weight, attention.in_proj_bias)
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(self, query: Tensor, *_: Tensor, **__: object) -> tuple[Tensor, None]:
        """[n, L, width] -> the same shape; key and value are the query, as in a tower's block."""
        n, length, width = query.shape
        qkv = self.in_proj(query).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = _attend(q, k, v)
        return self.out_proj(mixed.transpose(1, 2).reshape(n, length, width)), None


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention, [n, heads, L, d] each."""
    if q.device.type != "cpu":
        return nn.functional.scaled_dot_product_attention(q, k, v)
    # On a CPU the fused kernel's backward is slower than these.
    scores = (q * q.shape[-1] ** -0.5).contiguous() @ k.contiguous().transpose(-1, -2)
    mixed: Tensor = scores.softmax(dim=-1) @ v.contiguous()
    return mixed


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight.data), nn.Parameter(bias.data)
    return layer


def attach(visual: VisionTransformer, options: LoraOptions) -> None:
    """Freeze the tower and put adapters, in float32 and as yet without effect, on its blocks.

    Raises:
        ModelError: a block that the tower does not have, or nothing to adapt.
    """
    blocks: Sequence[Any] = visual.transformer.resblocks
    targets = ["in_proj", "out_proj"] * options.attention + ["c_fc", "c_proj"] * options.mlp
    if not targets or not all(1 <= b <= len(blocks) for b in options.blocks):
        raise ModelError(f"LoRA: blocks {options.blocks} of {len(blocks)}, layers {targets}")
    # In the blocks above, too: the original's backward copies its weights once per token.
    for block in blocks[min(options.blocks) - 1 :]:
        block.attn = _Attention(block.attn)
    visual.requires_grad_(False)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets,
        layers_pattern="resblocks",
        layers_to_transform=[b - 1 for b in options.blocks],
    )
    inject_adapter_in_model(config, visual, adapter_name=_ADAPTER)
    for name, parameter in visual.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    for module in visual.modules():
        if isinstance(module, LoraLayer):
            # Autocast chooses the adapters' arithmetic; peft would take it to float32 and back.
            module.cast_input_dtype_enabled = False


def deltas(visual: VisionTransformer) -> Deltas:
    """What the adapters add; the names are those of a tower without adapters."""
    added = {}
    for name, module in visual.named_modules():
        if _ADAPTER in getattr(module, "lora_A", {}):
            down = module.lora_A[_ADAPTER].weight.detach().float()
            up = module.lora_B[_ADAPTER].weight.detach().float() * module.scaling[_ADAPTER]
            fused = name.endswith("in_proj")
            added[f"{name}_weight" if fused else f"{name}.weight"] = (down, up)
    return added
