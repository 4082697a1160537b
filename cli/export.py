"""`nsnet export`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.environment import Backbone, BackboneSha256


def export(
    checkpoint: Annotated[Path, typer.Argument(help="a checkpoint by `nsnet train`")],
    to: Annotated[Path, typer.Option(help="the ONNX file to write")],
    backbone: Backbone = None,
    backbone_sha256: BackboneSha256 = None,
) -> None:
    """Write a checkpoint and its tower as one ONNX file, checked against torch."""
    from model.export import export_onnx

    difference = export_onnx(checkpoint, to, backbone=backbone, backbone_sha256=backbone_sha256)
    size = to.stat().st_size / 1e6
    print(f"{to}: {size:.1f} MB, logits within {difference:.1g} of torch's")
