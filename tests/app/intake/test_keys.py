import logging
import os
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from app.errors import ApiError
from app.intake import keys as module
from app.intake.keyring import parse_keys
from app.intake.keys import ApiKeys, Buckets, RateLimiter, network_of
from app.settings import SettingsError
from tests.app.intake.conftest import Clock

WEB, APP = "web-0123456789abcdef", "app-0123456789abcdef"


def bearer(key: str) -> Headers:
    return Headers({"Authorization": f"Bearer {key}"})


def refused(keys: ApiKeys, key: str, address: str = "192.0.2.1") -> ApiError:
    with pytest.raises(ApiError) as caught:
        keys.check(bearer(key), address)
    return caught.value


@pytest.fixture
def keys() -> ApiKeys:
    return ApiKeys(parse_keys([f"web:{WEB}", APP]))


# --- keys ---------------------------------------------------------------------------------------


def test_a_key_has_a_name(keys: ApiKeys) -> None:
    assert keys.check(bearer(WEB), "a") == "web"
    assert keys.check(Headers({"X-API-Key": APP}), "a") == "key-2"
    assert ApiKeys(()).check(Headers(), "a") is None


def test_no_key_is_in_memory(keys: ApiKeys) -> None:
    """A dump of the process, or of its state in an error report, gave them away."""
    keys.check(bearer(WEB), "a")
    assert WEB not in repr(vars(keys))
    assert WEB.encode() not in repr(vars(keys)).encode()


def test_every_key_is_compared_by_its_digest_in_constant_time(
    keys: ApiKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr("hmac.compare_digest", compare)
    assert keys.check(bearer(WEB), "a") == "web"
    assert len(compared) == 2
    assert {len(side) for pair in compared for side in pair} == {32}


def test_too_many_wrong_keys_of_an_address_are_answered_no_further_one(
    keys: ApiKeys, clock: Clock
) -> None:
    """Who guesses was told of each guess whether it was right, as fast as the network is."""
    for index in range(ApiKeys.FAILURES_PER_MINUTE):
        assert refused(keys, f"guess-{index}").code == "unauthorized"
    for key in ("guess", WEB):
        error = refused(keys, key)
        assert error.code == "rate_limited"
        assert error.headers["Retry-After"] == "6"
    assert keys.check(bearer(WEB), "192.0.2.2") == "web"
    clock.now += 6
    assert keys.check(bearer(WEB), "192.0.2.1") == "web"


def test_wrong_keys_of_others_at_an_address_lock_nobody_out(keys: ApiKeys, clock: Clock) -> None:
    """Behind a proxy all share one: a client with an old key would be the end of the others."""
    assert keys.check(bearer(WEB), "192.0.2.1") == "web"
    for _ in range(ApiKeys.FAILURES_PER_MINUTE):
        refused(keys, "old-0123456789abcdef")
    assert keys.check(bearer(WEB), "192.0.2.1") == "web"
    assert refused(keys, APP).code == "rate_limited"  # it never was there: it may be a guess


def test_who_sends_a_keys_name_with_it_is_told_how_to_send_it(keys: ApiKeys) -> None:
    """The line of the file was copied as it stood, and each attempt was a wrong key."""
    assert "without its name" in refused(keys, f"web:{WEB}").detail
    with pytest.raises(ApiError) as caught:
        keys.check(Headers(), "192.0.2.1")
    assert caught.value.detail == "Send an API key as `Authorization: Bearer KEY`."


def test_no_key_is_no_guess(keys: ApiKeys, clock: Clock) -> None:
    for _ in range(2 * ApiKeys.FAILURES_PER_MINUTE):
        with pytest.raises(ApiError) as caught:
            keys.check(Headers(), "192.0.2.1")
        assert caught.value.code == "unauthorized"


def test_what_is_kept_of_addresses_is_bounded(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(module, "MAX_CLIENTS", 20)
    keys = ApiKeys(parse_keys([WEB]))
    for index in range(30):
        keys.check(bearer(WEB), str(index))
        refused(keys, "wrong", str(index))
    assert len(keys._failures) == len(keys._seen) == 20


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9%eth0", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", ""),
        ("testclient", "testclient"),
    ],
)
def test_a_client_is_no_more_than_its_network(address: str, network: str) -> None:
    """One machine has 2**64 addresses of IPv6: each had a bucket of its own."""
    assert network_of(address) == network


