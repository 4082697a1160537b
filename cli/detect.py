"""`nsnet detect`: image files scored here, without a server."""

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
) -> None:
    """Score image files here, without a server: a line each, as soon as it is known.

    Of a folder, those are taken whose names end as images' do, hidden ones left out.

    The exit status is 1 if any could not be scored.
    """
    chosen = read_settings()
    names = list(_names(paths))
    if not names:
        raise UsageError(f"no images in {' and '.join(paths)}")
    failed = False
    with _scorer(chosen) as score:
        for name in names:
            answer = score(name)
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
        return f"{'error':<12}  {'-':<5}  {shown(name)}: {answer['error']}"
    columns = (f"{answer['verdict']:<12}", f"{answer['score']:.3f}", shown(name))
    return "  ".join((*columns, *answer["warnings"]))


@contextlib.contextmanager
def _scorer(chosen: "Settings") -> Iterator[Callable[[str], Answer]]:
    """What scores one image after another; whatever is wrong with one, the next has its turn."""
    from app.decoding.pool import Decoders
    from app.service import load_detector
    from model.errors import ImageError

    decoders = Decoders(
        1, cpu_s=chosen.decode_cpu_s, wall_s=chosen.deadline_s, replaced=lambda _: None
    )
    decoders.start()
    try:
        detector = load_detector(chosen)
        limits = chosen.limits(detector.about.min_side)

        def score(name: str) -> Answer:
            try:
                picture = decoders.decode([_read(name, limits)], limits)
                [detection] = detector.detect([picture.pixels])
            except ImageError as error:
                return {"error": str(error), "code": error.code}
            except Exception as error:  # noqa: BLE001  (a bug, or no memory)
                text = f"The image could not be handled: {type(error).__name__}."
                return {"error": text, "code": "internal_error"}
            return {
                "verdict": detection.verdict.value,
                "score": round(detection.score, 6),
                "looks": detection.looks,
                "warnings": [*picture.facts.warnings, *detection.warnings],
            }

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
