"""Sampling on the command line and in the environment, and it as data."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tracer import option_values as values
from tracer.errors import UsageError

ALWAYS_ON, ALWAYS_OFF, RATIO, RATE = "always_on", "always_off", "traceidratio", "rate"
VARIABLE, ARGUMENT = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
PARENT_BASED = "parentbased_"
# Of the specification, and not to be had here: they ask another service.
ELSEWHERE = ("jaeger_remote", "parentbased_jaeger_remote", "xray")
MAX_RATE = 1e9
DEFAULT_CORES, MIN_CORES, MAX_CORES = 1.0, 0.02, 1024


@dataclass(frozen=True, slots=True)
class Policy:
    """What is to be kept.

    sampler: ALWAYS_ON, ALWAYS_OFF, RATIO or RATE. argument: of RATIO a probability, of RATE
        spans a second. parent_based: a trace whose parent says so is kept, or isn't, instead.
    keep_errors, keep_slower_ns: traces with such a span are kept whatever else is said;
        0: none for being slow.
    """

    sampler: str = ALWAYS_ON
    argument: float = 1.0
    parent_based: bool = False
    keep_errors: bool = False
    keep_slower_ns: int = 0

    @property
    def keeps_all(self) -> bool:
        """Whether there is nothing to decide."""
        whole = self.sampler == RATIO and self.argument >= 1
        return not self.parent_based and (self.sampler == ALWAYS_ON or whole)

    def words(self) -> str:
        """Write it as the option does."""
        name = self.sampler
        if self.parent_based:
            name = f"parentbased_{name}"
        if self.sampler in (RATIO, RATE):
            name += f"={self.argument:g}"
        kept = ["errors"] if self.keep_errors else []
        if self.keep_slower_ns:
            kept.append(f"what takes {self.keep_slower_ns / 1e6:g} ms or longer")
        return name + (f", and all traces with {' or '.join(kept)}" if kept else "")


def add_arguments(run: argparse.ArgumentParser) -> None:
    """Describe the options to argparse."""
    group = run.add_argument_group(
        "sampling",
        "Traces are kept or let go whole, and a span that is kept says with which probability\n"
        "(trace state, ot=th). What is let go is counted (wirespan status).",
    )
    group.add_argument(
        "--sample", metavar="SAMPLER", type=sampler,
        help=f"{ALWAYS_ON}, {ALWAYS_OFF}, {RATIO}=SHARE (0 to 1) or {RATE}=N, in spans a second; "
        f"with {PARENT_BASED} in front of it traces whose request says whether they are sampled "
        f"are kept by that (default: {ALWAYS_ON}; {VARIABLE}, {ARGUMENT})",
    )  # fmt: skip
    group.add_argument(
        "--keep-errors", action="store_true",
        help="keep every trace with an error in it, whatever the sampler says",
    )  # fmt: skip
    group.add_argument(
        "--keep-slower", metavar="DURATION", type=values.duration("--keep-slower"), default=0,
        help="likewise every trace with a span that took as long: for example 250ms or 2s",
    )  # fmt: skip

    group.add_argument(
        "--max-cpu", metavar="CORES", type=cores, default=DEFAULT_CORES,
        help=f"CPU time that the tracer may use, {MIN_CORES:g} or more: traces are let go whole "
        f"where that would not do; none: as much as it takes (default: {DEFAULT_CORES:g})",
    )  # fmt: skip


def cores(text: str) -> float:
    """Read a number of cores, 0 for `none`; raises UsageError."""
    if text == "none":
        return 0.0
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not MIN_CORES <= number <= MAX_CORES:
        raise UsageError(
            f"--max-cpu: {text!r} is not a number of cores",
            f"{MIN_CORES:g} to {MAX_CORES}, or none",
        )
    return number


def sampler(text: str) -> Policy:
    """Read NAME or NAME=ARGUMENT; raises UsageError."""
    name, _, argument = text.partition("=")
    policy = _named(name)
    if policy is None:
        names = ", ".join((ALWAYS_ON, ALWAYS_OFF, f"{RATIO}=SHARE", f"{RATE}=N"))
        raise UsageError(f"--sample: {text!r} is no sampler", f"{names}, or {PARENT_BASED}...")
    if policy.sampler not in (RATIO, RATE):
        if argument:
            raise UsageError(f"--sample: {name} takes no argument", f"--sample {name}")
        return policy
    number = _number(policy.sampler, argument)
    if number is None:
        what = "a share from 0 to 1" if policy.sampler == RATIO else "a number of spans a second"
        example = "0.1" if policy.sampler == RATIO else "500"
        raise UsageError(f"--sample: {argument!r} is not {what}", f"for example {name}={example}")
    return replace(policy, argument=number)


def policy(
    found: Policy | None,
    keep_errors: bool,
    keep_slower_ns: int,
    environ: Mapping[str, str],
    warn: Callable[[str], None],
) -> Policy:
    """Return what is to be kept: by the options, else by the environment.

    As the specification has it, a value in the environment that makes no sense is warned of
    and then not there.
    Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
    """
    chosen = found or _from(environ, warn)
    return replace(chosen, keep_errors=keep_errors, keep_slower_ns=keep_slower_ns)


def _from(environ: Mapping[str, str], warn: Callable[[str], None]) -> Policy:
    name = (environ.get(VARIABLE) or "").strip().lower()
    if not name:
        return Policy()
    chosen = _named(name)
    if chosen is None or (chosen.sampler == RATE and not environ.get(ARGUMENT)):
        why = "asks another service" if name in ELSEWHERE else "is no sampler"
        warn(f"{VARIABLE}: {name!r} {why}: every trace is kept (--sample)")
        return Policy()
    argument = (environ.get(ARGUMENT) or "").strip()
    if chosen.sampler not in (RATIO, RATE):
        return chosen
    number = _number(chosen.sampler, argument) if argument else 1.0
    if number is None:
        warn(f"{ARGUMENT}: {argument!r} is no argument of {name}: every trace is kept")
        return Policy(parent_based=chosen.parent_based)
    return replace(chosen, argument=number)


def _named(name: str) -> Policy | None:
    plain = name.removeprefix(PARENT_BASED)
    if plain not in (ALWAYS_ON, ALWAYS_OFF, RATIO, RATE):
        return None
    return Policy(plain, parent_based=plain != name)


def _number(name: str, text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    sound = 0 <= number <= 1 if name == RATIO else 0 < number <= MAX_RATE
    return number if sound else None
