"""Private database servers: each with its own directory, ports, log and pid."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pymysql

from tests.root.harness import ROOT, Process, Span, Spans, free_port, listening, run

SQL = Path(__file__).resolve().parent / "workloads" / "sql"

# Logins: one that no password is asked for, and one that is.
USER, GUARDED, PASSWORD = "bob", "ann", "a password"
DATABASE = "shop"


def fetched(part: str) -> Path:
    """What scripts/databases.sh PART makes; see there."""
    return Path(run([ROOT / "scripts" / "databases.sh", part], timeout=600).strip())


def certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    run([*argv, "-subj", "/CN=localhost", "-out", cert, "-keyout", key])
    return cert, key


class Server:
    """A server's process and places, with a short path: a Unix socket's has 107 bytes at most."""

    name: str
    socket: Path

    def __init__(self, user: str | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=f"wirespan-{self.name}-"))
        self.user = user
        if user is not None:
            os.chown(self.directory, pwd.getpwnam(user).pw_uid, -1)
        self.port = free_port()
        self.log = self.directory / "log"
        self.process: Process | None = None

    def start(self, *argv: str | Path) -> None:
        """Start it and wait until it listens."""
        self.process = Process(argv, self.log, user=self.user, cwd=self.directory)
        self.process.wait_for(lambda: listening(self.port), f"{self.name} listens", 60.0)

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop(timeout=30.0)
        shutil.rmtree(self.directory, ignore_errors=True)

    def owns(self, span: Span) -> bool:
        """Whether the span is of an exchange with this server."""
        places = span.attributes.get("server.port"), span.attributes.get("server.address")
        return places[0] == self.port or places[1] == str(self.socket)

    def spans(self, spans: Spans) -> Spans:
        return Spans(span for span in spans if self.owns(span))


class Logged(NamedTuple):
    """A command in the general log of MySQL or MariaDB."""

    connection: int
    command: str  # as the log names it: Query, Prepare, "Close stmt"
    text: str


_LOGGED = re.compile(
    r"^(?:\d[^\t]*)?\t *(?:\t *)?(\d+) ([A-Z][A-Za-z]*(?: [A-Za-z]+)?)(?:\t(.*))?$"
)

# What the server runs by itself, and what `counts` asks it.
COUNTED = "events_statements_summary_global_by_event_name"
_NOT_SENT = re.compile(rf"\s*SELECT \S+ AS inner_|.*{COUNTED}")

SETUP = f"""
CREATE DATABASE {DATABASE};
CREATE DATABASE other;
CREATE USER '{USER}'@'%';
CREATE USER '{GUARDED}'@'%' IDENTIFIED {{plugin}}BY '{PASSWORD}';
GRANT ALL ON *.* TO '{USER}'@'%';
GRANT ALL ON *.* TO '{GUARDED}'@'%';
USE {DATABASE};
CREATE TABLE ten (n INT PRIMARY KEY);
INSERT INTO ten VALUES (0),(1),(2),(3),(4),(5),(6),(7),(8),(9);
DELIMITER //
CREATE PROCEDURE two() BEGIN
  SELECT n AS inner_n FROM ten WHERE n < 3;
  SELECT n AS inner_n FROM ten WHERE n < 5;
