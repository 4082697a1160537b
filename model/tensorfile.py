"""A safetensors file that says of itself, in validated metadata, what it holds."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from model.errors import ModelError

M = TypeVar("M", bound=BaseModel)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], key: str, about: BaseModel) -> None:
    """Write tensors and, under `key`, what is said of them; anyone may read the file.

    Args:
        path: the file; its folder need not be there.
        tensors: of any shapes and dtypes, on the CPU, by name.
        key: of the safetensors metadata.
        about: what is said of the tensors.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(content, path, metadata={key: about.model_dump_json()})
    path.chmod(0o644)  # safetensors writes for the owner alone; servers run as others


def parse_tensors(
    data: bytes, path: Path, key: str, kind: type[M], noun: str
) -> tuple[dict[str, Tensor], M]:
    """Read back what `write_tensors` wrote.

    Args:
        data: the file's bytes.
        path: where they are from, for the messages.
        key: as in `write_tensors`.
        kind: of what is said of the tensors.
        noun: what the file should be, for the messages.

    Returns:
        The tensors by name, and what is said of them.

    Raises:
        ModelError: not safetensors, nothing under `key`, or that is not a valid `kind`.
    """
    try:
        tensors = load(data)
        # The format: the header's length in 8 bytes, the header as JSON, the tensors.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, RuntimeError, TypeError, ValueError):  # torch's, of absurd shapes
        raise ModelError(f"{path} is not a safetensors file") from None
    except KeyError as unknown:
        raise ModelError(f"{path} holds numbers of a kind unknown here: {unknown}") from None
    text = (header.get("__metadata__") or {}).get(key)
    if text is None:
        raise ModelError(f"{path} is not {noun}: it has no {key!r} metadata")
    try:
        return tensors, kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"{path}: metadata field {where}: {first['msg']}") from None
