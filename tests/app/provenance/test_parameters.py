"""Generators are known by what they leave in a file; people's own texts are nobody's."""

import time

import pytest

from app.provenance.parameters import generator
from tests.app.provenance.files import (
    A1111,
    COMFYUI,
    DRAW_THINGS,
    DREAM,
    FOOOCUS,
    INVOKEAI,
    MIDJOURNEY,
    NOVELAI,
    PROMPT,
    SD_METADATA,
    SWARMUI,
    WORKFLOW,
)


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        ({"parameters": A1111}, "Stable Diffusion web UI"),
        ({"UserComment": A1111}, "Stable Diffusion web UI"),
        ({"": A1111}, "Stable Diffusion web UI"),
        ({"parameters": A1111.replace(PROMPT, "").lstrip()}, "Stable Diffusion web UI"),
        ({"prompt": COMFYUI}, "ComfyUI"),
        ({"workflow": WORKFLOW}, "ComfyUI"),
        ({"Model": f"prompt:{COMFYUI}"}, "ComfyUI"),
        ({"Make": f"workflow: {WORKFLOW}"}, "ComfyUI"),
        ({"UserComment": COMFYUI}, "ComfyUI"),
        ({"invokeai_metadata": INVOKEAI}, "InvokeAI"),
        ({"invokeai_graph": '{"id": "", "nodes": {}, "edges": []}'}, "InvokeAI"),
        ({"sd-metadata": SD_METADATA}, "InvokeAI"),
        ({"Dream": DREAM}, "InvokeAI"),
        ({"Dream": f"{PROMPT} -s 50 -W 512 -H 512"}, "InvokeAI"),
        ({"parameters": FOOOCUS, "fooocus_scheme": "fooocus"}, "Fooocus"),
        ({"parameters": A1111.replace("Version: ", "Version: Fooocus ")}, "Fooocus"),
        ({"Comment": FOOOCUS}, "Fooocus"),
        ({"UserComment": FOOOCUS}, "Fooocus"),
        ({"Software": "NovelAI", "Comment": NOVELAI, "Description": PROMPT}, "NovelAI"),
        ({"Title": "NovelAI generated image"}, "NovelAI"),
        ({"Comment": NOVELAI}, "NovelAI"),
        ({"UserComment": DRAW_THINGS}, "Draw Things"),
        ({"parameters": SWARMUI}, "SwarmUI"),
        ({"Model": SWARMUI}, "SwarmUI"),
        ({"Description": MIDJOURNEY}, "Midjourney"),
        ({"ImageDescription": MIDJOURNEY}, "Midjourney"),
        ({"Software": "DALL-E 3"}, "DALL-E 3"),
        ({"parameters": f"Steps: 3, Size: large\n{A1111}"}, "Stable Diffusion web UI"),
    ],
)
def test_generators_are_known_by_their_texts(texts: dict[str, str], name: str) -> None:
    assert generator(texts) == name


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {"Comment": "Created with GIMP"},
        {"": "Steps: 20 up to the lighthouse, Sampler of the local beer"},
        {"Description": "A photograph of Midjourney's offices. Job ID: 42"},
        {"prompt": "I was prompted to take this picture"},
        {"workflow": '{"steps": ["import", "crop", "export"]}'},
        {"parameters": "f/8, 1/250 s, ISO 100"},
        {"Software": "Adobe ImageReady", "Title": "A lighthouse"},
        {"Make": "Canon", "Model": "Canon EOS 5D Mark IV"},
        {"UserComment": "Screenshot"},
        {"Comment": "{}"},
        {"Dream": "a photo I took at the sea"},
        {"Dream": "the ferry of -12 degrees, pier -S5 and -S6"},
        {"Comment": "How Fooocus 2 made a fake: a press photo of a protest against it"},
        {"Comment": '{"title": "How Fooocus v2 works", "prompt": "see below"}'},
        {"fooocus_scheme": "what is that?"},
        {"invokeai_metadata": "none"},
        {"sd-metadata": "{}"},
        {"Comment": "Recipe:\nSteps: 3, Size: large"},
        {"parameters": "Steps: 3, Size: 40x30, Seed: 12 of barley"},
        {"Comment": 'of the key "sui_image_params": {"prompt": ""}'},
        {"workflow": '{"nodes": [], "connections": {}}'},
        {"Make": "workflow: {a maker of forms}"},
        {"Description": "printing Job ID: 01234567-0123-0123-0123-0123456789ab"},
        {"Software": "Lightroom (no Midjourney)"},
        {"Title": "A NovelAI generated image, and how to tell"},
    ],
)
def test_what_people_and_cameras_write_is_nobodys(texts: dict[str, str]) -> None:
    assert generator(texts) is None


@pytest.mark.parametrize(
    "text",
    [
        "{" + '"nodes" ' * 130_000,
        "\nSteps: 1, " * 90_000,
        "\nSteps: 1, " + "a, " * 300_000,
        "Job ID: a7421d2f-" * 60_000,
        "{" * 1_000_000,
        " " * 1_000_000,
        "Fooocus v" * 100_000,
    ],
)
def test_no_text_is_long_looked_at(text: str) -> None:
    keywords = ("parameters", "prompt", "UserComment", "Description", "Make", "Comment")
    start = time.process_time()
    assert generator(dict.fromkeys(keywords, text)) is None
    assert time.process_time() - start < 1