END //
"""


class MySql(Server):
    """A running MySQL or MariaDB with its general log on."""

    def __init__(self, flavour: str) -> None:
        """flavour: mysql or mariadb."""
        self.name = flavour
        self.admin: pymysql.Connection[pymysql.cursors.Cursor] | None = None
        super().__init__()
        self.socket = self.directory / "sock"
        self.general = self.directory / "general.log"
        self.data = self.directory / "data"
        cert, key = certificate(self.directory)
        try:
            server = self._mariadb() if flavour == "mariadb" else self._mysql()
            self.start(
                *server,
                f"--datadir={self.data}",
                f"--socket={self.socket}",
                f"--pid-file={self.directory / 'pid'}",
                f"--port={self.port}",
                "--bind-address=127.0.0.1",
                "--user=root",
                "--general-log=1",
                f"--general-log-file={self.general}",
                "--local-infile=1",
                "--max-allowed-packet=64M",
                "--skip-log-bin",
                "--skip-innodb-doublewrite",
                "--innodb-flush-log-at-trx-commit=0",
                "--performance-schema=ON",
                "--skip-name-resolve",
                f"--ssl-cert={cert}",
                f"--ssl-key={key}",
            )
            plugin = "WITH caching_sha2_password " if flavour == "mysql" else ""
            file = self.directory / "setup.sql"
            file.write_text(SETUP.format(plugin=plugin))
            with file.open() as text:
                run([*self.client("unix", "--user=root")], stdin=text)
            self.admin = pymysql.connect(unix_socket=str(self.socket), user="root")
        except BaseException:
            self.stop()
            raise

    def _mariadb(self) -> list[str | Path]:
        argv = ["mariadb-install-db", "--no-defaults", f"--datadir={self.data}", "--user=root"]
        run([*argv, "--auth-root-authentication-method=normal", "--skip-test-db"])
        self.cli: Path | str = "mariadb"
        return ["mariadbd", "--no-defaults"]

    def _mysql(self) -> list[str | Path]:
        home = fetched("mysql")
        program = [home / "bin" / "mysqld", "--no-defaults", f"--lc-messages-dir={home / 'share'}"]
        program.append(f"--character-sets-dir={home / 'share' / 'charsets'}")
        argv = [*program, f"--datadir={self.data}", "--user=root", "--mysqlx=OFF"]
        run([*argv, "--initialize-insecure"])
        self.cli = home / "bin" / "mysql"
        # Raw: statements that it can't parse are logged too.
        return [*program, "--mysqlx=OFF", "--secure-file-priv=", "--log-raw=ON"]

    def client(self, where: str = "unix", *options: str) -> list[str | Path]:
        """Command line of the server's own client; where: tcp or unix.

        They encrypt unless told not to, MariaDB's over a Unix socket too.
        """
        argv: list[str | Path] = [self.cli, "--no-defaults", f"--user={USER}"]
        if where == "unix":
            argv.append(f"--socket={self.socket}")
        else:
            argv += ["--protocol=tcp", "--host=127.0.0.1", f"--port={self.port}"]
        if not any("ssl" in option for option in options):
            argv.append("--skip-ssl" if self.name == "mariadb" else "--ssl-mode=DISABLED")
        return [*argv, *options]

    def stop(self) -> None:
        if self.admin is not None:
            self.admin.close()
        super().stop()

    def spans(self, spans: Spans) -> Spans:
        """Those of this server, but for what `counts` asks it."""
        mine = super().spans(spans)
        return Spans(s for s in mine if COUNTED not in s.attributes.get("db.query.text", ""))

    def counts(self) -> Counter[str]:
        """How often each command was sent, as the server itself counts: "Ping", "Close stmt"."""
        assert self.admin is not None
        prefix = "statement/com/"
        with self.admin.cursor() as cursor:
            cursor.execute(
                f"SELECT event_name, count_star FROM performance_schema.{COUNTED}"
                f" WHERE event_name LIKE '{prefix}%' AND count_star > 0"
            )
            rows = cursor.fetchall()
            return Counter({name.removeprefix(prefix).capitalize(): n for name, n in rows})

    def mark(self) -> int:
        """A place in the general log."""
        return self.general.stat().st_size

    def logged(self, mark: int = 0) -> list[Logged]:
        """Commands that were sent since the mark, as the server logged them.

        Statements that the server ran by itself, within a procedure or as the second of
        several, have a column whose name begins `inner_` and are left out.
        """
        with self.general.open("rb") as file:
            file.seek(mark)
            text = file.read().decode(errors="replace")
        found: list[Logged] = []
        for line in text.splitlines():
            match = _LOGGED.fullmatch(line)
            if match:
                found.append(Logged(int(match[1]), match[2], match[3] or ""))
            elif found:
                found[-1] = found[-1]._replace(text=f"{found[-1].text}\n{line}")
        return [entry for entry in found if not _NOT_SENT.match(entry.text)]


def debian(program: str) -> Path:
    """A program of PostgreSQL's server, which Debian keeps out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    assert found, f"no {program} below /usr/lib/postgresql"
    return found[-1]


