"""The PEM files of an export configuration, checked before anything is sent."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Sequence
from pathlib import Path

from tracer.errors import UsageError
from tracer.export_config import ExportConfig

CERTIFICATE, KEY = "certificate", "private key"
_BEGINS = {CERTIFICATE: b"-----BEGIN CERTIFICATE-----", KEY: b" PRIVATE KEY-----"}
_OWN, _OWN_KEY = "OTLP client certificate", "OTLP client key"


def client_context(config: ExportConfig) -> ssl.SSLContext:
    """Make a context that verifies the receiver; raises UsageError that names a bad file."""
    for path in (config.certificate, config.client_key, config.client_certificate):
        if path is not None:
            read(path)
    try:
        context = ssl.create_default_context(cafile=config.certificate)
    except ssl.SSLError as error:
        trusted = [("OTLP certificate", config.certificate or "", CERTIFICATE)]
        raise (mistaken(trusted) or _not_pem(config.certificate, "certificates", error)) from None
    if config.client_certificate is not None:
        try:
            # An encrypted key must not ask on the terminal for its password.
            context.load_cert_chain(config.client_certificate, config.client_key, lambda: "")
        except (ssl.SSLError, ValueError) as error:
            key = config.client_key or config.client_certificate
            files = f"{config.client_certificate}, {key}"
            own = [(_OWN, config.client_certificate, CERTIFICATE), (_OWN_KEY, key, KEY)]
            raise (
                mistaken(own) or _not_pem(files, "a certificate and its unencrypted key", error)
            ) from None
    return context


def invalid(context: ssl.SSLContext, certificate: str) -> str:
    """Say why nobody will trust a server's certificate now, "" where its dates are good.

    context: the server's, with that certificate loaded. It shakes hands with a client, in memory,
    that trusts the very file.
    """
    trusting = ssl.create_default_context(cafile=certificate)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    try:
        for side in (client, server, client):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except ssl.SSLError:
        pass  # of no use to anybody, which senders say better than this client
    return ""


def mistaken(files: Sequence[tuple[str, str, str]]) -> UsageError | None:
    """Say which file holds the other of certificate and key; None where that is not what is wrong.

    files: who names it, its path, and what it should hold.
    """
    wrong = []
    for name, path, wanted in files:
        held: set[str] = set()
        with contextlib.suppress(OSError):
            content = Path(path).read_bytes()
            held = {what for what, begin in _BEGINS.items() if begin in content}
        if held and wanted not in held:
            wrong.append((name, path, wanted, held.pop()))
    if not wrong:
        return None
    name, path, wanted, other = wrong[0]
    hint = f"name its {wanted}"
    if {each[2] for each in wrong} == {CERTIFICATE, KEY}:
        hint = f"{name} and {wrong[1][0]} are swapped"
    return UsageError(f"{name}: {path} holds a {other} and no {wanted}", hint)


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
