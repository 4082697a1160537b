"""NS-Net (arXiv 2508.01248): telling AI-generated images from photographs.

Picture -> Look -> CLIP image tower -> null-space projection -> head -> calibrated Score -> Verdict.
Nothing here knows of HTTP. The names below are loaded when they are first asked for: torch takes
seconds to import, and much of what lies in this package does without it.
"""

from importlib import import_module
from importlib.metadata import version as _version_of
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.detector import Detection as Detection
    from model.detector import Detector as Detector
    from model.detector import load as load
    from model.verdicts import Verdict as Verdict

__all__ = ["Detection", "Detector", "Verdict", "__version__", "load"]

_HOMES = {
    "Detection": "model.detector",
    "Detector": "model.detector",
    "Verdict": "model.verdicts",
    "load": "model.detector",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version_of("nsnet")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
