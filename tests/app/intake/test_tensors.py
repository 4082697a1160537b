"""Tensors in request bodies: what is sent comes out, and nothing else gets in."""

import base64
import contextlib
import json
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ApiError
from app.intake.tensors import MAX_JSON_BYTES, MAX_JSON_VALUES, TensorReader
from app.intake.uploads import Upload

MOST, MOST_BYTES = 8, 300_000
FILES = st.lists(st.binary(max_size=50), min_size=1, max_size=MOST)


def elements(files: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(file)) + file for file in files)


def head(shape: list[Any], **given: Any) -> bytes:
    tensor = {"name": "image", "datatype": "BYTES", "shape": shape} | given
    return json.dumps({"inputs": [tensor]}).encode()


def binary(files: list[bytes], **given: Any) -> tuple[bytes, bytes]:
    """JSON and tensor of a request, with what the JSON says otherwise."""
    tensor = elements(files)
    size = given.pop("size", len(tensor))
    shape = given.pop("shape", [len(files)])
    return head(shape, parameters={"binary_data_size": size}, **given), tensor


def as_json(files: list[bytes], shape: list[int] | None = None) -> bytes:
    return head(shape or [len(files)], data=[base64.b64encode(file).decode() for file in files])


def pieces(body: bytes, sizes: list[int]) -> Iterator[bytes]:
    """The body, cut at these sizes in turns."""
    at = turn = 0
    while at < len(body):
        size = sizes[turn % len(sizes)] if sizes else len(body)
        yield body[at : at + size]
        at, turn = at + size, turn + 1


def read(body: bytes, head_bytes: int | None = None, sizes: list[int] | None = None) -> list[bytes]:
    reader = TensorReader(head_bytes, MOST, MOST_BYTES)
    for piece in pieces(body, sizes or []):
        reader.feed(piece)
    _, uploads = reader.finish()
    return [content(upload) for upload in uploads]


def content(upload: Upload) -> bytes:
    return b"".join(upload.parts())


def refusal(body: bytes, head_bytes: int | None = None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(body, head_bytes)
    return caught.value


@given(FILES, st.lists(st.integers(1, 40), max_size=5), st.booleans())
def test_files_are_what_was_sent_however_they_arrive(
    files: list[bytes], sizes: list[int], column: bool
) -> None:
    json_, tensor = binary(files, shape=[len(files), 1] if column else [len(files)])
    assert read(json_ + tensor, len(json_), sizes) == files
    assert read(as_json(files), None, sizes) == files


@given(st.binary(max_size=400), st.one_of(st.none(), st.integers(0, 400)))
def test_bytes_that_are_no_request_are_an_error_of_the_clients(
    body: bytes, head_bytes: int | None
) -> None:
    assert refusal(body, head_bytes).status in (400, 413, 422)


@given(FILES, st.data())
def test_a_tensor_that_was_cut_or_changed_is_never_half_a_file(
    files: list[bytes], data: st.DataObject
) -> None:
    """Either an error, or as many whole elements as the JSON says."""
    json_, tensor = binary(files)
    broken = bytearray(tensor)
    for at in data.draw(st.lists(st.integers(0, len(tensor) - 1), max_size=3)):
        broken[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(tensor)))
    if cut < len(tensor):
        assert refusal(json_ + tensor[:cut], len(json_)).status == 400
    with contextlib.suppress(ApiError):
        assert elements(read(json_ + bytes(broken), len(json_))) == bytes(broken)


