"""What words declare; and what of a file may be told at all."""

import pytest

from app.provenance.vocabulary import (
    credited,
    gravest,
    is_generator,
    is_none,
    printable,
    product,
    source_type,
)
from tests.app.provenance.files import SOURCE_TYPES


@pytest.mark.parametrize(
    ("value", "declares"),
    [
        ("trainedAlgorithmicMedia", "ai_generated"),
        ("compositeWithTrainedAlgorithmicMedia", "ai_edited"),
        ("compositeSynthetic", "ai_edited"),
        ("digitalCapture", "camera"),
        ("computationalCapture", "camera"),
        ("negativeFilm", "camera"),
        ("algorithmicMedia", "software"),
        ("algorithmicallyEnhanced", "software"),
        ("humanEdits", "software"),
        ("screenCapture", "software"),
        ("compositeCapture", "software"),
        ("somethingNew", "nothing"),
    ],
)
def test_a_digital_source_type_is_known_by_its_last_part(value: str, declares: str) -> None:
    for written in (
        value,
        SOURCE_TYPES + value,
        (SOURCE_TYPES + value).replace("http:", "https:"),
        f"{SOURCE_TYPES}{value}/",
        f"digsrctype:{value}",
    ):
        assert source_type(written) == (value, declares)


def test_case_does_not_matter_where_the_word_is_known() -> None:
    assert source_type("TRAINEDALGORITHMICMEDIA") == ("trainedAlgorithmicMedia", "ai_generated")


@pytest.mark.parametrize("value", [None, "", "  ", "\0", 3, [], "/"])
def test_no_value_declares_nothing(value: object) -> None:
    assert source_type(value) == (None, "nothing")


@pytest.mark.parametrize(
    "name",
    ["Adobe Firefly 3", "Adobe Firefly Image Model 4", "DALL-E 3", "DALL\u00b7E", "OpenAI DALL-E",
     "dalle3", "Midjourney", "Midjourney v6.1", "ComfyUI", "ComfyUI 0.3.1", "OpenAI", "OpenAI-API",
     "ChatGPT", "Google AI", "Google Imagen 4", "Gemini 2.5 Flash Image", "gpt-4o", "gpt-image-1",
     "Stable Diffusion", "Stable Diffusion XL 1.0", "stable-diffusion-webui", "FLUX.1 [dev]",
     "NovelAI", "NovelAI Diffusion V4", "Recraft V3", "Ideogram 2.0 (beta)", "Meta AI"],
)  # fmt: skip
def test_generators_are_known(name: str) -> None:
    assert is_generator(name)


@pytest.mark.parametrize(
    "name",
    ["Adobe Photoshop 25.0 (Windows)", "Adobe Photoshop Lightroom", "Imagen AI 17", "GIMP 2.10",
     "Gemini Photos", "HDR+ 1.0", "f.lux", "ImageMagick", "Google", "Picasa", "iPhone", None,
     "Lightroom (no Midjourney)", "Midjourney-free Lightroom", "Not made with DALL-E 3",
     "OpenAIRE uploader", "ChatGPT Exporter", "Imagen 4", "Gemini 8", "Google Airview",
     "Recraft Furniture", "Stable Diffusion Detector 2.0", "Google AI Photo Prize"],
)  # fmt: skip
def test_no_tool_of_photographers_is_taken_for_a_generator(name: str | None) -> None:
    assert not is_generator(name)


@pytest.mark.parametrize(
    ("line", "declares"),
    [
        ("Made with Google AI", "ai_generated"),
        ("made with google ai", "ai_generated"),
        ("Edited with Google AI", "ai_edited"),
        (None, "nothing"),
    ],
)
def test_credits_of_google_declare(line: str | None, declares: str) -> None:
    assert credited(line) == declares


@pytest.mark.parametrize(
    "line",
    ["Foto dalle agenzie", "Beatrice Dalle", "Immagini dalle telecamere / ANSA", "NASA/Gemini 8",
     "Gemini 12 crew, NASA", "OpenAI/Handout via REUTERS", "OpenAI", "Courtesy of Stability AI",
     "Imagen 4: Juan Perez/EFE", "Hunyuan County Tourism Bureau", "OpenAir Kino Zurich",
     "Meta Aid Foundation", "Meta AI", "Google Airview", "Google Aid Fund", "Recraft Furniture",
     "Edited by Google Ai Wei", "Firefly Image Agency", "Midjourney", "Not made with Google AI",
     "Made with Google AI? No: a photograph"],
)  # fmt: skip
def test_no_other_credit_line_accuses(line: str) -> None:
    assert credited(line) == "nothing"


@pytest.mark.parametrize(
    "value",
    ["None", "none used", "n/a", "N/A", "NA", "No", "no AI", "Not applicable", "-", "--", "0",
     "nil", "unknown", "Keine", "aucun", "ninguno", "ning\u00fan sistema", "Nessuno", "?"],
)  # fmt: skip
def test_a_field_is_filled_in_with_nothing(value: str) -> None:
    assert is_none(value)


@pytest.mark.parametrize(
    "value", ["Nano Banana", "NovelAI", "Topaz DeNoise AI", "Noise Ninja", "4o"]
)
def test_a_system_is_not_nothing(value: str) -> None:
    assert not is_none(value)


def test_the_gravest_is_told() -> None:
    assert gravest(["nothing", "software", "camera"]) == "camera"
    assert gravest(["camera", "ai_edited", "software"]) == "ai_edited"
    assert gravest(["ai_edited", "ai_generated"]) == "ai_generated"
    assert gravest([]) == "nothing"


def test_values_are_one_short_printable_line() -> None:
    assert printable(" a\nb\x1b[31m\u202ec\ud800 ") == "ab[31mc"
    assert printable("x" * 10_000) == "x" * 100
    assert printable("\0\n") is None
    assert printable(b"bytes") is None


@pytest.mark.parametrize("value", ["x" * 101, 'prompt: {"3": {}}', "workflow:{}", '{"a": 1}', ""])
def test_what_is_no_products_name_is_not_told(value: str) -> None:
    assert product(value) is None


def test_a_products_name_is_told() -> None:
    assert product("Adobe Photoshop 25.0 (Windows) ") == "Adobe Photoshop 25.0 (Windows)"
