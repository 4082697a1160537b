"""What a well-behaved client sees."""

import codecs
import encodings
import hashlib
import json
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version

import httpx
import pytest
from PIL import Image

from tests.fakes import BLURRED, DOUBTFUL, GLANCED, SETTLED, SPOILT
from tests.images import encoded, jpeg
from tests.server.conftest import Running, eventually, running


def grey(value: int, size: tuple[int, int] = (80, 70)) -> bytes:
    return encoded(Image.new("RGB", size, (value,) * 3), "PNG")


def test_a_multipart_upload_answers_the_contract(server: Running) -> None:
    data = grey(204)
    answer = server.post("/detect", files={"file": ("secret name.png", data)})
    assert answer.status_code == 200
    body = answer.json()
    assert body.pop("id") == answer.headers["X-Request-ID"]
    timings = body.pop("timings_ms")
    assert set(timings) == {"decode", "patches", "queue", "inference"}
    assert body.pop("provenance")["declares"] == "nothing"
    assert body == {
        "verdict": "ai_generated",
        "score": pytest.approx(0.8),
        "looks": 1,
        "thresholds": {"real_below": 0.3, "ai_above": 0.7},
        "model": {"name": "fake", "version": "1.2.3", "sha256": "f" * 64},
        "image": {
            "sha256": hashlib.sha256(data).hexdigest(),
            "format": "PNG",
            "width": 80,
            "height": 70,
        },
        "warnings": [],
        "cached": False,
        "evidence": None,
    }
    assert answer.headers["Server-Timing"].startswith("decode;dur=")
    server.ours()
    assert "server" not in answer.headers
    assert len(answer.headers["X-Request-ID"]) == 32


def test_a_raw_body_and_a_wrong_content_type_are_judged_by_content(server: Running) -> None:
    answer = server.post("/detect", content=grey(26), headers={"Content-Type": "image/jpeg"})
    assert answer.json()["verdict"] == "real"
    assert answer.json()["image"]["format"] == "PNG"


def test_a_threshold_is_one_cut(server: Running) -> None:
    for threshold, verdict in ((0.4, "ai_generated"), (0.6, "real")):
        body = server.post(
            "/detect", params={"threshold": threshold}, files={"file": grey(128)}
        ).json()
        assert body["verdict"] == verdict
        assert body["thresholds"] == {"real_below": threshold, "ai_above": threshold}
    assert server.post("/detect", files={"file": grey(128)}).json()["verdict"] == "uncertain"


def test_the_request_id_is_the_callers_where_it_is_sane(server: Running) -> None:
    with server.client() as client:
        for given, kept in (("abc-1.2_X", True), ("a b", False), ("x" * 65, False)):
            if not kept:
                server.ours()
            answer = client.post(
                "/detect", files={"file": grey(50)}, headers={"X-Request-ID": given}
            )
            assert (answer.headers["X-Request-ID"] == given) is kept
            assert answer.json()["id"] == answer.headers["X-Request-ID"]


def test_a_batch_keeps_order_and_isolates_errors(server: Running) -> None:
    files = [("a.png", grey(10)), ("b", b"not an image"), ("c.png", grey(13)), ("d.png", grey(250))]
    answer = server.post("/detect/batch", files=[("files", f) for f in files])
    assert answer.status_code == 200
    body = answer.json()
    assert [r["index"] for r in body["results"]] == [0, 1, 2, 3]
    assert [r["filename"] for r in body["results"]] == ["a.png", "b", "c.png", "d.png"]
    assert [r["status"] for r in body["results"]] == ["ok", "error", "error", "ok"]
    assert body["results"][1]["error"]["code"] == "unsupported_media_type"
    assert body["results"][2]["error"]["code"] == "inference_failed"
    assert body["results"][3]["result"]["verdict"] == "ai_generated"
    assert body["summary"] == {"ok": 2, "error": 2}
    assert body["model"]["name"] == "fake"


