"""What a file declares is part of its answer, and of nothing that is said of its pixels."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app.decoding import pool
from benchmarks.signing import SIGNER, authority, created, signed, stranger
from tests.app.provenance import doubles
from tests.app.provenance.files import (
    A1111,
    COMFYUI,
    MIDJOURNEY,
    camera,
    exif,
    sourced,
    user_comment,
    with_metadata,
)
from tests.images import encoded
from tests.server.conftest import Running, running


def grey(level: int = 200, codec: str = "PNG", **options: Any) -> bytes:
    return encoded(Image.new("RGB", (96, 80), (level, level, level)), codec, **options)


def texts(**given: str) -> PngInfo:
    info = PngInfo()
    for keyword, text in given.items():
        info.add_text(keyword, text)
    return info


def answer(server: Running, data: bytes) -> dict[str, Any]:
    with server.client() as client:
        response = client.post("/detect", content=data)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


@pytest.mark.parametrize("codec", ["JPEG", "PNG"])
def test_content_credentials_are_checked(server: Running, codec: str) -> None:
    data = signed(grey(codec=codec), f"image/{codec.lower()}")
    found = answer(server, data)["provenance"]
    assert found["declares"] == found["c2pa"]["declares"] == "ai_generated"
    assert found["c2pa"]["status"] == "valid"
    assert found["c2pa"]["signer"] == SIGNER
    assert found["c2pa"]["trusted"] is None


@pytest.mark.parametrize(("anchors", "trusted"), [(authority, True), (stranger, False)])
def test_who_is_trusted_is_the_operators_choice(
    tmp_path: Path, anchors: Any, trusted: bool
) -> None:
    path = tmp_path / "anchors.pem"
    path.write_text(anchors())
    with running(shared=False, trust_anchors=path) as server:
        found = answer(server, signed(grey(), "image/png"))["provenance"]["c2pa"]
    assert (found["status"], found["trusted"]) == ("valid", trusted)


def test_of_a_tampered_file_the_verdict_is_given_all_the_same(server: Running) -> None:
    data = signed(grey(codec="JPEG"), "image/jpeg")
    broken = data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]
    found = answer(server, broken)
    assert found["verdict"] == "ai_generated"  # by its grey
    assert found["provenance"]["declares"] == "nothing"
    assert found["provenance"]["c2pa"]["status"] == "invalid"
    assert found["provenance"]["c2pa"]["failures"] == ["assertion.dataHash.mismatch"]


@pytest.mark.parametrize(
    ("data", "declares", "source", "values"),
    [
        (
            with_metadata("JPEG", xmp=sourced()),
            "ai_generated",
            "iptc",
            {"digital_source_type": "trainedAlgorithmicMedia"},
        ),
        (
            grey(pnginfo=texts(parameters=A1111)),
            "ai_generated",
            "parameters",
            {"generator": "Stable Diffusion web UI"},
        ),
        (
            grey(pnginfo=texts(prompt=COMFYUI)),
            "ai_generated",
            "parameters",
            {"generator": "ComfyUI"},
        ),
        (
            grey(pnginfo=texts(Description=MIDJOURNEY)),
            "ai_generated",
            "parameters",
            {"generator": "Midjourney"},
        ),
        (
            with_metadata("WEBP", exif=exif(comment=user_comment(A1111))),
            "ai_generated",
            "parameters",
            {"generator": "Stable Diffusion web UI"},
        ),
        (with_metadata("JPEG", exif=camera()), "camera", "exif", {"make": "Panasonic"}),
    ],
)
def test_what_nobody_signed_is_told_as_such(
    server: Running, data: bytes, declares: str, source: str, values: dict[str, str]
) -> None:
    found = answer(server, data)["provenance"]
    assert found["declares"] == found[source]["declares"] == declares
    assert found[source]["status"] == "unverified"
    assert values.items() <= found[source].items()
    assert found["c2pa"]["status"] == "absent"
    assert "lighthouse" not in json.dumps(found)


@pytest.mark.parametrize("level", [40, 120, 200])
def test_no_declaration_changes_a_score_or_a_verdict(server: Running, level: int) -> None:
    plain = grey(level)
    pixels = Image.open(io.BytesIO(plain))
    declared = [
        encoded(pixels, "PNG", pnginfo=texts(parameters=A1111)),
        encoded(pixels, "PNG", exif=b"Exif\0\0" + camera()),
        signed(plain, "image/png"),
        signed(plain, "image/png", [created("digitalCapture")]),
    ]
    expected = answer(server, plain)
    for data in declared:
        found = answer(server, data)
        assert found["provenance"]["declares"] != "nothing"
        for key in ("verdict", "score", "looks", "warnings"):
            assert found[key] == expected[key]


def test_a_file_that_says_nothing_is_answered_so(server: Running) -> None:
    found = answer(server, grey())["provenance"]
    sources = ("c2pa", "iptc", "xmp", "exif", "parameters")
    assert found["declares"] == "nothing"
    assert {found[source]["status"] for source in sources} == {"absent"}


def test_the_same_file_again_is_answered_the_same_from_the_cache() -> None:
    data = signed(grey(), "image/png")
    with running(cached=True) as server:
        first, second = answer(server, data), answer(server, data)
    assert (first["cached"], second["cached"]) == (False, True)
    assert first["provenance"] == second["provenance"]


def test_every_image_of_a_batch_has_its_own(server: Running) -> None:
    files = [("files", grey()), ("files", with_metadata("PNG", xmp=sourced()))]
    with server.client() as client:
        results = client.post("/detect/batch", files=files).json()["results"]
    assert [one["result"]["provenance"]["declares"] for one in results] == [
        "nothing",
        "ai_generated",
    ]


def test_switched_off_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.Decoders, "inspect", None)
    with running(provenance=False) as server:
        assert answer(server, signed(grey(), "image/png"))["provenance"] is None
        assert server.metric('nsnet_provenance_total{declares="ai_generated"}') == 0


def test_answers_are_counted_by_what_is_declared(server: Running) -> None:
    for data in (grey(), grey(50), with_metadata("PNG", xmp=sourced())):
        answer(server, data)
    assert server.metric('nsnet_provenance_total{declares="nothing"}') == 2
    assert server.metric('nsnet_provenance_total{declares="ai_generated"}') == 1
    assert 'nsnet_provenance_total{declares="camera"} 0.0' in _metrics(server)


def test_the_audit_log_says_what_was_declared(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    with running(audit_log=str(log)) as server:
        answer(server, with_metadata("PNG", xmp=sourced()))
        with server.client() as client:
            client.post("/detect", content=b"no image")
    first, second = map(json.loads, log.read_text().splitlines())
    assert first["declares"] == "ai_generated"
    assert second["declares"] is None


@pytest.mark.parametrize("deed", [doubles.KILLS_ITSELF, doubles.COMPUTES_FOR_EVER])
def test_a_manifest_that_is_its_readers_end_costs_no_verdict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, deed: str
) -> None:
    data = signed(grey(), "image/png")
    doubles.write_library(tmp_path, deed)
    monkeypatch.syspath_prepend(tmp_path)
    reason = "crashed" if deed == doubles.KILLS_ITSELF else "too_expensive"
    with running(shared=False, decode_workers=1) as server:
        found = answer(server, data)
        assert found["verdict"] == "ai_generated"
        assert found["provenance"]["declares"] == "nothing"
        assert found["provenance"]["c2pa"]["status"] == "unverified"
        assert server.metric(f'nsnet_decoders_replaced_total{{reason="{reason}"}}') == 1
        assert answer(server, grey())["verdict"] == "ai_generated"


def test_what_was_not_read_to_its_end_is_answered_and_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = signed(grey(), "image/png")
    library = doubles.write_library(tmp_path, doubles.IS_KILLED)
    monkeypatch.syspath_prepend(tmp_path)
    with running(shared=False, cached=True, decode_workers=1) as server:
        first = answer(server, data)
        library.unlink()  # whoever reads it next is not killed
        second, third = answer(server, data), answer(server, data)
    found = [(one["cached"], one["provenance"]["c2pa"]["status"]) for one in (first, second, third)]
    assert found == [(False, "unverified"), (False, "valid"), (True, "valid")]
    assert first["verdict"] == second["verdict"]


def _metrics(server: Running) -> str:
    with server.client() as client:
        return client.get("/metrics").text
