"""What spans of every protocol say of the connection below them."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from functools import lru_cache

from tracer.flow import Family

_V4_MAPPED = bytes(10) + b"\xff\xff"


@lru_cache(maxsize=4096)
def address_of(family: int, packed: bytes) -> str:
    """Return an IP address as text; IPv6 that only wraps IPv4 as IPv4. "" for other families."""
    if family == Family.INET:
        return str(ipaddress.IPv4Address(packed[:4]))
    if family != Family.INET6:
        return ""
    if packed.startswith(_V4_MAPPED):
        return str(ipaddress.IPv4Address(packed[12:]))
    return str(ipaddress.IPv6Address(packed))


def transport_of(unix: bool, peer: str, wanted: Collection[str]) -> list[tuple[str, str]]:
    """Return the attributes that tell the transport, as far as they are wanted.

    peer: the other end's address, "" where there is none.
    """
    attributes = []
    if "network.transport" in wanted:
        attributes.append(("network.transport", "unix" if unix else "tcp"))
    if peer and not unix and "network.type" in wanted:
        attributes.append(("network.type", "ipv6" if ":" in peer else "ipv4"))
    return attributes
