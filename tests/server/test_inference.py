"""The Open Inference Protocol: what Triton's client sees, and what no client should send."""

import base64
import gzip
import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from app.intake import places, tensors
from tests.fakes import BLURRED, DOUBTFUL, POISON, SETTLED
from tests.images import jpeg
from tests.server.conftest import Running, eventually, running
from tests.server.test_detect import grey
from tests.server.test_errors import Posting
from tests.server.test_http import problem_of, statuses, talk

MODEL = "fake"
INFER = f"/v2/models/{MODEL}/infer"
OUTPUTS = ["score", "verdict", "looks", "warnings"]


def connected(server: Running) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(server.url.removeprefix("http://"))


@pytest.fixture
def client(server: Running) -> Iterator[triton.InferenceServerClient]:
    with connected(server) as one:
        yield one


def images(files: list[bytes], *, column: bool = False) -> list[triton.InferInput]:
    shape = [len(files), 1] if column else [len(files)]
    tensor = triton.InferInput("image", shape, "BYTES")
    tensor.set_data_from_numpy(np.array(files, dtype=np.object_).reshape(shape))
    return [tensor]


def as_json(files: list[bytes], **given: Any) -> dict[str, Any]:
    data = [base64.b64encode(file).decode() for file in files]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(files)], "data": data}
    return {"inputs": [tensor]} | given


