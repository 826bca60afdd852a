"""A private MariaDB that lets anyone in, on loopback."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench.processes import BenchError, Child, free_port

START_S = 60.0


class MariaDb(Child):
    """Serves on 127.0.0.1:`port`; its data is in `directory`. Raises BenchError."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        data = directory / "data"
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root"]
        done = subprocess.run(install, capture_output=True, text=True, timeout=START_S)
        if done.returncode:
            raise BenchError(f"mariadb-install-db failed: {done.stderr.strip()[-500:]}")
        self.port, pid_file = free_port(), directory / "mariadb.pid"
        argv = ["mariadbd", "--no-defaults", "--user=root", "--skip-grant-tables"]
        argv += [f"--datadir={data}", f"--socket={directory / 'sock'}", f"--port={self.port}"]
        argv += [f"--pid-file={pid_file}", "--bind-address=127.0.0.1", "--skip-name-resolve"]
        argv += ["--max-connections=300", "--back-log=300"]
        super().__init__(argv)
        try:
            self.wait_for(pid_file.exists, "it listens", START_S)
        except BaseException:
            self.stop()
            raise
