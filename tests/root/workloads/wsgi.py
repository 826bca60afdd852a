"""A WSGI application for gunicorn: reads the body, answers ?status= and ?size= in its manner."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from urllib.parse import parse_qs


def app(environ: dict[str, object], start_response: Callable[..., object]) -> Iterable[bytes]:
    """With ?stream=1 the body has no length, so gunicorn sends it chunked."""
    body = environ["wsgi.input"].read()  # type: ignore[attr-defined]
    query = {k: v[0] for k, v in parse_qs(str(environ["QUERY_STRING"])).items()}
    size = int(query.get("size", len(body)))
    headers = [("Content-Type", "text/plain")]
    if "stream" not in query:
        headers.append(("Content-Length", str(size)))
    start_response(f"{query.get('status', '200')} Answer", headers)
    return [b"w" * min(700, size - at) for at in range(0, size, 700)]
