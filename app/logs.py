"""How the process logs: every logger through one formatter, on standard error."""

import logging
import sys

import structlog
from structlog.typing import EventDict, WrappedLogger

from app.settings import Settings


def set_up_logs(settings: Settings) -> None:
    """Send all that is logged from now on to standard error, in the format of the settings.

    What `structlog.contextvars` hold of a request, its id and its key's name, stands in each line
    that is logged on its behalf.
    """
    json = settings.log_format == "json"
    if settings.log_format == "auto":
        json = not sys.stderr.isatty()
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                _without_others,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_json() if json else _text()),
            ],
        )
    )
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its warnings quote uploads


def _json() -> list[structlog.typing.Processor]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def _text() -> list[structlog.typing.Processor]:
    # Plain tracebacks: the richer ones show local variables, which may hold an upload.
    traceback = structlog.dev.plain_traceback
    return [
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=traceback)
    ]


def _without_others(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    event.pop("color_message", None)  # uvicorn's second spelling of the same
    event.pop("_ray_timestamp_ns", None)  # in every record, once Ray is imported
    return event
