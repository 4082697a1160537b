import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.backend import Outcome, Result
from app.intake.uploads import Upload
from app.local import LocalBackend, load_detector
from app.metrics import Metrics
from app.settings import (
    _BACKEND,
    Settings,
    SettingsError,
    describe_settings,
    load_settings,
    own_api_key,
)
from benchmarks.signing import authority, stranger
from model.images import Limits
from tests.fakes import FakeDetector
from tests.images import jpeg
from tests.server.conftest import Process

KEY = "0123456789abcdef"
OPEN = "NSNET_API_KEYS is not set: the service is open to all who reach it"
SERVICE = {
    "NSNET_SERVICE_HOST": "10.0.0.1",
    "NSNET_SERVICE_PORT": "8000",
    "NSNET_SERVICE_PORT_HTTP": "8000",
    "NSNET_PORT": "tcp://10.0.0.1:8000",
    "NSNET_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "NSNET_PORT_8000_TCP_PROTO": "tcp",
    "NSNET_PORT_8000_TCP_PORT": "8000",
    "NSNET_PORT_8000_TCP_ADDR": "10.0.0.1",
}


def refusal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """What is said of an environment."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_are_valid_and_every_setting_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSNET_API_KEYS", f"web:{KEY}, other-{KEY},")
    settings = load_settings()
    assert [key.name for key in settings.api_keys] == ["web", "key-2"]
    assert KEY not in repr(settings) + repr(vars(settings))
    rows = {row.variable: row for row in describe_settings(settings)}
    assert set(rows) == {f"NSNET_{name.upper()}" for name in Settings.model_fields}
    assert all(row.description for row in rows.values())
    assert rows["NSNET_API_KEYS"].value == "2 keys"
    assert rows["NSNET_PORT"].default == "8000"
    assert settings.checkpoint is None  # the package's own
    assert settings.threads() >= 1
    assert settings.notes == ()


def test_wrong_values_name_their_variable_and_do_not_show_the_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = refusal(monkeypatch, NSNET_PORT="secret-port", NSNET_MAX_BATCH="0")
    assert "NSNET_PORT" in message
    assert "NSNET_MAX_BATCH" in message
    assert "secret-port" not in message


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("NSNET_API_KEY", "NSNET_API_KEYS"),
        ("NSNET_MAX_BATCHES", "NSNET_MAX_BATCH"),
        ("NSNET_LOGLEVEL", "NSNET_LOG_LEVEL"),
        ("NSNET_THREADS", "NSNET_TORCH_THREADS"),
        ("nsnet_api_key", "NSNET_API_KEYS"),  # settings are read in any case, so mistakes are
        ("NSNET_GPU_PORT", "NSNET_PORT"),  # no address
    ],
)
def test_a_variable_that_is_no_setting_stops_the_start(
    variable: str, nearest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(monkeypatch, **{variable: "topsecret"})
    assert message == f"{variable.upper()} is no setting; the nearest is {nearest}"


def test_what_is_near_no_setting_is_compared_with_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, NSNET_WEBHOOK="x") == "NSNET_WEBHOOK is no setting"


def test_all_mistakes_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, NSNET_API_KEY="x", NSNET_DTYPE="int4", NSNET_HOSTS="y")
    for name in ("NSNET_API_KEYS", "NSNET_DTYPE", "NSNET_HOSTS"):
        assert name in message


def test_trust_anchors_are_read_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "anchors.pem"
    certificates = f"{authority()}{stranger()}"
    path.write_text(f"\ufeff# \u706f\u53f0: an authority\n{certificates}", encoding="utf-8")
    monkeypatch.setenv("NSNET_TRUST_ANCHORS", str(path))
    assert load_settings().anchors() == f"# : an authority\n{certificates}"
    monkeypatch.delenv("NSNET_TRUST_ANCHORS")
    assert load_settings().anchors() == ""


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no certificate",
        b"\xff\xfe",
        authority()[:200].encode(),
        b"-----BEGIN CERTIFICATE-----",
    ],
)
def test_trust_anchors_that_are_none_stop_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "anchors.pem"
    path.write_bytes(content)
    assert (
        refusal(monkeypatch, NSNET_TRUST_ANCHORS=str(path))
        == "NSNET_TRUST_ANCHORS: it is no list of certificates (PEM)"
    )


def test_trust_anchors_that_cannot_be_read_stop_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for path, reason in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        message = refusal(monkeypatch, NSNET_TRUST_ANCHORS=str(path))
        assert message.startswith(f"NSNET_TRUST_ANCHORS: it cannot be read: {reason}")


def test_int8_is_a_precision_and_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "use NSNET_PRECISION=int8" in refusal(monkeypatch, NSNET_ENGINE="int8")
    monkeypatch.setenv("NSNET_ENGINE", "onnxruntime")
    monkeypatch.setenv("NSNET_PRECISION", "int8")
    settings = load_settings()
    assert (settings.engine, settings.precision, settings.dtype) == ("onnxruntime", "int8", "auto")


def test_a_kubernetes_service_called_nsnet_does_not_stop_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kubelet puts these into every container of the namespace."""
    more = {name.replace("NSNET_", "NSNET_CANARY_", 1): value for name, value in SERVICE.items()}
    for name, value in (SERVICE | more).items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.port == 8000
    note, unprotected = settings.notes
    assert "the port is 8000" in note
    assert unprotected == OPEN
    assert "NSNET_CACHE_SIZE" in refusal(monkeypatch, NSNET_CACHE_SIZE="-1")


