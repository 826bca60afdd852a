"""`wirespan traces`, `wirespan trace` and `wirespan explain`: what the query API holds.

They ask a tracer or collector that runs: its store can be open in one process only.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO
from urllib.parse import quote, urlencode

from collector.explain import explain
from collector.waterfall import listing, waterfall
from tracer import option_values as values
from tracer.errors import UsageError, WirespanError

DEFAULT_ADDRESS = "127.0.0.1:16686"
ADDRESS_VARIABLE = "WIRESPAN_QUERY_ADDRESS"
TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 256 << 20

LIST, SHOW, EXPLAIN = "traces", "trace", "explain"


@dataclass(frozen=True, slots=True)
class QueryOptions:
    """`wirespan traces|trace|explain`: command, the words after it, and how to answer."""

    command: str
    words: tuple[str, ...]
    address: str
    json: bool
    limit: int = 20


def add_commands(commands: Any, formatter: Any = argparse.RawDescriptionHelpFormatter) -> None:
    """Describe the commands to argparse; each sets `make`, which makes QueryOptions."""
    traces = _add(
        commands,
        formatter,
        LIST,
        "list the newest traces, or those searched for",
        "Words, all of which must hold for one span of a trace: KEY OP VALUE without spaces.\n"
        "  KEY  service, op (the span's name), kind, method, path, route, status, duration, pid,\n"
        "       or an attribute's full name\n"
        "  OP   = != > >= < <=, ~ (contains), !~ (does not contain)\n"
        "  and  min=10ms, max=2s (duration of the span), since=1h\n"
        "\n"
        "examples:\n"
        "  wirespan traces\n"
        "  wirespan traces service=web 'status>=500' since=15m\n"
        "  wirespan traces 'op=GET /users/{id}' min=100ms",
    )
    traces.add_argument("words", metavar="WORD", nargs="*", help="default: every trace")
    traces.add_argument(
        "--limit", metavar="N", type=_limit, default=20, help="traces at most (default: 20)"
    )
    show = _add(
        commands,
        formatter,
        SHOW,
        "draw a trace as a waterfall",
        "examples:\n  wirespan trace 4bf92f3577b34da6a3ce929d0e0e4736",
    )
    why = _add(
        commands,
        formatter,
        EXPLAIN,
        "say why each span of a trace hangs where it does",
        "examples:\n  wirespan explain 4bf92f3577b34da6a3ce929d0e0e4736",
    )
    for parser in (show, why):
        parser.add_argument("words", metavar="ID", nargs=1, type=_id, help="see `wirespan traces`")
    for parser, command in ((traces, LIST), (show, SHOW), (why, EXPLAIN)):
        parser.add_argument(
            "--query-address", metavar="HOST:PORT", type=_address,
            default=values.FromVariable.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS,
            help="of the query API of the tracer or collector that runs "
            f"(default: {DEFAULT_ADDRESS}, or {ADDRESS_VARIABLE})",
        )  # fmt: skip
        parser.add_argument(
            "--json", action="store_true", help="what the API answers instead of a drawing"
        )
        parser.set_defaults(make=_maker(command))


def run(options: QueryOptions, out: TextIO | None = None) -> int:
    """Run one of the commands. Returns the exit code; raises WirespanError."""
    out = sys.stdout if out is None else out
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="backslashreplace")
    if options.command == LIST:
        _check(options.words)
    data = _data(options)
    if options.json:
        print(json.dumps(data, ensure_ascii=False), file=out)
        return 0
    width = shutil.get_terminal_size((120, 24)).columns
    color = out.isatty() and not os.environ.get("NO_COLOR")
    for line in _lines(options, data, width, color):
        print(line, file=out)
    if options.command == LIST and not data:
        print("wirespan: no trace found", file=sys.stderr)
    return 0


def _check(words: Sequence[str]) -> None:
    """Raise UsageError for a bad search: it is bad whether or not anybody answers."""
    from collector import search

    try:
        search.parse(words, 0, 1)
    except search.SearchError as error:
        raise UsageError(str(error), "see `wirespan traces --help`") from None


def _lines(options: QueryOptions, data: Any, width: int, color: bool) -> Iterator[str]:
    if options.command == LIST:
        return listing(data, width, color) if data else iter(())
    if options.command == SHOW:
        return waterfall(data, width, color)
    return explain(data)


def _data(options: QueryOptions) -> Any:
    if options.command == LIST:
        parameters = [("q", word) for word in options.words] + [("limit", str(options.limit))]
        return _ask(options.address, f"/wirespan/traces?{urlencode(parameters)}")
    return _ask(options.address, f"/api/traces/{quote(options.words[0], safe='')}")[0]


def _ask(address: str, target: str) -> Any:
    """Return `data` of an answer of the API; raises WirespanError, UsageError where it is bad."""
    # A tracer reads this file for the options in it, and must not carry 6 MB of HTTP and TLS.
    import http.client

    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(
        host.removeprefix("[").removesuffix("]"), int(port), timeout=TIMEOUT_S
    )
    try:
        connection.request("GET", target)
        response = connection.getresponse()
        body = response.read(MAX_ANSWER_BYTES)
        answer = json.loads(body)
        errors, data = answer["errors"], answer["data"]
    except ConnectionRefusedError:
        raise WirespanError(
            f"nobody answers queries on {address}",
            "start one: wirespan run, without an OTLP endpoint (or see --query-address)",
        ) from None
    except OSError as error:
        raise WirespanError(
            f"cannot ask {address}: {error.strerror or error}", "see --query-address"
        ) from None
    except (http.client.HTTPException, ValueError, KeyError, TypeError):
        raise WirespanError(
            f"what answers on {address} is no query API of wirespan", "see --query-address"
        ) from None
    finally:
        connection.close()
    if response.status == 400:
        raise UsageError(errors[0]["msg"], "see `wirespan traces --help`")
    if response.status == 404 and target.startswith("/api/traces/"):
        raise WirespanError(
            f"no trace {target.rpartition('/')[2]} on {address}",
            "`wirespan traces` lists those there are; a trace can be stored only once it is whole",
        )
    if response.status != 200:
        raise WirespanError(f"{address} refused: {errors[0]['msg'] if errors else response.status}")
    return data


def _add(commands: Any, formatter: Any, name: str, help_: str, epilog: str) -> Any:
    return commands.add_parser(
        name,
        help=help_,
        description=help_[0].upper() + help_[1:] + ".",
        epilog=epilog,
        formatter_class=formatter,
        allow_abbrev=False,
    )


def _maker(command: str) -> Callable[[argparse.Namespace], QueryOptions]:
    def make(found: argparse.Namespace) -> QueryOptions:
        words: Sequence[str] = found.words
        # One shell word may hold several: 'service=web status>=500'.
        if command == LIST:
            words = _split(words)
        return QueryOptions(
            command, tuple(words), found.query_address, found.json, getattr(found, "limit", 20)
        )

    return make


def _split(words: Sequence[str]) -> list[str]:
    """Cut at spaces before what begins like a word of a search; values may hold spaces."""
    start = re.compile(r"\s+(?=[A-Za-z_@][\w.@/-]*(?:!=|!~|>=|<=|=|~|>|<))")
    return [each for word in words for each in start.split(word.strip()) if each]


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not host or not colon or not port.isdecimal() or not 0 < int(port) <= 65_535:
        name = values.named("--query-address", text)
        raise UsageError(f"{name}: {text!r} is not HOST:PORT", f"for example {DEFAULT_ADDRESS}")
    return text


def _limit(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 10_000:
        raise UsageError(f"--limit: {text!r} is not a number of traces", "1 to 10000")
    return int(text)


def _id(text: str) -> str:
    if not 0 < len(text) <= 32 or not set(text) <= set("0123456789abcdefABCDEF"):
        raise UsageError(
            f"{text!r} is not a trace id", "up to 32 hexadecimal digits, from `wirespan traces`"
        )
    return text
