"""Where the service listens; what it says there is in tests/server/test_http.py."""

import contextlib
import socket

import pytest

from app.protocol import listen


def families(host: str) -> set[socket.AddressFamily]:
    """Of the sockets for a host; all are on one port."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(one) for one in listen(host, 0)]
        assert len({one.getsockname()[1] for one in sockets}) == 1
        return {one.family for one in sockets}


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6 here")
def test_each_family_has_a_socket_of_its_own() -> None:
    assert families("::") == {socket.AF_INET6, socket.AF_INET}
    assert families("::1") == {socket.AF_INET6}


def test_a_machine_without_a_family_listens_on_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    create = socket.create_server

    def without_ipv6(
        address: tuple[str, int], *, family: socket.AddressFamily, backlog: int
    ) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return create(address, family=family, backlog=backlog)

    monkeypatch.setattr(socket, "create_server", without_ipv6)
    assert families("::") == {socket.AF_INET}
    with pytest.raises(OSError, match="not supported"):
        listen("::1", 0)


def test_a_port_that_one_family_has_not_is_taken_from_neither() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            listen("::", port)
        with contextlib.suppress(OSError):  # no IPv6 here
            socket.create_server(("::1", port), family=socket.AF_INET6).close()
