import pickle

from app.errors import ApiError


def test_an_error_of_another_process_says_the_same() -> None:
    error = ApiError("overloaded", "No memory.", retry_after=5, headers={"Connection": "close"})
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert isinstance(again, ApiError)
    assert again.response("r").body == error.response("r").body
    assert again.response("r").raw_headers == error.response("r").raw_headers
    assert again.headers == {"Connection": "close", "Retry-After": "5"}
