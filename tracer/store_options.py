"""The store of `wirespan run` on the command line, and it as data."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

from collector.commands import ADDRESS_VARIABLE
from collector.options import DEFAULT_QUERY, query_address
from tracer import option_values as values
from tracer.errors import UsageError

DIRECTORY = "/var/lib/wirespan"
SIZE, AGE = "1G", "3d"
NONE = "none"


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Where `wirespan run` keeps spans on this machine.

    directory: "" for not at all.
    query_address: of the query API, HOST:PORT, port 0 for any; "" for none.
    asked: whether somebody asked for a store. Otherwise there is one only where spans are
        exported to nobody, and tracing goes on where it can't be had.
    """

    directory: str = DIRECTORY
    max_bytes: int = values.store_size(SIZE)
    max_age_s: int = values.store_age(AGE)
    query_address: str = DEFAULT_QUERY
    asked: bool = False

    def wanted(self, exported: bool) -> bool:
        """Whether spans are to be stored, if they are exported or not."""
        return bool(self.directory) and (self.asked or not exported)


def add_arguments(run: argparse.ArgumentParser) -> None:
    """Describe the options to argparse."""
    store = run.add_argument_group(
        "store and query API",
        "Without an OTLP endpoint, spans are kept on this machine, for `wirespan traces`, Jaeger\n"
        "UI and Grafana; with one, only if any of these options is given.",
    )
    store.add_argument(
        "--store", metavar="DIR", type=values.words("--store"),
        help=f"where to keep spans; none: nowhere (default: {DIRECTORY})",
    )  # fmt: skip
    store.add_argument(
        "--store-size", metavar="BYTES", type=values.store_size,
        help=f"of all of it, suffixes K, M, G: the oldest spans go first (default: {SIZE})",
    )  # fmt: skip
    store.add_argument(
        "--store-age", metavar="AGE", type=values.store_age,
        help=f"how long spans are kept, suffixes s, m, h, d (default: {AGE})",
    )  # fmt: skip
    store.add_argument(
        "--query-address", metavar="ADDRESS:PORT", type=_query_address,
        help="of the Jaeger-compatible query API, without passwords; port 0 for any; none: no API "
        f"(default: {DEFAULT_QUERY}, or {ADDRESS_VARIABLE})",
    )  # fmt: skip


def options(found: argparse.Namespace) -> StoreOptions:
    """Make options of what was parsed; raises UsageError."""
    others = {
        "--store-size": found.store_size,
        "--store-age": found.store_age,
        "--query-address": found.query_address,
    }
    given = [name for name, value in others.items() if value is not None]
    address = found.query_address
    if found.store == NONE:
        if given:
            raise UsageError(f"{given[0]}: there is no store with --store none", "give one of them")
        return StoreOptions(directory="", asked=True)
    if address is None and (variable := os.environ.get(ADDRESS_VARIABLE)):
        address = _query_address(variable, ADDRESS_VARIABLE)
    default = StoreOptions()
    return StoreOptions(
        directory=found.store or default.directory,
        max_bytes=found.store_size or default.max_bytes,
        max_age_s=found.store_age or default.max_age_s,
        query_address=default.query_address if address is None else address,
        asked=bool(found.store or given),
    )


def _query_address(text: str, option: str = "--query-address") -> str:
    return str(query_address(option)(text) or "")
