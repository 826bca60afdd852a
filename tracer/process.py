"""Processes to resources: who sent or received an exchange.

`service.name` is the first of these that is there:

1. the process's own OTEL_SERVICE_NAME, then service.name in its OTEL_RESOURCE_ATTRIBUTES;
2. its systemd service, unless that merely hosts what others start (tracer/resource.py);
3. its container: the Compose or Swarm service, the Kubernetes workload, the container's name,
   and with none of these known the first 12 digits of its id;
4. its program (`program_name`):

    command                                      program
    -------------------------------------------  ------------------------------------------
    `nginx: worker process`                      nginx: an executable's base name, or its link's
    `python app.py`, `./app.py`                  app; likewise perl, php, lua, sh and others
    `python main.py`, `manage.py`, `wsgi.py`     the directory's name, past src, dist, bin
    `python -m http.server`, `-m shop.main`      http.server, shop
    `python -c ...`, `python -`, `python`        python
    `gunicorn -w 4 shop.wsgi:application`        shop; likewise uvicorn, hypercorn; web for -n web
    `gunicorn: worker [shop.wsgi:application]`   shop, as for the other titles of interpreters
    `celery -A shop worker`, `flask --app shop`  shop
    `gunicorn -c conf.py`, `flask run`           gunicorn, flask: the command does not tell
    a multiprocessing child (`uvicorn --reload`) as its parent
    `node server.js`, `deno run -A server.ts`    server
    `node dist/index.js`, `node bin/www`         name in package.json, else the directory's
    `node .../node_modules/.bin/next start`      likewise, of the working directory; else next
    `java -jar shop-1.4.2.jar`                   shop
    `java -cp x com.acme.Main`                   Main
    `dotnet Shop.Api.dll`                        Shop.Api
    `ruby bin/rails server`, `puma`              the working directory's name
"""

from __future__ import annotations

import os
import posixpath
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import dropwhile
from types import MappingProxyType
from typing import NamedTuple, TypeVar

try:
    from _sha1 import sha1  # type: ignore[import-not-found]
except ImportError:  # a Python that was built without
    from hashlib import sha1

from tracer.resource import (
    Attributes,
    Containers,
    Placement,
    ProcDirectory,
    Users,
    declared_attributes,
    placement,
    workload_name,
)
from tracer.spans import AttributeValue, Resource

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_Package = Callable[[str], str] | None

# --- the program's name


@dataclass(frozen=True, slots=True)
class _Language:
    """How an interpreter's command line tells its program; each list has blanks in between.

    names: pattern for base names of executables.
    runtime: `process.runtime.name`, "" where the executable's name does not tell.
    valued, inline, program: options that take a value; whose value is program text; whose value
        is the program. One letter is a short option, which may stand in a cluster (`-um app`),
        except where the language has none.
    verbs: words before the program.
    """

    names: str
    runtime: str = ""
    valued: str = ""
    inline: str = ""
    program: str = ""
    verbs: str = ""
    clusters: bool = True


_PYTHON = _Language(r"python[\d.]*[a-z]*", "cpython", "W X --check-hash-based-pycs", "c", "m")
_PYPY = _Language(r"pypy[\d.]*", "pypy", "W X", "c", "m")
_NODE = _Language(
    r"node(?:js)?\d*",
    "nodejs",
    "r C --require --import --loader --experimental-loader --conditions --env-file --watch-path"
    " --openssl-config --icu-data-dir --inspect-port",
    "e p --eval --print --run",
)
_DENO = _Language(
    "deno", "deno", "c --config --import-map --lock --env-file --port --host", verbs="run serve"
)
_BUN = _Language("bunx?", "bun", "r c --preload --config --cwd --env-file", "e p", verbs="run x")
_JAVA = _Language(
    "java",
    valued="-cp -classpath --class-path -p --module-path --add-modules --add-opens --add-exports"
    " --add-reads --limit-modules --upgrade-module-path --source",
    program="-jar -m --module",
    clusters=False,
)
_DOTNET = _Language(
    "dotnet",
    valued="--runtimeconfig --depsfile --additionalprobingpath --additional-deps --fx-version"
    " --roll-forward",
    verbs="exec",
    clusters=False,
)
_RUBY = _Language(r"ruby[\d.]*", "ruby", "I r C E", "e")
_LANGUAGES = (
    *(_PYTHON, _PYPY, _NODE, _DENO, _BUN, _JAVA, _DOTNET, _RUBY),
    _Language(r"perl[\d.]*", "", "I M m", "e E"),
    _Language(r"php[\d.]*", "", "d c t z", "r S B R E", "f"),
    _Language(r"lua(?:jit)?[\d.]*", "", "l", "e"),
    _Language("sh|bash|dash|ash|zsh|ksh|mksh", "", "o O", "c s"),
)

