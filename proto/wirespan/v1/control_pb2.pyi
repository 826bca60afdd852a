from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Format(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FORMAT_UNSPECIFIED: _ClassVar[Format]
    FORMAT_TEXT: _ClassVar[Format]
    FORMAT_JSON: _ClassVar[Format]
FORMAT_UNSPECIFIED: Format
FORMAT_TEXT: Format
FORMAT_JSON: Format

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("version", "pid", "uptime_seconds", "programs", "maps", "counts", "losses", "rates", "ring", "export", "filters", "process", "tail_subscribers", "store", "sampling")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PROGRAMS_FIELD_NUMBER: _ClassVar[int]
    MAPS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    RATES_FIELD_NUMBER: _ClassVar[int]
    RING_FIELD_NUMBER: _ClassVar[int]
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    TAIL_SUBSCRIBERS_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    version: str
    pid: int
    uptime_seconds: float
    programs: _containers.RepeatedCompositeFieldContainer[Program]
    maps: _containers.RepeatedCompositeFieldContainer[Map]
    counts: _containers.RepeatedCompositeFieldContainer[Counter]
    losses: _containers.RepeatedCompositeFieldContainer[Loss]
    rates: _containers.RepeatedCompositeFieldContainer[Rate]
    ring: Ring
    export: Export
    filters: _containers.RepeatedScalarFieldContainer[str]
    process: Process
    tail_subscribers: int
    store: Store
    sampling: str
    def __init__(self, version: _Optional[str] = ..., pid: _Optional[int] = ..., uptime_seconds: _Optional[float] = ..., programs: _Optional[_Iterable[_Union[Program, _Mapping]]] = ..., maps: _Optional[_Iterable[_Union[Map, _Mapping]]] = ..., counts: _Optional[_Iterable[_Union[Counter, _Mapping]]] = ..., losses: _Optional[_Iterable[_Union[Loss, _Mapping]]] = ..., rates: _Optional[_Iterable[_Union[Rate, _Mapping]]] = ..., ring: _Optional[_Union[Ring, _Mapping]] = ..., export: _Optional[_Union[Export, _Mapping]] = ..., filters: _Optional[_Iterable[str]] = ..., process: _Optional[_Union[Process, _Mapping]] = ..., tail_subscribers: _Optional[int] = ..., store: _Optional[_Union[Store, _Mapping]] = ..., sampling: _Optional[str] = ...) -> None: ...

class Program(_message.Message):
    __slots__ = ("name", "kind", "attached", "run_count", "run_ns", "hook")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    RUN_COUNT_FIELD_NUMBER: _ClassVar[int]
    RUN_NS_FIELD_NUMBER: _ClassVar[int]
    HOOK_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    attached: bool
    run_count: int
    run_ns: int
    hook: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., attached: _Optional[bool] = ..., run_count: _Optional[int] = ..., run_ns: _Optional[int] = ..., hook: _Optional[str] = ...) -> None: ...

class Map(_message.Message):
    __slots__ = ("name", "type", "max_entries", "bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MAX_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: str
    max_entries: int
    bytes: int
    def __init__(self, name: _Optional[str] = ..., type: _Optional[str] = ..., max_entries: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class Counter(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: int
    def __init__(self, name: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...

class Loss(_message.Message):
    __slots__ = ("name", "value", "meaning")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    MEANING_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: int
    meaning: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[int] = ..., meaning: _Optional[str] = ...) -> None: ...

class Rate(_message.Message):
    __slots__ = ("name", "per_second", "window_seconds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    WINDOW_SECONDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    per_second: float
    window_seconds: float
    def __init__(self, name: _Optional[str] = ..., per_second: _Optional[float] = ..., window_seconds: _Optional[float] = ...) -> None: ...

class Ring(_message.Message):
    __slots__ = ("bytes", "fill", "buffer_bytes", "buffer_fill")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FILL_FIELD_NUMBER: _ClassVar[int]
    BUFFER_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUFFER_FILL_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    fill: float
    buffer_bytes: int
    buffer_fill: float
    def __init__(self, bytes: _Optional[int] = ..., fill: _Optional[float] = ..., buffer_bytes: _Optional[int] = ..., buffer_fill: _Optional[float] = ...) -> None: ...

class Export(_message.Message):
    __slots__ = ("endpoint", "protocol", "counts", "last_error")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    protocol: str
    counts: _containers.RepeatedCompositeFieldContainer[Counter]
    last_error: str
    def __init__(self, endpoint: _Optional[str] = ..., protocol: _Optional[str] = ..., counts: _Optional[_Iterable[_Union[Counter, _Mapping]]] = ..., last_error: _Optional[str] = ...) -> None: ...

class Store(_message.Message):
    __slots__ = ("directory", "query_address", "counts", "failure")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    QUERY_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    directory: str
    query_address: str
    counts: _containers.RepeatedCompositeFieldContainer[Counter]
    failure: str
    def __init__(self, directory: _Optional[str] = ..., query_address: _Optional[str] = ..., counts: _Optional[_Iterable[_Union[Counter, _Mapping]]] = ..., failure: _Optional[str] = ...) -> None: ...

class Process(_message.Message):
    __slots__ = ("cpu_seconds", "cpu_fraction", "rss_bytes")
    CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CPU_FRACTION_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    cpu_seconds: float
    cpu_fraction: float
    rss_bytes: int
    def __init__(self, cpu_seconds: _Optional[float] = ..., cpu_fraction: _Optional[float] = ..., rss_bytes: _Optional[int] = ...) -> None: ...

class TailRequest(_message.Message):
    __slots__ = ("filter", "format")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    filter: str
    format: Format
    def __init__(self, filter: _Optional[str] = ..., format: _Optional[_Union[Format, str]] = ...) -> None: ...

class TailReply(_message.Message):
    __slots__ = ("lines", "dropped")
    LINES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    lines: _containers.RepeatedScalarFieldContainer[str]
    dropped: int
    def __init__(self, lines: _Optional[_Iterable[str]] = ..., dropped: _Optional[int] = ...) -> None: ...
