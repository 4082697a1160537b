"""Generators' parameters in the texts of a file: who wrote them is told, what they say never is.

A text counts by its form: by several keys that a generator writes together. That one is called as
a generator calls its own, or mentions one, is not enough.
"""

import re
from collections.abc import Mapping

from app.provenance.vocabulary import is_generator, product

_MOST_CHARACTERS = 1 << 17  # of one text: settings follow prompts, which are shorter
_SEVERAL = 3

_COMMENTS = frozenset({"parameters", "UserComment", "Comment", "comment", ""})
_GRAPHS = frozenset({"prompt", "workflow", "UserComment"})
# Of JSON: who writes such, by which keywords, and keys that are always in it.
_JSON = (
    ("InvokeAI", frozenset({"invokeai_metadata"}), ("positive_prompt", "seed")),
    ("InvokeAI", frozenset({"invokeai_graph"}), ("nodes", "edges")),
    ("InvokeAI", frozenset({"sd-metadata"}), ("app_id", "model_hash")),
    ("SwarmUI", _COMMENTS | {"Make", "Model"}, ("sui_image_params", "prompt")),
    ("ComfyUI", _GRAPHS, ("class_type", "inputs")),
    ("ComfyUI", _GRAPHS, ("last_node_id", "nodes")),
    ("Fooocus", _COMMENTS, ("metadata_scheme", "prompt")),
    ("Draw Things", _COMMENTS, ("c", "uc", "sampler")),
    ("NovelAI", _COMMENTS, ("prompt", "uc", "sampler")),
)
# ComfyUI puts both into the names of a camera's maker and model, where there are no texts.
_GRAPH_OF_CAMERA = re.compile(r"(prompt|workflow):")
# What Stable Diffusion web UI, its forks and many others write after the prompts.
_SETTINGS = re.compile(r"(?:^|\n)Steps: \d+, ([^\n]*)")
_SETTING = re.compile(r"(Sampler): \w|(CFG scale): \d|(Seed): \d|(Size): \d+x\d")
_DREAM = re.compile(r"\s-([sSWHC]) ?\d")
_JOB = re.compile(r"\bJob ID: [0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_JOB_OPTION = re.compile(r"\s--(?:ar|v|niji|s|style|stylize|c|chaos|q|seed|raw|no|iw|sref|p)\b")


def generator(texts: Mapping[str, str]) -> str | None:
    """Who wrote a generator's parameters into a file.

    Args:
        texts: of the file, by keyword as PNG has them; those of EXIF and XMP by the names of their
            properties (`UserComment`, `ImageDescription`, `Make`, `Model`).
    """
    writers = (_writer(keyword, text[:_MOST_CHARACTERS]) for keyword, text in texts.items())
    return next(filter(None, writers), None)


def _writer(keyword: str, text: str) -> str | None:
    """Who wrote one text, by what it looks like."""
    match keyword:
        case "Software":
            name = product(text)
            return name if is_generator(name) else None
        case "Title":
            return "NovelAI" if text == "NovelAI generated image" else None
        case "Description" | "ImageDescription":
            has_job = _JOB.search(text[:4096]) or _JOB.search(text[-200:])
            return "Midjourney" if has_job and _JOB_OPTION.search(text) else None
        case "Dream":
            return "InvokeAI" if len(set(_DREAM.findall(text))) >= _SEVERAL else None
    if keyword in ("Make", "Model") and (graph := _GRAPH_OF_CAMERA.match(text)):
        keyword, text = graph[1], text[graph.end() :]
    if text.lstrip().startswith("{"):
        return _writer_of_json(keyword, text)
    if keyword in _COMMENTS:
        for line in _SETTINGS.finditer(text):
            if len({setting.lastindex for setting in _SETTING.finditer(line[1])}) >= _SEVERAL:
                return "Fooocus" if "Version: Fooocus" in line[1] else "Stable Diffusion web UI"
    return None


def _writer_of_json(keyword: str, text: str) -> str | None:
    for name, keywords, keys in _JSON:
        if keyword in keywords and all(re.search(rf'"{key}"\s{{0,4}}:', text) for key in keys):
            return name
    return None