_EXTENSION = re.compile(
    r"\.(?:py[cwz]?|pex|[mc]?[jt]s|[jt]sx|rb|ru|pl|psgi|php|phar|lua|sh|bash|jar|war|dll|exe)$"
)
_VERSION_SUFFIX = re.compile(r"[-_.]v?\d+(?:\.\d+)*(?:[-.+][\w.+-]*)?$")
_APPLICATION = re.compile(r"(?!unix:|tcp:|fd:)([A-Za-z_][\w.]*):[A-Za-z_][\w.]*(?:\(.*\))?")
_MODULE = re.compile(r"[A-Za-z_][\w.]*")
_TITLE = re.compile(r"([\w.+-]+)(?: [\d.]+)?(?::| \()")
_TITLE_APPLICATION = re.compile(
    r"(?:gunicorn|puma|unicorn).*\[([^\]]+)\]|\[celeryd: .*-A[ =]([\w.]+)"
)

# Programs that run another one: the first MODULE:OBJECT, unless an option names it.
_SERVERS = frozenset("gunicorn uvicorn hypercorn daphne granian waitress waitress-serve".split())
_SERVERS |= frozenset("uwsgi flask celery dramatiq".split())
_NAMING_OPTIONS = {
    "gunicorn": ("-n", "--name"),
    "uwsgi": ("-w", "--module", "--wsgi-file"),
    "flask": ("--app", "-A"),
    "celery": ("--app", "-A"),
}
# Programs that run the first argument that is a Python file.
_RUNNERS = frozenset(
    "fastapi streamlit coverage debugpy pdb cProfile profile trace viztracer scalene".split()
)
_RUBY_SERVERS = frozenset("rails puma unicorn rackup thin passenger".split())

# Names that tell only what role a file has in its project, and directories that do likewise.
_NAMELESS = frozenset(
    "main index __main__ __init__ manage wsgi asgi www artisan console bootstrap".split()
)
_LAYOUT = frozenset("src dist build bin lib out output public target cmd scripts".split())
_COMMONPLACE = frozenset(
    "root home tmp opt srv usr var mnt data local share www html sbin".split()
) | {"", "."}


def program_name(exe: str, argv: Sequence[str], cwd: str = "", package: _Package = None) -> str:
    """Return what a person would call the program of a command; "" if nothing is given.

    exe: path of the executable, or of a script with an interpreter line.
    argv: arguments; an interpreter may have replaced them with a title.
    cwd: working directory, "" if not known.
    package: given a directory, the name that its nearest package.json has, or "".
    """
    words = [word for word in argv if word.strip()]
    command = posixpath.basename(words[0]).lstrip("-") if words else ""
    exe = "" if exe.startswith("/memfd:") else exe
    name = posixpath.basename(exe)
    if name in ("busybox", "toybox", "coreutils", "env"):
        if command == name:
            words = list(dropwhile(lambda word: word[0] == "-" or "=" in word, words[1:])) or words
            command = posixpath.basename(words[0])
        exe = name = command or name
    language = language_of(name)
    if language is None and words:
        # Of a script with an interpreter line, `exe` is the script.
        if not exe or any(posixpath.basename(word) == name for word in words[1:]):
            exe, name = words[0], command
            language = language_of(name)
    if language is None:
        return _script_name(exe, words[1:], cwd) if name else ""
    if len(words) == 1 and words[0][0] not in "/." and language_of(command) is None:
        return _title_name(words[0], cwd)
    return _interpreted_name(language, words[1:], cwd, package) or re.sub(r"\d.*", "", name)


