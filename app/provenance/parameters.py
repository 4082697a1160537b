"""Generators' parameters in the texts of a file: who wrote them is told, what they say never is."""

import re
from collections.abc import Mapping

from app.provenance.vocabulary import is_generator, product

# Of what Stable Diffusion web UI, its forks and many others write after the prompts.
_SETTINGS = re.compile(r"(?:^|\n)Steps: \d+, (?:[^\n]*, )?(?:Sampler|CFG scale|Seed|Size|Model)\b")
_COMFYUI = re.compile(r'^\s*\{.*"(?:class_type|last_node_id|nodes)"\s*:', re.DOTALL)
_MIDJOURNEY = re.compile(r"\bJob ID: [0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_MOST_CHARACTERS = 1 << 17  # of one text: settings follow prompts, which are shorter

_WEB_UI = "Stable Diffusion web UI"
# By keyword, where it alone says who wrote it.
_KEYWORDS = {
    "invokeai_metadata": "InvokeAI",
    "invokeai_graph": "InvokeAI",
    "sd-metadata": "InvokeAI",
    "Dream": "InvokeAI",
    "fooocus_scheme": "Fooocus",
    "sui_image_params": "SwarmUI",
}


def generator(texts: Mapping[str, str]) -> str | None:
    """Who wrote a generator's parameters into a file.

    Args:
        texts: of the file, by keyword as PNG has them; those of EXIF and XMP by the names of their
            properties (`UserComment`, `ImageDescription`, `Make`, `Model`).
    """
    for keyword, name in _KEYWORDS.items():
        if keyword in texts:
            return name
    writers = (_writer(keyword, text[:_MOST_CHARACTERS]) for keyword, text in texts.items())
    return next(filter(None, writers), None)


def _writer(keyword: str, text: str) -> str | None:
    """Who wrote one text, by what it looks like."""
    start = text[:4096]
    if keyword == "Software":
        return product(text) if is_generator(text) else None
    if keyword == "Title":
        return "NovelAI" if text == "NovelAI generated image" else None
    if keyword == "Description" or keyword == "ImageDescription":
        return (
            "Midjourney" if _MIDJOURNEY.search(start) or _MIDJOURNEY.search(text[-200:]) else None
        )
    if '"sui_image_params"' in text:
        return "SwarmUI"
    # ComfyUI puts both into the names of a camera's maker and model, where there are no texts.
    if keyword in ("Make", "Model"):
        return "ComfyUI" if re.match(r"(?:prompt|workflow):\s*\{", start) else None
    if keyword in ("prompt", "workflow", "UserComment") and _COMFYUI.match(text):
        return "ComfyUI"
    if keyword in ("parameters", "UserComment", "Comment", "comment", ""):
        if re.search(r"Fooocus v?\d", text) or '"metadata_scheme": "fooocus"' in text:
            return "Fooocus"
        if start.lstrip().startswith("{") and '"uc"' in text and '"sampler"' in text:
            return "Draw Things" if '"c"' in text else "NovelAI"
        if _SETTINGS.search(text):
            return _WEB_UI
    return None