class PostgreSql(Server):
    """A running PostgreSQL that logs each statement; it refuses to be run by root."""

    name = "postgresql"

    def __init__(self) -> None:
        super().__init__("postgres")
        self.socket = self.directory / f".s.PGSQL.{self.port}"
        data = self.directory / "data"
        argv = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        try:
            # Not fsync: the directory does not outlive the test.
            run(
                [*argv, debian("initdb"), "-D", data, "-A", "trust", "-U", USER, "-N"],
                cwd=self.directory,
            )
            cert, key = certificate(self.directory)
            for file in (cert, key):
                os.chown(file, pwd.getpwnam("postgres").pw_uid, -1)
                file.chmod(0o600)
            settings = {
                "listen_addresses": "127.0.0.1",
                "port": self.port,
                "unix_socket_directories": self.directory,
                "fsync": "off",
                "ssl": "on",
                "ssl_cert_file": cert,
                "ssl_key_file": key,
                "log_statement": "all",
                "log_line_prefix": "%p %a ",
                "max_connections": 40,
            }
            words = [word for k, v in settings.items() for word in ("-c", f"{k}={v}")]
            self.start(debian("postgres"), "-D", data, *words)
            assert self.process is not None
            self.process.wait_for(
                lambda: "ready to accept connections" in self.log.read_text(), "it is ready", 30.0
            )
            self.psql("-d", "postgres", "-c", f"CREATE DATABASE {DATABASE}")
            self.psql(
                "-d",
                DATABASE,
                "-c",
                "CREATE TABLE ten AS SELECT n FROM generate_series(0, 9) AS n",
                "-c",
                f"CREATE ROLE {GUARDED} LOGIN SUPERUSER PASSWORD '{PASSWORD}'",
            )
        except BaseException:
            self.stop()
            raise

    def psql(self, *options: str, where: str = "unix") -> str:
        return run(self.client(where, *options))

    def client(self, where: str = "unix", *options: str) -> list[str | Path]:
        """Command line of psql; where: tcp or unix."""
        host = str(self.directory) if where == "unix" else "127.0.0.1"
        return ["psql", "-X", "-h", host, "-p", str(self.port), "-U", USER, *options]

    def logged(self) -> list[str]:
        """Statements as the server logged them, in order: simple and executed ones.

        One that it can't parse is logged by its error alone.
        """
        pattern = r"LOG:  (?:statement|execute [^:]*): (.*)|ERROR:  syntax .*\n.*STATEMENT:  (.*)"
        found = re.findall(pattern, self.log.read_text(errors="replace"))
        return [run or refused for run, refused in found]


class Redis(Server):
    """A running Redis."""

    name = "redis"

    def __init__(self) -> None:
        super().__init__()
        self.socket = self.directory / "sock"
        argv = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1"]
        argv += ["--unixsocket", str(self.socket), "--save", "", "--appendonly", "no"]
        try:
            self.start(*argv, "--dir", str(self.directory), "--databases", "4")
        except BaseException:
            self.stop()
            raise

    def client(self, where: str = "unix", *options: str) -> list[str | Path]:
        """Command line of redis-cli; where: tcp or unix."""
        if where == "unix":
            return ["redis-cli", "-s", self.socket, *options]
        return ["redis-cli", "-h", "127.0.0.1", "-p", str(self.port), *options]

    def calls(self) -> Counter[str]:
        """How often each command was called, by the server's own count, in upper case.

        Commands that it refused uncalled count as "ERR"; what asks for this is left out.
        """
        text = run(self.client("unix", "INFO", "commandstats"))
        found = re.findall(r"cmdstat_(\S+?):calls=(\d+)", text)
        calls = Counter({name.replace("|", " ").upper(): int(count) for name, count in found})
        del calls["INFO"]
        errors = re.search(
            r"errorstat_ERR:count=(\d+)", run(self.client("unix", "INFO", "errorstats"))
        )
        calls["ERR"] = int(errors[1]) if errors else 0
        return calls
