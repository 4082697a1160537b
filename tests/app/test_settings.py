import os
import subprocess
import sys

import httpx
import pytest
from pydantic import ValidationError

from app.settings import Settings, SettingsError, describe_settings, load_settings
from model.images import Limits
from tests.server.conftest import Process

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
    monkeypatch.setenv("NSNET_API_KEYS", "one, two,")
    settings = load_settings()
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]
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


def test_all_mistakes_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, NSNET_API_KEY="x", NSNET_DTYPE="int4", NSNET_HOSTS="y")
    for name in ("NSNET_API_KEYS", "NSNET_DTYPE", "NSNET_HOSTS"):
        assert name in message


def test_names_of_ours_that_are_no_settings_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSNET_PUBLISH", "8000")
    assert load_settings() == Settings()


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


@pytest.mark.parametrize("keys", [",", " , ", " ", "\udcff", "one,two\udcfe", "one\ntwo", "a\x00b"])
def test_keys_that_no_client_could_send_are_refused(
    keys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of separators alone, once, no key was asked for; of no text, the start was a traceback."""
    with monkeypatch.context() as patched:
        patched.setattr(os, "environ", {**os.environ, "NSNET_API_KEYS": keys})  # may hold NUL
        with pytest.raises(SettingsError, match=r"^NSNET_API_KEYS: [^\n]+$") as caught:
            load_settings()
    assert "two" not in str(caught.value)


def test_an_empty_key_is_none() -> None:
    """Whoever sends no key would send it."""
    with pytest.raises(ValidationError):
        Settings(api_keys=("one", ""))


@pytest.mark.parametrize("variable", ["NSNET_HOST", "NSNET_ROOT_PATH", "NSNET_FORWARDED_ALLOW_IPS"])
def test_bytes_that_are_no_text_are_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, **{variable: "\udcff"}) == f"{variable}: it is no printable text"


@pytest.mark.process
def test_a_service_open_to_all_says_so_once() -> None:
    server = Process([sys.executable, "-m", "tests.server.serve_fake"], NSNET_API_KEYS="")
    try:
        url = server.ready()
        for _ in range(3):
            assert httpx.post(f"{url}/detect", content=b"no image").status_code >= 400
        server.terminate()
        assert server.exit_status() == 0
    finally:
        server.popen.kill()
        server.popen.wait(10)
    assert sum(OPEN in line for line in server.log) == 1


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
