"""The words that declarations are made of: IPTC's digital source types, generators' names."""

import re
from collections.abc import Iterable

AI_GENERATED = "ai_generated"
AI_EDITED = "ai_edited"
CAMERA = "camera"
SOFTWARE = "software"
NOTHING = "nothing"
_GRAVEST_FIRST = (AI_GENERATED, AI_EDITED, CAMERA, SOFTWARE, NOTHING)

VALUE_CHARACTERS = 100

# https://cv.iptc.org/newscodes/digitalsourcetype/, the retired ones too, and C2PA's own two. What
# an algorithm made or altered without a trained model is not AI here, nor is a composite of
# captures a photograph.
_SOURCE_TYPES = {
    "trainedAlgorithmicMedia": AI_GENERATED,
    "trainedAlgorithmicData": AI_GENERATED,
    "compositeWithTrainedAlgorithmicMedia": AI_EDITED,  # "edited using generative AI"
    "compositeSynthetic": AI_EDITED,  # "composite including generative AI elements"
    "digitalCapture": CAMERA,
    "computationalCapture": CAMERA,
    "negativeFilm": CAMERA,
    "positiveFilm": CAMERA,
    "print": CAMERA,
    "humanEdits": SOFTWARE,
    "minorHumanEdits": SOFTWARE,
    "algorithmicallyEnhanced": SOFTWARE,  # sharpened, say: "without changing the main content"
    "algorithmicMedia": SOFTWARE,
    "composite": SOFTWARE,
    "compositeCapture": SOFTWARE,
    "dataDrivenMedia": SOFTWARE,
    "digitalArt": SOFTWARE,
    "digitalCreation": SOFTWARE,
    "empty": SOFTWARE,
    "screenCapture": SOFTWARE,
    "softwareImage": SOFTWARE,
    "virtualRecording": SOFTWARE,
}
_BY_LOWER_CASE = {name.lower(): name for name in _SOURCE_TYPES}

# A name counts where it is all that is said, but for a version: agencies, places and spacecraft are
# called so, too, and other tools say which generator they have nothing to do with.
_GENERATORS = (
    *("adobe firefly", "firefly image", "midjourney", "niji[- ]?journey", "dreamstudio"),
    *(r"(?:openai )?dall[-\u00b7\u2022 ]e", "dalle[- ]?[23]", "(?:microsoft )?bing image creator"),
    *("openai", "chatgpt", "gpt-4o", "gpt-image", "novelai", "stable[- ]?diffusion"),
    *("stability ?ai", "automatic1111", r"sd\.next", "comfyui", "invokeai", "fooocus"),
    *("draw things", "(?:stable)?swarmui", "easy diffusion", "google (?:ai|imagen|gemini)"),
    *(r"gemini[- ]\d(?:\.\d)?[- ](?:flash|pro)[- ]image", "nano banana", r"imagen-\d\.\d"),
    *("ideogram", r"leonardo\.ai", "black forest labs", r"flux\.[12]", "recraft", "runwayml"),
    *(r"krea\.ai", "xai grok", "grok imagine?", "meta ai", "imagined? with (?:meta )?ai"),
    *("playground ai", "nightcafe", "seedream", "qwen-image", "hunyuan[- ]?(?:image|dit)"),
)
_VERSION = (
    r"v?\d[\w.]*|version|v|xl|turbo|web ?ui|api|app|bot|studio|images?|model|diffusion|pro|plus|max"
    "|ultra|flash|fast|mini|dev|schnell|preview|beta|alpha|large|medium|small|core|generate"
)
_GENERATOR = re.compile(
    rf"(?:{'|'.join(_GENERATORS)})(?:[ ,:/()\[\]-]+(?:{_VERSION})\b)*[)\]]?", re.IGNORECASE
)
# Google's, word by word: others' credits are names of people and agencies.
_CREDITS = {"made with google ai": AI_GENERATED, "edited with google ai": AI_EDITED}
_NONE = re.compile(
    r"[\W\d_]*$|(?:n/?a|no|non|none|not|nil|null|false|unknown|undefined|without|sans|ohne|nein|kein\w*"
    r"|aucun\w*|ning[u\u00fa]n\w*|nessun\w*|nenhum\w*)\b",
    re.IGNORECASE,
)
_NO_NAME = re.compile(r"[{}]|\b(?:prompt|workflow|steps):", re.IGNORECASE)


def gravest(declared: Iterable[str]) -> str:
    """What weighs most of what is declared."""
    return min(declared, key=_GRAVEST_FIRST.index, default=NOTHING)


def source_type(value: object) -> tuple[str | None, str]:
    """A digital source type, and what it declares.

    Args:
        value: its URI, with whichever scheme, or its last part alone.

    Returns:
        The last part, as IPTC writes it, or as it is where IPTC has none such; None for no value.
    """
    text = printable(value)
    if text is None:
        return None, NOTHING
    last = re.split(r"[/:#]", text.rstrip("/"))[-1]
    name = _BY_LOWER_CASE.get(last.lower())
    return (name, _SOURCE_TYPES[name]) if name else (last or None, NOTHING)


def is_generator(name: str | None) -> bool:
    """Whether software of that name makes images by a trained model."""
    return name is not None and _GENERATOR.fullmatch(name) is not None


def credited(line: str | None) -> str:
    """What a credit line declares."""
    return _CREDITS.get(line.lower(), NOTHING) if line else NOTHING


def is_none(value: str) -> bool:
    """Whether a value says that there is none, as people and templates fill fields in."""
    return _NONE.match(value) is not None


def software(*names: str | None) -> str:
    """What is declared by the names of software alone."""
    if any(map(is_generator, names)):
        return AI_GENERATED
    return SOFTWARE if any(names) else NOTHING


def printable(value: object) -> str | None:
    """A value of the file as it may be told: one short line; None where nothing is left."""
    if not isinstance(value, str):
        return None
    # The rest is never looked at, however much there is.
    start = value[: 4 * VALUE_CHARACTERS]
    text = "".join(c for c in start if c.isprintable()).strip()
    return text[:VALUE_CHARACTERS].strip() or None


def product(value: object) -> str | None:
    """A product's name; None for what is none, as the prompt that some tools put in its place."""
    text = printable(value)
    is_long = isinstance(value, str) and len(value.strip()) > VALUE_CHARACTERS
    return None if text is None or is_long or _NO_NAME.search(text) else text
