import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from cli.export import export as cli_export
from model import export
from model.checkpoint import Metadata, read_checkpoint
from model.detector import Detector
from model.errors import ModelError
from model.export import export_onnx
from model.tower.sources import load_backbone
from tests.conftest import CPU, TINY
from tests.model.test_checkpoint import rewrite

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the [train] extra")
pytest.importorskip("onnxscript", reason="needs the [train] extra")


@pytest.fixture
def tuned(checkpoint: Path) -> Path:
    """The tiny checkpoint with a LoRA delta that changes every score."""
    generator = torch.Generator().manual_seed(2)
    name = "lora.transformer.resblocks.0.attn.in_proj_weight"
    lora = {
        f"{name}.down": torch.randn(2, 32, generator=generator),
        f"{name}.up": torch.randn(96, 2, generator=generator),
    }
    rewrite(checkpoint, lambda tensors: tensors.update(lora))
    return checkpoint


def test_the_onnx_file_scores_as_the_detector(
    tuned: Path, tiny_tower: Path, tmp_path: Path
) -> None:
    to = tmp_path / "new" / "network.onnx"
    app = typer.Typer()
    app.command()(cli_export)
    command = [str(tuned), "--to", str(to), "--backbone", str(tiny_tower)]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert re.search(r"network.onnx: 0\.\d MB, logits within \de-0[5-9] of torch's", done.stdout)
    assert [file.name for file in to.parent.iterdir()] == ["network.onnx"]  # nothing beside it

    session = onnxruntime.InferenceSession(to)
    (canvases,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (canvases.name, canvases.type, canvases.shape[1:]) == (
        "canvases",
        "tensor(uint8)",
        [3, 64, 64],
    )
    assert (logits.name, logits.type) == ("logits", "tensor(float)")

    props = session.get_modelmeta().custom_metadata_map
    stored = read_checkpoint(tuned)
    metadata = Metadata.model_validate(json.loads(props["nsnet"]))
    assert metadata == stored.metadata
    assert props["checkpoint_sha256"] == stored.sha256
    assert props["backbone_sha256"] == load_backbone(TINY, path=tiny_tower).sha256

    # From the file alone to the service's score, for an image of several canvases.
    rng = np.random.default_rng(0)
    detector = Detector.load(tuned, backbone=tiny_tower, runtime=CPU, canvases="all")
    for _ in range(3):
        pixels = rng.integers(0, 256, (100, 130, 3), dtype=np.uint8)
        image = detector.look(pixels).canvases.numpy()
        logit = session.run(["logits"], {"canvases": image})[0].mean()
        score = metadata.verdicts.score(float(logit), glance=False)
        assert score == pytest.approx(detector.detect([pixels])[0].score, abs=1e-5)
    assert session.run(None, {"canvases": np.zeros((5, 3, 64, 64), np.uint8)})[0].shape == (5,)


@pytest.mark.parametrize("config", ["blocks"], indirect=True)
def test_a_graph_of_another_network_is_noticed_and_not_kept(
    checkpoint: Path, tiny_tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = export._program

    def trace_then_shift(logits: export._CanvasLogits, size: int) -> Any:
        program = trace(logits, size)
        classify = logits.network.head.classify  # a new parameter: the graph shares the old one
        classify.bias = torch.nn.Parameter(classify.bias + 0.5)
        return program

    monkeypatch.setattr(export, "_program", trace_then_shift)
    to = tmp_path / "new" / "network.onnx"
    with pytest.raises(export.ExportError, match=r"differ by 0\.5"):
        export_onnx(checkpoint, to, backbone=tiny_tower)
    assert not list(to.parent.iterdir())


def test_no_checkpoint_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no checkpoint"):
        export_onnx(tmp_path / "none", tmp_path / "a.onnx")
