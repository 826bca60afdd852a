"""psycopg and asyncpg: DRIVER TABLE HOST PORT USER DATABASE. Prints steps as script.py says."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import asyncpg
import psycopg
from script import PARAMETERS, Step, prepared, statements, step


def with_psycopg(table: str, **where: Any) -> list[Step]:
    steps: list[Step] = []
    where = {"sslmode": "disable", "dbname": where.pop("database"), **where}
    with psycopg.connect(**where, autocommit=True) as connection:
        cursor = connection.cursor()

        def run(text: str, parameters: Any = None, **options: Any) -> None:
            try:
                cursor.execute(text, parameters, **options)
            except psycopg.Error as error:
                steps.append(step(text, error=error.sqlstate))
                return
            returned = None if cursor.description is None else len(cursor.fetchall())
            steps.append(step(text, returned, cursor.rowcount))

        for text in statements(table, "TEXT"):
            run(text)
        for value in PARAMETERS:
            run(prepared(table, "%s"), (value,), prepare=True)
        run(f"INSERT INTO {table} (id, name) VALUES (%s, %s)", (70, "Päul"))
        with cursor.copy(text := f"COPY {table} (id, name) FROM STDIN") as copy:
            for number in range(500):
                copy.write_row((1000 + number, "copied"))
        steps.append(step(text, None, 500))
        with cursor.copy(text := f"COPY {table} (id) TO STDOUT") as copy:
            rows = len(list(copy.rows()))
        steps.append(step(text, None, rows))
        # Sent before the answers have come.
        with connection.pipeline():
            pipelined = [connection.execute(f"SELECT {table}.id FROM {table}") for _ in range(5)]
            steps += [step("SELECT", len(result.fetchall())) for result in pipelined]
    return steps


async def with_asyncpg(table: str, **where: Any) -> list[Step]:
    steps: list[Step] = []
    connection = await asyncpg.connect(**where, ssl=False)
    for text in statements(table, "TEXT"):
        try:
            if text.startswith("SELECT"):
                steps.append(step(text, len(await connection.fetch(text))))
            else:
                status = await connection.execute(text)
                count = status.split()[-1]
                steps.append(step(text, None, int(count) if count.isdigit() else None))
        except asyncpg.PostgresError as error:
            steps.append(step(text, error=error.sqlstate))
    statement = await connection.prepare(text := prepared(table, "$1"))
    for value in PARAMETERS:
        steps.append(step(text, len(await statement.fetch(value))))
    records = [(1000 + number, "copied") for number in range(500)]
    await connection.copy_records_to_table(table, records=records, columns=["id", "name"])
    steps.append(step("COPY", None, 500))
    await connection.close()
    return steps


def main() -> None:
    driver, table, host, port, user, database = sys.argv[1:]
    where = {"host": host, "port": int(port), "user": user, "database": database}
    if driver == "psycopg":
        print(json.dumps(with_psycopg(table, **where)))
    else:
        print(json.dumps(asyncio.run(with_asyncpg(table, **where))))


if __name__ == "__main__":
    main()
