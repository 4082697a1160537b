"""XMP in every way it is written; and what no XMP needs is refused."""

import time

import pytest

from app.provenance.xmp import parse
from tests.app.provenance.files import PROMPT, SOURCE_TYPES, packet, sourced

AI = f"{SOURCE_TYPES}trainedAlgorithmicMedia"


@pytest.mark.parametrize(
    "xmp",
    [
        sourced(),
        packet(f"<Iptc4xmpExt:DigitalSourceType>{AI}</Iptc4xmpExt:DigitalSourceType>"),
        packet(
            f"<Iptc4xmpExt:DigitalSourceType> <![CDATA[{AI}]]> </Iptc4xmpExt:DigitalSourceType>"
        ),
        packet(f'<Iptc4xmpExt:DigitalSourceType rdf:resource="{AI}"/>'),
        packet(
            "<Iptc4xmpExt:DigitalSourceType>\n <rdf:Bag>\n "
            f"<rdf:li>{AI}</rdf:li> <rdf:li>another</rdf:li></rdf:Bag>"
            "</Iptc4xmpExt:DigitalSourceType>"
        ),
        sourced().replace(b"Iptc4xmpExt:", b"any:").replace(b":Iptc4xmpExt", b":any"),
        sourced().replace(b"<x:xmpmeta", b"<!-- x --><x:xmpmeta"),
        sourced()[sourced().index(b"<rdf:RDF") : sourced().index(b"</x:xmpmeta")],
        sourced() + b"\0" * 2000,
        b"\n  " + sourced()[sourced().index(b"<x:") :],
        sourced().decode().encode("utf-16"),
        b"\xfe\xff" + sourced().decode().encode("utf-16-be"),
    ],
)
def test_a_property_is_read_however_it_is_written(xmp: bytes) -> None:
    found = parse(xmp)
    assert found.values == {"digital_source_type": AI}
    assert not found.broken


def test_what_belongs_to_another_image_is_not_read() -> None:
    other = f'<rdf:Description Iptc4xmpExt:DigitalSourceType="{AI}" xmp:CreatorTool="Midjourney"/>'
    found = parse(
        packet(
            f"<xmpMM:DerivedFrom>{other}</xmpMM:DerivedFrom>"
            f"<xmpMM:Ingredients><rdf:Bag><rdf:li>{other}</rdf:li></rdf:Bag></xmpMM:Ingredients>"
        )
    )
    assert found.values == {}


@pytest.mark.parametrize("value", ["", " ", "&#10;"])
def test_an_empty_attribute_is_not_there_as_an_empty_element_is_not(value: str) -> None:
    found = parse(
        packet(
            "<xmp:CreatorTool> </xmp:CreatorTool>",
            f'Iptc4xmpExt:AISystemUsed="{value}" dcterms:provenance="{value}"',
        )
    )
    assert found.values == {}


def test_several_properties_and_descriptions_are_read() -> None:
    xmp = packet(
        "<photoshop:Credit>Made with Google AI</photoshop:Credit>"
        f"<dc:description><rdf:Alt><rdf:li>{PROMPT}</rdf:li></rdf:Alt></dc:description>",
        'xmp:CreatorTool="A tool"',
    ).replace(
        b"</rdf:RDF>",
        b"<rdf:Description><Iptc4xmpExt:AISystemUsed>A system</Iptc4xmpExt:AISystemUsed>"
        b"</rdf:Description></rdf:RDF>",
    )
    assert parse(xmp).values == {
        "credit": "Made with Google AI",
        "description": PROMPT,
        "creator_tool": "A tool",
        "ai_system_used": "A system",
    }


LAUGHS = (
    b'<!DOCTYPE x [<!ENTITY a "ha">'
    + b"".join(
        b'<!ENTITY %c "%s">' % (98 + level, b"&%c;" % (97 + level) * 10) for level in range(9)
    )
    + b"]>"
)


@pytest.mark.parametrize(
    "head",
    [
        LAUGHS,
        b'<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">',
        b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
        b"<!DOCTYPE x>",
    ],
)
def test_document_types_and_entities_are_refused(head: bytes) -> None:
    body = packet(attributes='xmp:CreatorTool="&a;"')[len("<?xpacket") :]
    xmp = head + body[body.index(b"<x:") :]
    start = time.process_time()
    assert parse(xmp).values == {}
    assert parse(xmp).broken
    assert parse(xmp.decode().encode("utf-16")).broken
    assert time.process_time() - start < 0.2


@pytest.mark.parametrize(
    "middle",
    [
        b"<a>" * 300_000,
        b"<a/>" * 250_000,
        b"<a " + b" ".join(b'a%d=""' % number for number in range(80_000)) + b"/>",
        b"<dc:description>" + b"x" * 1_000_000 + b"</dc:description>",
        b"&#120;" * 170_000,
        b"<!---->" * 140_000,
    ],
)
def test_no_packet_is_long_read_and_what_came_before_counts(middle: bytes) -> None:
    xmp = packet("@", 'xmp:CreatorTool="A tool"').replace(b"@", middle)
    start = time.process_time()
    found = parse(xmp)
    assert time.process_time() - start < 0.5
    assert found.values.get("creator_tool") == "A tool"
    assert len(found.values.get("description", "")) <= 1 << 16


def test_a_packet_beyond_the_bound_is_not_read() -> None:
    found = parse(sourced() + b" " * (1 << 20))
    assert found.broken
    assert found.values == {}


@pytest.mark.parametrize(
    "xmp", [b"", b"\0", b"\xff\xfe", b"<", b"<a>", b"\xff" * 99, b"<a b='\xff'/>"]
)
def test_what_is_no_xml_is_broken(xmp: bytes) -> None:
    assert parse(xmp).broken
    assert parse(xmp).values == {}
