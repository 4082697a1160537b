"""The errors that `model` raises for its caller to show; each message names the fix."""


class ModelError(Exception):
    """Base of every error here: one clear line, safe to print to whoever runs the service."""


class BackboneError(ModelError):
    """The CLIP tower cannot be had, or its weights do not fit the architecture."""


class CheckpointError(ModelError):
    """A checkpoint is missing, malformed, or was made for another backbone."""


class ImageTooSmallError(ModelError, ValueError):
    """An image has a side below the smallest that patch selection accepts.

    Attributes:
        min_side: smallest accepted side, in pixels.
    """

    def __init__(self, width: int, height: int, min_side: int) -> None:
        super().__init__(f"image is {width} x {height} px; both sides must be >= {min_side} px")
        self.min_side = min_side
