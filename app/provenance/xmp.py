"""XMP: the few properties that say where an image comes from."""

from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

_MOST_BYTES = 1 << 20
_MOST_ELEMENTS = 20_000
_MOST_DEPTH = 64
_MOST_CHARACTERS = 1 << 16  # of one property: Draw Things' is JSON

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns# "
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/ "
_EXIF = "http://ns.adobe.com/exif/1.0/ "
_DESCRIPTION = (f"{_RDF}RDF", f"{_RDF}Description")
_NAMES = {
    f"{_IPTC}DigitalSourceType": "digital_source_type",
    f"{_IPTC}DigitalSourcefileType": "digital_source_type",  # its name before 2008
    f"{_IPTC}AISystemUsed": "ai_system_used",
    "http://ns.adobe.com/photoshop/1.0/ Credit": "credit",
    "http://ns.adobe.com/xap/1.0/ CreatorTool": "creator_tool",
    "http://purl.org/dc/elements/1.1/ description": "description",
    "http://purl.org/dc/terms/ provenance": "provenance",
    f"{_EXIF}UserComment": "user_comment",
}


@dataclass(slots=True)
class Xmp:
    """Properties of the image itself, not of what it was made of.

    Attributes:
        values: by the names of `_NAMES`, the first of each.
        broken: whether it could not be read to its end; what came before counts.
    """

    values: dict[str, str] = field(default_factory=dict)
    broken: bool = False


class _RefusedError(Exception):
    """It has what no XMP needs."""


def parse(xmp: bytes) -> Xmp:
    """Read a packet, in whichever encoding; entities and document types are refused."""
    found = Xmp(broken=len(xmp) > _MOST_BYTES)
    if found.broken:
        return found
    reader = _Reader(found.values)
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    if not xmp.startswith((b"\xff\xfe", b"\xfe\xff")):  # in UTF-16 zeros are half of a letter
        xmp = xmp.strip(b"\0 \t\r\n")  # padding
    try:
        parser.Parse(xmp, True)
    except (expat.ExpatError, _RefusedError, ValueError, LookupError):
        found.broken = True
    return found


def _refuse(*_: object) -> NoReturn:
    raise _RefusedError


class _Reader:
    """Handlers of the parser's."""

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values
        self._open: list[str] = []
        self._left = _MOST_ELEMENTS
        self._property = ""
        self._depth = 0  # of the property that is open
        self._parts: list[str] = []
        self._characters = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._left -= 1
        if self._left < 0 or len(self._open) >= _MOST_DEPTH:
            raise _RefusedError
        if tuple(self._open[-2:]) == _DESCRIPTION and len(self._open) <= 3:
            self._property, self._depth = _NAMES.get(name, ""), len(self._open)
            self._parts, self._characters = [attributes.get(f"{_RDF}resource", "")], 0
        elif self._property and any(self._parts):  # the first of several is enough
            self._keep()
        self._open.append(name)
        if tuple(self._open[-2:]) == _DESCRIPTION and len(self._open) <= 3:
            for attribute, value in attributes.items():
                if attribute in _NAMES and value.strip():
                    self._values.setdefault(_NAMES[attribute], value[:_MOST_CHARACTERS])

    def end(self, _name: str) -> None:
        self._open.pop()
        if self._property and len(self._open) == self._depth:
            self._keep()

    def text(self, text: str) -> None:
        self._characters += len(text)
        if self._property and self._characters <= _MOST_CHARACTERS:
            self._parts.append(text)

    def _keep(self) -> None:
        text = "".join(self._parts).strip()
        if text:
            self._values.setdefault(self._property, text)
            self._property = ""
        self._parts = []
