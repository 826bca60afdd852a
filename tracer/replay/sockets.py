"""Connections of a capture -> sockets of the engine, records -> the services they are of.

A live tracer sees a connection from the socket of one process. A capture shows it from in
between: here it is told as the server's socket would have seen it, as the client's, or both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Literal, Protocol

import numpy as np

from tracer.flow import Family, Role
from tracer.replay.engine import CLOSED, FIN_RECEIVED, FIN_SENT, RESET, Records
from tracer.replay.tcp import CLIENT, SERVER, Arrived, Ended, Event, How, Opened
from tracer.spans import Resource

Side = Literal["server", "client", "both"]

_SIDES: dict[str, tuple[int, ...]] = {
    "server": (SERVER,),
    "client": (CLIENT,),
    "both": (SERVER, CLIENT),
}


class EngineLike(Protocol):
    """What of tracer.replay.engine.Engine is used here."""

    def open(
        self,
        number: int,
        family: int,
        local: tuple[bytes, int],
        remote: tuple[bytes, int],
        seqs: tuple[int, int],
        fresh: bool,
    ) -> bool:
        """Begin a connection; whether there was room."""

    def bytes(self, number: int, tx: int, seq: int, at_ns: int, data: bytes, size: int, /) -> None:
        """Bytes that local sent (tx) or received."""

    def unseen(self, number: int, tx: int, seq: int, at_ns: int, size: int, /) -> None:
        """Likewise, but known by number only."""

    def end(self, number: int, how: int, at_ns: int, /) -> None:
        """Something ended: enum replay_end."""


class Sockets:
    """Feeds an engine with what Streams says.

    A connection n of the capture is the socket 2n of its server, 2n + 1 of its client.
    no_room: connections the engine could not take.
    """

    def __init__(self, engine: EngineLike, side: Side) -> None:
        self._engine = engine
        self._sides = _SIDES[side]
        self.no_room = 0

    def feed(self, events: Iterable[Event]) -> None:
        """Pass events on, in their order."""
        engine = self._engine
        for event in events:
            for local in self._sides:
                number = event.id * 2 + (local == CLIENT)
                match event:
                    case Arrived(_, time_ns, sender, seq, data, cut):
                        tx = int(sender == local)
                        if data:
                            engine.bytes(number, tx, seq, time_ns, data, len(data))
                        if cut:
                            engine.unseen(number, tx, (seq + len(data)) % 2**32, time_ns, cut)
                    case Ended(_, time_ns, sender, how):
                        fin = FIN_SENT if sender == local else FIN_RECEIVED
                        ends = {How.FIN: fin, How.RESET: RESET, How.CLOSED: CLOSED}
                        engine.end(number, ends[how], time_ns)
                    case Opened():
                        self._open(event, local, number)

    def _open(self, event: Opened, local: int, number: int) -> None:
        ends = event.client, event.server
        seqs = event.client_seq, event.server_seq
        self.no_room += not self._engine.open(
            number,
            event.family,
            ends[local],
            ends[1 - local],
            (seqs[local], seqs[1 - local]),
            event.fresh,
        )


class Services:
    """Stands in for tracer.process.ProcessTable: who a span is of is an address here.

    A server is a service by its address and port; a client, whose port means nothing, by its
    address. Each gets a number, which its records carry in place of a process id.
    """

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._resources: list[Resource] = []

    def number(self, records: Records) -> None:
        """Give each record the number of the service it is of, in its field tgid."""
        client = records["role"] == int(Role.CLIENT)
        keys = np.zeros((len(records), 20), np.uint8)
        keys[:, :16] = records["local_addr"]
        keys[:, 16] = records["family"] == int(Family.INET6)
        ports = np.where(client, 0, records["local_port"]).astype("<u2")
        keys[:, 17:19] = ports[:, np.newaxis].view(np.uint8)
        keys[:, 19] = client
        found, place = np.unique(keys.view("V20")[:, 0], return_inverse=True)
        numbers = [self._number(key.tobytes()) for key in found]
        records["tgid"] = np.asarray(numbers, np.uint32)[place]

    def _number(self, key: bytes) -> int:
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._resources)
            self._resources.append(Resource((("service.name", _service(key)),)))
        return number

    def exec(
        self, tgid: int, start_ns: int, comm: str, exe: str, argv: Sequence[str], cgroup_id: int
    ) -> None:
        """Ignore it: no record of a capture tells of an image."""

    def resource(self, tgid: int, start_ns: int, comm: str, cgroup_id: int) -> Resource:
        """Return the resource of the service with the number `tgid`."""
        return self._resources[tgid]


def _service(key: bytes) -> str:
    address = ip_address(key[:16] if key[16] else key[:4])
    if key[19]:
        return str(address)
    port = int.from_bytes(key[17:19], "little")
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
