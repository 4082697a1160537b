"""What a file declares without a signature, of every source and in sum; and never more."""

import json

import pytest

from app.provenance.containers import Blobs, blobs
from app.provenance.report import manifest, unread, unsigned, with_credentials
from app.schemas import ProvenanceOut
from tests.app.provenance.files import (
    A1111,
    COMFYUI,
    DRAW_THINGS,
    MIDJOURNEY,
    PROMPT,
    camera,
    exif,
    packet,
    png_of,
    sourced,
    user_comment,
    with_metadata,
)
from tests.images import encoded, jpeg, photo


def declared(data: bytes) -> ProvenanceOut:
    return ProvenanceOut.model_validate(unsigned(blobs(data)))


@pytest.mark.parametrize("codec", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF", "GIF", "BMP"])
def test_a_file_that_says_nothing_declares_nothing(codec: str) -> None:
    found = declared(encoded(photo(), codec))
    assert found.declares == "nothing"
    sources = (found.c2pa, found.iptc, found.xmp, found.exif, found.parameters)
    assert {source.status for source in sources} == {"absent"}
    assert {source.declares for source in sources} == {"nothing"}


@pytest.mark.parametrize("codec", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF", "GIF"])
def test_iptc_is_read_in_every_format(codec: str) -> None:
    found = declared(with_metadata(codec, xmp=sourced()))
    assert found.declares == "ai_generated"
    assert found.iptc.status == "unverified"
    assert found.iptc.digital_source_type == "trainedAlgorithmicMedia"


@pytest.mark.parametrize("codec", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF"])
def test_a_camera_is_told_in_every_format(codec: str) -> None:
    found = declared(with_metadata(codec, exif=camera()))
    assert found.declares == found.exif.declares == "camera"
    assert (found.exif.make, found.exif.model) == ("Panasonic", "DMC-ZS60")


@pytest.mark.parametrize("codec", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF"])
def test_parameters_in_exif_are_told_in_every_format(codec: str) -> None:
    found = declared(with_metadata(codec, exif=exif(comment=user_comment(A1111))))
    assert found.declares == "ai_generated"
    assert found.parameters.generator == "Stable Diffusion web UI"


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
def test_a_comment_is_read_in_either_order(order: str) -> None:
    comment = b"UNICODE\0" + A1111.encode(order)
    assert declared(with_metadata("JPEG", exif=exif(comment=comment))).declares == "ai_generated"


@pytest.mark.parametrize(
    ("properties", "declares"),
    [
        ("<Iptc4xmpExt:AISystemUsed>A system</Iptc4xmpExt:AISystemUsed>", "ai_edited"),
        ("<Iptc4xmpExt:AISystemUsed>None</Iptc4xmpExt:AISystemUsed>", "nothing"),
        ("<Iptc4xmpExt:AISystemUsed>n/a</Iptc4xmpExt:AISystemUsed>", "nothing"),
        ("<photoshop:Credit>Made with Google AI</photoshop:Credit>", "ai_generated"),
        ("<photoshop:Credit>Edited with Google AI</photoshop:Credit>", "ai_edited"),
        ("<photoshop:Credit>OpenAI/Handout via REUTERS</photoshop:Credit>", "nothing"),
        ("<xmp:CreatorTool>Lightroom (no Midjourney)</xmp:CreatorTool>", "software"),
        ("<xmp:CreatorTool>Adobe Firefly</xmp:CreatorTool>", "ai_generated"),
        ("<xmp:CreatorTool>Adobe Photoshop 25.0 (Windows)</xmp:CreatorTool>", "software"),
        (f"<dc:description>{MIDJOURNEY}</dc:description>", "ai_generated"),
        (f"<exif:UserComment>{DRAW_THINGS}</exif:UserComment>", "ai_generated"),
    ],
)
def test_properties_of_xmp_declare(properties: str, declares: str) -> None:
    assert declared(with_metadata("PNG", xmp=packet(properties))).declares == declares


@pytest.mark.parametrize(
    ("source_type", "declares"),
    [
        ("trainedAlgorithmicMedia", "ai_generated"),
        ("compositeWithTrainedAlgorithmicMedia", "ai_edited"),
        ("algorithmicallyEnhanced", "ai_edited"),
        ("digitalCapture", "ai_edited"),
    ],
)
@pytest.mark.parametrize(
    "beside",
    ['Iptc4xmpExt:AISystemUsed="Topaz DeNoise AI"', 'photoshop:Credit="Made with Google AI"'],
)
def test_beside_a_source_type_the_rest_tells_of_an_edit_at_most(
    source_type: str, declares: str, beside: str
) -> None:
    xmp = sourced(source_type).replace(b'rdf:about=""', f'rdf:about="" {beside}'.encode())
    assert declared(with_metadata("JPEG", xmp=xmp)).iptc.declares == declares


@pytest.mark.parametrize("value", ["", "None", "N/A"])
def test_a_template_that_was_not_filled_in_leaves_a_photograph_one(value: str) -> None:
    beside = f'rdf:about="" Iptc4xmpExt:AISystemUsed="{value}" dcterms:provenance=""'
    xmp = sourced("digitalCapture").replace(b'rdf:about=""', beside.encode())
    found = declared(with_metadata("JPEG", exif=camera(), xmp=xmp))
    assert (found.declares, found.c2pa.status) == ("camera", "absent")


def test_where_the_source_type_says_how_the_credit_adds_nothing() -> None:
    xmp = sourced("compositeWithTrainedAlgorithmicMedia").replace(
        b"</rdf:Description>",
        b"<photoshop:Credit>Made with Google AI</photoshop:Credit></rdf:Description>",
    )
    assert declared(with_metadata("JPEG", xmp=xmp)).declares == "ai_edited"


def test_the_gravest_source_is_the_sum() -> None:
    found = declared(with_metadata("JPEG", exif=camera(), xmp=sourced("compositeSynthetic")))
    assert (found.exif.declares, found.iptc.declares, found.declares) == (
        "camera",
        "ai_edited",
        "ai_edited",
    )


def test_a_make_without_a_model_is_no_camera() -> None:
    assert declared(with_metadata("JPEG", exif=exif(Make="Panasonic"))).declares == "nothing"
    found = declared(with_metadata("JPEG", exif=exif(Software="GIMP 2.10")))
    assert found.declares == "software"


def test_a_manifest_that_is_elsewhere_is_told_and_not_fetched() -> None:
    xmp = packet(attributes='dcterms:provenance="https://cai.example/manifest"')
    assert declared(with_metadata("JPEG", xmp=xmp)).c2pa.status == "unverified"


def test_broken_xmp_is_there_and_says_nothing() -> None:
    found = declared(with_metadata("JPEG", xmp=b"<x:xmpmeta"))
    assert (found.xmp.status, found.xmp.declares) == ("unverified", "nothing")


@pytest.mark.parametrize(
    "data",
    [
        png_of(parameters=A1111),
        png_of(prompt=COMFYUI, workflow=COMFYUI),
        png_of(Description=MIDJOURNEY, Author="a person"),
        with_metadata("JPEG", exif=exif(comment=user_comment(A1111), ImageDescription=MIDJOURNEY)),
        with_metadata("WEBP", exif=exif(Make=f"workflow:{COMFYUI}", Model=f"prompt:{COMFYUI}")),
        with_metadata("WEBP", exif=exif(Make="A maker", Model=f"prompt:{{{PROMPT}}}")),
        with_metadata("JPEG", xmp=packet(f"<exif:UserComment>{DRAW_THINGS}</exif:UserComment>")),
        with_metadata("JPEG", xmp=packet(f"<photoshop:Credit>{PROMPT}</photoshop:Credit>")),
    ],
)
def test_no_prompt_and_no_person_is_told(data: bytes) -> None:
    told = json.dumps(unsigned(blobs(data)))
    assert "lighthouse" not in told
    assert "a person" not in told


def test_a_manifest_that_was_checked_counts_unless_it_is_invalid() -> None:
    report = unsigned(Blobs(c2pa=True, exif=camera()))
    assert report["c2pa"]["status"] == "unverified"
    generated = {"declares": "ai_generated"}
    assert with_credentials(report, manifest("valid") | generated)["declares"] == "ai_generated"
    assert with_credentials(report, manifest("invalid") | generated)["declares"] == "camera"


def test_of_what_was_not_read_nothing_is_said() -> None:
    found = ProvenanceOut.model_validate(unread())
    sources = (found.c2pa, found.iptc, found.xmp, found.exif, found.parameters)
    assert {source.status for source in sources} == {"unverified"}
    assert found.declares == "nothing"


def test_the_order_of_a_files_bytes_does_not_matter() -> None:
    """EXIF of either byte order says the same."""
    little = with_metadata("JPEG", exif=camera())
    big = Blobs(exif=b"MM\0*\0\0\0\x08\0\x02" + _entry(0x10F, b"Can\0") + _entry(0x110, b"EOS\0"))
    assert declared(little).exif.declares == unsigned(big)["exif"]["declares"] == "camera"
    assert declared(jpeg()).exif.declares == "nothing"


def _entry(tag: int, value: bytes) -> bytes:
    return tag.to_bytes(2) + b"\0\x02" + len(value).to_bytes(4) + value
