"""Span and trace ids, computed from a connection's own numbers instead of drawn.

Both ends of a TCP connection know the sequence number of a request's first byte and that
of its response: 64 bits that survive NAT and need no message between hosts. With

    key  = request_seq << 32 | response_seq
    C, S = the span ids of the client's and of the server's side
    T    = the trace id of an exchange that belongs to no trace known otherwise

each side computes all three, so that a server span knows its parent's id (C of its own
key) without asking. Each is the key sent through a bijection of 64-bit numbers with a
constant of its own: distinct keys have distinct ids, and nearby keys have ids that share
nothing. The constants and the bijection are a contract between hosts and versions of this
program; they never change.

Where the peer does not know the same numbers (FLOW_FLAG_IDS_PRIVATE: Unix sockets, proxies
that rewrite sequence numbers), `private_keys` makes keys that nobody else has.

All zero is no id (W3C Trace Context, https://www.w3.org/TR/trace-context/#trace-id), so
the one key that would give it gives another.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

_CLIENT = np.uint64(0x6C62272E07BB0142)
_SERVER = np.uint64(0xCBF29CE484222325)
_TRACE_HIGH = np.uint64(0x243F6A8885A308D3)
_TRACE_LOW = np.uint64(0x13198A2E03707344)

_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)
_FACTOR_1 = np.uint64(0xBF58476D1CE4E5B9)
_FACTOR_2 = np.uint64(0x94D049BB133111EB)


def mix(values: U64) -> U64:
    """Return each number's image under a bijection that scatters all 64 bits; (n,).

    Source: variant 13 of David Stafford's finalisers, as used by SplitMix64 (Steele, Lea,
    Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
    """
    mixed = values ^ (values >> _SHIFT_1)
    mixed *= _FACTOR_1
    mixed ^= mixed >> _SHIFT_2
    mixed *= _FACTOR_2
    mixed ^= mixed >> _SHIFT_3
    return mixed


def keys(request_seq: NDArray[np.uint32], response_seq: NDArray[np.uint32]) -> U64:
    """Return the keys of exchanges, (n,), from TCP sequence numbers of both directions."""
    return request_seq.astype(np.uint64) << np.uint64(32) | response_seq


def private_keys(
    shared: U64, conn_id: U64, start_ns: U64, client: NDArray[np.bool_], salt: int
) -> U64:
    """Return keys for exchanges whose numbers the peer does not share; all (n,).

    conn_id is unique among the sockets that live now, start_ns tells it from those that
    lived before, the side separates both ends of one host, and salt, drawn once by each
    tracer, separates hosts and boots.
    """
    side = np.where(client, _CLIENT, _SERVER)
    state = mix(shared ^ side ^ np.uint64(salt))
    state = mix(state ^ conn_id)
    return mix(state ^ start_ns)


def client_span_id(key: U64) -> NDArray[np.uint8]:
    """Return the span ids of the client's side, uint8 (n, 8): the server's side's parents."""
    return _bytes(_never_zero(mix(key ^ _CLIENT)))


def server_span_id(key: U64) -> NDArray[np.uint8]:
    """Return the span ids of the server's side, uint8 (n, 8)."""
    return _bytes(_never_zero(mix(key ^ _SERVER)))


def span_id(key: U64, client: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the span ids of the client's side where `client`, else of the server's; (n, 8)."""
    return _bytes(_never_zero(mix(key ^ np.where(client, _CLIENT, _SERVER))))


def trace_id(key: U64) -> NDArray[np.uint8]:
    """Return trace ids, uint8 (n, 16); its second half alone is already unlike all others."""
    halves = np.empty((len(key), 2), dtype=">u8")
    halves[:, 0] = mix(key ^ _TRACE_HIGH)
    halves[:, 1] = _never_zero(mix(key ^ _TRACE_LOW))
    return halves.view(np.uint8)


def _never_zero(values: U64) -> U64:
    return np.where(values == 0, _SERVER ^ _CLIENT, values)


def _bytes(values: U64) -> NDArray[np.uint8]:
    return values.astype(">u8")[:, np.newaxis].view(np.uint8)
