"""PyMySQL, mysql-connector-python and asyncmy: DRIVER TABLE FILE, and JSON of how to connect.

FILE is for LOAD DATA LOCAL INFILE, which asyncmy 0.2.18 fails at.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import asyncmy
import mysql.connector
import pymysql
from script import PARAMETERS, Step, prepared, statements, step

MULTI = "SELECT n FROM ten WHERE n < 4; SELECT n AS inner_n FROM ten WHERE n < 2"
CALL = "CALL two()"


def load(file: str, table: str) -> str:
    return f"LOAD DATA LOCAL INFILE '{file}' INTO TABLE {table} (id, name)"


def with_pymysql(table: str, file: str, where: dict[str, Any]) -> list[Step]:
    steps: list[Step] = []
    connection = pymysql.connect(
        **where,
        autocommit=True,
        ssl_disabled=True,
        local_infile=True,
        client_flag=pymysql.constants.CLIENT.MULTI_STATEMENTS,
    )
    cursor = connection.cursor()

    def run(text: str, parameters: Any = None) -> None:
        try:
            affected = cursor.execute(text, parameters)
        except pymysql.MySQLError as error:
            steps.append(step(text, error=error.args[0]))
            return
        returned = None if cursor.description is None else len(cursor.fetchall())
        while cursor.nextset():
            returned = (returned or 0) + len(cursor.fetchall())
        steps.append(step(text, returned, affected))

    for text in statements(table):
        run(text)
    for value in PARAMETERS:
        run(prepared(table, "%s"), (value,))
    run(MULTI)
    run(CALL)
    run(load(file, table))
    connection.ping(reconnect=False)
    connection.select_db("other")
    run("SELECT n FROM shop.ten")
    # Rows come as they are asked for.
    with connection.cursor(pymysql.cursors.SSCursor) as unbuffered:
        unbuffered.execute(text := "SELECT a.n FROM shop.ten a, shop.ten b, shop.ten c")
        steps.append(step(text, len(unbuffered.fetchall())))
    connection.close()
    return steps


def with_connector(table: str, file: str, where: dict[str, Any]) -> list[Step]:
    steps: list[Step] = []
    connection = mysql.connector.connect(
        **where,
        use_pure=True,
        autocommit=True,
        allow_local_infile=True,
        ssl_disabled=True,
    )

    def run(cursor: Any, text: str, parameters: Any = None) -> None:
        try:
            cursor.execute(text, parameters or ())
            returned = len(cursor.fetchall()) if cursor.with_rows else None
        except mysql.connector.Error as error:
            steps.append(step(text, error=error.errno))
            return
        steps.append(step(text, returned, cursor.rowcount))

    cursor = connection.cursor()
    for text in statements(table):
        run(cursor, text)
    run(cursor, load(file, table))
    returned = 0
    for result in cursor.execute(MULTI, map_results=True) or ():
        returned += len(result)
    returned += len(cursor.fetchall())
    while cursor.nextset():
        returned += len(cursor.fetchall())
    steps.append(step(MULTI, returned))
    cursor.close()
    with connection.cursor(prepared=True) as cursor:
        for value in PARAMETERS:
            run(cursor, prepared(table, "%s"), (value,))
    with connection.cursor(prepared=True) as cursor:
        run(cursor, f"INSERT INTO {table} (id, name) VALUES (%s, %s)", (70, "Päul"))
    connection.cmd_init_db("other")
    connection.ping()
    connection.cmd_reset_connection()
    connection.close()
    return steps


async def with_asyncmy(table: str, where: dict[str, Any]) -> list[Step]:
    steps: list[Step] = []
    connection = await asyncmy.connect(**where, autocommit=True)
    async with connection.cursor() as cursor:
        texts = [*statements(table), CALL]
        plans = [(text, None) for text in texts]
        plans += [(prepared(table, "%s"), (value,)) for value in PARAMETERS]
        for text, parameters in plans:
            try:
                affected = await cursor.execute(text, parameters)
            except asyncmy.errors.MySQLError as error:
                steps.append(step(text, error=error.args[0]))
                continue
            returned = None if cursor.description is None else len(await cursor.fetchall())
            while await cursor.nextset():
                returned = (returned or 0) + len(await cursor.fetchall())
            steps.append(step(text, returned, affected))
    await connection.ping()
    await connection.select_db("other")
    await connection.ensure_closed()
    return steps


def main() -> None:
    driver, table, file, where = sys.argv[1:]
    place = json.loads(where)
    if driver == "pymysql":
        steps = with_pymysql(table, file, place)
    elif driver == "connector":
        steps = with_connector(table, file, place)
    else:
        steps = asyncio.run(with_asyncmy(table, place))
    print(json.dumps(steps))


if __name__ == "__main__":
    main()