# --- a file of keys -----------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"web:{WEB}\n")
    return path


def test_keys_of_a_file_are_added_to_the_others(file: Path) -> None:
    keys = ApiKeys(parse_keys([APP]), file)
    assert keys.check(bearer(WEB), "a") == "web"
    assert keys.check(bearer(APP), "a") == "key-1"


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^NSNET_API_KEYS_FILE: there is no such file$"):
        ApiKeys((), tmp_path / "none")


def test_a_file_that_has_changed_is_read_again(
    file: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    keys = ApiKeys((), file)
    file.write_text(f"web:{APP}\nother:sha256:{'0' * 64}\n")
    assert keys.check(bearer(WEB), "a") == "web"  # at most once a second
    clock.now += 1
    assert refused(keys, WEB, "a").code == "unauthorized"
    assert keys.check(bearer(APP), "a") == "web"
    assert caplog.messages == ["NSNET_API_KEYS_FILE has changed: 2 keys"]


def test_a_link_that_leads_elsewhere_is_a_change(tmp_path: Path, clock: Clock) -> None:
    """As Kubernetes replaces a mounted secret; of the same time and size, even."""
    for name, key in (("old", WEB), ("new", APP)):
        (tmp_path / name).write_text(f"web:{key}\n")
        os.utime(tmp_path / name, (1, 1))
    link = tmp_path / "keys"
    link.symlink_to("old")
    keys = ApiKeys((), link)
    (tmp_path / "next").symlink_to("new")
    (tmp_path / "next").replace(link)
    clock.now += 1
    assert keys.check(bearer(APP), "a") == "web"


@pytest.mark.parametrize("change", ["gone", "empty", "short"])
def test_a_file_that_breaks_leaves_the_keys_before_and_says_so_once(
    change: str, file: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """An empty one would open the service to all."""
    keys = ApiKeys((), file)
    if change == "gone":
        file.unlink()
    else:
        file.write_text("" if change == "empty" else "web:short\n")
    for _ in range(3):
        clock.now += 1
        assert keys.check(bearer(WEB), "a") == "web"
        assert refused(keys, "short", "a").code == "unauthorized"
    [message] = caplog.messages
    assert message.startswith("NSNET_API_KEYS_FILE: ")
    file.write_text(f"app:{APP}\n")
    clock.now += 1
    assert keys.check(bearer(APP), "a") == "app"


# --- rates --------------------------------------------------------------------------------------


def test_rate_refills_per_client(clock: Clock) -> None:
    rates = RateLimiter(60)
    rates.take("a", 60)
    with pytest.raises(ApiError) as caught:
        rates.take("a", 5)
    assert caught.value.code == "rate_limited"
    assert caught.value.headers["Retry-After"] == "5"
    rates.take("b", 60)
    clock.now += 5
    rates.take("a", 5)
    with pytest.raises(ApiError) as caught:
        rates.take("a", 61)
    assert caught.value.code == "too_many_files"


def test_the_table_of_clients_is_bounded(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(module, "MAX_CLIENTS", 20)
    buckets = Buckets(1)
    for index in range(30):
        assert buckets.take(str(index), 1) == 0
    assert len(buckets) == 20
    assert buckets.take("29", 1) == 60  # who came last is remembered


def test_no_limit_keeps_nothing() -> None:
    rates = RateLimiter(0)
    rates.take("a", 1000)
    assert not len(rates._buckets)
