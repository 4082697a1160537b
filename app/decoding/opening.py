"""Upload -> picture, as every engine has it: whatever is wrong with a file is an answer."""

import logging
import time

from app.decoding.pool import Decoders, DecodersError, Opened
from app.errors import ApiError, from_image, overloaded, unexpected
from app.intake.uploads import Upload
from app.settings import Settings
from model.images import ImageError

log = logging.getLogger(__name__)


def open_upload(
    decoders: Decoders, upload: Upload, settings: Settings, min_side: int, identifier: str
) -> Opened | ApiError:
    """Decode an upload, and read what it declares where the settings want that. For a thread.

    Errors are returned: what is raised holds on to whatever was under way.

    Args:
        decoders: started.
        upload: the file; taken from it.
        settings: the service's.
        min_side: smallest side that the detector takes, pixels.
        identifier: of the request, for the log.
    """
    limits = settings.limits(min_side)
    start = time.monotonic()
    try:
        if settings.provenance:
            opened = decoders.inspect(upload.parts(), limits)
        else:
            opened = Opened(decoders.decode(upload.parts(), limits), None)
        return opened._replace(took_s=time.monotonic() - start)
    except ImageError as error:
        return from_image(error)
    except DecodersError:
        return overloaded()
    except Exception as error:  # noqa: BLE001  (a bug)
        return unexpected(log, error, identifier)
