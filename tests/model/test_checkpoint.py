import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.checkpoint import Metadata, build_model, read_checkpoint, save_checkpoint
from model.detector import DEFAULT_CHECKPOINT, Detector
from model.engines.ranges import activation_ranges
from model.errors import CheckpointError
from model.network import NSNet
from model.tower.sources import load_backbone
from model.verdicts import Accused, Calibration, Cut, Margins
from model.views.patches import PatchRule
from model.views.plan import ViewPlan
from tests.conftest import CPU, TINY

LORA = "lora.transformer.resblocks.0.mlp.c_fc.weight.down"
# The start of a tensor's entry in a safetensors header.
EMPTY = '"dtype": "F32", "data_offsets": [0, 0]'
NO_FLOAT32 = (
    *(torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64),
)


def rewrite(
    path: Path,
    tensors: Callable[[dict[str, torch.Tensor]], object] = lambda _: None,
    metadata: Callable[[dict[str, Any]], object] = lambda _: None,
) -> None:
    held = load_file(path)
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["nsnet"])
    tensors(held)
    metadata(said)
    save_file(held, path, metadata={"nsnet": json.dumps(said)})


def tower(tiny_tower: Path, network: NSNet) -> Any:
    return load_backbone(TINY, path=tiny_tower, depth=network.config.depth).visual


def test_round_trip_gives_the_same_logits(
    checkpoint: Path, network: NSNet, metadata: Metadata, tiny_tower: Path
) -> None:
    read = read_checkpoint(checkpoint)
    assert read.metadata == metadata
    assert not any(name.startswith("visual.") for name in read.tensors)
    again = build_model(read, tower(tiny_tower, network))
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        logits = [of.logits(of.tokens(pixels)) for of in (again, network)]
        assert torch.equal(*logits)


def test_lora_deltas_are_merged_at_load(checkpoint: Path, network: NSNet, tiny_tower: Path) -> None:
    name = "transformer.resblocks.0.mlp.c_fc.weight"
    down, up = torch.randn(2, 32), torch.randn(128, 2)
    rewrite(checkpoint, lambda t: t.update({f"lora.{name}.down": down, f"lora.{name}.up": up}))
    merged = build_model(read_checkpoint(checkpoint), tower(tiny_tower, network))
    expected = network.visual.get_parameter(name) + up @ down
    assert torch.allclose(merged.visual.get_parameter(name), expected, atol=1e-6)


def test_one_score_is_as_many_are() -> None:
    calibration = Calibration(slope=1.3, intercept=-0.4, fitted_on="a test")
    logits = [-1e300, -800.0, -40.0, -3.0, 0.0, 2.5, 40.0, 800.0, 1e300]
    many = calibration.scores(np.array(logits)).tolist()
    assert [calibration.score(logit) for logit in logits] == pytest.approx(many, abs=1e-15)
    assert calibration.score(0.4 / 1.3) == pytest.approx(0.5)


def test_ranges_come_back(network: NSNet, metadata: Metadata, tmp_path: Path) -> None:
    ranges = activation_ranges(network.visual, torch.zeros(1, 3, 64, 64).byte(), network.spec)
    path = tmp_path / "ranged.safetensors"
    save_checkpoint(path, network, metadata, ranges=ranges)
    again = read_checkpoint(path)
    build_model(again, network.visual)
    assert again.ranges is not None
    assert again.ranges.keys() == ranges.keys()
    assert all(torch.equal(again.ranges[layer], ranges[layer]) for layer in ranges)
    save_checkpoint(path, network, metadata)
    assert read_checkpoint(path).ranges is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("basis"), "lacks the tensor basis"),
        (lambda t: t.pop("head.embed.bias"), r"lacks the tensor head\.embed\.bias"),
        (lambda t: t.update({"extra": torch.ones(1)}), "unknown tensor extra"),
        (lambda t: t.update({"head.embed.bias": torch.ones(3)}), r"head\.embed\.bias is \[3\]"),
        (lambda t: t["head.embed.weight"].fill_(float("inf")), "not finite"),
        (lambda t: t.update({"lora.conv1.weight.up": torch.ones(2, 2)}), "lacks lora"),
        (lambda t: t.update({"basis": torch.ones(7, 2)}), "basis"),
        (lambda t: t.update({"ranges.c_fc": torch.ones(3, 2, 32)}), "ranges are not those"),
        (lambda t: t.update({"ranges.c_fc": torch.ones(3, 32)}), r"\[3, 32\], not \[blocks, 2"),
        (
            lambda t: t.update({"ranges.c_fc": torch.tensor([1.0, 0.0]).reshape(1, 2, 1)}),
            r"ranges\.c_fc is no ranges: one ends below",
        ),
        (lambda t: t["basis"].mul_(100), "basis is not orthonormal"),
        (lambda t: t.update(basis=t["basis"][:, :3].clone()), r"basis is \[\d+, 3\], not \[d, 4\]"),
        (lambda t: t.update(basis=torch.ones(4)), r"basis is \[4\], not \[d, 4\]"),
    ],
)
def test_wrong_tensors_are_named(
    change: Callable[[dict[str, torch.Tensor]], object],
    message: str,
    checkpoint: Path,
    network: NSNet,
    tiny_tower: Path,
) -> None:
    rewrite(checkpoint, tensors=change)
    with pytest.raises(CheckpointError, match=message):
        build_model(read_checkpoint(checkpoint), tower(tiny_tower, network))