def test_not_even_debugging_logs_an_image_or_its_name(
    server: Running, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.new("RGB", (80, 70))
    exif = image.getexif()
    exif[0x010E] = "hidden caption"
    images = [encoded(image, codec, exif=exif) for codec in ("TIFF", "JPEG", "PNG")]

    def broken() -> object:
        raise RuntimeError(exif[0x010E])

    with caplog.at_level("DEBUG"):
        for data in images:
            answer = server.post("/detect", files={"file": ("hidden name", data)})
            assert answer.status_code == 200
        monkeypatch.setattr(server.service.desk, "model", broken)  # a bug, for once
        answer = server.post("/detect", files={"file": ("hidden name", images[0])})
        assert answer.status_code == 500
    assert "unexpected RuntimeError" in caplog.text
    assert "in answer" in caplog.text
    assert "hidden" not in caplog.text


@pytest.mark.parametrize(
    ("charset", "name"),
    [("unicode_escape", b"\\ud800"), ("utf-16", b"\xed\xa0\x80"), ("nobodys", b"a")],
)
def test_no_charset_that_a_form_declares_is_looked_up(
    server: Running, charset: str, name: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python remembers each name that is no codec's, for good; one that is may do as it likes."""
    asked: list[str] = []
    lookup = codecs.lookup

    def recorded(encoding: str) -> codecs.CodecInfo:
        asked.append(encoding)
        return lookup(encoding)

    monkeypatch.setattr(codecs, "lookup", recorded)
    answer = server.post(
        "/detect/batch",
        content=b'--x y\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n'
        % name
        + grey(250)
        + b"\r\n--x y--\r\n",
        headers={"Content-Type": f'multipart/form-data; charset={charset}; boundary="x y"'},
    )
    assert answer.status_code == 200
    assert answer.json()["results"][0]["filename"] == name.decode("latin-1")
    assert charset not in asked


def test_a_boundary_that_closes_its_own_quotes_is_none(server: Running) -> None:
    kind = r'multipart/form-data; boundary="x\"; charset=nobodys; y=\""'
    answer = server.post("/detect", content=b"", headers={"Content-Type": kind})
    assert answer.json()["code"] == "malformed_multipart"
    assert "nobodys" not in encodings._cache


@pytest.mark.parametrize("accept", ["application/x-ndjson", "application/jsonl"])
def test_ndjson_gives_each_image_as_it_completes_then_a_summary(
    server: Running, accept: str
) -> None:
    """The first line must arrive while another image is still being scored."""
    server.fake.gate.clear()
    parts = [("files", ("bad", b"nothing")), ("files", ("good", grey(250)))]
    with (
        server.client() as client,
        client.stream("POST", "/detect/batch", files=parts, headers={"Accept": accept}) as answer,
    ):
        assert answer.headers["Content-Type"].startswith("application/x-ndjson")
        lines = answer.iter_lines()
        first = json.loads(next(lines))
        assert (first["index"], first["status"]) == (0, "error")
        server.fake.gate.set()
        second, summary = (json.loads(line) for line in lines)
    assert second["result"]["verdict"] == "ai_generated"
    assert summary["summary"] == {"ok": 1, "error": 1}


def test_concurrent_uploads_share_forwards(server: Running) -> None:
    server.fake.gate.clear()
    scores: dict[int, float] = {}

    def post(value: int) -> None:
        body = server.post("/detect", files={"file": grey(value)}).json()
        scores[value] = body["score"]

    first, *others = [threading.Thread(target=post, args=(v,)) for v in range(100, 112)]
    first.start()
    eventually(server.fake.entered.is_set)  # else the first batch takes as many as have come
    for thread in others:
        thread.start()
    eventually(lambda: server.metric("nsnet_queue_depth") == 11)
    server.fake.gate.set()
    for thread in (first, *others):
        thread.join(20)
    assert {v: round(s * 255) for v, s in scores.items()} == {v: v for v in range(100, 112)}
    assert server.fake.batches == [1, 8, 3]
    eventually(lambda: server.service.places.taken == 0)


def test_a_result_is_cached_by_content_and_thresholds_are_not() -> None:
    """Keyed by something else than the content, a cache answers for the wrong image."""
    with running(cached=True) as server, server.client() as client:
        first = client.post("/detect", files={"file": ("x", grey(128))}).json()
        again = client.post(
            "/detect", params={"threshold": 0.1}, files={"file": ("y", grey(128))}
        ).json()
        other = client.post("/detect", files={"file": ("x", grey(129))}).json()
        assert [r["cached"] for r in (first, again, other)] == [False, True, False]
        assert again["score"] == first["score"] != other["score"]
        assert again["verdict"] == "ai_generated"
        assert again["image"] == first["image"]
        assert len(server.fake.batches) == 2
        assert server.metric('nsnet_cache_requests_total{result="hit"}') == 1


def test_a_threshold_changes_neither_the_score_nor_how_often_an_image_is_looked_at(
    server: Running,
) -> None:
    """With a cut of the client's own, every part of the image was looked at: another score."""
    with server.client() as client:
        for value, looks in ((GLANCED, 1), (128, 1), (DOUBTFUL, 2)):
            plain, *cut = (
                client.post("/detect", params=params, files={"file": grey(value)}).json()
                for params in ({}, {"threshold": 0.01}, {"threshold": 0.99})
            )
            assert plain["looks"] == looks
            for answer in cut:
                assert (answer["score"], answer["looks"]) == (plain["score"], looks)
    assert len(server.fake.batches) == 3 + 3 + 6


def test_a_threshold_never_accuses_by_one_look_of_several(server: Running) -> None:
    """What a glance settles for the model's cuts is not settled for another."""
    for value, verdict in ((GLANCED, "uncertain"), (GLANCED + 1, "ai_generated")):
        body = server.post("/detect", params={"threshold": 0.1}, files={"file": grey(value)}).json()
        assert body["verdict"] == verdict
        assert body["thresholds"] == {"real_below": 0.1, "ai_above": 0.1}
    body = server.post("/detect", params={"threshold": 0.5}, files={"file": grey(GLANCED)}).json()
    assert body["verdict"] == "real"


@pytest.mark.parametrize("params", [{}, {"threshold": 0.1}])
def test_a_picture_of_low_quality_is_never_accused_and_the_answer_says_why(
    params: dict[str, float],
) -> None:
    with running(cached=True) as server, server.client() as client:
        files = {"file": grey(BLURRED)}
        answers = [client.post("/detect", params=params, files=files).json() for _ in range(2)]
        batch = client.post(
            "/detect/batch", params=params, files=[("files", grey(v)) for v in (BLURRED, 211)]
        ).json()["results"]
    assert [answer["cached"] for answer in answers] == [False, True]
    for answer in (*answers, batch[0]["result"]):
        assert (answer["verdict"], answer["warnings"]) == ("uncertain", ["low_quality"])
        assert answer["score"] == pytest.approx(BLURRED / 255)
    assert (batch[1]["result"]["verdict"], batch[1]["result"]["warnings"]) == ("ai_generated", [])


def test_identical_uploads_at_once_cost_one_forward(server: Running) -> None:
    """Twelve of them cost twelve, with the cache as without."""
    server.fake.gate.clear()
    with ThreadPoolExecutor(13) as pool:

        def post(value: int) -> Future[httpx.Response]:
            return pool.submit(
                httpx.post, f"{server.url}/detect", files={"file": grey(value)}, timeout=30
            )

        blocker = post(20)
        eventually(server.fake.entered.is_set)
        # Whoever comes while it is decoded, queued or scored.
        answers = [post(DOUBTFUL)]
        eventually(lambda: server.metric("nsnet_queue_depth") == 1)
        answers += [post(DOUBTFUL) for _ in range(11)]
        eventually(lambda: server.metric('nsnet_cache_requests_total{result="shared"}') == 11)
        assert server.service.places.taken == 13
        server.fake.gate.set()
        blocker.result().raise_for_status()
        bodies = [answer.result().json() for answer in answers]
    assert server.fake.batches == [1, 1, 1]  # the blocker, and two looks at the twelve
    assert len({body["id"] for body in bodies}) == 12
    for body in bodies:
        assert body["cached"] is False
        assert body["score"] == pytest.approx(SETTLED / 255)
        assert body["timings_ms"] == bodies[0]["timings_ms"]
    assert server.metric('nsnet_images_total{outcome="ok"}') == 13
    eventually(lambda: server.service.places.taken == 0)


def test_a_doubtful_image_is_looked_at_twice_and_answered_once(server: Running) -> None:
    with server.client() as client:
        doubtful, settled, spoilt = client.post(
            "/detect/batch", files=[("files", grey(v)) for v in (DOUBTFUL, 128, SPOILT)]
        ).json()["results"]
    assert doubtful["result"]["score"] == pytest.approx(SETTLED / 255)
    assert doubtful["result"]["looks"] == 2
    assert settled["result"]["score"] == pytest.approx(128 / 255)
    assert settled["result"]["looks"] == 1
    assert spoilt["error"]["code"] == "inference_failed"
    text = server.exposition()
    for line in (
        'nsnet_images_total{outcome="ok"} 2.0',
        'nsnet_images_total{outcome="error"} 1.0',
        'nsnet_stage_duration_seconds_count{stage="decode"} 3.0',
        'nsnet_stage_duration_seconds_count{stage="patches"} 5.0',
        "nsnet_inflight_images 0.0",
    ):
        assert line in text


def test_without_a_cache_every_upload_is_scored(server: Running) -> None:
    for _ in range(2):
        body = server.post("/detect", files={"file": grey(128)}).json()
        assert body["cached"] is False
    assert len(server.fake.batches) == 2


def test_operators_see_state_model_and_metrics(server: Running) -> None:
    with server.client() as client:
        assert client.get("/livez").json() == client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").status_code == 200
        model = client.get("/model").json()
        assert model["limits"]["min_side"] == 64
        assert model["limits"]["formats"] == [
            "JPEG",
            "PNG",
            "WEBP",
            "AVIF",
            "HEIF",
            "GIF",
            "TIFF",
            "BMP",
        ]
        assert model["backbone"]["name"] == "none"
        assert model["device"] == "cpu"
        assert [model[k] for k in ("engine", "precision", "dtype")] == ["fake", "float", "float32"]
        assert set(model["calibration"]) == {"first", "all", "window"}
        assert model["quality"] == {"min_side": 160, "min_sharpness": 0.4, "max_blockiness": 1.5}
        shares = {"photographs_accused": 0.01, "made_accused": None, "ai_found": 0.8}
        assert model["cuts"] == [{"cut": 0.7, "conditions": {"clean": shares}}]
        assert client.get("/openapi.json").json()["info"]["version"] == version("nsnet")
        client.post("/detect", files={"file": grey(204)})
        client.post("/detect", files={"file": b"nothing"})
        client.get("/no/such/route")
        client.get("/static-offline-docs/no/such/file")
    text = server.exposition()
    for line in (
        'nsnet_images_total{outcome="ok"} 1.0',
        'nsnet_images_total{outcome="error"} 1.0',
        f'nsnet_predictions_total{{sha256="{"f" * 64}",verdict="ai_generated"}} 1.0',
        f'nsnet_predictions_total{{sha256="{"f" * 64}",verdict="real"}} 0.0',
        'nsnet_rejected_total{reason="unsupported_media_type"} 1.0',
        'nsnet_stage_duration_seconds_count{stage="decode"} 1.0',
        'nsnet_stage_duration_seconds_count{stage="patches"} 1.0',
        'nsnet_stage_duration_seconds_count{stage="queue"} 1.0',
        'nsnet_stage_duration_seconds_count{stage="forward"} 1.0',
        "nsnet_batch_size_count 1.0",
        "nsnet_queue_depth 0.0",
        "nsnet_inflight_images 0.0",
        f'nsnet_score_bucket{{le="0.8",sha256="{"f" * 64}"}} 1.0',
        'http_requests_total{method="POST",route="/detect",status="200"} 1.0',
        'http_requests_total{method="GET",route="unmatched",status="404"} 1.0',
        'http_requests_total{method="GET",route="/openapi.json",status="200"} 1.0',
        'http_requests_total{method="GET",route="/static-offline-docs",status="404"} 1.0',
    ):
        assert line in text
    assert "nsnet_model_load_seconds" in text
    assert (
        f'nsnet_model_info{{device="cpu",dtype="float32",engine="fake",name="fake",'
        f'precision="float",sha256="{"f" * 64}",version="1.2.3"}} 1.0'
    ) in text


def test_the_documentation_needs_no_other_host(server: Running) -> None:
    with server.client() as client:
        page = client.get("/docs")
        assert page.status_code == 200
        assert "https://" not in page.text
        for asset in ("swagger-ui-bundle.js", "swagger-ui.css"):
            assert client.get(f"/static-offline-docs/{asset}").status_code == 200
        paths = client.get("/openapi.json").json()["paths"]
    assert {"/detect", "/detect/batch", "/livez", "/readyz", "/metrics", "/model"} <= set(paths)


def test_no_image_touches_the_disk_or_the_log(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Uploads above 1 MiB rolled to disk elsewhere."""
    server.ours()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file was opened")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refuse)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    data = jpeg(2400, 1800)
    assert len(data) > 2_000_000
    with caplog.at_level("DEBUG"):
        answer = server.post("/detect", files={"file": ("secret-name.jpg", data)})
    assert answer.status_code == 200
    assert "request" in caplog.text
    assert "secret-name" not in caplog.text


def test_the_forward_has_its_threads_though_decoders_have_one() -> None:
    """Decoders set theirs to one, and torch's number is half global, half per thread."""
    with running(torch_threads=2) as server:
        for _ in range(2):
            server.post("/detect", files={"file": grey(128)}).raise_for_status()
            assert server.fake.threads == 2
