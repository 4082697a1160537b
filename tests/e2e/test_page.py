"""What people do with the page, in a browser, against a real server around a fake detector."""

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import FileChooser, FilePayload, Locator, Page, Request, Route, expect

from benchmarks.signing import SIGNER, signed
from tests.e2e.conftest import Visit
from tests.fakes import POISON
from tests.images import encoded, jpeg, photo
from tests.server.conftest import Running, running
from tests.server.test_detect import grey
from tests.server.test_explain import halves

KEY = "k" * 24


def file(name: str, data: bytes) -> FilePayload:
    return {"name": name, "mimeType": "image/png", "buffer": data}


def greys(count: int) -> list[FilePayload]:
    """Photographs, undecided and generated ones in turn, no two the same."""
    return [
        file(f"{index}.png", grey((20, 120, 230)[index % 3], (80 + index, 70)))
        for index in range(count)
    ]


def choose(page: Page, *files: FilePayload) -> None:
    page.locator("#choose").set_input_files(list(files))


def done(page: Page) -> None:
    expect(page.locator("#progress")).to_be_hidden(timeout=30_000)


def row(page: Page, name: str) -> Locator:
    return page.get_by_role("row").filter(has=page.get_by_text(name, exact=True)).first


def uploads(page: Page) -> list[Request]:
    """Gathers what is sent from now on."""
    sent: list[Request] = []
    page.on("request", lambda request: sent.append(request) if request.method == "POST" else None)
    return sent


def names(page: Page) -> Callable[[], list[list[str]]]:
    """Gathers the names in forms that are sent from now on: a test is not shown their bytes."""
    page.evaluate(
        """() => {
          window.forms = [];
          const append = FormData.prototype.append;
          FormData.prototype.append = function (field, file, name) {
            if (forms.at(-1)?.form !== this) forms.push({ form: this, names: [] });
            forms.at(-1).names.push(`${field} ${name}`);
            append.call(this, field, file, name);
          };
        }"""
    )
    return lambda: page.evaluate("forms.map(({ names }) => names)")


def answers(page: Page, address: str, **changed: Any) -> None:
    """The server's answers to this address, with fields of the test's own."""

    def change(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), **changed})

    page.route(address, change)


def problem(status: int, detail: str, **headers: str) -> dict[str, Any]:
    """For `Route.fulfill`."""
    return {
        "status": status,
        "headers": {"Content-Type": "application/problem+json", **headers},
        "body": json.dumps({"code": "some_code", "detail": detail, "status": status}),
    }


def finds(page: Page, **changed: Any) -> None:
    """Evidence, with fields of the test's own."""

    def change(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        body["evidence"].update(changed)
        route.fulfill(response=answer, json=body)

    page.route("**/detect?explain=*", change)


def why(page: Page, name: str) -> tuple[Locator, dict[str, Any]]:
    """Ask for the evidence of an image whose details are shown: what is shown, and was answered."""
    with page.expect_response("**/detect?explain=true&heatmap=png") as answer:
        page.get_by_role("button", name="Why?").click()
    panel = page.get_by_role("group", name=f"Evidence for {name}")
    expect(panel).to_be_focused()
    return panel, answer.value.json()


# --- ways in ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "verdict", "caveat"),
    [
        (230, "Looks AI-generated", "accuse nobody by it alone"),
        (20, "Looks like a photograph", "does not say that nothing was altered"),
        (120, "No opinion", "re-compressed copy has lost traces"),
    ],
)
def test_one_image_that_is_chosen_has_its_verdict_explained(
    server: Running, visit: Visit, value: int, verdict: str, caveat: str
) -> None:
    page = visit(server.url)
    sent = uploads(page)
    image = grey(value)
    choose(page, file("secret name.png", image))
    details = page.get_by_role("article", name="secret name.png")
    expect(details.get_by_role("heading", name=verdict)).to_be_visible()
    expect(details).to_contain_text(caveat)
    expect(details).to_contain_text(f"Score {round(value / 255, 3)}: photograph below 0.3")
    expect(details.get_by_role("img", name=re.compile("Score .* of 0 to 1"))).to_be_visible()
    expect(details).to_contain_text(hashlib.sha256(image).hexdigest())
    expect(page.get_by_role("contentinfo")).to_contain_text("Model fake 1.2.3")
    [request] = sent
    assert request.url == f"{server.url}/detect"
    assert request.headers["content-type"] == "application/octet-stream"  # so there is no name


