"""What a file declares, in the shape of `ProvenanceOut`: first what nobody signed."""

from typing import Any

from app.provenance import parameters, tiff, xmp
from app.provenance.containers import Blobs
from app.provenance.vocabulary import (
    AI_EDITED,
    AI_GENERATED,
    CAMERA,
    NOTHING,
    credited,
    gravest,
    is_none,
    printable,
    product,
    software,
    source_type,
)

Report = dict[str, Any]
"""`ProvenanceOut`, or one source of it, as JSON has it."""

_MOST_VALUE_BYTES = 1 << 20
_EXIF_TAGS = {tiff.DESCRIPTION, tiff.MAKE, tiff.MODEL, tiff.SOFTWARE, tiff.USER_COMMENT}
_ENCODINGS = {b"ASCII\0\0\0": "ascii", b"UNICODE\0": "utf-16", b"\0\0\0\0\0\0\0\0": "utf-8"}


def unsigned(blobs: Blobs) -> Report:
    """What a file declares without a signature; a C2PA manifest in it is yet to be checked."""
    values = xmp.parse(blobs.xmp) if blobs.xmp else xmp.Xmp()
    tags = tiff.tags(blobs.exif, _EXIF_TAGS, most_bytes=_MOST_VALUE_BYTES) if blobs.exif else {}
    texts = dict(blobs.texts)
    for keyword, tag in (
        ("ImageDescription", tiff.DESCRIPTION),
        ("Make", tiff.MAKE),
        ("Model", tiff.MODEL),
    ):
        if tags.get(tag):
            texts[keyword] = _text(tags[tag])
    if comment := tags.get(tiff.USER_COMMENT):
        texts["UserComment"] = _comment(comment)
    for keyword, name in (("UserComment", "user_comment"), ("Description", "description")):
        if name in values.values:
            texts.setdefault(keyword, values.values[name])
    # A manifest that is elsewhere is there, too, and is not checked either.
    has_manifest = blobs.c2pa or "provenance" in values.values
    sources = {
        "c2pa": manifest("unverified" if has_manifest else "absent"),
        "iptc": _iptc(values),
        "xmp": _xmp(values),
        "exif": _exif(tags),
        "parameters": _parameters(texts),
    }
    return {"declares": summary(sources), **sources}


def with_credentials(report: Report, credentials: Report) -> Report:
    """A report whose manifest has been checked."""
    checked = report | {"c2pa": credentials}
    return checked | {"declares": summary(checked)}


def unread() -> Report:
    """Of a file that was the end of who read it: whatever it declares was not checked."""
    return {
        "declares": NOTHING,
        "c2pa": manifest("unverified"),
        "iptc": _source("unverified", NOTHING, digital_source_type=None, ai_system_used=None),
        "xmp": _source("unverified", NOTHING, creator_tool=None),
        "exif": _source("unverified", NOTHING, software=None, make=None, model=None),
        "parameters": _source("unverified", NOTHING, generator=None),
    }


def manifest(status: str) -> Report:
    """A C2PA manifest of which nothing is known."""
    return {
        "status": status,
        "declares": NOTHING,
        "signer": None,
        "issuer": None,
        "trusted": None,
        "signed_at": None,
        "claim_generator": None,
        "digital_source_type": None,
        "actions": [],
        "ingredients": [],
        "failures": [],
    }


def summary(sources: Report) -> str:
    """The gravest of what the sources declare that are not invalid."""
    names = ("c2pa", "iptc", "xmp", "exif", "parameters")
    return gravest(
        sources[name]["declares"] for name in names if sources[name]["status"] != "invalid"
    )


def _source(status: str, declares: str, **values: str | None) -> Report:
    return {"status": status, "declares": declares, **values}


def _present(declares: str, **values: str | None) -> Report:
    """An unsigned source, absent where it has no value."""
    status = "unverified" if any(values.values()) or declares != NOTHING else "absent"
    return _source(status, declares, **values)


def _iptc(found: xmp.Xmp) -> Report:
    """The source type; what else is said counts beside it, as an edit at most."""
    name, declares = source_type(found.values.get("digital_source_type"))
    system = printable(found.values.get("ai_system_used"))
    credit = credited(printable(found.values.get("credit")))
    said = [declares]
    if system and not is_none(system):  # a photograph that was denoised by one has it, too
        said.append(AI_EDITED)
    if credit != NOTHING:
        said.append(credit if declares == NOTHING else AI_EDITED)
    return _present(gravest(said), digital_source_type=name, ai_system_used=product(system))


def _xmp(found: xmp.Xmp) -> Report:
    tool = product(found.values.get("creator_tool"))
    if found.broken and tool is None:
        return _source("unverified", NOTHING, creator_tool=None)
    return _present(software(tool), creator_tool=tool)


def _exif(tags: dict[int, bytes]) -> Report:
    program, make, model = (
        product(_text(tags.get(tag, b""))) for tag in (tiff.SOFTWARE, tiff.MAKE, tiff.MODEL)
    )
    camera = CAMERA if make and model else NOTHING
    declares = gravest([camera, software(program)])
    return _present(declares, software=program, make=make, model=model)


def _parameters(texts: dict[str, str]) -> Report:
    name = parameters.generator(texts)
    return _present(AI_GENERATED if name else NOTHING, generator=name)


def _text(value: bytes) -> str:
    """A text of EXIF, which ends at a zero."""
    return value.partition(b"\0")[0].decode(errors="replace")


def _comment(value: bytes) -> str:
    """EXIF's UserComment, whose first eight bytes say how it is coded."""
    encoding, text = _ENCODINGS.get(value[:8], "utf-8"), value[8:]
    if encoding == "utf-16":  # by the order of the file or not, as the writer liked
        encoding = "utf-16-be" if text[:1] == b"\0" else "utf-16-le"
    return text.decode(encoding, errors="replace")