def _interpreted_name(language: _Language, words: list[str], cwd: str, package: _Package) -> str:
    """Name the program that an interpreter was given, "" if it was given none with a name."""
    target, named_by_option, arguments = _target(language, words)
    if not target or target.startswith(("/dev/", "/proc/")):
        return ""
    if language in (_PYTHON, _PYPY) and named_by_option:
        if target in _SERVERS or target in _RUNNERS:
            return _served_name(target, arguments, cwd)
        return _dotted_name(target, cwd)
    if language in (_NODE, _DENO, _BUN):
        if "/node_modules/" in target:
            return (package(cwd) if package else "") or _stem(target)
        return _script_name(target, (), cwd, package)
    if language is _JAVA:
        return _java_name(target, cwd)
    if language is _DOTNET and not target.endswith((".dll", ".exe")):
        return _directory_name(cwd)
    if language is _RUBY and posixpath.basename(target) in _RUBY_SERVERS:
        return _directory_name(cwd) or posixpath.basename(target)
    return _script_name(target, arguments, cwd)


def language_of(name: str) -> _Language | None:
    """Return the language that an executable called `name` interprets."""
    return next((each for each in _LANGUAGES if re.fullmatch(each.names, name)), None)


def is_multiprocessing_child(argv: Sequence[str]) -> bool:
    """Tell whether Python's multiprocessing started this command; it says nothing by itself."""
    return any(argument.startswith("from multiprocessing.") for argument in argv[:8])


def _target(language: _Language, arguments: list[str]) -> tuple[str, bool, list[str]]:
    """Return an interpreter's program, whether an option named it, and its own arguments."""
    verbs = language.verbs.split()
    words = iter(arguments)
    for word in words:
        if word == "-":
            break
        if word == "--" or (word[0] == "@" and language is _JAVA):
            continue
        if not word.startswith("-"):
            if word in verbs:
                verbs = []
                continue
            return word, False, list(words)
        if language.clusters and not word.startswith("--"):
            options = [(letter, word[i + 2 :]) for i, letter in enumerate(word[1:])]
        else:
            option, _, value = word.partition("=")
            options = [(option, value)]
        for option, value in options:
            if option in language.inline.split():
                return "", False, []
            if option in language.program.split():
                return value or next(words, ""), True, list(words)
            if option in language.valued.split():
                if not value:
                    next(words, "")
                break
    return "", False, []


def _title_name(title: str, cwd: str) -> str:
    """Read what a process wrote over its arguments: `gunicorn: master [shop.wsgi]`."""
    if match := _TITLE_APPLICATION.match(title):
        return _dotted_name((match[1] or match[2]).partition(":")[0], cwd)
    match = _TITLE.match(title)
    return match[1] if match else title.split()[0]


def _java_name(target: str, cwd: str) -> str:
    name = posixpath.basename(target)
    if name.endswith((".jar", ".war")):
        return _VERSION_SUFFIX.sub("", name[:-4]) or name[:-4]
    if name.startswith("org.apache.catalina."):
        return "tomcat"
    if name.startswith("org.springframework.boot.loader."):
        return _directory_name(cwd)
    return name.rpartition(".")[2]


def _script_name(path: str, arguments: Sequence[str], cwd: str, package: _Package = None) -> str:
    """Name a program by its file."""
    stem = _stem(path)
    if stem in _SERVERS or stem in _RUNNERS:
        return _served_name(stem, arguments, cwd)
    if stem not in _NAMELESS:
        return stem
    directory = posixpath.dirname(posixpath.normpath(posixpath.join(cwd, path)))
    return (package(directory) if package else "") or _directory_name(directory) or stem


def _served_name(server: str, arguments: Sequence[str], cwd: str) -> str:
    """Name what an application server or a launcher runs, else the server itself."""
    options = _NAMING_OPTIONS.get(server, ())
    for i, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option in options and (equals or i + 1 < len(arguments)):
            value = value if equals else arguments[i + 1]
            if value.endswith(".py"):
                return _script_name(value, (), cwd)
            return _dotted_name(value.partition(":")[0], cwd)
    for argument in arguments:
        if server in _SERVERS and (match := _APPLICATION.fullmatch(argument)):
            return _dotted_name(match[1], cwd)
        if server in _RUNNERS and argument.endswith(".py"):
            return _script_name(argument, (), cwd)
    if server in ("gunicorn", "dramatiq") and arguments and _MODULE.fullmatch(arguments[-1]):
        if len(arguments) == 1 or not arguments[-2].startswith("-"):
            return _dotted_name(arguments[-1], cwd)
    return server


