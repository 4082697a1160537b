"""What it costs to read what a file declares of its origin, beside decoding it.

    python benchmarks/provenance.py [--side 512] [--images 40] [--rounds 10]

Of each kind of file: milliseconds of reading alone, in this process; then decoded in a process of
the service's, with and without reading what it declares, image by image in turn. Medians. A file
that declares nothing and costs more than 2 ms makes the exit status 1.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from io import BytesIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app.decoding.pool import Decoders
from app.provenance.declarations import Declarations
from benchmarks.memory import photograph
from benchmarks.signing import signed
from model.images import Limits

MOST_MS = 2.0
_XMP = """<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:CreatorTool="A tool"
Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"/>
</rdf:RDF></x:xmpmeta><?xpacket end="w"?>""".replace("\n", " ")
_PARAMETERS = (
    "a lighthouse\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, "
    "Size: 512x512, Model hash: 6ce0161689, Model: v1-5-pruned, Version: v1.7.0"
)


def kinds(side: int) -> dict[str, bytes]:
    """Files of one picture that say more and more of it.

    Args:
        side: of the square whose area the picture has, pixels.
    """
    plain = photograph(side**2 / 1e6)
    image = Image.open(BytesIO(plain))
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0131] = "A maker", "A model", "1.0"
    texts = PngInfo()
    texts.add_text("parameters", _PARAMETERS)
    return {
        "JPEG, nothing": plain,
        "JPEG, EXIF": _written(image, "JPEG", exif=exif),
        "JPEG, XMP": _written(image, "JPEG", xmp=_XMP.encode()),
        "PNG, nothing": _written(image, "PNG"),
        "PNG, A1111": _written(image, "PNG", pnginfo=texts),
        "JPEG, C2PA": signed(plain, "image/jpeg"),
        "PNG, C2PA": signed(_written(image, "PNG"), "image/png"),
    }


def _written(image: Image.Image, codec: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, codec, **options)
    return buffer.getvalue()


def _ms(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    """Print a row for each kind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=512, help="of the picture, pixels")
    parser.add_argument("--images", type=int, default=40, help="of each kind, in a round")
    parser.add_argument("--rounds", type=int, default=10)
    chosen = parser.parse_args()
    declarations, limits = Declarations(""), Limits()
    decoders = Decoders(1, cpu_s=5, wall_s=30, replaced=lambda _: None)
    decoders.start()
    failed = False
    print("| file | read, ms | decoded | decoded and read | more |\n|---|---|---|---|---|")
    try:
        decoders.check()
        for name, data in kinds(chosen.side).items():
            laps = [
                (
                    _ms(lambda data=data: list(declarations.reports(data))),  # type: ignore[misc]
                    _ms(lambda data=data: decoders.decode([data], limits)),  # type: ignore[misc]
                    _ms(lambda data=data: decoders.inspect([data], limits)),  # type: ignore[misc]
                )
                for _ in range(chosen.images * chosen.rounds)
            ]
            # Both decoders have met the kind before.
            read, alone, both = map(statistics.median, zip(*laps[4:], strict=True))
            more = statistics.median(both - alone for _, alone, both in laps[4:])
            failed |= "nothing" in name and more > MOST_MS
            print(f"| {name} | {read:.2f} | {alone:.2f} | {both:.2f} | {more:.2f} |", flush=True)
    finally:
        decoders.stop()
    sys.exit(failed)


if __name__ == "__main__":
    main()
