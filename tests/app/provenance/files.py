"""Files that say where they come from, as generators, editors and cameras write them."""

import io
import struct
import zlib

import pillow_heif
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.images import chunk, encoded, photo, png_with, segment

pillow_heif.register_heif_opener()

PROMPT = "a lighthouse that nobody but its author has thought of"
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
A1111 = (
    f"{PROMPT}\nNegative prompt: {PROMPT}\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, "
    "Seed: 965400086, Size: 512x512, Model hash: 6ce0161689, Model: v1-5-pruned, Version: v1.7.0"
)
COMFYUI = f'{{"3": {{"inputs": {{"text": "{PROMPT}"}}, "class_type": "CLIPTextEncode"}}}}'
WORKFLOW = '{"last_node_id": 9, "last_link_id": 9, "nodes": [], "links": []}'
INVOKEAI = (
    f'{{"generation_mode": "txt2img", "positive_prompt": "{PROMPT}", "seed": 1, "steps": 30}}'
)
SD_METADATA = '{"model": "stable diffusion", "model_hash": "", "app_id": "invoke-ai/InvokeAI"}'
DREAM = f'"{PROMPT}" -s50 -W512 -H512 -C7.5 -Ak_lms -S1554095076'
SWARMUI = f'{{"sui_image_params": {{"prompt": "{PROMPT}", "seed": 1, "steps": 20}}}}'
MIDJOURNEY = f"{PROMPT} --ar 3:2 --v 6 Job ID: a7421d2f-b262-44f9-977c-ac23e9c7d3e3"
NOVELAI = f'{{"prompt": "{PROMPT}", "steps": 28, "sampler": "k_euler", "uc": "{PROMPT}"}}'
DRAW_THINGS = f'{{"c": "{PROMPT}", "model": "sd", "sampler": "Euler a", "seed": 1, "uc": ""}}'
FOOOCUS = f'{{"prompt": "{PROMPT}", "metadata_scheme": "fooocus", "version": "Fooocus v2.5.5"}}'

_NAMESPACES = (
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/" '
    'xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" '
    'xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:dcterms="http://purl.org/dc/terms/" '
    'xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/"'
)


def packet(properties: str = "", attributes: str = "") -> bytes:
    """An XMP packet with these elements, and these attributes, of its description."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {_NAMESPACES}>'
        f'<rdf:Description rdf:about="" {attributes}>{properties}</rdf:Description>'
        '</rdf:RDF></x:xmpmeta>\n<?xpacket end="w"?>'
    ).encode()


def sourced(source_type: str = "trainedAlgorithmicMedia") -> bytes:
    """An XMP packet with a digital source type."""
    return packet(attributes=f'Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPES}{source_type}"')


def exif(*, comment: bytes = b"", **texts: str) -> bytes:
    """EXIF with a UserComment, and texts: ImageDescription, Make, Model, Software."""
    tags = {"ImageDescription": 0x010E, "Make": 0x010F, "Model": 0x0110, "Software": 0x0131}
    data = Image.Exif()
    for name, text in texts.items():
        data[tags[name]] = text
    if comment:
        data.get_ifd(0x8769)[0x9286] = comment
    return data.tobytes().removeprefix(b"Exif\0\0")


def camera() -> bytes:
    """EXIF as a camera writes it."""
    return exif(Make="Panasonic", Model="DMC-ZS60", Software="Ver.1.0")


def with_metadata(codec: str, *, exif: bytes = b"", xmp: bytes = b"", seed: int = 0) -> bytes:
    """An image of a format, as Pillow names it, with EXIF and XMP."""
    image = photo(seed=seed)
    if codec == "PNG":
        extra = PngInfo()
        if xmp:
            extra.add_itxt("XML:com.adobe.xmp", xmp.decode())
        return encoded(image, "PNG", pnginfo=extra, **({"exif": exif} if exif else {}))
    if codec == "TIFF":
        tags = Image.Exif()
        if exif:
            tags.load(exif)
        if xmp:
            tags[700] = xmp
        return encoded(image, "TIFF", exif=tags)
    if codec == "GIF":
        data = encoded(image, "GIF")
        trailer = b"\x01" + bytes(range(255, -1, -1)) + b"\0"
        return data[:-1] + b"!\xff\x0bXMP DataXMP" + xmp + trailer + b";"
    options = {"exif": b"Exif\0\0" + exif} if exif else {}
    return encoded(image, codec, **options, **({"xmp": xmp} if xmp else {}))


def text_chunk(keyword: str, text: str) -> bytes:
    """PNG's tEXt."""
    return chunk(b"tEXt", keyword.encode("latin-1") + b"\0" + text.encode("latin-1"))


def packed_chunk(keyword: str, packed: bytes) -> bytes:
    """PNG's zTXt, of what is packed already."""
    return chunk(b"zTXt", keyword.encode("latin-1") + b"\0\0" + packed)


def international_chunk(keyword: str, text: str, *, packed: bool = False) -> bytes:
    """PNG's iTXt."""
    body = zlib.compress(text.encode()) if packed else text.encode()
    flags = struct.pack("BB", packed, 0)
    return chunk(b"iTXt", keyword.encode("latin-1") + b"\0" + flags + b"en\0word\0" + body)


def png_of(**texts: str) -> bytes:
    """A PNG with texts; a space in a keyword is written as _."""
    return png_with(*(text_chunk(name.replace("_", " "), text) for name, text in texts.items()))


def user_comment(text: str) -> bytes:
    """EXIF's UserComment, as A1111 writes it."""
    return b"UNICODE\0" + text.encode("utf-16-be")


def comment_segment(text: str) -> bytes:
    """JPEG's comment."""
    return segment(0xFE, text.encode())


def reencoded(data: bytes) -> bytes:
    """The pixels of a file, as a PNG without anything else."""
    with Image.open(io.BytesIO(data)) as image:
        return encoded(image.convert("RGB"), "PNG")