@pytest.mark.parametrize("name", ["basis", "head.mean", "head.embed.weight", LORA, "ranges.c_fc"])
@pytest.mark.parametrize("dtype", NO_FLOAT32, ids=str)
def test_tensors_are_float32(name: str, dtype: torch.dtype, checkpoint: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors.get(name, torch.ones(3, 2, 32)).to(dtype)

    rewrite(checkpoint, tensors=change)
    with pytest.raises(CheckpointError, match=f"tensor {name} is .*, not float32") as caught:
        read_checkpoint(checkpoint)
    assert str(dtype).removeprefix("torch.") in str(caught.value)


@pytest.mark.parametrize("hidden", [9, 10**9, 10**13, 10**30])
def test_no_memory_is_taken_for_a_head_that_the_file_does_not_hold(
    hidden: int, checkpoint: Path, network: NSNet, tiny_tower: Path
) -> None:
    rewrite(checkpoint, metadata=lambda m: m["network"].update(hidden=hidden))
    with pytest.raises(CheckpointError, match=r"head\.embed\.weight is not as wide"):
        build_model(read_checkpoint(checkpoint), tower(tiny_tower, network))
    # A narrow weight of that many rows would take little room in a file.
    hidden = min(hidden, 10**6)
    rewrite(
        checkpoint,
        tensors=lambda t: t.update({"head.embed.weight": torch.ones(hidden, 1)}),
        metadata=lambda m: m["network"].update(hidden=hidden),
    )
    with pytest.raises(CheckpointError, match=r"the checkpoint's head\.embed\.\w+ is \["):
        build_model(read_checkpoint(checkpoint), tower(tiny_tower, network))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["verdicts"].pop("thresholds"), "thresholds"),
        (lambda m: m["verdicts"]["thresholds"].update(real_below=0.9), "must not exceed"),
        (lambda m: m["verdicts"]["calibrations"]["all"].update(slope=0.0), "slope"),
        (lambda m: m["verdicts"]["calibrations"]["first"].update(intercept=math.nan), "intercept"),
        (lambda m: m.update(format=3), "format"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m["views"]["patches"].update(patch_size=48), "views.patches"),
        (lambda m: m.update(backbone_sha256="short"), "backbone_sha256"),
        (lambda m: m["verdicts"].update(quality={"min_side": 200}), "quality.min_sharpness"),
        (
            lambda m: m["verdicts"].update(
                quality={"min_side": -1, "min_sharpness": 0, "max_blockiness": 1}
            ),
            "quality.min_side",
        ),
        (lambda m: m.update(evaluation={"left_out_owners": {"cuts": 3}}), "evaluation"),
        (lambda m: m.update(evaluation={"left_out_owners": {"cuts": [{"cut": 2}]}}), "evaluation"),
    ],
)
def test_wrong_metadata_names_its_field(
    change: Callable[[dict[str, Any]], object], message: str, checkpoint: Path
) -> None:
    rewrite(checkpoint, metadata=change)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(checkpoint)


SHARES = {"photographs_accused": 0.004, "made_accused": 0.01, "ai_found": 0.72}