@pytest.mark.parametrize(
    ("json_", "code"),
    [
        (b"", "bad_request"),
        (b"{", "bad_request"),
        (b"[" * MAX_JSON_VALUES, "bad_request"),
        (b"[" * (MAX_JSON_VALUES + 1), "payload_too_large"),
        (b'{"id": "\\ud800"}', "bad_request"),
        (b"{}", "validation_error"),
        (b"[]", "validation_error"),
        (b'{"inputs": []}', "validation_error"),
        (head([1], data=["AAAA"], name="images"), "validation_error"),
        (head([1], data=["AAAA"], datatype="UINT8"), "validation_error"),
        (head([1]), "validation_error"),
        (head([1], data=["AAAA"], parameters={"binary_data_size": 8}), "validation_error"),
        (head([1], parameters={"shared_memory_region": "x"}), "validation_error"),
        (head([1], data=[1]), "validation_error"),
        (head([1], data="AAAA"), "validation_error"),
        (head([1], data=[["AAAA", "AAAA"]]), "validation_error"),
        (head([], data=[]), "validation_error"),
        (head([0], data=[]), "missing_file"),
        (head([-1], data=["AAAA"]), "validation_error"),
        (head([1.5], data=["AAAA"]), "validation_error"),
        (head([True], data=["AAAA"]), "validation_error"),
        (head([1, 2], data=["AAAA"]), "validation_error"),
        (head([1, 1, 1], data=["AAAA"]), "validation_error"),
        (head([1] * 4000, data=["AAAA"]), "validation_error"),
        (head([2**63], data=["AAAA"]), "too_many_files"),
        (head([10**400], data=["AAAA"]), "too_many_files"),
        (head([MOST + 1], data=["AAAA"]), "too_many_files"),
        (head([2], data=["AAAA"]), "bad_request"),
        (head([1], data=["AAA"]), "bad_request"),
        (head([1], data=["AA==AAAA"]), "bad_request"),
        (head([1], data=["A\nAAA"]), "bad_request"),
        (head([1], data=["\u20ac"]), "bad_request"),
        (as_json([bytes(MOST_BYTES + 1)]), "payload_too_large"),
        (head([1], data=[""] * 1001), "validation_error"),
        (head([1], data=[0] * (MAX_JSON_VALUES + 1)), "payload_too_large"),
        (b" " * (MAX_JSON_BYTES + 1), "payload_too_large"),
    ],
)
def test_json_that_is_no_request_is_refused(json_: bytes, code: str) -> None:
    assert refusal(json_).code == code


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"size": 11}, "bad_request"),
        ({"size": 13}, "bad_request"),
        ({"size": 0}, "bad_request"),
        ({"size": 2**62}, "bad_request"),
        ({"size": -1}, "validation_error"),
        ({"shape": [1]}, "bad_request"),
        ({"shape": [3]}, "bad_request"),
        ({"shape": [2, 2]}, "validation_error"),
        ({"data": ["AAAA"]}, "validation_error"),
    ],
)
def test_a_tensor_that_is_not_as_the_json_says_is_refused(given: dict[str, Any], code: str) -> None:
    json_, tensor = binary([b"ab", b"cd"], **given)
    assert refusal(json_ + tensor, len(json_)).code == code


@pytest.mark.parametrize("length", [2**32 - 1, 2**31, MOST_BYTES + 1])
def test_a_length_is_believed_no_further_than_an_image_may_go(length: int) -> None:
    """Refused by the length alone: none of it has to come, none of it is made room for."""
    json_ = head([1], parameters={"binary_data_size": 4 + length})
    error = refusal(json_ + struct.pack("<I", length), len(json_))
    assert error.code == "payload_too_large"
    assert error.headers["Connection"] == "close"


def test_what_follows_the_tensor_is_refused() -> None:
    json_, tensor = binary([b"ab"])
    assert refusal(json_ + tensor + b"x", len(json_)).code == "bad_request"


def test_an_element_in_one_large_piece_is_never_copied() -> None:
    json_, tensor = binary([bytes(100_000)])
    reader = TensorReader(len(json_), MOST, MOST_BYTES)
    for piece in (json_ + tensor[:4], data := tensor[4:]):
        reader.feed(piece)
    _, [upload] = reader.finish()
    assert next(upload.parts()) is data


def test_the_outputs_that_are_wanted_are_read() -> None:
    wanted = [{"name": "verdict", "parameters": {"binary_data": True, "classification": None}}]
    body = json.dumps(
        {
            "id": "42",
            "parameters": {"binary_data_output": False, "priority": 3},
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["AAAA"]}],
            "outputs": wanted,
        }
    ).encode()
    reader = TensorReader(None, MOST, MOST_BYTES)
    reader.feed(body)
    request, _ = reader.finish()
    assert request.id == "42"
    assert request.outputs is not None
    [output] = request.outputs
    assert output.name == "verdict"
    assert output.parameters is not None
    assert output.parameters.binary_data is True
    assert request.inputs[0].data is None  # not held until the answer
    for good, bad in (
        (b'"priority": 3', b'"binary_data_output": 1'),
        (b'"verdict"', b'"evidence"'),
        (b'"classification": null', b'"classification": 1'),
    ):
        assert refusal(body.replace(good, bad)).code == "validation_error"
