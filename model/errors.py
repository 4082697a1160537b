"""The errors that `model` raises for its caller to show; each message names the fix."""


class ModelError(Exception):
    """Base of every error here: one clear line, safe to print to whoever runs the service."""


class BackboneError(ModelError):
    """The CLIP tower cannot be had, or its weights do not fit the architecture."""


class CheckpointError(ModelError):
    """A checkpoint is missing, malformed, or was made for another backbone."""


class ImageError(ModelError, ValueError):
    """An image is not read, or not judged.

    Args:
        code: why, as the service's catalogue of errors has it; `unreadable` where the file itself
            cannot be read.
        text: one sentence for whoever sent the image.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        """Another process is told the same."""
        return ImageError, (self.code, str(self))


class ImageTooSmallError(ImageError):
    """An image has a side below the smallest that can be judged.

    Args:
        width: of the image, pixels.
        height: likewise.
        min_side: smallest accepted side, pixels.
    """

    def __init__(self, width: int, height: int, min_side: int) -> None:
        super().__init__(
            "image_too_small",
            f"Both sides must have {min_side} pixels or more to be judged; "
            f"this image has {width} x {height}.",
        )
        self.min_side = min_side