def error(answer: httpx.Response, status: int, code: str) -> str:
    """Check the shape that every error has; its sentence."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    said, _, sentence = body["error"].partition(": ")
    assert said == code
    assert (status in (429, 503)) == ("Retry-After" in answer.headers)
    assert answer.headers["X-Request-ID"]
    return str(sentence)


# --- Triton's client ----------------------------------------------------------------------------


def test_tritons_client_finds_the_server_and_the_model(
    client: triton.InferenceServerClient,
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    for version in ("", "1.2.3"):
        assert client.is_model_ready(MODEL, version)
        metadata = client.get_model_metadata(MODEL, version)
        assert (metadata["name"], metadata["versions"]) == (MODEL, ["1.2.3"])
        assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
        assert [output["name"] for output in metadata["outputs"]] == OUTPUTS
    for name, version in (("other", ""), (MODEL, "1")):
        assert not client.is_model_ready(name, version)
        with pytest.raises(InferenceServerException, match="not_found: No model") as caught:
            client.get_model_metadata(name, version)
        assert caught.value.status() == "404"
        with pytest.raises(InferenceServerException, match="not_found: No model"):
            client.infer(name, images([jpeg()]), version)


def test_tritons_client_gets_what_detect_answers(
    server: Running, client: triton.InferenceServerClient
) -> None:
    files = [jpeg(300, 200, seed) for seed in range(3)]
    files += [grey(value) for value in (10, DOUBTFUL, BLURRED, 250)]
    said = [server.post("/detect", files={"file": file}).json() for file in files]
    result = client.infer(MODEL, images(files), request_id="42")
    assert result.get_response()["id"] == "42"
    assert result.get_response()["model_version"] == "1.2.3"
    score = result.as_numpy("score")
    assert score.dtype == np.float64
    assert score.tolist() == [one["score"] for one in said]
    assert [v.decode() for v in result.as_numpy("verdict")] == [one["verdict"] for one in said]
    assert result.as_numpy("looks").tolist() == [one["looks"] for one in said]
    warnings = [json.loads(text) for text in result.as_numpy("warnings")]
    assert warnings == [one["warnings"] for one in said]
    assert warnings[5] == ["low_quality"]
    assert score[4] == pytest.approx(SETTLED / 255)


@pytest.mark.parametrize("column", [False, True])
def test_outputs_are_those_that_are_asked_for_as_they_are_asked_for(
    client: triton.InferenceServerClient, column: bool
) -> None:
    wanted = [
        triton.InferRequestedOutput("verdict", binary_data=False),
        triton.InferRequestedOutput("score"),
    ]
    files = [grey(10), grey(250)]
    result = client.infer(MODEL, images(files, column=column), outputs=wanted)
    first, second = result.get_response()["outputs"]
    assert first["data"] == ["real", "ai_generated"]
    assert "data" not in second
    for name in ("verdict", "score"):
        assert result.as_numpy(name).shape == ((2, 1) if column else (2,))
    assert result.as_numpy("looks") is None


def test_asynchronous_inference_shares_forwards(server: Running) -> None:
    with triton.InferenceServerClient(
        server.url.removeprefix("http://"), concurrency=4
    ) as concurrent:
        under_way = [
            concurrent.async_infer(MODEL, images([grey(100 + i), grey(120 + i)])) for i in range(4)
        ]
        for i, one in enumerate(under_way):
            scores = one.get_result().as_numpy("score") * 255
            assert scores.round().tolist() == [100 + i, 120 + i]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_refused_and_answers_may_be_plain(
    client: triton.InferenceServerClient, algorithm: str
) -> None:
    with pytest.raises(InferenceServerException, match="unsupported_media_type: Compr") as caught:
        client.infer(MODEL, images([jpeg()]), request_compression_algorithm=algorithm)
    assert caught.value.status() == "415"
    answer = client.infer(MODEL, images([jpeg()]), response_compression_algorithm=algorithm)
    assert answer.as_numpy("score").shape == (1,)


def test_a_bad_image_fails_its_request_and_is_named(client: triton.InferenceServerClient) -> None:
    for bad, said in (
        (b"no image", "unsupported_media_type: Image 1: Send JPEG"),
        (jpeg(300, 300)[:2000], "corrupt_image: Image 1: "),
        (grey(POISON), "inference_failed: Image 1: "),
        (b"", "empty_file: Image 1: The file has no bytes."),
    ):
        with pytest.raises(InferenceServerException, match=said):
            client.infer(MODEL, images([grey(10), bad, b"no image either"]))
    assert client.infer(MODEL, images([grey(10)])).as_numpy("verdict").tolist() == [b"real"]


# --- by hand ------------------------------------------------------------------------------------


def test_json_alone_carries_images_in_base64(server: Running) -> None:
    with server.client() as client:
        answer = client.post(INFER, json=as_json([grey(10), grey(250)], id="a"))
    assert answer.headers["Content-Type"] == "application/json"
    body = answer.json()
    assert body.pop("outputs")[:2] == [
        {"name": "score", "datatype": "FP64", "shape": [2], "data": [10 / 255, 250 / 255]},
        {"name": "verdict", "datatype": "BYTES", "shape": [2], "data": ["real", "ai_generated"]},
    ]
    assert body == {"model_name": MODEL, "model_version": "1.2.3", "id": "a"}


def test_null_is_what_is_left_out(server: Running) -> None:
    """As serializers write it that are not told to leave out what is not there."""
    request = as_json([grey(10)], id=None, parameters=None, outputs=None)
    request["inputs"][0]["parameters"] = None
    wanted = {"name": "score", "parameters": None}
    with server.client() as client:
        whole = client.post(INFER, json=request).json()
        assert [output["name"] for output in whole["outputs"]] == OUTPUTS
        none = {"binary_data_output": None}
        request |= {"outputs": [wanted], "parameters": none}
        request["inputs"][0]["parameters"] = {"content_type": "base64", "headers": None}
        [score] = client.post(INFER, json=request).json()["outputs"]
        assert score == whole["outputs"][0]


@pytest.mark.parametrize("body", [b"null", b"[]", b"7"])
def test_json_that_is_no_object_is_told_so(server: Running, body: bytes) -> None:
    with server.client() as client:
        answer = client.post(INFER, content=body)
    assert error(answer, 422, "validation_error").startswith("The JSON object is missing")


def test_what_an_output_says_goes_before_what_the_request_says(server: Running) -> None:
    request = as_json(
        [grey(10)],
        parameters={"binary_data_output": True, "sequence_id": 7, "timeout": 10},
        outputs=[{"name": "looks", "parameters": {"binary_data": False}}, {"name": "verdict"}],
    )
    with server.client() as client:
        answer = client.post(INFER, json=request)
    size = int(answer.headers["Inference-Header-Content-Length"])
    looks, verdict = json.loads(answer.content[:size])["outputs"]
    assert looks["data"] == [1]
    assert verdict["parameters"] == {"binary_data_size": 8}
    assert answer.content[size:] == struct.pack("<I", 4) + b"real"
    assert answer.headers["Content-Type"] == "application/octet-stream"


def test_probes_say_when_to_come_back() -> None:
    with running(load_now=False) as server, server.client() as client:
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v2").json()["name"] == "nsnet"
        for path in ("/v2/health/ready", f"/v2/models/{MODEL}/ready", f"/v2/models/{MODEL}"):
            error(client.get(path), 503, "not_ready")
        error(client.post(INFER, json=as_json([grey(1)])), 503, "not_ready")
        server.loading.set()
        eventually(lambda: client.get("/v2/health/ready").status_code == 200)
        assert client.get("/v2/health/ready").json() == {"ready": True}
        ready = {"name": MODEL, "ready": True}
        assert client.get(f"/v2/models/{MODEL}/ready").json() == ready
        server.service.drain()
        assert client.get("/v2/health/live").status_code == 200
        error(client.get("/v2/health/ready"), 503, "draining")
        error(client.post(INFER, json=as_json([grey(1)])), 503, "draining")


def test_keys_guard_inference_but_not_the_probes() -> None:
    key = "0123456789abcdef"
    with running(api_keys=f"web:{key}") as server, server.client() as client:
        for path in ("/v2", "/v2/health/live", "/v2/health/ready", f"/v2/models/{MODEL}/ready"):
            assert client.get(path).status_code == 200
        for version in ("", "/versions/1.2.3"):
            path = f"/v2/models/{MODEL}{version}"
            error(client.get(path), 401, "unauthorized")
            answer = client.post(f"{path}/infer", json=as_json([grey(1)]))
            error(answer, 401, "unauthorized")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        with connected(server) as one:
            headers = {"Authorization": f"Bearer {key}"}
            assert one.infer(MODEL, images([grey(1)]), headers=headers).as_numpy("looks")[0] == 1


def test_images_are_admitted_as_those_of_a_batch_are() -> None:
    with (
        running(max_queue=3, max_files=3, rate_limit_per_minute=6) as server,
        server.client() as client,
    ):
        server.fake.gate.clear()
        two = Posting(server, INFER, json=as_json([grey(100), grey(101)]))
        eventually(lambda: server.service.places.taken == 2)
        error(client.post(INFER, json=as_json([grey(1), grey(2)])), 429, "queue_full")
        server.fake.gate.set()
        assert two.result().status_code == 200
        error(client.post(INFER, json=as_json([grey(1)] * 4)), 413, "too_many_files")
        assert client.post(INFER, json=as_json([grey(i) for i in (1, 2, 3)])).status_code == 200
        error(client.post(INFER, json=as_json([grey(1), grey(2)])), 429, "rate_limited")
        assert client.post(INFER, json=as_json([grey(1)])).status_code == 200
        assert server.service.places.taken == 0
        assert server.metric('nsnet_rejected_total{reason="queue_full"}') == 1
        assert server.metric('nsnet_images_total{outcome="ok"}') == 6
        assert (
            server.metric(
                'http_requests_total{method="POST",route="/v2/models/{name}/infer",status="429"}'
            )
            == 2
        )


def test_the_deadline_is_that_of_the_request() -> None:
    with running(deadline_s=0.3) as server, server.client() as client:
        server.fake.gate.clear()
        sentence = error(client.post(INFER, json=as_json([grey(1)])), 504, "deadline_exceeded")
        assert sentence.startswith("Image 0: ")
        eventually(lambda: server.service.places.taken == 0)


def test_a_client_that_leaves_frees_its_places(server: Running) -> None:
    server.fake.gate.clear()
    body = json.dumps(as_json([grey(1), grey(2)])).encode()
    with server.connect() as raw:
        raw.sendall(
            f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        eventually(lambda: server.service.places.taken == 2)
    eventually(lambda: server.service.places.taken == 0)
    server.fake.gate.set()


def test_silent_tensors_lock_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "PATIENCE_S", 0.2)
    with (
        running(max_queue=1, max_files=1) as server,
        server.client() as client,
        server.connect() as raw,
    ):
        raw.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n".encode())
        eventually(lambda: server.service.places.taken == 1)
        eventually(lambda: client.post(INFER, json=as_json([grey(1)])).status_code == 200)


def test_lengths_that_lie_are_refused_at_once() -> None:
    """Whatever they say, no more is read than an image may have."""
    with running(max_upload_bytes=20_000) as server:
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
        json_ = json.dumps(
            {"inputs": [tensor | {"parameters": {"binary_data_size": 2**40}}]}
        ).encode()
        for said, body, status in (
            (str(len(json_)), json_ + struct.pack("<I", 2**32 - 1), 413),
            (str(tensors.MAX_HEAD_BYTES + 1), json_, 413),
            ("-1", json_, 400),
            ("1e3", json_, 400),
            ("9" * 5000, json_, 400),
        ):
            with server.connect() as raw:
                raw.sendall(
                    f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
                    f"Inference-Header-Content-Length: {said}\r\n\r\n".encode()
                    + body
                )
                answer = raw.recv(4096)  # the rest never comes, and the answer does not wait
                assert f" {status} ".encode() in answer, said
                assert b'{"error": "' in answer
        eventually(lambda: server.service.places.taken == 0)


def test_errors_before_and_beside_the_routes_have_the_protocols_shape() -> None:
    with running(
        max_request_bytes=50_000, max_upload_bytes=20_000, allowed_hosts="nsnet"
    ) as server:
        with server.client() as client:
            error(client.get("/v2"), 421, "unknown_host")
            assert client.get("/v2/health/ready").status_code == 200  # probes come by address
        with server.client(headers={"Host": "nsnet"}) as client:
            error(client.post(INFER, content=bytes(60_000)), 413, "payload_too_large")
            error(client.get("/v2/repository/index"), 404, "not_found")
            answer = client.get(INFER)
            error(answer, 405, "method_not_allowed")
            assert answer.headers["Allow"] == "POST"
            answer = client.post(
                INFER, content=gzip.compress(b"{}"), headers={"Content-Encoding": "gzip"}
            )
            error(answer, 415, "unsupported_media_type")
            assert answer.headers["Accept-Encoding"] == "identity"
            assert client.post("/detect").headers["Content-Type"] == "application/problem+json"


TWO_LENGTHS = b"Host: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("root_path", ["", "/mounted"])
@pytest.mark.parametrize(
    ("rest", "status", "code"),
    [
        (TWO_LENGTHS, 400, "bad_request"),
        (b"Host : x\r\n\r\n", 400, "bad_request"),
        (b"Host: x\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431, "headers_too_large"),
        (b"Host: x\r\nX: " + b"y" * 30_000, 431, "headers_too_large"),
        (
            b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 5000,
            400,
            "bad_request",
        ),
        (b"Host:", 408, "request_timeout"),
    ],
    ids=["two lengths", "no header", "lines", "bytes", "crumbs", "half a head"],
)
def test_what_no_route_sees_has_the_protocols_shape_too(
    root_path: str, rest: bytes, status: int, code: str
) -> None:
    with running(root_path=root_path) as server:
        for target in (f"{root_path}{INFER}", f"http://x{root_path}{INFER}?a=b", "/%762"):
            received = talk(server, f"POST {target} HTTP/1.1\r\n".encode() + rest)
            head, _, body = received.partition(b"\r\n\r\n")
            assert statuses(received) == [status]
            assert b"content-type: application/json" in head
            assert b"content-length: %d\r\n" % len(body) in head
            assert b"x-request-id: " in head
            assert body.startswith(b'{"error": "%s: ' % code.encode())
            assert set(json.loads(body)) == {"error"}


@pytest.mark.usefixtures("hasty")
def test_where_no_path_of_the_protocols_was_read_a_refusal_is_a_problem() -> None:
    infer = f"POST {INFER} HTTP/1.1\r\n".encode()
    with running(operations_port=0) as server:
        assert problem_of(talk(server, f"POST {INFER}".encode())) == "request_timeout"
        for target in (b"/detect", b"/v2x", b"/x/v2/y"):
            assert problem_of(talk(server, b"POST " + target + b" HTTP/1.1\r\n" + TWO_LENGTHS))
        # A request before it was one of the protocol's.
        received = talk(server, b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n" + b"\r\n")
        assert statuses(received) == [200, 400]
        assert b"application/problem+json" in received
        server.url = server.operations
        assert problem_of(talk(server, infer + TWO_LENGTHS)) == "bad_request"
    with running(oip=False) as server:
        assert problem_of(talk(server, infer + TWO_LENGTHS)) == "bad_request"


def test_a_refused_preflight_has_the_protocols_shape() -> None:
    """Which is answered before the prefix is known."""
    headers = {"Origin": "https://other", "Access-Control-Request-Method": "POST"}
    with (
        running(root_path="/mounted", cors_origins="https://page") as server,
        server.client() as client,
    ):
        answer = client.options(f"/mounted{INFER}", headers=headers)
        assert error(answer, 400, "bad_request")


@pytest.mark.parametrize("root_path", ["", "/mounted"])
def test_it_can_be_mounted_and_switched_off(root_path: str) -> None:
    with running(root_path=root_path) as server, server.client() as client:
        assert client.get(f"{root_path}/v2/").json()["name"] == "nsnet"
        error(client.get(f"{root_path}/v2/nothing"), 404, "not_found")
    with running(root_path=root_path, oip=False) as server, server.client() as client:
        for path in ("/v2", "/v2/health/live", f"/v2/models/{MODEL}"):
            answer = client.get(root_path + path)
            assert answer.status_code == 404
            assert answer.headers["Content-Type"] == "application/problem+json"
        assert not any(
            path.startswith("/v2") for path in client.get("/openapi.json").json()["paths"]
        )


def test_no_image_and_no_id_is_logged(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    server.ours()
    with caplog.at_level("DEBUG"), server.client() as client:
        answer = client.post(INFER, json=as_json([grey(1), b"secret image"], id="secret-id"))
        error(answer, 415, "unsupported_media_type")
        assert client.post(INFER, json=as_json([grey(1)], id="secret-id")).status_code == 200
    assert "/v2/models/{name}/infer" in str([vars(record) for record in caplog.records])
    assert "secret" not in caplog.text
