import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.errors import ModelError
from model.hardware import Runtime, _quota, spare_torch_its_cache

V2 = "0::{path}\n"
V1 = "12:memory:/other\n4:cpu,cpuacct:{path}\n0::/\n"


def a_machine(root: Path, membership: str, files: dict[str, str]) -> Path:
    """A tree with what a process reads of its cgroups."""
    for name, text in {"proc/self/cgroup": membership, **files}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def v2(**quotas: str) -> dict[str, str]:
    """`cpu.max` of each cgroup, by its path with `_` for `/`."""
    return {f"sys/fs/cgroup/{path.replace('_', '/')}/cpu.max": q for path, q in quotas.items()}


def v1(**quotas: str) -> dict[str, str]:
    return {
        f"sys/fs/cgroup/cpu/{path.replace('_', '/')}/cpu.cfs_{kind}_us": number
        for path, quota in quotas.items()
        for kind, number in zip(("quota", "period"), quota.split(), strict=True)
    }


@pytest.mark.parametrize(
    ("membership", "path", "files", "cores"),
    [
        (V2, "/", {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        (V2, "/", {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (V2, "/", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, sys.maxsize),
        (V2, "/", {"sys/fs/cgroup/cpu.max": ""}, sys.maxsize),
        (V2, "/", {}, sys.maxsize),
        # Its own, and any above it: the least counts.
        (V2, "/a/b/c", v2(a="800000 100000", a_b="max 100000", a_b_c="700000 100000"), 7),
        (V2, "/a/b/c", v2(a="800000 100000", a_b="350000 100000", a_b_c="max 100000"), 3),
        (V2, "/a/b/c", v2(a="250000 100000", a_b="max 100000", a_b_c="600000 100000"), 2),
        (V2, "/a/b", v2(a_b_c="100000 100000", x="100000 100000"), sys.maxsize),  # not its own
        # A container that sees the host's path, but its own mount.
        (V2, "/docker/abc", {"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        (V2, "/../beside", {"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        (V1, "/a/b", v1(a="400000 100000", a_b="-1 100000"), 4),
        (V1, "/a/b", v1(a="400000 100000", a_b="150000 50000"), 3),
        (V1, "/docker/abc", v1(**{"": "100000 100000"}), 1),
        (V1, "/a", v1(a="-1 100000"), sys.maxsize),
    ],
)
def test_the_least_quota_of_a_cgroup_and_those_around_it_counts_as_cores(
    tmp_path: Path, membership: str, path: str, files: dict[str, str], cores: int
) -> None:
    assert _quota(a_machine(tmp_path, membership.format(path=path), files)) == cores


def test_cgroups_of_any_name_and_none_at_all(tmp_path: Path) -> None:
    assert _quota(tmp_path) == sys.maxsize
    files = v2(a="200000 100000")
    machine = a_machine(tmp_path, "", files)
    (machine / "proc/self/cgroup").write_bytes(b"0::/a/\xff:[x]\n")
    assert _quota(machine) == 2


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


@pytest.mark.parametrize("writable", [True, False])
def test_torch_needs_no_folder_of_its_own(writable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is put back as it was
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    if not writable:
        monkeypatch.setattr("tempfile.gettempdir", none)
    spare_torch_its_cache()
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == (None if writable else "/")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "chosen")
    spare_torch_its_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "chosen"
