"""Images: a file's bytes in, upright sRGB pixels out, by one rule for training and serving.

Which bytes are decoded at all, and at what cost at most, is decided from headers, before a pixel is
decoded. Hostile bytes give an `ImageError`. Loads numpy and Pillow, and nothing heavier.
"""

from model.errors import ImageError
from model.images.formats import FORMATS, SUFFIXES, Format, decode, read_file, read_picture
from model.images.picture import Facts, Limits, Picture

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "Facts",
    "Format",
    "ImageError",
    "Limits",
    "Picture",
    "decode",
    "read_file",
    "read_picture",
]
