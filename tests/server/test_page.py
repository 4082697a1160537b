"""The page for people, as it is served; what it does in a browser is tested in `tests/e2e`."""

import re

import pytest

from app.routes.page import POLICY
from tests.server.conftest import Running, running
from tests.server.test_errors import problem


def links(text: str) -> list[str]:
    """Every address in the page, but those within it."""
    return re.findall(r'\b(?:href|src)="([^#"][^"]*)"', text)


def test_the_page_and_its_files_have_their_types_and_a_policy(server: Running) -> None:
    with server.client() as client:
        page = client.get("/")
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert page.headers["Content-Security-Policy"] == POLICY
        assert page.headers["Cache-Control"] == "no-cache"
        assert page.headers["X-Content-Type-Options"] == "nosniff"
        types = [
            client.get(link).headers["Content-Type"].split(";")[0] for link in links(page.text)
        ]
    script = types.pop(2)
    assert script in ("text/javascript", "application/javascript")  # as the machine has it
    assert types == ["image/svg+xml", "text/css", "text/html"]
    assert not re.search(r"<style|\bstyle=|\bon\w+=|<script(?! type=\"module\" src=)", page.text)


@pytest.mark.parametrize("path", ["/", "/page/page.js"])
def test_what_a_browser_has_is_not_sent_again(server: Running, path: str) -> None:
    with server.client() as client:
        first = client.get(path)
        again = client.get(path, headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        # A browser takes these for the page that it has kept.
        name = "Content-Security-Policy"
        assert again.headers[name] == first.headers[name]
        other = client.get(path, headers={"If-None-Match": '"another"'})
        assert other.status_code == 200


@pytest.mark.parametrize("value", ["bytes=0-1", "bytes=9999999-", "bytes=abc", "lines=1", "x"])
def test_no_part_of_a_file_is_sent(server: Running, value: str) -> None:
    with server.client() as client:
        whole = client.get("/page/page.js")
        answer = client.get("/page/page.js", headers={"Range": value})
    assert (answer.status_code, answer.content) == (200, whole.content)


def test_head_and_other_methods(server: Running) -> None:
    with server.client() as client:
        for path in ("/", "/page/page.css"):
            answer = client.head(path)
            assert (answer.status_code, answer.content) == (200, b"")
            assert int(answer.headers["Content-Length"]) > 0
            problem(client.post(path), 405, "method_not_allowed")
        for path in ("/page", "/page/", "/page/nothing.js", "/page/../index.html"):
            problem(client.get(path), 404, "not_found")
    line = 'http_requests_total{method="HEAD",route="/",status="200"}'
    assert server.metric(line) == 1


def test_neither_the_page_nor_its_files_are_in_the_document(server: Running) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    assert not {"/", "/page"} & set(paths)


def test_the_page_asks_for_no_key() -> None:
    with running(api_keys="k" * 24) as server, server.client() as client:
        page = client.get("/")
        for link in links(page.text):
            assert client.get(link).status_code == 200
        problem(client.get("/model"), 401, "unauthorized")


def test_the_page_is_there_while_the_model_is_loaded() -> None:
    with running(load_now=False) as server:
        assert server.get("/").status_code == 200


def test_the_page_is_off_where_its_setting_is() -> None:
    with running(page=False) as server, server.client() as client:
        for path in ("/", "/page/page.js"):
            problem(client.get(path), 404, "not_found")


def test_the_page_links_to_the_documentation_where_there_is_one(server: Running) -> None:
    assert "docs" in links(server.get("/").text)
    with running(docs=False) as other:
        assert "docs" not in links(other.get("/").text)


def test_below_a_root_path_links_hold_with_and_without_a_slash() -> None:
    with running(root_path="/nsnet") as server, server.client() as client:
        pages = {client.get(path).text for path in ("/", "/nsnet", "/nsnet/")}
        assert len(pages) == 1
        found = links(pages.pop())
        assert len(found) == 4
        for link in found:
            assert link.startswith("/nsnet/")
            assert client.get(link).status_code == 200
            assert client.get(link.removeprefix("/nsnet")).status_code == 200


def test_the_page_answers_to_known_hosts_alone() -> None:
    with running(allowed_hosts="nsnet.example") as server, server.client() as client:
        problem(client.get("/"), 421, "unknown_host")
        assert client.get("/", headers={"Host": "nsnet.example"}).status_code == 200
