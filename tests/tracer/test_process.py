"""Processes become resources: real ones, ones that are gone, ones that are others by now."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.process import ProcessTable, program_name
from tracer.spans import Resource

TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")
HOST = (("host.name", "box"), ("host.id", "0123456789abcdef0123456789abcdef"))
CONTAINER = "0123456789abcdef" * 4
POD = "8f2c1b3a-0d4e-4f5a-9b6c-7d8e9f0a1b2c"

# --- names of programs

NAMES = [
    # executables
    ("/usr/sbin/nginx", "nginx: worker process", "nginx"),
    ("/usr/bin/curl", "curl -s http://x/", "curl"),
    ("/usr/lib/postgresql/15/bin/postgres", "postgres: shop shop [local] idle", "postgres"),
    ("/srv/shop/bin/main", "./bin/main --port 80", "shop"),
    ("/tmp/go-build12/b001/exe/main", "/tmp/go-build12/b001/exe/main", "main"),
    ("/usr/sbin/php-fpm8.2", "php-fpm: pool www", "php-fpm8.2"),
    ("/memfd:sealed", "/opt/agent --x", "agent"),
    ("", "/usr/bin/wget http://x/", "wget"),
    ("/bin/busybox", "wget -q http://x/", "wget"),
    ("/bin/busybox", "busybox wget -q", "wget"),
    ("/bin/busybox", "sh /srv/poll.sh", "poll"),
    # Python
    ("/usr/bin/python3.11", "python app.py", "app"),
    ("/usr/bin/python3.11", "python3 -u -W ignore -X dev /srv/x/app.py --port 80", "app"),
    ("/usr/bin/python3.11", "python3 -Xdev -Wignore -OO app.py", "app"),
    ("/usr/bin/python3.11", "python3 -Bum http.server 8000", "http.server"),
    ("/usr/bin/python3.11", "python -mhttp.server", "http.server"),
    ("/usr/bin/python3.11", "python -m shop.main", "shop"),
    ("/usr/bin/python3.11", "python -m shop", "shop"),
    ("/usr/bin/python3.11", "python -c import(x) app.py", "python"),
    ("/usr/bin/python3.11", "python -uc import(x)", "python"),
    ("/usr/bin/python3.11", "python -", "python"),
    ("/usr/bin/python3.11", "python", "python"),
    ("/usr/bin/python3.11", "", "python"),
    ("/usr/bin/python3.13t", "python3.13t -i", "python"),
    ("/usr/bin/python3.11", "python /dev/fd/3", "python"),
    ("/usr/bin/pypy3.10", "pypy3 app.py", "app"),
    ("/usr/bin/python3.11", "python /srv/shop/main.py", "shop"),
    ("/usr/bin/python3.11", "python src/main.py", "work"),
    ("/usr/bin/python3.11", "python manage.py runserver", "work"),
    ("/usr/bin/python3.11", "python /srv/shop/src/shop/__main__.py", "shop"),
    ("/usr/bin/python3.11", "python /home/alice/main.py", "main"),
    ("/usr/bin/python3.11", "python /srv/worker/", "worker"),
    ("/usr/bin/env", "env -i A=b python3 app.py", "app"),
    ("/usr/bin/env", "env", "env"),
    ("/srv/poll.py", "/usr/bin/python3 /srv/poll.py", "poll"),
    ("./poll.py", "./poll.py", "poll"),
    # servers written in Python
    (
        "/usr/bin/python3.11",
        "python /usr/bin/gunicorn -w 4 -b 0.0.0.0:80 shop.wsgi:application",
        "shop",
    ),
    ("/usr/bin/python3.11", "python /usr/bin/gunicorn app:app", "app"),
    ("/usr/bin/python3.11", "python /usr/bin/gunicorn -b unix:app.sock shop:create()", "shop"),
    ("/usr/bin/python3.11", "python /usr/bin/gunicorn -n web shop:app", "web"),
    ("/usr/bin/python3.11", "python /usr/bin/gunicorn --name=web shop:app", "web"),
    ("/usr/bin/python3.11", "python /usr/bin/gunicorn shop", "shop"),
    ("/usr/bin/python3.11", "python /usr/bin/gunicorn -c conf.py", "gunicorn"),
    ("/usr/bin/python3.11", "python -m gunicorn x:app", "x"),
    ("/usr/bin/python3.11", "gunicorn: master [shop.wsgi:application]", "shop"),
    ("/usr/bin/python3.11", "gunicorn: worker [app]", "app"),
    ("/usr/local/bin/gunicorn", "/usr/local/bin/gunicorn x:app", "x"),
    ("/usr/bin/python3.11", "python -m uvicorn shop.main:app --host 0.0.0.0", "shop"),
    ("/usr/bin/python3.11", "python /x/uvicorn main:app --reload", "work"),
    ("/usr/bin/python3.11", "python /x/hypercorn --bind localhost:80 shop:app", "shop"),
    ("/usr/bin/python3.11", "python /x/flask --app shop run", "shop"),
    ("/usr/bin/python3.11", "python -m flask run", "flask"),
    ("/usr/bin/python3.11", "python /x/celery -A shop worker", "shop"),
    ("/usr/bin/python3.11", "[celeryd: celery@box:MainProcess] -active- (worker -A shop)", "shop"),
    ("/usr/bin/uwsgi", "uwsgi --http :80 -w shop.wsgi:app", "shop"),
    ("/usr/bin/uwsgi", "uwsgi --ini x.ini", "uwsgi"),
    ("/usr/bin/python3.11", "python /x/fastapi run app/orders.py", "orders"),
    ("/usr/bin/python3.11", "python -m debugpy --listen 5678 app.py", "app"),
    ("/usr/bin/python3.11", "python -m coverage run -p app.py", "app"),
    # JavaScript
    ("/usr/bin/node", "node server.js", "server"),
    ("/usr/bin/node", "node -r dotenv/config --import=x --loader y app.mjs", "app"),
    ("/usr/bin/node", "node dist/index.js", "work"),
    ("/usr/bin/node", "node /srv/shop/dist/main.js", "package"),
    ("/usr/bin/node", "node /srv/shop/bin/www", "package"),
    ("/usr/bin/node", "node /srv/node_modules/.bin/next start", "next"),
    ("/usr/bin/node", "node -e x", "node"),
    ("/usr/bin/node", "node", "node"),
    ("/usr/bin/node", "my-title", "my-title"),
    ("/usr/bin/deno", "deno run -A --config d.json server.ts", "server"),
    ("/usr/bin/bun", "bun run server.ts", "server"),
    # Java, .NET
    ("/usr/lib/jvm/17/bin/java", "java -Xmx1g -Da=b -jar /opt/shop-1.4.2-SNAPSHOT.jar --x", "shop"),
    ("/usr/lib/jvm/17/bin/java", "java -jar x.jar", "x"),
    ("/usr/lib/jvm/17/bin/java", "java -jar log4j-tool.jar", "log4j-tool"),
    ("/usr/lib/jvm/17/bin/java", "java -cp a.jar:b.jar com.acme.Main x", "Main"),
    ("/usr/lib/jvm/17/bin/java", "java @args -p mods -m acme.shop/com.acme.Shop", "Shop"),
    ("/usr/lib/jvm/17/bin/java", "java org.apache.catalina.startup.Bootstrap start", "tomcat"),
    ("/usr/lib/jvm/17/bin/java", "java org.springframework.boot.loader.launch.JarLauncher", "work"),
    ("/usr/bin/dotnet", "dotnet Shop.Api.dll", "Shop.Api"),
    ("/usr/bin/dotnet", "dotnet exec --runtimeconfig a.json /srv/Shop.dll", "Shop"),
    ("/usr/bin/dotnet", "dotnet run", "work"),
    # others
    ("/usr/bin/ruby3.1", "ruby -Ilib -rbundler/setup bin/rails server", "work"),
    ("/usr/bin/ruby3.1", "ruby app.rb", "app"),
    ("/usr/bin/ruby3.1", "puma 6.4.0 (tcp://0.0.0.0:3000) [shop]", "shop"),
    ("/usr/bin/ruby3.1", "sidekiq 7.1 shop [0 of 5 busy]", "sidekiq"),
    ("/usr/bin/perl", "perl -w -MData::Dumper poll.pl", "poll"),
    ("/usr/bin/perl", "perl -ne print", "perl"),
    ("/usr/bin/php8.2", "php -d a=b artisan serve", "work"),
    ("/usr/bin/php8.2", "php -S 0.0.0.0:80", "php"),
    ("/usr/bin/bash", "bash -eu ./poll.sh", "poll"),
    ("/usr/bin/bash", "bash -euo pipefail poll.sh", "poll"),
    ("/usr/bin/bash", "bash -c curl", "bash"),
    ("/usr/bin/bash", "-bash", "bash"),
]
TITLES = ("nginx:", "postgres:", "php-fpm:", "gunicorn:", "[celeryd:", "puma ", "sidekiq ")


@pytest.mark.parametrize(("exe", "command", "name"), NAMES)
def test_program_names(exe: str, command: str, name: str) -> None:
    argv = [command] if command.startswith(TITLES) else command.split()

    def package(directory: str) -> str:
        return "package" if directory.startswith("/srv/shop") else ""

    assert program_name(exe, argv, "/work", package) == name


def test_without_a_working_directory_the_file_has_to_do() -> None:
    assert program_name("/usr/bin/python3", ["python3", "main.py"]) == "main"
    assert program_name("/usr/bin/node", ["node", "dist/index.js"]) == "index"
    assert program_name("", []) == ""


@given(st.text(max_size=20), st.lists(st.text(max_size=12), max_size=5), st.text(max_size=12))
def test_any_command_has_a_name(exe: str, argv: list[str], cwd: str) -> None:
    program_name(exe, argv, cwd)
    for interpreter in ("python3", "node", "java", "dotnet", "ruby", "sh", "busybox", "env"):
        assert program_name(f"/usr/bin/{interpreter}", [interpreter, *argv], cwd)


# --- real processes

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start commands in a directory called `work`; end them afterwards."""
    work = tmp_path / "work"
    work.mkdir()
    with ExitStack() as stack:

        def run(*command: str | Path, **environ: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                command,
                cwd=work,
                env={"PATH": os.environ["PATH"], **environ},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            # An exec that is under way has the new executable and no arguments yet.
            wait_until(lambda: bool(arguments(process.pid)))
            return process

        yield run


def arguments(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]


def started_ns(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) * TICK_NS


def resource_of(pid: int, table: ProcessTable | None = None) -> dict[str, object]:
    table = table or ProcessTable(HOST)
    return dict(table.resource(pid, started_ns(pid) + 7, "comm", 1).attributes)


def script(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / "work" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


READY = "print(flush=True); input()"


def wait_for_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_python(start: Start, tmp_path: Path) -> None:
    script(tmp_path, "app.py", READY)
    process = start(sys.executable, "-u", "app.py", SECRET="hush", HOSTNAME="elsewhere")
    wait_for_line(process)
    found = resource_of(process.pid)
    assert found["service.name"] == "app"
    assert found["process.pid"] == process.pid
    assert found["process.executable.path"] == os.path.realpath(sys.executable)
    assert found["process.executable.name"] == os.path.basename(os.path.realpath(sys.executable))
    assert found["process.runtime.name"] == "cpython"
    assert found["host.name"] == "box"
    assert "hush" not in str(found)
    assert "elsewhere" not in str(found)
    assert not any(key.startswith("process.command") for key in found)
    if os.geteuid() == 0:
        assert found["process.owner"] == "root"
    created = str(found["process.creation.time"])
    assert created.endswith("Z")
    seconds = time.mktime(time.strptime(created[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    assert abs(time.time() - seconds) < 60


def test_a_program_is_called_as_the_link_it_was_run_by(start: Start, tmp_path: Path) -> None:
    path = script(tmp_path, "store-check", "")
    shutil.copy("/bin/sleep", path)
    link, elsewhere = path.with_name("store-server"), tmp_path / "store-cluster"
    link.symlink_to(path.name)
    elsewhere.symlink_to(path)
    for command in (link, "./store-server", elsewhere):
        found = resource_of(start(command, "60").pid)
        assert found["service.name"] == os.path.basename(command)
        assert found["process.executable.path"] == str(path)
    # What a process calls itself is no file, or another one.
    for title in ("store-other", "sleep", "store-server 127.0.0.1:6379"):
        process = start("bash", "-c", f"exec -a '{title}' {path} 60")
        words = [title.encode(), b"60"]
        wait_until(lambda pid=process.pid, words=words: arguments(pid) == words)  # type: ignore[misc]
        name = "store-server" if title.startswith("store-server ") else "store-check"
        assert resource_of(process.pid)["service.name"] == name
        # The exec tells more than what the process made of its arguments.
        table = ProcessTable(HOST)
        table.exec(process.pid, started_ns(process.pid) + 7, "x", str(elsewhere), [title], 1)
        assert resource_of(process.pid, table)["service.name"] == "store-cluster"


def test_what_an_exec_told_outlives_the_process(start: Start) -> None:
    """Also while the process is there in name only, and its parent has not asked for it yet."""
    process = start("sleep", "60", OTEL_SERVICE_NAME="shop")
    began = started_ns(process.pid) + 7
    table = ProcessTable(HOST)
    table.exec(process.pid, began, "sleep", "/usr/bin/sleep", ["sleep", "60"], 1)
    process.kill()
    wait_until(lambda: " Z " in Path(f"/proc/{process.pid}/stat").read_text())
    assert resource_of(process.pid, table)["service.name"] == "shop"
    process.wait()
    table = ProcessTable(HOST)
    table.exec(process.pid, began, "sleep", "/usr/bin/sleep", ["sleep", "60"], 1)
    found = dict(table.resource(process.pid, began, "sleep", 1).attributes)
    assert found["service.name"] == "sleep"


def test_own_service_name_wins(start: Start, tmp_path: Path) -> None:
    script(tmp_path, "app.py", READY)
    attributes = "service.name=cart,service.version=1.2,team=a%2Cb,host.name=other,empty="
    process = start(sys.executable, "app.py", OTEL_RESOURCE_ATTRIBUTES=attributes)
    wait_for_line(process)
    found = resource_of(process.pid)
    assert found["service.name"] == "cart"
    assert found["service.version"] == "1.2"
    assert found["team"] == "a,b"
    assert found["host.name"] == "other"
    assert "empty" not in found
    process = start(
        sys.executable, "app.py", OTEL_RESOURCE_ATTRIBUTES=attributes, OTEL_SERVICE_NAME="basket"
    )
    wait_for_line(process)
    assert resource_of(process.pid)["service.name"] == "basket"
    process = start(sys.executable, "app.py", OTEL_RESOURCE_ATTRIBUTES="service.name=x,broken")
    wait_for_line(process)
    assert resource_of(process.pid)["service.name"] == "app"


def test_multiprocessing_children_are_called_as_their_parent(start: Start, tmp_path: Path) -> None:
    script(
        tmp_path,
        "app.py",
        "import multiprocessing, sys, time\n"
        "if __name__ == '__main__':\n"
        "    child = multiprocessing.get_context('spawn').Process("
        "target=time.sleep, args=(60,), daemon=True)\n"
        "    child.start()\n"
        "    print(child.pid, flush=True)\n"
        "    input()\n",
    )
    process = start(sys.executable, "app.py")
    child = int(wait_for_line(process))
    # It may not have its own command yet.
    wait_until(lambda: b"multiprocessing" in Path(f"/proc/{child}/cmdline").read_bytes())
    assert resource_of(child)["service.name"] == "app"
    process.communicate(b"\n", 20)  # and takes its child along
    assert not Path(f"/proc/{child}").exists()


def test_gunicorn(start: Start, tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    script(tmp_path, "shop/wsgi.py", "def application(environ, start_response): pass\n")
    socket = tmp_path / "work/s"
    process = start(
        sys.executable, "-m", "gunicorn", "-b", f"unix:{socket}", "shop.wsgi:application"
    )
    wait_until(lambda: len(children(process.pid)) == 1 and socket.exists())
    for pid in (process.pid, *children(process.pid)):
        assert resource_of(pid)["service.name"] == "shop"
    process.terminate()
    process.wait(10)


def test_nginx(start: Start, tmp_path: Path) -> None:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if not nginx:
        pytest.skip("nginx is not installed")
    conf = script(
        tmp_path,
        "nginx.conf",
        f"daemon off; pid {tmp_path}/pid; error_log stderr; worker_processes 1;\n"
        f"events {{}} http {{ access_log off; server {{ listen unix:{tmp_path}/work/s; }} }}\n",
    )
    process = start(nginx, "-p", tmp_path, "-c", conf)
    wait_until(lambda: len(children(process.pid)) == 1)
    for pid in (process.pid, *children(process.pid)):
        assert resource_of(pid)["service.name"] == "nginx"
    process.terminate()
    process.wait(10)


def test_node(start: Start, tmp_path: Path) -> None:
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    source = "console.log(); process.stdin.resume()"
    script(tmp_path, "server.js", source)
    script(tmp_path, "dist/index.js", source)
    process = start("node", "--no-warnings", "server.js")
    wait_for_line(process)
    found = resource_of(process.pid)
    assert found["service.name"] == "server"
    assert found["process.runtime.name"] == "nodejs"
    process = start("node", "dist/index.js")
    wait_for_line(process)
    assert resource_of(process.pid)["service.name"] == "work"
    script(tmp_path, "package.json", '{"name": "@acme/orders"}')
    assert resource_of(process.pid)["service.name"] == "orders"
    script(tmp_path, "package.json", "{")
    assert resource_of(process.pid)["service.name"] == "work"


def test_shell_and_interpreter_line(start: Start, tmp_path: Path) -> None:
    path = script(tmp_path, "poll.sh", "#!/bin/sh\necho\nread line\n")
    path.chmod(0o755)
    process = start("./poll.sh")
    wait_for_line(process)
    assert resource_of(process.pid)["service.name"] == "poll"


def children(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_resources_are_cached_interned_and_renewed_by_exec(start: Start, tmp_path: Path) -> None:
    path = script(tmp_path, "app.py", READY)
    process = start(sys.executable, "app.py")
    wait_for_line(process)
    table = ProcessTable(HOST)
    begun = started_ns(process.pid)
    first = table.resource(process.pid, begun, "python", 1)
    assert table.resource(process.pid, begun, "other", 2) is first
    table.exec(process.pid, begun, "python", sys.executable, ["python", str(path)], 1)
    assert table.resource(process.pid, begun, "python", 1) is first
    process.kill()
    process.wait()
    assert table.resource(process.pid, begun, "python", 1) is first
    table.exec(process.pid, begun, "curl", "/usr/bin/curl", ["curl", "x"], 1)
    renewed = table.resource(process.pid, begun, "curl", 1)
    assert dict(renewed.attributes)["service.name"] == "curl"


def test_instance_id_is_stable_and_unique() -> None:
    def instance(host: str, tgid: int, start_ns: int) -> str:
        table = ProcessTable((("host.id", host),), proc_root="/nonexistent")
        return str(dict(table.resource(tgid, start_ns, "x", 0).attributes)["service.instance.id"])

    same = {instance("a", 1, 2) for _ in range(3)}
    assert len(same) == 1
    namespace = uuid.UUID("4d63009a-8d0f-11ee-aad7-4c796ed8e320")
    assert same == {str(uuid.uuid5(namespace, "a:1:2"))}
    assert len({instance(h, t, s) for h in "ab" for t in (1, 11) for s in (1, 2)}) == 8


# --- processes that never were


class FakeProc:
    """A procfs of files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proc = root / "proc"
        self.proc.mkdir()

    def add(
        self,
        pid: int,
        *argv: str,
        ticks: int = 100,
        exe: str = "/usr/bin/python3.11",
        environ: str = "",
        cgroup: str = "/",
        ppid: int = 1,
    ) -> None:
        directory = self.proc / str(pid)
        directory.mkdir()
        rest = " ".join(["0"] * 17)
        (directory / "stat").write_text(f"{pid} (a) b (c) S {ppid} {rest} {ticks} 0 0")
        (directory / "status").write_text("Name:\tx\nUid:\t9\t7\t7\t7\n")
        (directory / "cmdline").write_text("".join(f"{word}\0" for word in argv))
        (directory / "environ").write_text(environ.replace(" ", "\0"))
        (directory / "cgroup").write_text(f"0::{cgroup}\n")
        (directory / "exe").symlink_to(exe)
        (directory / "cwd").symlink_to("/srv/shop")

    def table(self, **settings: int) -> ProcessTable:
        return ProcessTable(HOST, proc_root=str(self.proc), root=str(self.root), **settings)

    def look(
        self, pid: int, ticks: int = 100, table: ProcessTable | None = None
    ) -> dict[str, object]:
        table = table or self.table()
        resource = table.resource(pid, ticks * TICK_NS + 5, "http-nio-8080-e", 42)
        return dict(resource.attributes)


@pytest.fixture
def fake(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


def test_unit_before_program(fake: FakeProc) -> None:
    fake.add(10, "python3", "app.py", cgroup="/system.slice/shop-web.service")
    fake.add(11, "python3", "app.py", cgroup="/system.slice/ssh.service")
    fake.add(12, "python3", "app.py", cgroup="/user.slice/user-0.slice/session-1.scope")
    assert fake.look(10)["service.name"] == "shop-web"
    assert fake.look(11)["service.name"] == "app"
    assert fake.look(12)["service.name"] == "app"


def test_containers(fake: FakeProc) -> None:
    fake.add(10, "python3", "app.py", cgroup=f"/system.slice/docker-{CONTAINER}.scope")
    (fake.root / "etc").mkdir()
    (fake.root / "etc/passwd").write_text("lp:x:7:7::/:/bin/sh\n")
    found = fake.look(10)
    assert found["service.name"] == CONTAINER[:12]
    assert found["container.id"] == CONTAINER
    assert found["container.runtime.name"] == "docker"
    assert "process.owner" not in found
    config = fake.root / f"var/lib/docker/containers/{CONTAINER}/config.v2.json"
    config.parent.mkdir(parents=True)
    config.write_text('{"Name": "/web"}')
    found = fake.look(10)
    assert found["service.name"] == found["container.name"] == "web"
    fake.add(11, "python3", "app.py")
    assert fake.look(11)["process.owner"] == "lp"


def test_pods(fake: FakeProc) -> None:
    cgroup = f"/kubepods/besteffort/pod{POD}/{CONTAINER}"
    fake.add(10, "python3", "app.py", cgroup=cgroup, environ="HOSTNAME=web-7d9c5b8f6d-x2x4z A=b")
    fake.add(11, "python3", "app.py", cgroup=cgroup, environ="HOSTNAME=box")
    found = fake.look(10)
    assert found["service.name"] == "web"
    assert found["k8s.pod.name"] == "web-7d9c5b8f6d-x2x4z"
    assert found["k8s.pod.uid"] == POD
    # hostNetwork: the name is the node's
    found = fake.look(11)
    assert found["service.name"] == CONTAINER[:12]
    assert "k8s.pod.name" not in found


def test_another_process_with_the_same_id(fake: FakeProc) -> None:
    fake.add(10, "python3", "app.py", environ="OTEL_SERVICE_NAME=wrong", ticks=101)
    table = fake.table()
    found = fake.look(10, 100, table)
    assert found["service.name"] == "http-nio-8080-e"
    assert found["process.pid"] == 10
    assert "process.executable.name" not in found
    table.exec(10, 100 * TICK_NS + 5, "curl", "/usr/bin/curl", ["curl", "-s"], 42)
    found = fake.look(10, 100, table)
    assert found["service.name"] == "curl"
    assert found["process.executable.path"] == "/usr/bin/curl"
    assert fake.look(10, 101, table)["service.name"] == "wrong"


def test_gone_processes_are_known_by_their_last_exec(fake: FakeProc) -> None:
    table = fake.table()
    begun = 100 * TICK_NS + 5
    table.exec(10, begun, "sh", "/bin/sh", ["sh", "-c", "exec python3 app.py"], 42)
    assert fake.look(10, table=table)["service.name"] == "sh"
    table.exec(10, begun, "python3", "/usr/bin/python3", ["python3", "app.py"], 42)
    found = fake.look(10, table=table)
    assert found["service.name"] == "app"
    assert found["process.runtime.name"] == "cpython"
    table.exec(10, begun, "x", "relative/tool", [], 42)
    found = fake.look(10, table=table)
    assert found["service.name"] == found["process.executable.name"] == "tool"
    assert "process.executable.path" not in found


def test_a_zombie_is_known_by_its_last_exec(fake: FakeProc) -> None:
    fake.add(10, cgroup="/system.slice/ssh.service")
    for name in ("exe", "cwd"):
        (fake.proc / "10" / name).unlink()
    table = fake.table()
    table.exec(10, 100 * TICK_NS + 5, "curl", "/usr/bin/curl", ["curl"], 42)
    assert fake.look(10, table=table)["service.name"] == "curl"


def test_a_cgroup_outlives_its_processes(fake: FakeProc) -> None:
    fake.add(10, "python3", "app.py", cgroup="/system.slice/shop.service")
    table = fake.table()
    fake.look(10, table=table)
    assert fake.look(99, table=table)["service.name"] == "shop"
    assert dict(table.resource(98, 5, "curl", 43).attributes)["service.name"] == "curl"


def test_multiprocessing_child_of_a_lost_parent(fake: FakeProc) -> None:
    code = "from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=5)"
    fake.add(10, "python3", "-c", code, "--multiprocessing-fork", ppid=1)
    fake.add(11, "python3", "-c", code, "--multiprocessing-fork", ppid=98)
    fake.add(12, "python3", "-c", code, "--multiprocessing-fork", ppid=13)
    fake.add(13, "python3", "-c", code, "--multiprocessing-fork", ppid=12)
    for pid in (10, 11, 12):
        assert fake.look(pid)["service.name"] == "python"


def test_names_of_last_resort(fake: FakeProc) -> None:
    table = fake.table()
    assert dict(table.resource(1, 1, "gunicorn: maste", 0).attributes)["service.name"] == "gunicorn"
    found = dict(table.resource(2, 0, "", 0).attributes)
    assert found["service.name"] == "unknown_service"
    assert "process.creation.time" not in found
    assert fake.look(3, 2**64 // TICK_NS)["process.pid"] == 3


@pytest.mark.parametrize(
    "missing", ["stat", "status", "cmdline", "environ", "cgroup", "exe", "cwd"]
)
def test_files_that_vanish(fake: FakeProc, missing: str) -> None:
    fake.add(10, "python3", "app.py")
    (fake.proc / "10" / missing).unlink()
    assert fake.look(10)["service.name"] in ("app", "python", "http-nio-8080-e")
    (fake.proc / "10" / missing).write_bytes(b"\xff\x00\xff) x y")
    assert fake.look(10)["process.pid"] == 10


def test_tables_are_bounded(fake: FakeProc) -> None:
    table = fake.table(capacity=8)
    kept: Resource = table.resource(0, 5, "x", 1)
    for pid in range(1, 100):
        table.exec(pid, 5, "x", "/bin/x", ["x"], pid)
        table.resource(pid, 5, "x", pid)
        assert table.resource(0, 5, "x", 1) is kept
    sizes = [len(getattr(table, name)) for name in ("_resources", "_interned", "_images")]
    assert sizes == [8, 8, 8]
    with pytest.raises(ValueError, match="positive"):
        fake.table(capacity=0)
