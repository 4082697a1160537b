"""What goes wrong: the server says so, or the connection does not hold."""


class NSNetError(Exception):
    """Any error of this package's own."""


class TransportError(NSNetError):
    """No answer came: not connected, cut off, or too slow. Retried before it is raised."""


class ApiError(NSNetError):
    """An answer that is an error; those of status 429 and 503 are retried before one is raised.

    Attributes:
        status: of the HTTP answer.
        code: stable, for programs, as the API documents it; `unexpected_answer` where whoever
            answered does not speak as NS-Net does, a proxy say.
        detail: one sentence for people.
        request_id: to ask the operator about; None where none was given.
        retry_after: seconds that the server asks to wait; None where it asks for nothing.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(status, code, detail, request_id, retry_after)
        self.status = status
        self.code = code
        self.detail = detail
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.detail}"