def _dotted_name(module: str, cwd: str) -> str:
    """Name a Python module: `shop.main` and `src.shop.wsgi` are shop."""
    parts = [part for part in module.split(".") if part]
    while len(parts) > 1 and (parts[-1] in _NAMELESS or parts[-1] in ("app", "application")):
        parts.pop()
    while len(parts) > 1 and parts[0] in _LAYOUT:
        parts.pop(0)
    if len(parts) == 1 and (parts[0] in _NAMELESS or parts[0] in _LAYOUT):
        return _directory_name(cwd) or parts[0]
    return ".".join(parts) or module


def _directory_name(directory: str) -> str:
    """Return the name of a project's directory, "" if it is any project's."""
    parts = directory.split("/")
    while parts and parts[-1] in _LAYOUT:
        parts.pop()
    anyones = not parts or parts[-1] in _COMMONPLACE or parts[-2:-1] == ["home"]
    return "" if anyones or "/go-build" in directory else parts[-1]


def _stem(path: str) -> str:
    name = posixpath.basename(path.rstrip("/"))
    return _EXTENSION.sub("", name) or name


# --- the table

# The namespace that the semantic conventions give for service.instance.id.
_INSTANCE_NAMESPACE = uuid.UUID("4d63009a-8d0f-11ee-aad7-4c796ed8e320")

_MAX_ANCESTORS = 4


def _uuid5(name: str) -> uuid.UUID:
    """As uuid.uuid5, but hashlib would load OpenSSL, 3.4 MB, where Python has SHA-1 of its own."""
    digest = sha1(_INSTANCE_NAMESPACE.bytes + name.encode(), usedforsecurity=False).digest()
    return uuid.UUID(bytes=digest[:16], version=5)


@dataclass(frozen=True, slots=True)
class _Process:
    """What could be learnt about a process; "" and empty are not known."""

    exe: str
    program: str
    place: Placement
    owner: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)


class _Image(NamedTuple):
    """What an exec told, and what its environment said while it was there."""

    exe: str = ""
    argv: Sequence[str] = ()
    environ: Mapping[str, str] = MappingProxyType({})


