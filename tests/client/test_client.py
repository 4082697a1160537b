"""Both clients against the real server."""

import dataclasses
import io
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from nsnet_client import ApiError, Client, ImageLike, ItemError, ItemOk
from tests.client.conftest import Either
from tests.fakes import SLOW
from tests.images import encoded, jpeg
from tests.server.conftest import Running, running

BATCHES = 'http_requests_total{method="POST",route="/detect/batch",status="200"}'
KEY = "a-key-of-more-than-16-characters-ü"


def grey(value: int, width: int = 80) -> bytes:
    return encoded(Image.new("RGB", (width, 80), (value, value, value)), "PNG")


def test_an_image_is_a_path_bytes_or_a_file(
    server: Running, either: Either, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(grey(10))
    for image in (path, str(path), grey(10), io.BytesIO(grey(10))):
        found = either.detect(server.url, image)
        assert (found.verdict, found.image.format, found.image.width) == ("real", "PNG", 80)
        assert found.score == pytest.approx(10 / 255)
    with path.open("rb") as file:
        assert either.detect(server.url, file).model.name == "fake"


def test_a_threshold_is_the_requests_own(server: Running, either: Either) -> None:
    assert either.detect(server.url, grey(127)).verdict == "uncertain"
    found = either.detect(server.url, grey(127), threshold=0.4)
    assert (found.verdict, found.thresholds.ai_above) == ("ai_generated", 0.4)
    [item] = either.batch(server.url, [grey(127)], threshold=0.4)
    assert isinstance(item, ItemOk)
    assert item.result.verdict == "ai_generated"


def test_evidence_comes_where_it_is_asked_for(server: Running, either: Either) -> None:
    image = grey(100, 400)
    assert either.detect(server.url, image).evidence is None
    found = either.detect(server.url, image, explain=True).evidence
    assert found is not None
    assert found.heatmap is not None
    assert found.heatmap.image.startswith("data:image/png;base64,")
    assert found.views[0].box.right == 400
    found = either.detect(server.url, image, explain=True, heatmap="none").evidence
    assert found is not None
    assert found.heatmap is None


def test_what_the_server_says_is_wrong_is_raised(server: Running, either: Either) -> None:
    with pytest.raises(ApiError) as told:
        either.detect(server.url, b"no image")
    error = told.value
    assert (error.status, error.code) == (415, "unsupported_media_type")
    assert error.detail
    assert error.request_id
    assert error.retry_after is None
    with pytest.raises(ApiError) as told:
        either.detect(server.url, grey(10), threshold=2)
    assert (told.value.status, told.value.code) == (422, "validation_error")


def test_a_file_that_is_not_there_is_an_error_of_the_systems(either: Either) -> None:
    with pytest.raises(FileNotFoundError):
        either.detect("http://127.0.0.1:1", "nowhere.jpg")


def test_the_model_tells_its_limits(server: Running, either: Either) -> None:
    model = either.model(server.url)
    assert (model.name, model.limits.max_files) == ("fake", 3)
    assert model.cuts[0].conditions["clean"].made_accused is None


def test_a_key_is_sent(either: Either) -> None:
    with running(api_keys=f"me:{KEY}") as server:
        either.options["api_key"] = KEY
        assert either.model(server.url).name == "fake"
        assert either.detect(server.url, grey(10)).verdict == "real"
        either.options["api_key"] = None
        with pytest.raises(ApiError) as told:
            either.detect(server.url, grey(10))
    assert (told.value.status, told.value.code) == (401, "unauthorized")


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://localhost", "http://", "http://a:b"])
def test_what_is_no_address_is_told_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        Client(url)


@pytest.mark.parametrize("key", ["", " ", "two\nlines"])
def test_what_is_no_key_is_told_at_once_and_not_quoted(key: str) -> None:
    with pytest.raises(ValueError, match="api_key") as told:
        Client("http://localhost", api_key=key)
    assert not key.strip() or key not in str(told.value)


def test_a_batch_is_split_into_what_the_server_takes(
    server: Running, either: Either, tmp_path: Path
) -> None:
    """Three images a request, 16 KiB together, 4 KiB each; whatever is wrong with one of them."""
    asked = server.metric(BATCHES)
    path = tmp_path / "named.png"
    path.write_bytes(grey(20))
    given: list[ImageLike] = [
        path,
        grey(10),
        b"x" * 5000,
        tmp_path / "none.png",
        b"no image",
        "\0",
        grey(230),
    ]
    given += [grey(10)] * 4
    items = either.batch(server.url, given)
    assert Counter(item.index for item in items) == Counter(range(len(given)))
    by_index = {item.index: item for item in items}
    codes = {i: item.error.code for i, item in by_index.items() if isinstance(item, ItemError)}
    assert codes == {
        2: "payload_too_large",
        3: "unreadable",
        4: "unsupported_media_type",
        5: "unreadable",
    }
    verdicts = {i: item.result.verdict for i, item in by_index.items() if isinstance(item, ItemOk)}
    assert verdicts == {0: "real", 1: "real", 6: "ai_generated"} | dict.fromkeys(
        range(7, 11), "real"
    )
    names = {i: item.filename for i, item in by_index.items() if item.filename is not None}
    assert names == {0: "named.png", 3: "none.png", 5: "\0"}
    after = server.metric(BATCHES)
    assert after - asked == 3


def test_large_images_share_no_request(server: Running, either: Either) -> None:
    large = [jpeg(72, 66, seed) for seed in range(3)]
    assert all(3000 < len(image) <= 4096 for image in large), [*map(len, large)]
    with running(max_upload_bytes=4096, max_request_bytes=6144) as narrow:
        items = either.batch(narrow.url, large)
    assert [item.status for item in items] == ["ok"] * 3


def test_the_servers_words_for_an_image_that_is_too_large(server: Running) -> None:
    with Client(server.url) as client:
        [item] = client.detect_batch([b"x" * 4097])
        with pytest.raises(ApiError) as told:
            client.detect(b"x" * 4097)
    assert isinstance(item, ItemError)
    local = dataclasses.asdict(item.error)
    assert (local["status"], local["code"]) == (told.value.status, told.value.code)
    assert local["detail"] == told.value.detail


def test_an_item_comes_as_soon_as_it_is_known(server: Running, either: Either) -> None:
    """The second is scored only once the first answer is here."""
    server.fake.gate.clear()
    server.fake.entered.clear()
    images = [b"no image", grey(30)]
    came = []

    def each(item: ItemOk | ItemError) -> None:
        came.append(item.status)
        server.fake.gate.set()

    items = either.batch(server.url, images, each)
    assert came == ["error", "ok"]
    assert [item.index for item in items] == [0, 1]


def test_who_leaves_early_can_go_on_with_the_client(server: Running) -> None:
    with Client(server.url) as client:
        stream = client.detect_batch([grey(10), grey(SLOW), grey(20)])
        next(stream)
        del stream
        assert client.detect(grey(10)).verdict == "real"


def test_no_images_are_no_request(either: Either, server: Running) -> None:
    assert either.batch(server.url, []) == []
