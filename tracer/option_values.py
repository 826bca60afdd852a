"""Values on the command line: each function reads one kind of them, or raises UsageError.

Those that take the option's name, for their messages, return the function that reads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from tracer.errors import UsageError
from tracer.instance import MAX_SOCKET_PATH
from tracer.kernel.privileges import NUMBERS

MAX_RING_BYTES = 512 * 1024 * 1024  # libbpf wants BTF to tell its size as that of an array
MAX_CONNECTIONS = 4_194_304
PAGE_BYTES = 4096
MAX_TIMEOUT_S = 3_600.0

_SIZE = re.compile(r"(\d+)([KMG]?)(?:i?B)?", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
_AGE = re.compile(r"(\d{1,9})([smhd])")
_AGE_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(us|ms|s|m)")
_DURATION_NS = {"us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000}
MIN_STORE_BYTES, MAX_STORE_BYTES = 16 * 1024**2, 1024**4
MIN_STORE_S, MAX_STORE_S = 60, 3_650 * 86_400


class FromVariable(str):
    """A default that a variable of the environment gives: what is wrong with it is the variable's.

    argparse reads it as it reads what follows an option.
    """

    variable: str

    @classmethod
    def get(cls, variable: str) -> FromVariable | None:
        """Return the variable's value; None where there is none."""
        value = os.environ.get(variable)
        if not value:
            return None
        found = cls(value)
        found.variable = variable
        return found


def named(option: str, text: str) -> str:
    """Say where `text` comes from: the option's name, or a variable's."""
    return text.variable if isinstance(text, FromVariable) else option


def whole(option: str, least: int, most: int, what: str) -> Callable[[str], int]:
    """A whole number from `least` to `most`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,18}", text, re.ASCII) or not least <= int(text) <= most:
            raise UsageError(f"{option}: {text!r} is not {what}", f"{least} to {most}")
        return int(text)

    return read


def port(option: str) -> Callable[[str], int]:
    """A TCP port."""
    return whole(option, 1, 65_535, "a TCP port")


def pid(option: str) -> Callable[[str], int]:
    """A process id."""
    return whole(option, 1, 4_194_304, "a process id")


def count(option: str) -> Callable[[str], int]:
    """A number of connections."""
    return whole(option, 1, MAX_CONNECTIONS, "a number of connections")


def words(option: str) -> Callable[[str], str]:
    """Any text but none."""

    def read(text: str) -> str:
        if not text or "\0" in text:
            raise UsageError(f"{option}: the value is empty", "leave the option out instead")
        return text

    return read


def exe(option: str) -> Callable[[str], str]:
    """An executable: an absolute path, or a file name."""

    def read(text: str) -> str:
        # Relative to what? The tracer's directory is nobody else's.
        if "/" in words(option)(text) and not os.path.isabs(text):
            raise UsageError(
                f"{option}: {text!r} is neither an absolute path nor a file name",
                "`readlink /proc/PID/exe` shows the path of a process",
            )
        return text

    return read


def seconds(option: str) -> Callable[[str], float]:
    """A time in seconds; all but --duration have a limit."""

    def read(text: str) -> float:
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
        limit = float("inf") if option == "--duration" else MAX_TIMEOUT_S
        if not 0.001 <= seconds < float("inf") or seconds > limit:
            raise UsageError(
                f"{option}: {text!r} is not a time in seconds", "write for example 2.5"
            )
        return seconds

    return read


def duration(option: str) -> Callable[[str], int]:
    """A duration with its unit, in ns."""

    def read(text: str) -> int:
        matched = _DURATION.fullmatch(text)
        ns = round(float(matched[1]) * _DURATION_NS[matched[2]]) if matched else 0
        if not ns:
            raise UsageError(
                f"{option}: {text!r} is not a duration", "units are us, ms, s and m: 250ms"
            )
        return ns

    return read


def ring_size(text: str) -> int:
    """A power of two in bytes, with suffixes."""
    matched = _SIZE.fullmatch(text)
    if matched is None or len(text) > 16:
        raise UsageError(f"--ring-size: {text!r} is not a size in bytes", "write for example 16M")
    size = int(matched[1]) * _SIZE_UNITS[matched[2].upper()]
    if size & (size - 1) or not size:
        near = max(PAGE_BYTES, 1 << size.bit_length())
        raise UsageError(
            f"--ring-size: {text} is not a power of two", f"the kernel wants one; next is {near}"
        )
    if not PAGE_BYTES <= size <= MAX_RING_BYTES:
        raise UsageError(
            f"--ring-size: {text} is out of range",
            f"{PAGE_BYTES // 1024}K to {MAX_RING_BYTES // 1024**2}M",
        )
    return size


def store_size(text: str) -> int:
    """Bytes that a store may take, with suffixes."""
    matched = _SIZE.fullmatch(text)
    size = int(matched[1]) * _SIZE_UNITS[matched[2].upper()] if matched and len(text) < 20 else -1
    if not MIN_STORE_BYTES <= size <= MAX_STORE_BYTES:
        raise UsageError(f"--store-size: {text!r} is not a size", "16M to 1024G")
    return size


def store_age(text: str) -> int:
    """Seconds that a store may keep spans for, with suffixes."""
    matched = _AGE.fullmatch(text)
    age_s = int(matched[1]) * _AGE_UNITS[matched[2]] if matched else -1
    if not MIN_STORE_S <= age_s <= MAX_STORE_S:
        raise UsageError(f"--store-age: {text!r} is not an age", "1m to 3650d, for example 12h")
    return age_s


def capability(text: str) -> str:
    """The name of a capability."""
    if text not in NUMBERS:
        raise UsageError(
            f"--keep-capability: {text!r} is no capability", "for example CAP_DAC_READ_SEARCH"
        )
    return text


def endpoint(text: str) -> str:
    """A URL; the rest of it is judged where the variables are, in tracer.export."""
    if not text.strip():
        raise UsageError("--otlp-endpoint: the value is empty", "http://HOST:4317")
    return text


def header(text: str) -> str:
    """NAME=VALUE, written as the variable wants it."""
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
        raise UsageError(
            "--otlp-header: that is not NAME=VALUE", "write for example x-token=secret"
        )
    if not value.isprintable() or not value.isascii():
        raise UsageError(f"--otlp-header: the value of {name} is not printable ASCII", "")
    # The variable is a W3C Baggage list: these would end or alter the value.
    escaped = re.sub(r'[%,; "\\]', lambda found: f"%{ord(found[0]):02X}", value)
    return f"{name}={escaped}"


def socket(text: str) -> str:
    """The path of a Unix socket."""
    name = named("--control-socket", text)
    if not text:
        raise UsageError(f"{name}: the value is empty", "give a path")
    if len(os.fsencode(text)) > MAX_SOCKET_PATH:
        raise UsageError(
            f"{name}: the path is longer than {MAX_SOCKET_PATH} bytes",
            "the kernel takes no longer name for a Unix socket",
        )
    return text