@pytest.mark.parametrize(
    ("evaluation", "cuts"),
    [
        ({}, []),
        ({"left_out_owners": {}}, []),
        ({"left_out_owners": "nothing"}, []),
        ({"cross_fitted": {"cuts": [1]}}, []),
        (
            {
                "left_out_owners": {
                    "clean": {"auc": 0.9},
                    "cuts": [
                        {
                            "cut": 0.91,
                            "conditions": {
                                "clean": SHARES,
                                "jpeg60": SHARES | {"made_accused": None},
                            },
                        }
                    ],
                }
            },
            [
                Cut(
                    cut=0.91,
                    conditions={
                        "clean": Accused(
                            photographs_accused=0.004, made_accused=0.01, ai_found=0.72
                        ),
                        "jpeg60": Accused(
                            photographs_accused=0.004, made_accused=None, ai_found=0.72
                        ),
                    },
                )
            ],
        ),
    ],
)
def test_the_cuts_that_were_measured_are_told(
    evaluation: dict[str, Any], cuts: list[Cut], checkpoint: Path, tiny_tower: Path
) -> None:
    rewrite(checkpoint, metadata=lambda m: m.update(evaluation=evaluation))
    about = Detector.load(checkpoint, runtime=CPU, backbone=tiny_tower).about
    assert (about.cuts, about.evaluation) == (cuts, evaluation)


def test_a_checkpoint_without_the_newer_rules_is_read_and_holds_nothing_back(
    checkpoint: Path, tiny_tower: Path
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    expected = Detector.load(checkpoint, runtime=CPU, backbone=tiny_tower).detect([image])

    def older(metadata: dict[str, Any]) -> None:
        del metadata["verdicts"]["quality"]
        for kind in ("window", "reduced_window"):
            del metadata["verdicts"]["calibrations"][kind]

    rewrite(checkpoint, metadata=older)
    detector = Detector.load(checkpoint, runtime=CPU, backbone=tiny_tower)
    assert detector.detect([image]) == expected
    assert (detector.about.quality, detector.about.cuts) == (None, [])
    assert detector.about.calibration["window"] is None


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read_checkpoint(tmp_path / "missing")
    pickle = tmp_path / "weights.pt"
    torch.save({"basis": torch.ones(2)}, pickle)
    with pytest.raises(CheckpointError, match="not a safetensors"):
        read_checkpoint(pickle)
    plain = tmp_path / "plain.safetensors"
    save_file({"basis": torch.ones(2)}, plain)
    with pytest.raises(CheckpointError, match="not an NS-Net checkpoint"):
        read_checkpoint(plain)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ('"__metadata__": null', "is not an NS-Net checkpoint"),
        ('"x": {"dtype": "F32", "shape": [0, 1e0]', "not a safetensors"),
        (f'"x": {{{EMPTY}, "shape": [0, {2**63}]}}', "not a safetensors"),
        (f'"x": {{{EMPTY}, "shape": [0, {2**62}, 8]}}', "not a safetensors"),
        (f'"x": {{{EMPTY}, "shape": [0], "junk": 1{"0" * 5000}}}', "not a safetensors"),
        (f'"x": {{{EMPTY.replace("F32", "F8_E8M0")}, "shape": [0]}}', "a kind unknown here"),
    ],
)
def test_what_a_file_says_of_itself_is_no_traceback(
    header: str, message: str, tmp_path: Path
) -> None:
    said = f"{{{header}}}".encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(said).to_bytes(8, "little") + said)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def as_format_1(metadata: dict[str, Any], *, whole: bool) -> None:
    """What the version before wrote: the views in the network, and one calibration."""
    rules, views = metadata.pop("verdicts"), metadata.pop("views")
    patches = views["patches"] | {"whole": whole, "canvases": 2}
    if whole:
        patches["patch_size"] = 64
    metadata["network"] |= {"patches": patches, "whole_share": 0.75}
    metadata |= {"calibration": rules["calibrations"]["all"], "thresholds": rules["thresholds"]}
    metadata["format"] = 1


