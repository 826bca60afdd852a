"""`wirespan doctor`: what works here, what doesn't, what follows and what helps."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from tracer.errors import WirespanError
from tracer.installed import OLD_MEANS, OLD_OBJECT
from tracer.kernel import hooks
from tracer.kernel.filters import Filters
from tracer.kernel.layout import read_object
from tracer.kernel.preflight import Result, Status, System, examine

_WITHOUT_FENTRY = "as of hooks above", "report it, with that file"
_WIDTH = max(len(status) for status in Status)


def doctor(object_path: Path, as_json: bool, out: TextIO, system: System | None = None) -> int:
    """Examine the host and write the findings to `out`; no rights are needed to ask.

    Where nothing required is missing, the programs are loaded, not attached, and freed
    again: the only proof there is. Returns 0 where tracing will work, else 1.
    """
    results = []
    if system is None:
        try:
            system = System(object=read_object(object_path))
            built = _object(object_path)
        except WirespanError as error:
            system = System()
            built = _failed("eBPF object", error, "there is nothing to load")
        results.append(built)
    results += examine(system)
    results.append(_import())
    if all(result.status is Status.OK for result in results if result.required):
        results.append(_trial())
    works = all(result.status is Status.OK for result in results if result.required)
    if as_json:
        json.dump({"works": works, "checks": [asdict(r) for r in results]}, out, indent=2)
        out.write("\n")
    else:
        out.writelines(f"{line}\n" for line in _lines(results, works))
    return 0 if works else 1


def _lines(results: Iterable[Result], works: bool) -> Iterable[str]:
    indent = " " * (_WIDTH + 2)
    for result in results:
        yield f"{result.status:<{_WIDTH}}  {result.name}: {result.seen}"
        if result.status is Status.OK:
            continue
        need = "required" if result.required else "optional"
        without = "if it is missing" if result.status is Status.UNKNOWN else "without it"
        yield f"{indent}{need}; {without}: {result.consequence}"
        yield f"{indent}remedy: {result.remedy}"
    yield "tracing will work" if works else "tracing will not work"


def _object(path: Path) -> Result:
    if path != OLD_OBJECT:
        return Result("eBPF object", Status.OK, True, str(path), "", "")
    return Result(
        "eBPF object",
        Status.LIMITED,
        False,
        f"{path}, for this kernel is older than Linux 5.17 (no bpf_loop)",
        OLD_MEANS,
        "use a newer kernel",
    )


def _failed(name: str, error: WirespanError, consequence: str) -> Result:
    return Result(name, Status.MISSING, True, str(error), consequence, error.hint)


def _import() -> Result:
    try:
        import pylibbpf
    except ImportError as error:
        return Result(
            "pylibbpf",
            Status.MISSING,
            True,
            f"cannot be imported: {error}",
            "no program can be loaded",
            "install it: pip install pylibbpf",
        )
    return Result("pylibbpf", Status.OK, True, f"version {pylibbpf.__version__}", "", "")


def _trial() -> Result:
    # Here, so that a missing pylibbpf is a finding and not a traceback.
    from tracer.kernel.loader import Settings

    said: list[str] = []
    try:
        kernel, by = hooks.load("auto", Filters(), Settings(), said.append)
        with kernel:
            programs = kernel.programs()
            size = sum(found.bytes for found in kernel.maps())
    except WirespanError as error:
        return _failed("programs", error, "tracing can't start")
    # As the loader tells them apart: a bare program type names no hook.
    attach = sum("/" in program.hook for program in programs)
    seen = (
        f"all {len(programs)} load ({by}): {attach} that `wirespan run` attaches, the others are"
        f" called by these or follow single processes; their maps take {size / (1 << 20):.1f} MiB"
    )
    if said:
        seen = f"{seen}; {said[0]}"
        return Result("programs", Status.LIMITED, False, seen, *_WITHOUT_FENTRY)
    return Result("programs", Status.OK, True, seen, "", "")
