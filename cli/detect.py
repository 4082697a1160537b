"""`nsnet detect`: image files scored here, or by a server."""

import contextlib
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.environment import UsageError, read_settings, shown

if TYPE_CHECKING:
    from app.settings import Settings
    from model.images import Limits

_STDIN = "-"
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")

Answer = dict[str, Any]
"""What is said of an image: its verdict, or `error` and its `code`."""


def detect(
    paths: Annotated[
        list[str], typer.Argument(help="images, folders of them, or - for one on standard input")
    ],
    json_lines: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
    server: Annotated[
        str | None,
        typer.Option(help="http://HOST:PORT of one that scores them; its key: NSNET_API_KEYS"),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="add evidence: views with scores of their own")
    ] = False,
) -> None:
    """Score image files, here or on a server: a line each, in their order.

    Of a folder, those are taken whose names end as images' do, hidden ones left out.

    The exit status is 1 if any could not be scored.
    """
    names = list(_names(paths))
    if not names:
        raise UsageError(f"no images in {' and '.join(paths)}")
    failed = False
    with contextlib.ExitStack() as stack:
        if server is None:
            score = stack.enter_context(_scorer(read_settings(), explain=explain))
            answers: Iterator[Answer] = map(score, names)
        else:
            from cli.remote import Remote

            answers = stack.enter_context(Remote(server, _read, explain=explain)).answers(names)
        for name, answer in zip(names, answers, strict=True):
            failed |= "error" in answer
            line = json.dumps({"path": name, **answer}) if json_lines else _line(name, answer)
            print(line, flush=True)
    raise typer.Exit(int(failed))


def _names(paths: list[str]) -> Iterator[str]:
    """What is to be scored: files as they were named, and each of a folder's images."""
    from model.data.manifest import images_in

    for path in paths:
        if stat.S_ISDIR(_mode(path)):
            unreadable: list[OSError] = []
            yield from sorted(map(str, images_in(Path(path), unreadable.append)))
            yield from (error.filename for error in unreadable)
        else:
            yield path


def _line(name: str, answer: Answer) -> str:
    """An answer for people, its columns below those of the others."""
    if "error" in answer:
        return shown(f"{'error':<12}  {'-':<5}  {name}: {answer['error']}")
    columns = (f"{answer['verdict']:<12}", f"{answer['score']:.3f}", name)
    provenance = answer.get("provenance") or {}
    declares = provenance.get("declares", "nothing")
    declared = () if declares == "nothing" else (f"declares {declares}",)
    if provenance.get("c2pa", {}).get("status") == "invalid":
        declared = (*declared, "credentials invalid")
    windows = (answer.get("evidence") or {}).get("windows")
    highest = (_highest(windows),) if windows else ()
    return shown("  ".join((*columns, *answer["warnings"], *declared, *highest)))


def _highest(windows: list[Answer]) -> str:
    """The window that looks most generated."""
    window = max(windows, key=lambda window: float(window["log_odds"]))
    box, said = window["box"], window["log_odds"]
    where = f"{box['left']},{box['top']}-{box['right']},{box['bottom']}"
    return f"highest window {where} (log-odds {said:+.1f})"


@contextlib.contextmanager
def _scorer(chosen: "Settings", *, explain: bool) -> Iterator[Callable[[str], Answer]]:
    """What scores one image after another; whatever is wrong with one, the next has its turn."""
    from app.evidence import write_evidence
    from app.local import load_detector, make_decoders
    from app.metrics import Metrics
    from model.errors import ImageError

    decoders = make_decoders(chosen.model_copy(update={"decode_workers": 1}), Metrics())
    decoders.start()
    try:
        detector = load_detector(chosen)
        limits = chosen.limits(detector.about.min_side)

        def score(name: str) -> Answer:
            try:
                data = _read(name, limits)
                if chosen.provenance:
                    picture, provenance, *_ = decoders.inspect([data], limits)
                else:
                    picture, provenance = decoders.decode([data], limits), None
                [detection] = detector.detect([picture.pixels], explain=explain)
            except ImageError as error:
                return {"error": str(error), "code": error.code}
            except Exception as error:  # noqa: BLE001  (a bug, or no memory)
                text = f"The image could not be handled: {type(error).__name__}."
                return {"error": text, "code": "internal_error"}
            answer: Answer = {
                "verdict": detection.verdict.value,
                "score": round(detection.score, 6),
                "looks": detection.looks,
                "warnings": [*picture.facts.warnings, *detection.warnings],
                "provenance": provenance and provenance.model_dump(),
            }
            if detection.evidence is not None:
                answer["evidence"] = write_evidence(detection.evidence, None).model_dump()
            return answer

        yield score
    finally:
        decoders.stop()


def _read(name: str, limits: "Limits") -> bytes:
    """An image's bytes.

    Raises:
        ImageError: unreadable.
    """
    from model.images import ImageError, read_file

    if name == _STDIN:
        if sys.stdin is None or sys.stdin.isatty():
            raise ImageError("unreadable", "No image comes on standard input.")
        return sys.stdin.buffer.read(limits.max_bytes + 1)
    mode = _mode(name)
    if _URL.match(name) and not mode:
        raise ImageError("unreadable", "URLs are not fetched: download the image first.")
    if stat.S_ISDIR(mode):
        raise ImageError("unreadable", "The folder cannot be listed.")
    if stat.S_ISFIFO(mode):
        raise ImageError("unreadable", "It is a pipe: pipe it into `nsnet detect -`.")
    return read_file(Path(name), limits)


def _mode(name: str) -> int:
    """The kind of file that there is by a name; 0 where there is none, or can be none."""
    try:
        return os.stat(name).st_mode  # noqa: PTH116  (as a Path, an empty name is this folder)
    except OSError:
        return 0
