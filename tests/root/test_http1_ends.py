"""How exchanges end when a side leaves: nothing that came is taken for missing, and who left
first is told right."""

from __future__ import annotations

import socket
import time

import pytest

from tests.root.harness import CLIENT, SERVER, Exchange, Watch, unique
from tests.root.wire import Wire, get_head, ok


def test_answer_read_after_both_sides_have_closed_for_sending(watch: Watch) -> None:
    """The peer's FIN closes a half-closed socket in the kernel, with the answer still unread."""
    path = unique()
    for n in range(20):
        with Wire() as wire:
            wire.request(get_head(f"{path}/{n}"))
            wire.client.shutdown(socket.SHUT_WR)
            assert wire.server.recv(1) == b""
            wire.server.sendall(ok(b"late"))
            wire.server.close()
            time.sleep(0.005)  # for the FIN to be there, in most of the rounds
            while wire.client.recv(65536):
                pass
    spans = watch.exact(path, [Exchange(f"{path}/{n}", 200, "GET", 0, 4) for n in range(20)])
    assert not [span for span in spans if span.error]


def test_client_that_shuts_down_with_the_answer_unread(watch: Watch) -> None:
    path = unique()
    with Wire() as wire:
        wire.request(get_head(path))
        wire.server.sendall(ok(b"early"))
        wire.server.close()
        time.sleep(0.005)
        wire.client.shutdown(socket.SHUT_WR)
        while wire.client.recv(65536):
            pass
    watch.exact(path, [Exchange(path, 200, "GET", 0, 5)])


def test_close_delimited_without_content_has_a_duration(watch: Watch) -> None:
    path = unique()
    with Wire() as wire:
        wire.request(get_head(path))
        time.sleep(0.05)
        wire.server.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        wire.server.close()
        while wire.client.recv(65536):
            pass
    for span in watch.exact(path, [Exchange(path)]):
        assert span.end - span.start >= 50_000_000, span


@pytest.mark.parametrize("first", ["client", "server"])
def test_who_left_first(watch: Watch, first: str) -> None:
    """`cancelled`: the client's side gave up; `connection_closed`: the server's side did."""
    path = unique()
    with Wire() as wire:
        wire.request(get_head(path))
        leaver, other = wire.client, wire.server
        if first == "server":
            leaver, other = other, leaver
        leaver.close()
        assert other.recv(1) == b""
        other.close()
    spans = watch.exact(path, [Exchange(path, None)])
    error = "cancelled" if first == "client" else "connection_closed"
    assert [span.error for span in spans] == [error, error]


def test_first_response_that_is_none(watch: Watch) -> None:
    """Also where the whole head came in one send: the connection is known to be HTTP by then."""
    watch.allowed.add("invalid")
    path = unique()
    with Wire() as wire:
        wire.request(get_head(path))
        wire.server.sendall(b"ICY 200 OK\r\n\r\n")
        assert wire.client.recv(65536)
    spans = watch.exact(path, [Exchange(path, None)])
    assert {span.error for span in spans} == {"invalid_response"}
    assert watch.lost() == {"invalid": 2}
    assert {span.kind for span in spans} == {CLIENT, SERVER}
