"""Evidence over HTTP."""

import base64
import io
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.fakes import DOUBTFUL, SETTLED
from tests.images import encoded
from tests.server.conftest import Running, eventually, running


def halves(width: int = 600, height: int = 450) -> bytes:
    """Dark on the left, bright on the right."""
    pixels = np.full((height, width, 3), 20, np.uint8)
    pixels[:, width // 2 :] = 220
    return encoded(Image.fromarray(pixels), "PNG")


def ask(server: Running, data: bytes, **query: str) -> httpx.Response:
    return server.post("/detect", content=data, params=query)


def test_evidence_says_where_and_changes_nothing_else(server: Running) -> None:
    plain, explained = ask(server, halves()).json(), ask(server, halves(), explain="true").json()
    evidence = explained.pop("evidence")
    assert plain.pop("evidence") is None
    for answer in (plain, explained):
        del answer["id"], answer["timings_ms"]
    assert explained == plain
    assert [view["calibration"] for view in evidence["views"]] == ["first"]
    assert evidence["combination"]
    windows = evidence["windows"]
    assert 6 <= len(windows) <= 15
    for window in windows:
        box = window["box"]
        assert 0 <= box["left"] < box["right"] <= 600
        assert 0 <= box["top"] < box["bottom"] <= 450
        assert 0 <= window["score"] <= 1
        assert window["entropy"] >= 0
    highest = max(windows, key=lambda window: window["log_odds"])
    assert highest["box"]["right"] == 600


def test_the_heat_map_is_a_png_with_a_legend(server: Running) -> None:
    heatmap = ask(server, halves(), explain="true").json()["evidence"]["heatmap"]
    kind, _, data = heatmap["image"].partition(",")
    assert kind == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.size == (heatmap["width"], heatmap["height"]) == (256, 192)
    legend = heatmap["legend"]
    assert legend["quantity"] == "log_odds"
    assert legend["low"] < 0 < legend["high"]
    assert all(colour.startswith("#") for colour in legend["colours"])
    without = ask(server, halves(), explain="true", heatmap="none").json()["evidence"]
    assert without["heatmap"] is None
    assert without["windows"]


def test_an_image_in_doubt_is_explained_once_it_is_settled(server: Running) -> None:
    data = encoded(Image.new("RGB", (300, 300), (DOUBTFUL,) * 3), "PNG")
    answer = ask(server, data, explain="true").json()
    assert answer["score"] == pytest.approx(SETTLED / 255)
    assert answer["looks"] == 2
    assert answer["evidence"]["windows"]


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"explain": "perhaps"}, "`explain` is true or false"),
        ({"explain": "true", "heatmap": "jpeg"}, "`heatmap` is png or none"),
        ({"heatmap": "png"}, "`explain=true`"),
        ({"explian": "true"}, "`explain`"),
    ],
)
def test_what_is_asked_for_wrongly_is_named(
    server: Running, query: dict[str, str], named: str
) -> None:
    answer = ask(server, halves(), **query)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_error")
    assert named in answer.json()["detail"]


def test_it_can_be_switched_off() -> None:
    with running(explain=False) as server:
        refused = ask(server, halves(), explain="true")
        assert (refused.status_code, refused.json()["code"]) == (422, "validation_error")
        assert "switched off" in refused.json()["detail"]
        assert ask(server, halves(), explain="false").status_code == 200
        assert server.get("/model").json()["limits"]["explained"] is None


def test_it_takes_sixteen_places_and_such_have_half_of_all(server: Running) -> None:
    """Four clients who asked for evidence left no place for anybody else."""
    server.fake.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(ask, server, halves(), explain="true") for _ in range(2)]
        eventually(lambda: server.service.places.taken == 32)
        refused = ask(server, halves(), explain="true")
        assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
        calls.append(pool.submit(ask, server, halves()))
        eventually(lambda: server.service.places.taken == 33)
        server.fake.gate.set()
        assert [call.result().status_code for call in calls] == [200] * 3
    eventually(lambda: server.service.places.taken == 0)


def test_while_it_arrives_it_takes_one_place(server: Running) -> None:
    """A slow upload held sixteen, at the price of one."""
    with server.connect() as connection:
        head = b"POST /detect?explain=true HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        connection.sendall(head + bytes(10))
        eventually(lambda: server.service.places.taken == 1)


def test_where_there_are_fewer_places_it_takes_all_of_them() -> None:
    with running(max_queue=4) as server:
        assert ask(server, halves(), explain="true").status_code == 200


def test_a_rate_counts_it_as_sixteen() -> None:
    with running(rate_limit_per_minute=20) as server:
        assert ask(server, halves(), explain="true").status_code == 200
        assert ask(server, halves(), explain="true").status_code == 429
        assert ask(server, halves()).status_code == 200
        assert server.get("/model").json()["limits"]["explained"] == 16


def test_where_a_rate_has_no_room_for_it_nobody_is_offered_it() -> None:
    with running(rate_limit_per_minute=15) as server:
        assert ask(server, halves(), explain="true").status_code == 422
        assert server.get("/model").json()["limits"]["explained"] is None


def test_evidence_is_kept_beside_the_plain_answer() -> None:
    with running(cached=True) as server:
        first, again = (ask(server, halves(), explain="true").json() for _ in range(2))
        assert (first["cached"], again["cached"]) == (False, True)
        assert again["evidence"] == first["evidence"]
        plain = ask(server, halves()).json()
        assert (plain["cached"], plain["evidence"], plain["score"]) == (False, None, first["score"])