@pytest.mark.parametrize("whole", [True, False])
def test_format_1_is_read_and_scores_as_it_did(
    whole: bool, checkpoint: Path, tiny_tower: Path
) -> None:
    patches = PatchRule(patch_size=64 if whole else 32, canvas_size=64, canvases=2 - whole)
    views = ViewPlan(whole=whole, whole_share=0.75, patches=patches)
    image = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    rewrite(checkpoint, metadata=lambda m: m.update(views=views.model_dump()))
    expected = Detector.load(checkpoint, runtime=CPU, backbone=tiny_tower).detect([image])
    rewrite(checkpoint, metadata=lambda m: as_format_1(m, whole=whole))
    metadata = read_checkpoint(checkpoint).metadata
    assert (metadata.format, metadata.views) == (2, views)
    assert metadata.verdicts.calibrations.first == metadata.verdicts.calibrations.all
    assert metadata.verdicts.margins == Margins(clearing=0.25, accusing=0.75)
    assert metadata.verdicts.quality is None
    assert Detector.load(checkpoint, runtime=CPU, backbone=tiny_tower).detect([image]) == expected


PATCHES = ("network", "patches")
NO_RULES: tuple[Any, ...] = (None, 3, 0.5, True, "x", [], [1], [[1, 2]])
NO_COUNTS: tuple[Any, ...] = (None, "x", [], {}, 1e308, 0.5, 10**30, -1)
NO_TRUTHS: tuple[Any, ...] = (None, "x", [], {}, 2)


def field(path: tuple[str, ...], name: str, value: object) -> Callable[[dict[str, Any]], object]:
    """What sets a field of the metadata."""

    def change(metadata: dict[str, Any]) -> None:
        for key in path:
            metadata = metadata[key]
        metadata[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("thresholds"), "verdicts"),
        (lambda m: m["network"]["patches"].update(patch_size=48), "views.patches"),
        (lambda m: m["network"].pop("backbone"), "network.backbone"),
        (lambda m: m.update(network=3), "network"),
        *[(field(("network",), "patches", wrong), "field views.patches: ") for wrong in NO_RULES],
        *[
            (field(PATCHES, "canvases", wrong), "field views.patches.canvases: ")
            for wrong in NO_COUNTS
        ],
        *[(field(PATCHES, "whole", wrong), "field views.whole: ") for wrong in NO_TRUTHS],
    ],
)
def test_a_wrong_format_1_names_its_field(
    change: Callable[[dict[str, Any]], object], message: str, checkpoint: Path
) -> None:
    rewrite(checkpoint, metadata=lambda m: as_format_1(m, whole=False))
    rewrite(checkpoint, metadata=change)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(checkpoint)


def test_canvases_are_the_towers_size(checkpoint: Path, network: NSNet, tiny_tower: Path) -> None:
    rewrite(checkpoint, metadata=lambda m: m["views"]["patches"].update(canvas_size=96))
    with pytest.raises(CheckpointError, match="96 px"):
        build_model(read_checkpoint(checkpoint), tower(tiny_tower, network))


def test_lora_pairs_that_do_not_fit_each_other_are_a_checkpoint_error(
    checkpoint: Path, network: NSNet, tiny_tower: Path
) -> None:
    """Of two ranks: once a traceback of torch's."""
    name = "lora.transformer.resblocks.0.mlp.c_fc.weight"
    pair = {f"{name}.down": torch.randn(2, 32), f"{name}.up": torch.randn(128, 3)}
    rewrite(checkpoint, lambda t: t.update(pair))
    with pytest.raises(CheckpointError, match="does not fit"):
        build_model(read_checkpoint(checkpoint), tower(tiny_tower, network))


@pytest.mark.parametrize("path", sorted(DEFAULT_CHECKPOINT.parent.glob("nsnet-*.safetensors")))
def test_every_shipped_checkpoint_is_as_it_says(path: Path) -> None:
    stored = read_checkpoint(path)
    assert stored.tensors["basis"].shape[1] == stored.metadata.projector.rank > 0
    assert stored.ranges


@pytest.mark.parametrize(("whole", "canvases"), [("true", 2), (1, "2"), (True, 2.0)])
def test_format_1_is_read_as_loosely_as_ever(
    whole: object, canvases: object, checkpoint: Path
) -> None:
    rewrite(checkpoint, metadata=lambda m: as_format_1(m, whole=True))
    lax = {"whole": whole, "canvases": canvases}
    rewrite(checkpoint, metadata=lambda m: m["network"]["patches"].update(lax))
    views = read_checkpoint(checkpoint).metadata.views
    assert (views.whole, views.patches.canvases) == (True, 1)


def test_the_shipped_checkpoint_is_read() -> None:
    metadata = read_checkpoint(DEFAULT_CHECKPOINT).metadata
    assert (metadata.name, metadata.views.whole_share) == ("nsnet-vit-b-16", 0.75)
