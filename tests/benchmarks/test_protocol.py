"""What h11 costs beside httptools: that the servers are what they are called, and the table."""

import httpx
import pytest

from app.protocol import MAX_HEADERS
from benchmarks import protocol

pytestmark = pytest.mark.process


def test_each_server_speaks_its_protocol() -> None:
    headers = {f"x-{number}": "" for number in range(MAX_HEADERS + 1)}
    statuses = {}
    for name in protocol.PROTOCOLS:
        with protocol.server(name) as local:
            answer = httpx.post(local.url, headers=headers, content=b"x", timeout=30)
            statuses[name] = answer.status_code
    assert statuses == {"h11": 431, "httptools": 200}  # the bound is the service's own


def test_a_refusal_is_never_measured() -> None:
    with (
        protocol.server("h11") as local,
        pytest.raises(ConnectionError, match="400"),
        protocol.connections(local.url, 1, b"POST / HTTP/1.1\r\n\r\n"),  # has no Host
    ):
        pass


def test_a_row_for_each_figure_with_both_and_their_ratio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(protocol, "REQUESTS", 32)
    monkeypatch.setattr("sys.argv", ["protocol.py", "--rounds", "1", "--kilobytes", "2"])
    protocol.main()
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
    ]
    assert head == ["2 kB", "h11", "httptools", "ratio", "least to most"]
    assert len(rows) == 3
    for _, ours, other, ratio, extent in rows:
        assert float(ours) > 0
        assert float(other) > 0
        assert float(ratio) == pytest.approx(float(ours) / float(other), rel=0.05)
        assert extent == f"{ratio}-{ratio}"