class ProcessTable:
    """Resources of processes, by process id and start time.

    host: attributes that all resources share (`resource.host_attributes`).
    proc_root: where procfs is mounted.
    capacity: processes, and images of processes, that are remembered; the least recently used
        are forgotten.
    root: where /etc/passwd and the files of container runtimes are looked for.

    A process that has ended before it is asked for is known by its last exec; one that did not
    exec since its fork, by no more than the name of its thread. Not for use by several threads.
    """

    def __init__(
        self, host: Attributes, proc_root: str = "/proc", capacity: int = 4096, root: str = "/"
    ) -> None:
        if capacity < 1:
            raise ValueError("capacity must be positive")
        self._host = dict(host)
        self._proc_root = proc_root
        self._capacity = capacity
        self._host_id = self._host.get("host.id") or self._host.get("host.name", "")
        self._tick_ns = 10**9 // os.sysconf("SC_CLK_TCK")
        # Read once: it must not differ between two looks at the same process.
        since_boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._boot_unix_ns = time.clock_gettime_ns(time.CLOCK_REALTIME) - since_boot_ns
        self._resources: OrderedDict[tuple[int, int], Resource] = OrderedDict()
        self._interned: OrderedDict[Attributes, Resource] = OrderedDict()
        self._images: OrderedDict[tuple[int, int], _Image] = OrderedDict()
        self._places: OrderedDict[int, Placement] = OrderedDict()
        self._containers = Containers(root)
        self._users = Users(posixpath.join(root, "etc/passwd"))

    def exec(
        self, tgid: int, start_ns: int, comm: str, exe: str, argv: Sequence[str], cgroup_id: int
    ) -> None:
        """Note that a process has a new image; what was known of its resource is forgotten.

        exe: the file name given to execve. argv: its arguments, as many as were captured.
        comm and cgroup_id are those of the record; the exchange's own count in `resource`.
        """
        key = tgid, start_ns
        self._resources.pop(key, None)
        # What lives for a moment only is gone when its first span asks.
        with ProcDirectory(f"{self._proc_root}/{tgid}") as proc:
            alive = proc.start_ticks() == start_ns // self._tick_ns
            environ = proc.environment() if alive else {}
        self._remember(self._images, key, _Image(exe, argv, environ))

    def resource(self, tgid: int, start_ns: int, comm: str, cgroup_id: int) -> Resource:
        """Return the resource of a process; equal resources are the same object.

        start_ns: CLOCK_BOOTTIME ns at which its thread-group leader started.
        comm: name of one of its threads, for want of anything better.
        cgroup_id: its cgroup, 0 if unknown; tells where a process ran that has ended.
        """
        key = tgid, start_ns
        resource = self._resources.get(key)
        if resource is not None:
            self._resources.move_to_end(key)
            return resource
        process = self._living(key)
        if process is None:
            image = self._images.get(key, _Image())
            place = self._places.get(cgroup_id, Placement())
            program = program_name(image.exe, image.argv)
            process = _Process(image.exe, program, place, environ=image.environ)
        elif cgroup_id:
            self._remember(self._places, cgroup_id, process.place)
        attributes = self._attributes(key, comm, process)
        resource = self._interned.get(attributes) or Resource(attributes)
        self._remember(self._interned, attributes, resource)
        self._remember(self._resources, key, resource)
        return resource

    def _remember(self, table: OrderedDict[_Key, _Value], key: _Key, value: _Value) -> None:
        table[key] = value
        table.move_to_end(key)
        if len(table) > self._capacity:
            table.popitem(last=False)

    def _living(self, key: tuple[int, int]) -> _Process | None:
        """Read /proc, or return None if the process is gone or its id is another's by now.

        The open directory stays that process's: once it ends, reads fail, whoever gets the id.
        """
        tgid, start_ns = key
        with ProcDirectory(f"{self._proc_root}/{tgid}") as proc:
            if proc.start_ticks() != start_ns // self._tick_ns:
                return None
            image = self._images.get(key, _Image())
            exe = proc.executable() or image.exe
            argv = proc.arguments() or image.argv
            place = placement(proc.text("cgroup"))
            uid = re.search(r"^Uid:\t\d+\t(\d+)", proc.text("status"), re.M)
            # Ids of a container's users mean nothing in this host's passwd.
            known = uid and not place.container_id and not place.container_name
            return _Process(
                exe,
                self._program(proc, proc.alias(exe, image.exe or " ".join(argv)), argv),
                place,
                self._users.name(uid[1]) if uid and known else "",
                # One that has ended and waits for its parent still has a start, and nothing else.
                proc.environment() or image.environ,
            )

    def _program(
        self, proc: ProcDirectory, exe: str, argv: Sequence[str], ancestors: int = _MAX_ANCESTORS
    ) -> str:
        parent = proc.parent() if is_multiprocessing_child(argv) and ancestors else 0
        if parent > 1:
            with ProcDirectory(f"{self._proc_root}/{parent}") as above:
                if arguments := above.arguments():
                    return self._program(above, above.executable(), arguments, ancestors - 1)
        return program_name(exe, argv, proc.link("cwd"), proc.package)

    def _attributes(self, key: tuple[int, int], comm: str, process: _Process) -> Attributes:
        tgid, start_ns = key
        environ, place = process.environ, process.place
        declared = declared_attributes(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
        container = self._containers.find(place.container_id)
        pod = environ.get("HOSTNAME", "") if place.pod_uid else ""
        # A pod in the host's network has the host's name.
        pod = "" if pod == self._host.get("host.name") else pod
        language = language_of(posixpath.basename(process.exe))
        instance = _uuid5(f"{self._host_id}:{tgid}:{start_ns}")
        created = datetime.fromtimestamp((self._boot_unix_ns + start_ns) // 10**6 / 1000, UTC)
        facts: dict[str, AttributeValue] = {
            "service.instance.id": str(instance),
            "process.pid": tgid,
            "process.creation.time": f"{created:%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"
            if start_ns
            else "",
            "process.executable.name": posixpath.basename(process.exe),
            "process.executable.path": process.exe if process.exe.startswith("/") else "",
            "process.owner": process.owner,
            "process.runtime.name": language.runtime if language else "",
            "container.id": place.container_id,
            "container.name": place.container_name,
            "container.runtime.name": place.runtime,
            "k8s.pod.uid": place.pod_uid,
            "k8s.pod.name": pod,
            **container.attributes,
            **declared,
        }
        service = (
            environ.get("OTEL_SERVICE_NAME")
            or declared.get("service.name")
            or place.unit
            or container.service
            or place.container_name
            or workload_name(pod)
            or place.container_id[:12]
            or process.program
            or comm.partition(":")[0].strip()
            or "unknown_service"
        )
        known = {name: value for name, value in facts.items() if value != ""}
        known["service.name"] = service
        return tuple({"service.name": service, **self._host, **known}.items())
