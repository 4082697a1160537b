import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator

import pytest
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser
from structlog.contextvars import bound_contextvars

from app.logs import set_up_logs
from app.settings import Settings


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logging.captureWarnings(capture=False)


def logged(monkeypatch: pytest.MonkeyPatch, err: io.StringIO, **settings: str) -> io.StringIO:
    monkeypatch.setattr(sys, "stderr", err)
    set_up_logs(Settings.model_validate(settings))
    return err


def test_a_line_of_json_holds_what_is_known_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    err = logged(monkeypatch, io.StringIO())
    with bound_contextvars(request_id="mine", key="web"):
        logging.getLogger("a.b").warning(
            "%d\nlines", 2, extra={"status": 200, "color_message": "x"}
        )
    line = json.loads(err.getvalue())
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "2\nlines",
        "level": "warning",
        "logger": "a.b",
        "request_id": "mine",
        "key": "web",
        "status": 200,
    }


@pytest.mark.parametrize("level", ["debug", "info"])
def test_the_parser_of_forms_quotes_none(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    err = logged(monkeypatch, io.StringIO(), log_level=level)
    parser = MultipartParser(b"x")
    parser.write(b"--x\r\n\r\nbody\r\n--x--\r\nsecret")
    with pytest.raises(MultipartParseError):
        MultipartParser(b"x").write(b"--x\r\nna\x00me: 1\r\n\r\n")
    assert err.getvalue() == ""


def test_a_terminal_has_text_and_a_file_json_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for err, log_format, is_json in (
        (Terminal(), "auto", False),
        (io.StringIO(), "auto", True),
        (Terminal(), "json", True),
        (io.StringIO(), "text", False),
    ):
        logged(monkeypatch, err, log_format=log_format)
        logging.getLogger("a").info("said")
        assert "said" in err.getvalue()
        assert err.getvalue().startswith("{") == is_json
        assert ("\x1b[" in err.getvalue()) == (not is_json and err.isatty())


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_traceback_shows_no_variables(monkeypatch: pytest.MonkeyPatch, log_format: str) -> None:
    """One of rich's shows all locals: an upload among them."""
    err = logged(monkeypatch, Terminal(), log_format=log_format)
    upload = "pixels of " + "somebody"
    try:
        len(upload) / 0
    except ZeroDivisionError:
        logging.getLogger("a").exception("failed")
    assert "ZeroDivisionError" in err.getvalue()
    assert "pixels of somebody" not in err.getvalue()


def test_levels_and_warnings_are_the_settings_business(monkeypatch: pytest.MonkeyPatch) -> None:
    err = logged(monkeypatch, io.StringIO(), log_level="warning")
    logging.getLogger("a").info("quiet")
    warnings.warn("heard", stacklevel=1)
    [line] = map(json.loads, err.getvalue().splitlines())
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")
    assert "heard" in line["event"]
