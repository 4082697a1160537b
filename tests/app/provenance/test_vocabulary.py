"""What words declare; and what of a file may be told at all."""

import pytest

from app.provenance.vocabulary import gravest, is_generator, printable, product, source_type
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
    ["Adobe Firefly 3", "DALL-E 3", "DALL\u00b7E", "Midjourney", "ComfyUI", "OpenAI", "ChatGPT",
     "Made with Google AI", "Stable Diffusion", "Imagen 3", "gpt-4o", "FLUX.1 [dev]"],
)  # fmt: skip
def test_generators_are_known(name: str) -> None:
    assert is_generator(name)


@pytest.mark.parametrize(
    "name",
    ["Adobe Photoshop 25.0 (Windows)", "Adobe Photoshop Lightroom", "Imagen AI 17", "GIMP 2.10",
     "Gemini Photos", "HDR+ 1.0", "f.lux", "ImageMagick", "Google", "Picasa", "iPhone", None],
)  # fmt: skip
def test_no_tool_of_photographers_is_taken_for_a_generator(name: str | None) -> None:
    assert not is_generator(name)


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
