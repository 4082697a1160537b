import pytest

from app.settings import Settings, SettingsError, describe_settings, load_settings


def test_defaults_are_valid_and_every_setting_is_described(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NSNET_API_KEYS", "one, two,")
    settings = load_settings()
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]
    rows = {row.variable: row for row in describe_settings(settings)}
    assert set(rows) == {f"NSNET_{name.upper()}" for name in Settings.model_fields}
    assert all(row.description for row in rows.values())
    assert rows["NSNET_API_KEYS"].value == "2 keys"
    assert rows["NSNET_PORT"].default == "8000"
    assert settings.checkpoint.name == "nsnet-vit-b-16.safetensors"
    assert settings.threads() >= 1


def test_wrong_values_name_their_variable_and_do_not_show_the_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NSNET_PORT", "secret-port")
    monkeypatch.setenv("NSNET_MAX_BATCH", "0")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    message = str(caught.value)
    assert "NSNET_PORT" in message
    assert "NSNET_MAX_BATCH" in message
    assert "secret-port" not in message
    assert "\n" not in message
