"""What the service answers is what figures are of."""

from pathlib import Path

import httpx
import pytest

from benchmarks.accuracy import measure, through_http
from model.data.manifest import AI, REAL, Row
from model.verdicts import Verdict
from tests.images import photo

ANSWERS = [
    {"score": 0.9, "verdict": "ai_generated", "warnings": ["few_patches"]},
    {"score": 0.8, "verdict": "uncertain", "warnings": ["low_quality"]},
    {"score": 0.1, "verdict": "real", "warnings": []},
    None,  # refused
]


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    for index in range(4):
        photo(40 + index, 30).save(tmp_path / f"{index}.png")
    labels = [AI, REAL, REAL, AI]
    return [
        Row(tmp_path / f"{index}.png", label, f"g{index}", f"o{index}")
        for index, label in enumerate(labels)
    ]


@pytest.fixture
def client(rows: list[Row]) -> httpx.Client:
    """A service that knows the files as they are, and answers each its own."""
    known = [row.path.read_bytes() for row in rows]

    def answer(request: httpx.Request) -> httpx.Response:
        body = request.read()
        index = next((index for index, data in enumerate(known) if data in body), 2)
        given = ANSWERS[index]
        if given is None:
            return httpx.Response(422, json={"code": "corrupt_image"})
        return httpx.Response(200, json=given)

    return httpx.Client(base_url="http://service", transport=httpx.MockTransport(answer))


def test_answers_and_refusals_are_told_apart(rows: list[Row], client: httpx.Client) -> None:
    said = through_http(client, rows, "clean")
    assert said.rows == rows[:3]
    assert said.scores.tolist() == [0.9, 0.8, 0.1]
    assert said.verdicts == [Verdict.AI_GENERATED, Verdict.UNCERTAIN, Verdict.REAL]
    assert said.low_quality.tolist() == [False, True, False]
    assert said.skipped == {"corrupt_image": 1}


def test_figures_are_of_clean_and_of_equalised_copies(
    rows: list[Row], client: httpx.Client
) -> None:
    figures = measure(client, rows)
    assert figures.keys() == {"clean", "equalised", "consistency"}
    assert figures["clean"]["auc"] == 1
    assert figures["clean"]["held_back"] == 0.5
    assert figures["clean"]["groups"]["real"]["g1"]["uncertain"] == 1
    assert figures["equalised"]["images"] == {"real": 2, "made": 0, "ai": 2}  # all called real
    assert figures["consistency"]["images"] == 3
