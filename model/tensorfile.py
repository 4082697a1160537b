"""A safetensors file that says of itself, in validated metadata, what it holds.

It also holds a digest of itself, against which it is read: damage is an error, whichever bit it is.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from model.errors import ModelError

M = TypeVar("M", bound=BaseModel)

_DIGEST = "file_sha256"
"""Where the metadata hold sha256 of the whole file, taken while its own 64 digits were zeros."""
_NO_DIGEST = "0" * 64
# Digests of the package's files that were written without one, by what damage leaves: their bytes'
# number. Their copies are recognised wherever they lie.
_SHIPPED = {
    10991780: (  # weights/nsnet-vit-b-16.safetensors
        "9a5b3ce22f9d01874d94dfcca23d3f9dea47e29a5819628cf83c5ca60afcda2c"
    ),
    10990292: (  # weights/nsnet-vit-b-16-train.safetensors
        "fc3190eaa4c3d41043af870dd43dcbccc6fe31f196b0c219c66aca0223570ea1"
    ),
    198312: (  # weights/projector-vit-b-16.safetensors
        "fae96a3846b92844a41bf0ca4f11b410bb65f415151d959b18c099a797e0d585"
    ),
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], key: str, about: BaseModel) -> None:
    """Write tensors, under `key` what is said of them, and a digest of all; anyone may read it.

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
    data = _with_metadata(save(content), {key: about.model_dump_json(), _DIGEST: _NO_DIGEST})
    digest = hashlib.sha256(data).hexdigest()
    path.write_bytes(data.replace(_entry(_NO_DIGEST), _entry(digest), 1))
    path.chmod(0o644)  # whatever the umask: servers run as others


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
        ModelError: not safetensors, changed since it was written, nothing under `key`, or that is
            not a valid `kind`.
    """
    try:
        tensors = load(data)
        header, _ = _parts(data)
    except (SafetensorError, RuntimeError, TypeError, ValueError):  # torch's, of absurd shapes
        raise ModelError(f"{path} is not a safetensors file") from None
    except KeyError as unknown:
        raise ModelError(f"{path} holds numbers of a kind unknown here: {unknown}") from None
    metadata = header.get("__metadata__") or {}
    if not _is_whole(data, metadata.get(_DIGEST)):
        raise ModelError(f"{path} is damaged: it is not as it was written; copy it anew")
    text = metadata.get(key)
    if text is None:
        raise ModelError(f"{path} is not {noun}: it has no {key!r} metadata")
    try:
        return tensors, kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"{path}: metadata field {where}: {first['msg']}") from None


def _parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and its tensors' bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def _with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with metadata: the library writes several entries in any order."""
    header, tensors = _parts(data)
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors are aligned
    return len(text).to_bytes(8, "little") + text + tensors


def _is_whole(data: bytes, recorded: str | None) -> bool:
    """Whether a file is as it was written, as far as anything says how that was."""
    if recorded is not None:
        data = data.replace(_entry(recorded), _entry(_NO_DIGEST), 1)
    else:
        recorded = _SHIPPED.get(len(data))
    return recorded in (None, hashlib.sha256(data).hexdigest())


def _entry(digest: str) -> bytes:
    """The digest's place in the header; in what else it holds, quotes would be escaped."""
    return f'"{_DIGEST}":"{digest}"'.encode()