def handed(page: Page, event: str, *files: FilePayload) -> None:
    """Drop or paste, as a browser hands it to a page."""
    given = [[one["name"], base64.b64encode(one["buffer"]).decode()] for one in files]
    page.evaluate(
        """([event, files]) => {
          const data = new DataTransfer();
          for (const [name, text] of files) {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            data.items.add(new File([bytes], name));
          }
          const options = { bubbles: true, cancelable: true };
          document.body.dispatchEvent(
            event === "paste"
              ? new ClipboardEvent(event, { ...options, clipboardData: data })
              : new DragEvent(event, { ...options, dataTransfer: data }),
          );
        }""",
        [event, given],
    )


def test_drop_and_paste(server: Running, visit: Visit) -> None:
    page = visit(server.url)
    handed(page, "drop", *greys(2))
    done(page)
    expect(page.locator("#summary")).to_have_text("Looks like a photograph: 1. No opinion: 1.")
    handed(page, "paste", file("image.png", grey(230)))
    expect(row(page, "image.png")).to_contain_text("Looks AI-generated")
    assert page.url == f"{server.url}/"


def test_the_keyboard_alone(server: Running, visit: Visit) -> None:
    page = visit(server.url)
    page.keyboard.press("Tab")
    expect(page.locator("#choose")).to_be_focused()
    chosen: list[FileChooser] = []
    page.on("filechooser", lambda chooser: chosen.append(chooser))
    for _ in range(20):  # a busy browser lets a key press go by
        page.keyboard.press("Space")
        page.wait_for_timeout(500)
        if chosen:
            break
    chosen[0].set_files(greys(2))
    done(page)
    toggle = page.get_by_role("button", name="Details of 0.png")
    expect(toggle).to_have_attribute("aria-expanded", "false")
    toggle.focus()
    page.keyboard.press("Enter")
    expect(toggle).to_have_attribute("aria-expanded", "true")
    expect(page.get_by_role("article", name="0.png")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.get_by_role("article", name="0.png")).to_be_hidden()


# --- many ---------------------------------------------------------------------------------------


def test_fifty_images_go_in_requests_that_the_server_takes(server: Running, visit: Visit) -> None:
    page = visit(server.url)
    sent, named = uploads(page), names(page)
    page.evaluate(
        """() => {
          window.seen = [];
          new MutationObserver(() => seen.push(document.querySelector("#count").textContent))
            .observe(document.querySelector("#count"), { childList: true });
        }"""
    )
    server.fake.gate.clear()
    choose(page, *greys(50))
    expect(page.locator("#count")).to_have_text("0 of 50 done")
    expect(page.get_by_role("progressbar", name="0 of 50 done")).to_be_visible()
    server.fake.gate.set()
    done(page)
    summary = "Looks AI-generated: 16. Looks like a photograph: 17. No opinion: 17."
    expect(page.locator("#summary")).to_have_text(summary)
    expect(page.locator("#news")).to_have_text(f"Done. {summary}")
    assert len(set(page.evaluate("seen"))) > 10  # it was told as it went on
    assert [request.url for request in sent] == [f"{server.url}/detect/batch"] * 2
    assert named() == [[f"files {index}" for index in range(count)] for count in (32, 18)]
    for index in range(50):
        verdict = ("Looks like a photograph", "No opinion", "Looks AI-generated")[index % 3]
        expect(row(page, f"{index}.png")).to_contain_text(verdict)


