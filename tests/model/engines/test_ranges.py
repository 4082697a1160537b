import torch

from model.engines import ranges
from model.engines.ranges import LAYERS, activation_ranges, ranges_shapes, smooth
from model.network import NSNet
from model.tower.tokens import TowerSpec, normalise
from tests.model.test_network import canvases


def test_ranges_are_those_of_what_every_layer_reads(network: NSNet) -> None:
    visual, spec = network.visual, TowerSpec((1, 2))
    block = visual.transformer.resblocks[1]
    pixels = canvases(2 * ranges._BATCH + 3)
    measured = activation_ranges(visual, pixels, spec)
    assert {k: tuple(v.shape) for k, v in measured.items()} == ranges_shapes(visual, spec.depth)

    seen: dict[str, torch.Tensor] = {}

    block.attn.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(in_proj=args[0] if args else kwargs["query"]),
        with_kwargs=True,
    )
    block.attn.register_forward_hook(lambda _, __, out: seen.update(out=out[0]))
    block.mlp.c_fc.register_forward_pre_hook(lambda _, args: seen.update(c_fc=args[0]))
    block.mlp.c_proj.register_forward_pre_hook(lambda _, args: seen.update(c_proj=args[0]))
    with torch.inference_mode():
        visual(normalise(pixels))
        mixed = ranges._mixed(block.attn, seen["in_proj"])
        # What the output projection makes of it is what attention gave.
        assert torch.allclose(block.attn.out_proj(mixed), seen.pop("out"), atol=1e-5)
        seen["out_proj"] = mixed
    assert set(seen) == set(LAYERS)
    for layer, values in seen.items():
        low, high = values.flatten(0, 1).aminmax(dim=0)
        assert torch.allclose(measured[layer][1], torch.stack([low, high]), atol=1e-5), layer


def test_no_hook_stays_on_the_tower(network: NSNet) -> None:
    activation_ranges(network.visual, canvases(2), network.spec)
    assert not any(module._forward_hooks for module in network.visual.modules())


def test_smoothing_evens_out_channels_and_changes_no_product() -> None:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 16, generator=draw)
    inputs[:, 3] *= 100
    inputs[:, 5] = 0
    weight = torch.randn(8, 16, generator=draw)
    factors, low, high = smooth(weight, torch.stack(inputs.aminmax(dim=0)))
    smoothed = inputs / factors
    assert torch.allclose(smoothed @ (weight * factors).T, inputs @ weight.T, rtol=1e-3, atol=1e-3)
    assert (smoothed.min().item(), smoothed.max().item()) == (low, high)
    spread = smoothed.abs().amax(dim=0)
    others = [channel for channel in range(16) if channel not in (3, 5)]
    assert spread[3] < 5 * spread[others].median()
