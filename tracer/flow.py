"""The numbers in a record: the enums of ebpf/flow.h whose meaning Python must know.

A pure mirror, so that modules without a loaded object (and tests) can name them; a test
keeps it equal to the header. The record's *layout* is never written down in Python: it
comes from the object's BTF (tracer/kernel/layout.py).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag


class Kind(IntEnum):
    """enum flow_kind: what a record tells of."""

    EXCHANGE = 1
    EXEC = 2
    PART = 3
    BLOCK = 4
    CLOSED = 5
    HANDOVER = 6


class Protocol(IntEnum):
    """enum flow_protocol."""

    UNKNOWN = 0
    HTTP1 = 1
    HTTP2 = 2
    MYSQL = 3
    REDIS = 4
    POSTGRESQL = 5


class Role(IntEnum):
    """enum flow_role: which side of the connection the record describes."""

    CLIENT = 1
    SERVER = 2


class End(IntEnum):
    """enum flow_end: why an exchange was over."""

    RESPONSE = 0
    EOF = 1
    UPGRADE = 2
    PEER = 3
    LOCAL = 4
    RESET = 5
    TIMEOUT = 6
    GAP = 7
    INVALID = 8


class Method(IntEnum):
    """enum flow_method."""

    OTHER = 0
    GET = 1
    HEAD = 2
    POST = 3
    PUT = 4
    DELETE = 5
    CONNECT = 6
    OPTIONS = 7
    TRACE = 8
    PATCH = 9
    QUERY = 10


class Flag(IntFlag):
    """enum flow_flag: bits of flow_record.flags."""

    IDS_PRIVATE = 1
    PIPELINED = 2
    EARLY = 4
    ONE_WAY = 8
    OLD = 16
    MORE = 32
    END_STREAM = 64
    RESPONSE = 128
    SPANLESS = 256
    BROKEN = 512
    IN_HAND = 1024


class Evidence(IntEnum):
    """enum flow_evidence: what says for which exchange a request was made."""

    NONE = 0
    THREAD = 1
    LOOP = 2
    CONNECT = 3
    CONTEXT = 4
    GOROUTINE = 5
    WAKEUP = 6
    ASYNC = 7
    QUEUE = 8
    CHECKOUT = 9


# Bit of a record's level: its trace was let go (FATE_SHED in ebpf/shed.bpf.h).
SHED = 128


class Slot(IntEnum):
    """enum flow_text, of an HTTP/1 exchange: slots of flow_record.fields."""

    TARGET = 0
    HOST = 1
    USER_AGENT = 2
    TRACEPARENT = 3
    FORWARDED_FOR = 4
    FORWARDED_PROTO = 5
    METHOD = 6
    UNIX_PATH = 7


class Database(IntEnum):
    """enum flow_text, of an exchange with a database."""

    QUERY = 0
    DATABASE = 1
    ERROR = 2
    SQLSTATE = 3
    VERSION = 4
    STATEMENT = 5
    PORTAL = 6
    UNIX_PATH = 7


class Block(IntEnum):
    """enum flow_text, of an HTTP/2 header block."""

    BLOCK = 0


class Exec(IntEnum):
    """enum flow_text, of an exec."""

    EXE = 0
    ARGV = 1


class Family(IntEnum):
    """enum flow_family: address families as the kernel numbers them."""

    UNIX = 1
    INET = 2
    INET6 = 10