def test_requests_stay_below_the_servers_limits(visit: Visit) -> None:
    """By bytes, by count; what is too large for any is told so here, in the server's words."""
    large = encoded(photo(100, 100), "BMP")
    with running(max_upload_bytes=40_000, max_request_bytes=80_000, max_files=4) as server:
        page = visit(server.url)
        named = names(page)
        files = [file(f"{index}.bmp", large) for index in range(5)]
        beyond = bytes(40_001)
        choose(page, *files, file("beyond.png", beyond), *greys(5))
        done(page)
        counts = [len(form) for form in named()]
        with server.client() as client:
            answer = client.post("/detect/batch", files=[("files", beyond)])
            detail = answer.json()["results"][0]["error"]["detail"]
        expect(row(page, "beyond.png")).to_contain_text(f"Not scored. {detail}")
        expect(page.locator("#summary")).to_contain_text("Not scored: 1.")
    assert counts == [2, 2, 4, 2]


def test_one_bad_image_fails_alone(server: Running, visit: Visit) -> None:
    page = visit(server.url)
    choose(page, file("bad.png", b"no image"), file("poison.png", grey(POISON)), *greys(1))
    done(page)
    bad = row(page, "bad.png")
    expect(bad).to_contain_text("Not scored. Send JPEG, PNG, WebP, AVIF, HEIC, GIF, TIFF or BMP")
    expect(bad.get_by_role("button")).to_have_count(0)  # nor will it go better
    expect(row(page, "poison.png").get_by_role("button", name="Try again")).to_be_visible()
    expect(row(page, "0.png")).to_contain_text("Looks like a photograph")


def test_an_empty_file_is_told_so(server: Running, visit: Visit) -> None:
    page = visit(server.url, refused="the server responded with a status of 400")
    choose(page, file("empty.png", b""))
    expect(row(page, "empty.png")).to_contain_text("Not scored.")


def test_cancelling(server: Running, visit: Visit) -> None:
    page = visit(server.url)
    server.fake.gate.clear()
    sent = uploads(page)
    with page.expect_request("**/detect/batch"):  # which comes after the count
        choose(page, *greys(40))
    expect(page.locator("#count")).to_have_text("0 of 40 done")
    page.get_by_role("button", name="Cancel").click()
    done(page)
    expect(page.locator("#summary")).to_have_text("Not scored: 40.")
    expect(page.locator("#results-title")).to_be_focused()
    assert len(sent) == 1
    server.fake.gate.set()
    row(page, "2.png").get_by_role("button", name="Try again").click()
    expect(row(page, "2.png")).to_contain_text("Looks AI-generated")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#results")).to_be_hidden()
    expect(page.locator("#choose")).to_be_focused()


# --- a server that does not answer ----------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_waited_for(server: Running, visit: Visit, status: int) -> None:
    page = visit(server.url, refused=f"the server responded with a status of {status}")
    page.route(
        "**/detect/batch",
        lambda route: route.fulfill(
            **problem(status, "The queue is full.", **{"Retry-After": "1"})
        ),
        times=1,
    )
    choose(page, *greys(2))
    expect(page.locator("#note")).to_have_text("The queue is full. Trying again in 1 s.")
    done(page)
    expect(page.locator("#note")).to_be_hidden()
    expect(page.locator("#summary")).to_have_text("Looks like a photograph: 1. No opinion: 1.")


