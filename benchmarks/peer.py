"""The service one would write without NS-Net: CLIP features, a linear probe, ONNX Runtime int8.

    NSNET_PORT=9000 python benchmarks/peer.py FOLDER

The same ViT-B/16 in full: 12 blocks over all 197 tokens of the image at 224 px, dynamically
quantised, one request at a time on every core. The probe is random: this server is here for its
speed. `serving.py peer` starts it; the quantised tower is made once, in FOLDER.
"""

import io
import os
import sys
import threading
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from PIL import Image

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


async def body(request: Request) -> bytes:
    """The image, as our own server takes it."""
    return await request.body()


def create_app(model: Path) -> FastAPI:
    """Build the server."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    probe = np.random.default_rng(0).normal(size=session.get_outputs()[0].shape[1])
    lock = threading.Lock()
    app = FastAPI()

    @app.get("/readyz")
    def ready() -> str:
        return "ready"

    @app.post("/detect")
    def detect(data: Annotated[bytes, Depends(body)]) -> JSONResponse:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        small = image.resize((224, 224), Image.Resampling.BICUBIC)
        pixels = (np.asarray(small, np.float32) / 255 - MEAN) / STD
        with lock:  # several at once would share the cores, and the caches
            (features,) = session.run(None, {"pixels": pixels.transpose(2, 0, 1)[None]})
        # Of a dict, FastAPI would make one in a thread, behind all who wait for a thread.
        return JSONResponse({"score": float(1 / (1 + np.exp(-features[0] @ probe)))})

    return app


def export(model: Path) -> None:
    """Write the tower, for one image, its 48 linear layers in int8."""
    import onnx
    import torch
    from onnxruntime.quantization import quantize_dynamic

    from model.tower.sources import load_backbone

    model.parent.mkdir(parents=True, exist_ok=True)
    tower = load_backbone("ViT-B-16-quickgelu").visual
    full = model.with_suffix(".full.onnx")
    torch.backends.mha.set_fastpath_enabled(False)  # a fused kernel that ONNX has no name for
    with torch.no_grad():
        program = torch.onnx.export(
            tower,
            (torch.zeros(1, 3, 224, 224),),
            input_names=["pixels"],
            opset_version=18,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # noqa: S101  (None is what the older exporter gives)
    program.save(full, external_data=False)
    partial = model.with_suffix(".partial")
    # Signed weights (unsigned ones take 1.7 times as long); an int8 patch embedding gains nothing.
    quantize_dynamic(full, partial, op_types_to_quantize=["MatMul"])
    full.unlink()
    quantised = sum(node.op_type == "MatMulInteger" for node in onnx.load(partial).graph.node)
    if quantised < 48:
        raise SystemExit(f"only {quantised} of the tower's linear layers were quantised")
    partial.replace(model)


if __name__ == "__main__":
    file = Path(sys.argv[1]) / "peer.int8.onnx"
    if not file.exists():
        export(file)
    port = int(os.environ["NSNET_PORT"])
    uvicorn.run(create_app(file), host="127.0.0.1", port=port, log_level="warning")