def test_a_platforms_port_is_taken_where_ours_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """PORT, as Heroku and Cloud Run set it; not where it is another's address."""
    monkeypatch.setenv("PORT", "9000")
    assert load_settings().port == 9000
    assert load_settings(port=7).port == 7
    monkeypatch.setenv("NSNET_PORT", "tcp://10.0.0.1:8000")
    assert load_settings().port == 9000
    monkeypatch.setenv("NSNET_PORT", "8001")
    assert load_settings().port == 8001
    monkeypatch.setenv("NSNET_PORT", "")
    for value in ("", "tcp://10.0.0.1:9000"):
        monkeypatch.setenv("PORT", value)
        assert load_settings().port == 8000
    assert refusal(monkeypatch, PORT="many").startswith("PORT: ")


def test_a_service_called_nsnet_operations_sets_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSNET_OPERATIONS_PORT", "tcp://10.0.0.1:9000")
    settings = load_settings()
    assert settings.operations_port is None
    assert "NSNET_OPERATIONS_PORT is an address" in settings.notes[0]


def test_what_the_command_line_says_is_checked_like_the_environment() -> None:
    assert load_settings("::1").host == "::1"
    with pytest.raises(SettingsError, match="NSNET_HOST: it is no printable text"):
        load_settings("\n")


