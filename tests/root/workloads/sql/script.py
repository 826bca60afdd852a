"""The statements that every client of MySQL, MariaDB and PostgreSQL runs, in any language.

`table` is new; `ten` has the ten rows 0 to 9. Each client prints a JSON list of steps: [verb,
returned rows, affected rows, error], of which null is what there was none of.
"""

from __future__ import annotations

import json
import sys
from typing import Any

Step = list[Any]

# More than a packet, a socket's buffer or a record holds; TEXT of MySQL ends at 64 KiB.
LARGE = "large" * 14_000


def statements(table: str, text: str = "LONGTEXT") -> list[str]:
    return [
        f"CREATE TABLE {table} (id INT PRIMARY KEY, name VARCHAR(100), body {text})",
        f"INSERT INTO {table} (id, name) VALUES (1, 'Ann'), (2, 'Bob'), (3, 'it''s Cäcilie')",
        f"SELECT id, name FROM {table} WHERE id = 1",
        f"SELECT id, name FROM {table} WHERE name = 'nobody'",
        f"SELECT id, name FROM {table} ORDER BY id",
        f"UPDATE {table} SET name = 'Bert' WHERE id IN (2, 3, 77)",
        f"INSERT INTO {table} (id, name) VALUES (1, 'Ann again')",
        f"SELECT * FORM {table} WHERE id = 12345",
        "BEGIN",
        f"DELETE FROM {table} WHERE id = 3",
        "ROLLBACK",
        f"SELECT {table}.id, a.n, b.n, c.n, d.n FROM {table}, ten a, ten b, ten c, ten d"
        f" WHERE {table}.id = 1",
        f"INSERT INTO {table} (id, body) VALUES (50, '{LARGE}')",
        f"SELECT body FROM {table} WHERE id = 50",
    ]


# What all clients are told of these.
ANSWERS: list[Step] = [
    ["CREATE", None, None, None],
    ["INSERT", None, 3, None],
    ["SELECT", 1, None, None],
    ["SELECT", 0, None, None],
    ["SELECT", 3, None, None],
    ["UPDATE", None, 2, None],
    ["INSERT", None, None, "1062"],
    ["SELECT", None, None, "1064"],
    ["BEGIN", None, None, None],
    ["DELETE", None, 1, None],
    ["ROLLBACK", None, None, None],
    ["SELECT", 10_000, None, None],
    ["INSERT", None, 1, None],
    ["SELECT", 1, None, None],
]

PARAMETERS = (1, 2, 99)


def prepared(table: str, placeholder: str) -> str:
    """A statement that is executed once for each of PARAMETERS."""
    return f"SELECT id, name FROM {table} WHERE id = {placeholder}"


def step(
    statement: str,
    returned: int | None = None,
    affected: int | None = None,
    error: object = None,
) -> Step:
    """What a client was told of a statement."""
    verb = statement.split(None, 1)[0].upper()
    if verb not in ("INSERT", "UPDATE", "DELETE", "LOAD", "COPY") or error is not None:
        affected = None
    return [verb, returned, affected, None if error is None else str(error)]


if __name__ == "__main__":
    # The statements of a table for a client in another language or on a command line.
    form, table = sys.argv[1:]
    if form == "json":
        print(json.dumps(statements(table)))
    else:
        print(*statements(table), "", sep=";\n", end="")
