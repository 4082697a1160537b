import subprocess
import sys

import pytest

from app.settings import Settings, SettingsError, describe_settings, load_settings
from model.images import Limits

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
    [note] = settings.notes
    assert "the port is 8000" in note
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
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    environment: dict[str, str], names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(monkeypatch, **environment)
    assert all(name in message for name in names)
    assert not any(value in message for value in environment.values())


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