@pytest.mark.parametrize("given", ["nsnet", "/nsnet", "/nsnet/", "//nsnet//"])
def test_a_root_path_has_one_meaning_however_it_is_written(given: str) -> None:
    assert Settings(root_path=given).root_path == "/nsnet"
    assert Settings(root_path="/").root_path == ""


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NSNET_ROOT_PATH", "/a?b"),
        ("NSNET_ROOT_PATH", "/a'b"),
        ("NSNET_CORS_ORIGINS", "page.example"),
        ("NSNET_CORS_ORIGINS", "https://page.example/"),
        ("NSNET_CORS_ORIGINS", ", ,"),
        ("NSNET_ALLOWED_HOSTS", "nsnet.example:8000"),
        ("NSNET_ALLOWED_HOSTS", "10.0.0.1:8000"),
        ("NSNET_ALLOWED_HOSTS", "http://nsnet.example"),
        ("NSNET_ALLOWED_HOSTS", ","),
        ("NSNET_OPERATIONS_PORT", "8000"),
    ],
)
def test_what_would_let_in_nobody_or_everybody_is_refused(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(monkeypatch, **{variable: value})
    assert message.startswith(variable)
    assert value == "," or value not in message


def test_lists_are_read_as_they_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSNET_CORS_ORIGINS", "HTTPS://Page.example:8443, *")
    monkeypatch.setenv("NSNET_ALLOWED_HOSTS", "LocalHost,[::1], *.example.com,10.0.0.1")
    settings = load_settings()
    assert settings.cors_origins == ("https://page.example:8443", "*")
    assert settings.allowed_hosts == ("localhost", "::1", "*.example.com", "10.0.0.1")
    shown = {row.variable: row.value for row in describe_settings(settings)}
    assert shown["NSNET_ALLOWED_HOSTS"] == "localhost,::1,*.example.com,10.0.0.1"


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({"NSNET_MAX_QUEUE": "8"}, ("NSNET_MAX_FILES", "NSNET_MAX_QUEUE")),
        ({"NSNET_MAX_FILES": "100"}, ("NSNET_MAX_FILES", "NSNET_MAX_QUEUE")),
        (
            {"NSNET_MAX_REQUEST_BYTES": "1000000"},
            ("NSNET_MAX_UPLOAD_BYTES", "NSNET_MAX_REQUEST_BYTES"),
        ),
        ({"NSNET_RATE_LIMIT_PER_MINUTE": "31"}, ("NSNET_RATE_LIMIT_PER_MINUTE", "NSNET_MAX_FILES")),
        ({"NSNET_MAX_BATCH": "65"}, ("NSNET_MAX_BATCH", "NSNET_MAX_QUEUE")),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    environment: dict[str, str], names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(monkeypatch, **environment)
    assert all(name in message for name in names)
    assert not any(value in message for value in environment.values())


@pytest.mark.parametrize("field", Settings.model_fields)
def test_an_empty_variable_is_the_default(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As compose's `${NAME:-}` leaves it: once an empty host, all addresses."""
    monkeypatch.setenv(f"NSNET_{field.upper()}", "")
    assert getattr(load_settings(), field) == Settings.model_fields[field].default
    monkeypatch.setenv("nsnet_port", "9")
    assert load_settings().port == 9


@pytest.mark.parametrize(
    "keys",
    [",", " , ", " ", "\udcff" * 16, f"{KEY},two{KEY}\udcfe", f"{KEY}\ntwo", f"{KEY}\x00", "two"],
)
def test_keys_that_no_client_could_send_are_refused(
    keys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of separators alone, once, no key was asked for; of no text, the start was a traceback."""
    with monkeypatch.context() as patched:
        patched.setattr(os, "environ", {**os.environ, "NSNET_API_KEYS": keys})  # may hold NUL
        with pytest.raises(SettingsError, match=r"^NSNET_API_KEYS: [^\n]+$") as caught:
            load_settings()
    assert "two" not in str(caught.value)


def test_a_client_sends_the_first_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_api_key() is None
    monkeypatch.setenv("nsnet_api_keys", f" , web:{KEY},other-{KEY}")
    assert own_api_key() == KEY


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "nsnet.example"])  # noqa: S104
def test_other_machines_are_not_served_by_an_oversight(host: str) -> None:
    with pytest.raises(SettingsError, match=f"^NSNET_HOST={host} is reached by other machines"):
        Settings(host=host).check_access()
    with pytest.raises(SettingsError):
        Settings(host=host, publish="8000").check_access()
    with pytest.raises(SettingsError):
        Settings(host=host, publish="0.0.0.0:8000").check_access()
    Settings(host=host, allow_anonymous=True).check_access()
    Settings(host=host, api_keys=KEY).check_access()
    Settings(host=host, api_keys_file="keys").check_access()
    Settings(host=host, publish="127.0.0.1:8000").check_access()
    Settings(host=host, publish="[::1]:8000").check_access()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_is_served_without_keys(host: str) -> None:
    Settings(host=host).check_access()


@pytest.mark.parametrize("variable", ["NSNET_HOST", "NSNET_ROOT_PATH", "NSNET_FORWARDED_ALLOW_IPS"])
def test_bytes_that_are_no_text_are_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, **{variable: "\udcff"}) == f"{variable}: it is no printable text"


@pytest.mark.process
def test_a_service_open_to_all_says_so_once() -> None:
    server = Process([sys.executable, "-m", "tests.server.serve_fake"], NSNET_API_KEYS="")
    try:
        url = server.ready()
        for _ in range(3):
            assert httpx.post(f"{url}/detect", content=b"no image", timeout=30).status_code >= 400
        server.terminate()
        assert server.exit_status() == 0
    finally:
        server.popen.kill()
        server.popen.wait(10)
    assert sum(OPEN in line for line in server.log) == 1


@pytest.mark.parametrize("digest", ["x", "0" * 63, "0" * 65, "g" * 64, "0" * 64 + "\n"])
def test_a_digest_is_checked_by_its_form(digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, NSNET_BACKBONE_SHA256=digest)
    assert message == "NSNET_BACKBONE_SHA256: it is not 64 hexadecimal digits"
    monkeypatch.setenv("NSNET_BACKBONE_SHA256", "0aF" + "1" * 61)
    assert load_settings().backbone_sha256 == "0aF" + "1" * 61


@pytest.mark.parametrize("device", ["gpu", "CUDA", "cuda:", "cuda:x", "cuda:1\n", "cpu:0", "meta"])
def test_a_device_is_checked_by_its_form(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, NSNET_DEVICE=device)
    assert message == "NSNET_DEVICE: it is none of auto, cpu, cuda and cuda:N"


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices_that_there_may_be_pass(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSNET_DEVICE", device)
    assert load_settings().device == device


@pytest.mark.parametrize(
    ("one", "other"), [("9", "tcp://10.0.0.1:8000"), ("tcp://10.0.0.1:8000", "9"), ("9", "8")]
)
def test_of_two_spellings_none_is_dropped_in_silence(
    one: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(monkeypatch, nsnet_port=one, NSNET_PORT=other)
    assert message.startswith("NSNET_PORT is set in several spellings")


def test_docker_links_to_a_container_called_nsnet_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (SERVICE | {"NSNET_NAME": "/web/nsnet", "NSNET_ENV_PATH": "/bin"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NSNET_ENV_NSNET_HOST", "0.0.0.0")  # noqa: S104  (the other's)
    settings = load_settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)


def test_a_refusal_is_one_line_whatever_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, **{"NSNET_A\nB": "1"}).startswith(r"NSNET_A\nB is no setting")


def test_numbers_that_do_not_contradict_each_other_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RATE_LIMIT_PER_MINUTE", "32"), ("MAX_BATCH", "64"), ("MAX_QUEUE", "64")):
        monkeypatch.setenv(f"NSNET_{name}", value)
    load_settings()
    monkeypatch.setenv("NSNET_RATE_LIMIT_PER_MINUTE", "0")
    monkeypatch.delenv("NSNET_MAX_BATCH")  # a default is no wish
    for name in ("MAX_QUEUE", "MAX_FILES"):
        monkeypatch.setenv(f"NSNET_{name}", "7")
    assert load_settings().max_batch > 7


def test_uploads_and_the_tower_get_what_the_settings_say() -> None:
    settings = Settings(
        max_upload_bytes=2000,
        max_pixels=10_000,
        max_aspect=3,
        device="cpu",
        dtype="bfloat16",
        engine="openvino",
        precision="float",
        torch_threads=3,
    )
    assert settings.limits(112) == Limits(2000, 10_000, 3, 112)
    runtime = settings.runtime()
    assert (runtime.engine, runtime.precision, runtime.threads) == ("openvino", "float", 3)
    assert (str(runtime.device), runtime.dtype_name) == ("cpu", "bfloat16")


@pytest.mark.process
def test_settings_are_read_without_torch_and_scikit_learn() -> None:
    code = (
        "import sys, app.settings; app.settings.load_settings();"
        "print(sorted(sys.modules.keys() & {'torch', 'sklearn', 'scipy', 'fastapi'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout == "[]\n"


def test_a_backend_is_told_nothing_about_serving() -> None:
    """Keys went to every decoder; and for a door's setting all scorers would load anew."""
    settings = Settings(
        api_keys="press:0123456789abcdef0123",
        audit_log="-",
        max_queue=7,
        max_files=7,
        max_pixels=999_999,
    )
    inner = settings.for_backend()
    assert inner.max_pixels == 999_999
    assert inner == Settings(max_pixels=999_999)


def test_what_a_backend_asks_for_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that is missing in the list would be the default's on a fleet, and in bulk."""
    asked = set[str]()

    class Watched(Settings):
        def __getattribute__(self, name: str) -> Any:
            asked.add(name)
            return super().__getattribute__(name)

    monkeypatch.setattr("model.detector.Detector.load", lambda *_, **__: FakeDetector())
    settings = Watched()

    async def run() -> Outcome:
        backend = LocalBackend(settings, Metrics(), load_detector, None)
        backend.load()
        backend.start()
        upload = Upload()
        upload.add(jpeg())
        try:
            return await backend.make(upload, "id", explain=False)
        finally:
            backend.stop()

    assert isinstance(asyncio.run(run()), Result)
    asked &= Settings.model_fields.keys()
    assert {"max_pixels", "decode_cpu_s", "checkpoint", "dtype"} < asked
    assert asked | {"log_format", "log_level"} <= _BACKEND <= Settings.model_fields.keys()
