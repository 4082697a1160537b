import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.errors import ModelError
from model.hardware import Runtime, _quota


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("200000 100000\n", 2),
        ("50000 100000\n", 1),
        ("max 100000\n", sys.maxsize),
        ("", sys.maxsize),
    ],
)
def test_a_containers_cpu_quota_counts_as_its_cores(tmp_path: Path, text: str, cores: int) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(text)
    assert _quota(file) == cores
    assert _quota(tmp_path / "none") == sys.maxsize


@pytest.mark.parametrize(
    ("native", "dtype"),
    [("avx512_vnni", "float32"), ("avx512_bf16", "bfloat16"), ("amx_bf16", "bfloat16")],
)
def test_auto_is_bfloat16_where_the_cpu_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, native: str, dtype: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, native: True})
    runtime = Runtime.resolve("cpu")
    assert (runtime.device, runtime.dtype) == (torch.device("cpu"), getattr(torch, dtype))
    assert runtime.dtype_name == dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:99"}, "device"),
        ({"device": "toaster"}, "device"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_impossible_places_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Runtime.resolve(**options)  # type: ignore[arg-type]


@pytest.mark.process
@pytest.mark.parametrize("module", ["model", "model.hardware", "model.verdicts", "model.images"])
def test_what_needs_no_torch_loads_none(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(n in sys.modules for n in ('torch', 'sklearn')))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_public_face_is_there_and_says_its_version() -> None:
    import model

    assert set(model.__all__) <= set(dir(model))
    assert all(getattr(model, name) is not None for name in model.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        model.nothing  # noqa: B018
