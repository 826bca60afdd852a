"""Errors that a person is shown.

WirespanError            one line, a hint, exit code 1
├── UsageError           a bad option or value, exit code 2
├── LayoutError          an object's BTF is not what this version reads
├── KernelError          the kernel or this user lacks something
└── AlreadyRunningError  a second instance
"""

from __future__ import annotations


class WirespanError(Exception):
    """Something failed; `str(error)` says what and why, `hint` what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(WirespanError):
    """The command line or the environment asks for something impossible."""

    exit_code = 2


class LayoutError(WirespanError):
    """The compiled object and this code do not agree on a record's layout."""


class KernelError(WirespanError):
    """The kernel, or the rights this user has, lack something tracing needs."""


class AlreadyRunningError(WirespanError):
    """Another wirespan owns the control socket."""