@pytest.mark.parametrize("wait", ["2500000", "601", "Infinity", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_who_asks_for_too_long_a_wait_is_not_waited_for(
    server: Running, visit: Visit, wait: str
) -> None:
    """A browser's timer that is set to more than 24 days rings at once."""
    page = visit(server.url, refused="the server responded with a status of 503")
    sent = uploads(page)
    page.route(
        "**/detect",
        lambda route: route.fulfill(**problem(503, "Draining.", **{"Retry-After": wait})),
    )
    choose(page, *greys(1))
    text = "Draining. It asks to wait for more than ten minutes: try again later."
    expect(row(page, "0.png")).to_contain_text(text)
    expect(row(page, "0.png").get_by_role("button", name="Try again")).to_be_visible()
    assert len(sent) == 1


def test_cancelling_while_waiting(server: Running, visit: Visit) -> None:
    page = visit(server.url, refused="the server responded with a status of 503")
    page.route(
        "**/detect",
        lambda route: route.fulfill(**problem(503, "Draining.", **{"Retry-After": "60"})),
    )
    choose(page, *greys(1))
    expect(page.locator("#note")).to_contain_text("Draining.")
    page.get_by_role("button", name="Cancel").click()
    done(page)
    expect(page.locator("#note")).to_be_hidden()
    expect(row(page, "0.png")).to_contain_text("Cancelled")


def test_images_wait_while_the_model_is_loaded(visit: Visit) -> None:
    with running(load_now=False) as server:
        page = visit(server.url, refused="the server responded with a status of 503")
        text = "The model is being loaded. Trying again in 2 s."
        expect(page.locator("#note")).to_have_text(text)
        choose(page, *greys(1))
        server.loading.set()
        expect(row(page, "0.png")).to_contain_text("Looks like a photograph")
        expect(page.get_by_role("contentinfo")).to_contain_text("Model fake 1.2.3")


def test_a_server_that_is_gone(server: Running, visit: Visit) -> None:
    page = visit(server.url, refused="net::ERR_")
    page.route("**/detect", lambda route: route.abort(), times=1)
    choose(page, *greys(1))
    expect(row(page, "0.png")).to_contain_text("The server cannot be reached.")
    row(page, "0.png").get_by_role("button", name="Try again").click()
    expect(row(page, "0.png")).to_contain_text("Looks like a photograph")


def test_a_server_that_is_gone_is_not_asked_for_the_rest(server: Running, visit: Visit) -> None:
    page = visit(server.url, refused="net::ERR_")
    sent = uploads(page)
    page.route("**/detect/batch", lambda route: route.abort())
    choose(page, *greys(50))
    done(page)
    expect(page.locator("#summary")).to_have_text("Not scored: 50.")
    assert len(sent) == 1


def test_an_answer_that_breaks_off(server: Running, visit: Visit) -> None:
    page = visit(server.url)

    def cut(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().split("\n")[0] + '\n{"index')

    page.route("**/detect/batch", cut, times=1)
    choose(page, *greys(3))
    done(page)
    expect(page.locator("#summary")).to_contain_text("Not scored: 2.")
    expect(page.get_by_role("button", name="Try again")).to_have_count(2)


def test_what_stands_before_the_server_may_answer_anything(server: Running, visit: Visit) -> None:
    page = visit(server.url, refused="the server responded with a status of 502")
    page.route("**/detect", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
    choose(page, *greys(1))
    expect(row(page, "0.png")).to_contain_text("answered 502")


# --- keys -----------------------------------------------------------------------------------------


def test_a_key_is_asked_for_and_kept_in_memory_alone(visit: Visit) -> None:
    with running(api_keys=KEY) as server:
        page = visit(server.url, refused="the server responded with a status of 401")
        field = page.get_by_label("Key", exact=True)
        expect(field).to_be_focused()
        expect(page.get_by_role("dialog")).to_contain_text("This server asks for an API key.")
        field.fill("wrong")
        field.press("Enter")
        expect(page.get_by_role("dialog")).to_contain_text("The server does not know this key.")
        field.fill(KEY)
        field.press("Enter")
        expect(page.get_by_role("contentinfo")).to_contain_text("Model fake 1.2.3")
        choose(page, *greys(2))
        done(page)
        expect(page.locator("#summary")).to_have_text("Looks like a photograph: 1. No opinion: 1.")
        expect(field).to_have_value("")
        assert page.evaluate("localStorage.length + sessionStorage.length") == 0
        assert page.context.cookies() == []
        page.reload()
        expect(field).to_be_focused()  # nothing has stayed


def test_a_key_may_be_refused_and_given_later(visit: Visit) -> None:
    with running(api_keys=KEY) as server:
        page = visit(server.url, refused="the server responded with a status of 401")
        expect(page.get_by_role("dialog")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("contentinfo")).to_contain_text("This server asks for an API key.")
        choose(page, *greys(50))  # more than one request
        page.get_by_role("button", name="Not now").click()
        done(page)
        expect(page.locator("#summary")).to_have_text("Not scored: 50.")
        expect(row(page, "0.png")).to_contain_text("This server asks for an API key.")
        page.get_by_role("button", name="API key").click()
        page.get_by_label("Key", exact=True).fill(f" {KEY} ")
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_role("contentinfo")).to_contain_text("Model fake 1.2.3")
        row(page, "0.png").get_by_role("button", name="Try again").click()
        expect(row(page, "0.png")).to_contain_text("Looks like a photograph")


# --- details --------------------------------------------------------------------------------------


def test_why_shows_map_windows_and_what_the_score_stands_on(server: Running, visit: Visit) -> None:
    page = visit(server.url)
    choose(page, file("a.png", halves()))
    panel, answer = why(page, "a.png")
    stage = panel.locator(".stage").bounding_box()
    assert stage
    assert stage["width"] / stage["height"] == pytest.approx(600 / 450, abs=0.02)

    heat = panel.locator(".heat")
    expect(heat).to_have_css("opacity", "0.6")
    panel.get_by_role("slider", name="Strength of the heat-map").fill("25")
    expect(heat).to_have_css("opacity", "0.25")
    assert heat.bounding_box() == stage
    expect(panel).to_contain_text("−6 photograph")
    expect(panel).to_contain_text("AI-generated +6")

    evidence = answer["evidence"]
    expect(panel).to_contain_text("The centre square at 0–600 × 0–450 px alone: score 0.768")
    assert evidence["combination"] == "the view's logit, `first`"
    expect(panel).to_contain_text("is made of the view's logit, calibration “first”.")
    expect(panel).to_contain_text("The verdict does not rest on them")
    expect(panel).to_contain_text("No region stands out")
    windows = evidence["windows"]
    options = panel.get_by_role("option")
    expect(options).to_have_count(len(windows))
    for window, option in zip(windows, options.all(), strict=True):
        box = option.bounding_box()
        assert box
        left = (box["x"] - stage["x"]) / stage["width"] * 600
        assert left == pytest.approx(window["box"]["left"], abs=2)
        bottom = (box["y"] + box["height"] - stage["y"]) / stage["height"] * 450
        assert bottom == pytest.approx(window["box"]["bottom"], abs=2)


def test_windows_are_read_by_keyboard_and_pointer(server: Running, visit: Visit) -> None:
    page = visit(server.url)
    choose(page, file("a.png", halves()))
    panel, answer = why(page, "a.png")
    windows = answer["evidence"]["windows"]
    across = sum(window["box"]["top"] == 0 for window in windows)
    last = len(windows)
    assert last > across > 2
    options, reading = panel.get_by_role("option"), panel.locator(".reading")
    page.keyboard.press("Tab")
    for key, number in (
        ("Home", 1),
        ("ArrowRight", 2),
        ("ArrowDown", 2 + across),
        ("ArrowLeft", 1 + across),
        ("ArrowUp", 1),
        ("ArrowUp", 1),
        ("End", last),
        ("ArrowRight", last),
    ):
        page.keyboard.press(key)
        window = windows[number - 1]
        expect(reading).to_contain_text(
            f"Window {number} of {last}: score {window['score']:.3f}, log-odds "
        )
        expect(reading).to_contain_text(f"{window['box']['left']}–{window['box']['right']} × ")
        expect(options.nth(number - 1)).to_be_focused()
        expect(options.nth(number - 1)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Tab")
    expect(panel.get_by_role("slider")).to_be_focused()  # all windows are one stop
    corner = panel.locator(".windows").bounding_box()
    assert corner
    page.mouse.move(corner["x"] + 5, corner["y"] + 5)
    expect(reading).to_contain_text(f"Window 1 of {last}")


def test_a_region_that_is_uneven_is_marked(server: Running, visit: Visit) -> None:
    page = visit(server.url)
    box = {"left": 300, "top": 0, "right": 600, "bottom": 150}
    finds(page, uneven={"box": box, "contrast": 6.25})
    choose(page, file("a.png", halves()))
    panel, _ = why(page, "a.png")
    expect(panel).to_contain_text("One region is uneven (dashed): at 300–600 × 0–150 px")
    expect(panel).to_contain_text("differ from the rest's by +6.25")
    region, stage = panel.locator(".uneven").bounding_box(), panel.locator(".stage").bounding_box()
    assert region
    assert stage
    assert region["x"] - stage["x"] == pytest.approx(stage["width"] / 2, abs=2)
    assert region["height"] == pytest.approx(stage["height"] / 3, abs=2)


def test_a_map_of_what_the_browser_cannot_show(server: Running, visit: Visit) -> None:
    page = visit(server.url)
    image = Image.open(io.BytesIO(halves()))
    choose(page, file("scan.tif", encoded(image, "TIFF")))
    panel, _ = why(page, "scan.tif")
    expect(panel).to_contain_text("The image itself cannot be shown under its map.")
    expect(panel.get_by_role("img", name="The image scan.tif")).to_have_count(0)
    expect(panel.locator(".heat")).to_be_visible()


def test_an_image_too_small_for_a_map_has_its_windows(server: Running, visit: Visit) -> None:
    page = visit(server.url)
    finds(page, heatmap=None)
    choose(page, *greys(1))
    panel, _ = why(page, "0.png")
    expect(panel).to_contain_text("Too small for a map")
    expect(panel.get_by_role("option")).not_to_have_count(0)
    expect(panel.get_by_role("slider")).to_have_count(0)


def turned(codec: str, value: int, order: str = "<") -> bytes:
    """An image that its EXIF turns, written in either byte order."""
    exif = Image.Exif()
    exif.endian = order
    exif[0x0112] = value
    return encoded(Image.open(io.BytesIO(halves())), codec, exif=exif)


def test_an_image_that_its_exif_turns_lies_under_the_map(server: Running, visit: Visit) -> None:
    page = visit(server.url)
    choose(page, file("a.jpg", turned("JPEG", 6)))
    panel, _ = why(page, "a.jpg")
    expect(panel.get_by_role("img", name="The image a.jpg")).to_be_visible()
    stage = panel.locator(".stage").bounding_box()
    assert stage
    assert stage["height"] > stage["width"]


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="%d"/></x:xmpmeta>'


@pytest.mark.parametrize(
    ("data", "lies_under"),
    [
        (turned("JPEG", 3), True),
        (turned("WEBP", 1), True),
        (turned("WEBP", 3), False),
        (turned("WEBP", 3, ">"), False),
        (turned("WEBP", 2), False),
        (encoded(Image.open(io.BytesIO(halves())), "JPEG", xmp=XMP % 1), True),
        (encoded(Image.open(io.BytesIO(halves())), "JPEG", xmp=XMP % 3), False),
    ],
    ids=["JPEG", "upright WebP", "WebP", "big-endian", "mirrored", "upright by XMP", "XMP"],
)
def test_an_image_lies_under_the_map_only_as_the_server_has_seen_it(
    server: Running, visit: Visit, data: bytes, lies_under: bool
) -> None:
    """Chromium turns no WebP, and nothing by XMP: what is upside down has the same sides."""
    page = visit(server.url)
    choose(page, file("a", data))
    panel, _ = why(page, "a")
    expect(panel.locator(".heat")).to_be_visible()
    expect(panel.get_by_role("img", name="The image a")).to_have_count(int(lies_under))
    note = panel.get_by_text("The image itself cannot be shown under its map.")
    expect(note).to_be_visible(visible=not lies_under)


def test_where_nothing_is_explained_it_is_not_offered(visit: Visit) -> None:
    with running(explain=False) as server:
        page = visit(server.url)
        choose(page, *greys(1))
        article = page.get_by_role("article")
        expect(article).to_contain_text("What this does not mean")
        expect(article.get_by_role("heading", name="Why this score")).to_have_count(0)
        expect(article.get_by_role("button", name="Why?")).to_have_count(0)


def test_a_refusal_to_explain_is_told(server: Running, visit: Visit) -> None:
    page = visit(server.url, refused="the server responded with a status of 422")
    page.route("**/detect?explain=*", lambda route: route.fulfill(**problem(422, "Not this one.")))
    choose(page, *greys(1))
    page.get_by_role("button", name="Why?").click()
    expect(page.get_by_role("article")).to_contain_text("Not this one.")
    expect(page.get_by_role("button", name="Why?")).to_be_enabled()


def test_warnings_are_in_words(server: Running, visit: Visit) -> None:
    page = visit(server.url)
    warnings = ["animation", "low_quality", "brand_new_one"]
    answers(page, "**/detect", warnings=warnings, verdict="uncertain")
    choose(page, file("a.png", grey(230)))
    article = page.get_by_role("article")
    for text in (
        "something about this picture forbids to call it generated",
        "One frame was judged",
        "Too small, blurred or compressed",
        "The server warns: brand new one.",
    ):
        expect(article).to_contain_text(text)


def test_what_a_file_declares_is_in_words(server: Running, visit: Visit) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Maker", "M-1"
    photograph = encoded(Image.new("RGB", (96, 80), (20,) * 3), "JPEG", exif=exif)
    page = visit(server.url)
    choose(page, file("a.jpg", signed(photograph, "image/jpeg")))
    article = page.get_by_role("article")
    for text in (
        "It says that it was generated by AI.",
        "says that it was generated by AI (signed, and unbroken since)",
        f"signed by: {SIGNER}",
        "trusted signer: not asked",
        "step: c2pa.created, trainedAlgorithmicMedia",
        "says that it comes from a camera (vouched for by nobody)",
        "make: Maker · model: M-1",
        "Not there: IPTC, XMP, Generator's parameters.",
        "a file declares nothing is no evidence of a photograph",
    ):
        expect(article).to_contain_text(text)
    expect(row(page, "a.jpg")).to_contain_text("Looks like a photograph")
    expect(row(page, "a.jpg")).to_contain_text("The file says that it was generated by AI.")


def test_what_speaks_against_an_image_is_seen_in_its_row(server: Running, visit: Visit) -> None:
    page = visit(server.url)
    data = signed(jpeg(), "image/jpeg")
    choose(page, file("a.jpg", data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]))
    done(page)
    expect(row(page, "a.jpg")).to_contain_text("Its credentials do not hold.")
    answers(page, "**/detect", warnings=["low_quality"])
    choose(page, file("b.png", grey(20)))
    done(page)
    expect(row(page, "b.png")).to_contain_text("Too little is left to judge by.")


def test_provenance_that_is_switched_off(visit: Visit) -> None:
    with running(provenance=False) as server:
        page = visit(server.url)
        choose(page, *greys(1))
        expect(page.get_by_role("article")).to_contain_text("This server does not read it.")


# --- ways out -------------------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)>.png"


def test_export(server: Running, visit: Visit, tmp_path: Path) -> None:
    page = visit(server.url)
    answers(page, "**/detect", warnings=["few_patches", "animation"])
    formula = '=HYPERLINK("http://x","y").png'
    image = signed(grey(230), "image/png")
    choose(page, file(formula, image))
    done(page)
    choose(page, file("-1,2.png", b"no image"), file(HOSTILE, grey(20)), file("ü.png", grey(21)))
    done(page)
    expect(row(page, HOSTILE)).to_be_visible()  # as text
    saved = {}
    for name in ("CSV", "JSON"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Export {name}").click()
        assert download.value.suggested_filename == f"nsnet-results.{name.lower()}"
        saved[name] = tmp_path / name
        download.value.save_as(saved[name])
    first = {
        "filename": formula,
        "sha256": hashlib.sha256(image).hexdigest(),
        "verdict": "ai_generated",
        "score": pytest.approx(230 / 255),
        "real_below": 0.3,
        "ai_above": 0.7,
        "warnings": ["few_patches", "animation"],
        "declares": "ai_generated",
        "model_sha256": "f" * 64,
        "error": None,
    }
    found = json.loads(saved["JSON"].read_text())
    assert found[0] == first
    assert [one["filename"] for one in found[1:]] == ["-1,2.png", HOSTILE, "ü.png"]
    assert found[1]["error"] == "unsupported_media_type"
    assert found[1]["verdict"] is None

    text = saved["CSV"].read_bytes().decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [one["filename"] for one in rows] == [f"'{formula}", "'-1,2.png", HOSTILE, "ü.png"]
    assert list(rows[0]) == list(first)
    assert rows[0]["warnings"] == "few_patches animation"
    assert rows[1]["error"] == "unsupported_media_type"
    assert float(rows[2]["score"]) == pytest.approx(20 / 255)
    assert text.count("\r\n") == 5


def test_no_name_is_a_formula_of_a_spreadsheets(
    server: Running, visit: Visit, tmp_path: Path
) -> None:
    names = [
        f"{start}1.png" for start in ("＝", "＋", "－", "＠", " =", "\u3000+", "\u00a0-", "\t")
    ]
    page = visit(server.url)
    choose(page, *(file(name, b"no image") for name in names))
    done(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Export CSV").click()
    download.value.save_as(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(encoding="utf-8-sig", newline="") as text:
        found = [one["filename"] for one in csv.DictReader(text)]
    assert found == [f"'{name}" for name in names]


# --- where it is served, and how it looks ---------------------------------------------------------


@pytest.mark.parametrize("path", ["/nsnet", "/nsnet/", "/"])
def test_below_a_root_path(visit: Visit, path: str) -> None:
    with running(root_path="/nsnet") as server:
        page = visit(f"{server.url}{path}")
        choose(page, *greys(1))
        expect(row(page, "0.png")).to_contain_text("Looks like a photograph")


def test_a_page_that_the_browser_has_kept_works(server: Running, visit: Visit) -> None:
    page = visit(server.url)
    kept = server.get("/").headers["ETag"]
    page.reload()
    assert page.request.get(server.url, headers={"If-None-Match": kept}).status == 304
    page.reload()
    expect(page.get_by_role("contentinfo")).to_contain_text("Model fake 1.2.3")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_every_state_fits_and_is_accessible(
    server: Running, visit: Visit, scheme: str, width: int
) -> None:
    page = visit(
        server.url,
        color_scheme=scheme,
        viewport={"width": width, "height": 700},
        reduced_motion="reduce",
    )

    def look() -> None:
        widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert widths[0] <= widths[1]
        found = Axe().run(page).response["violations"]
        assert [
            (one["id"], [node["target"] for node in one["nodes"]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ] == []

    expect(page.get_by_role("contentinfo")).to_contain_text("Model fake 1.2.3")
    look()
    page.get_by_role("button", name="API key").click()
    look()
    page.get_by_role("button", name="Not now").click()
    name = f"{'long-name' * 12}.png"
    choose(page, file(name, signed(halves(), "image/png")))
    why(page, name)
    page.keyboard.press("Tab")
    look()
    choose(page, file("bad.png", b"no image"), *greys(12))
    done(page)
    page.get_by_role("button", name="Details of 0.png").click()
    look()
