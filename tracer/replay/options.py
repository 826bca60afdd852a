"""`wirespan replay` on the command line: what is its own there, and it as data."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

EPILOG = (
    "examples:\n"
    "  wirespan replay traffic.pcap\n"
    "  wirespan replay --output json --side both traffic.pcapng > spans.jsonl\n"
    "  wirespan replay --output none --otlp-endpoint http://localhost:4317 traffic.pcap\n"
    "  ssh host tcpdump -i any -U -s 0 -w - tcp port 8080 | wirespan replay -\n"
    "\n"
    "Needs neither root nor eBPF."
)


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """`wirespan replay`. otlp: as in RunOptions. side: "server", "client" or "both"."""

    file: str
    side: str
    output: str
    query: str
    sql: str
    otlp: tuple[tuple[str, str], ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe what no other command has."""
    parser.add_argument("file", metavar="FILE", help="pcap or pcapng; - for standard input")
    which = parser.add_argument_group("what to show")
    which.add_argument(
        "--side", choices=("server", "client", "both"), default="server",
        help="whose view of each connection: a span for what the server saw, the client, or "
        "one each (default: server)",
    )  # fmt: skip
