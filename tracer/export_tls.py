"""The PEM files of an export configuration, checked before anything is sent."""

from __future__ import annotations

import ssl
from pathlib import Path

from tracer.errors import UsageError
from tracer.export_config import ExportConfig


def client_context(config: ExportConfig) -> ssl.SSLContext:
    """Make a context that verifies the receiver; raises UsageError that names a bad file."""
    for path in (config.certificate, config.client_key, config.client_certificate):
        if path is not None:
            read(path)
    try:
        context = ssl.create_default_context(cafile=config.certificate)
    except ssl.SSLError as error:
        raise _not_pem(config.certificate, "certificates", error) from None
    if config.client_certificate is not None:
        try:
            # An encrypted key must not ask on the terminal for its password.
            context.load_cert_chain(config.client_certificate, config.client_key, lambda: "")
        except (ssl.SSLError, ValueError) as error:
            files = f"{config.client_certificate}, {config.client_key}"
            raise _not_pem(files, "a certificate and its unencrypted key", error) from None
    return context


def read(path: str) -> bytes:
    """Read a file; raises UsageError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}",
            "OTEL_EXPORTER_OTLP_CERTIFICATE, _CLIENT_KEY and _CLIENT_CERTIFICATE name PEM files",
        ) from None


def _not_pem(path: str | None, what: str, error: Exception) -> UsageError:
    reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else str(error)
    return UsageError(f"{path}: not {what} in PEM ({reason})", "check the file with openssl x509")
