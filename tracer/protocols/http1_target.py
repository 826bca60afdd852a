"""The request target of HTTP/1 (RFC 9112 section 3.2), split, masked and folded.

    form        example                          url.path       route
    ----------  -------------------------------  -------------  ----------------------
    origin      GET /search?q=cats               /search        of the path
    absolute    GET http://h:8080/search?q=cats  /search        of the path
    authority   CONNECT h:443                    (has none)     (has none)
    asterisk    OPTIONS *                        *              *
    other       GET search                       search         (has none)

What leaves this module holds no secret of a kind that can be told from its place: query
values and credentials before a host are replaced by `REDACTED`.

Source: https://www.rfc-editor.org/rfc/rfc9112#section-3.2; for what is redacted
https://opentelemetry.io/docs/specs/semconv/registry/attributes/url/.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple

from tracer.protocols.base import Routes

REDACTED = "REDACTED"
# UTF-8 bytes of path and query together, after masking; a longer one is cut and says so.
MAX_BYTES = 512

_ABSOLUTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,31})://([^/?#]*)")
# What to replace in a query: all that follows a part's first `=`; whole a part without one,
# or, for base64 ends so, with several and nothing else behind it, or with one behind much.
_VALUE = re.compile(
    r"(?:^|(?<=&)) (?: [^&=]++ (?:==++)? | [^&=]{16,}+ = ) (?=&|\Z) | (?<==)[^&]+", re.VERBOSE
)
# In a path that contains a URL: who it logs in as, also where the end is cut off.
_USERINFO = re.compile(r"(?<=[/:]/)[^/@]+@")
# The same where that URL is percent-encoded.
_USERINFO_ENCODED = re.compile(r"(?i)(?<=%2f%2f)(?:(?!%2f|%40)[^/?])+%40")
_BEFORE_QUERY = re.compile("[?#]")
_PORT = re.compile(r"(?:\[[^\]]*\]|[^:]*)(?::\d*)?")
_USERINFO_CUT = re.compile(r"(?<=[/:]/)[^/@:]*:[^/@]*\Z")
_ESCAPED = re.compile("[\ud800-\udfff]")


class TargetClass(NamedTuple):
    """What of a target goes into a span's shape."""

    form: Literal["origin", "absolute", "authority", "asterisk", "other"]
    route: str  # "": none
    scheme: str  # absolute form only
    authority: str  # absolute and authority form: host and port, without credentials
    credentials: bool  # whether there were any
    cut: Literal["", "path", "query"]  # where the end is missing


class Target(NamedTuple):
    """A target: what many share, and what is its own."""

    kind: TargetClass
    path: bytes
    query: bytes


def parse(raw: bytes, *, connect: bool, cut: bool, query: str, routes: Routes) -> Target:
    """Take a request target apart; never raises.

    connect: the method is CONNECT. cut: the capture limit took the target's end.
    query: Settings.query. path and query come as UTF-8, together at most MAX_BYTES.
    """
    if not cut and raw.isascii() and raw.startswith(b"/") and b"#" not in raw:
        text, mark, rest = raw.decode("ascii").partition("?")
        masked = _query(rest, query) if mark else ""
        if "@" in text or "%40" in text:
            text = _without_userinfo(text, cut=False)
        if len(text) + len(masked) < MAX_BYTES:
            return Target(_origin(routes.route(text)), text.encode(), masked.encode())
    text = _text(raw, cut)
    if text == "*" and not cut:
        return Target(TargetClass("asterisk", "*", "", "", False, ""), b"*", b"")
    if connect and not text.startswith("/"):
        # Cut, it may be no more than a user's name and password: better none of it.
        host, credentials = _without_credentials("" if cut else text)
        kind = TargetClass("authority", "", "", host, credentials, "path" if cut else "")
        return Target(kind, b"", b"")
    scheme = authority = ""
    credentials = False
    absolute = _ABSOLUTE.match(text)
    if absolute:
        scheme, authority = absolute[1].lower(), absolute[2]
        text = text[absolute.end() :]
        hidden = "@" not in authority and not _PORT.fullmatch(authority)
        _, at, rest = _BEFORE_QUERY.split(text, maxsplit=1)[0].rpartition("@")
        if hidden and at:
            # What looks like a port is a password that has a slash in it.
            authority, slash, text = rest.partition("/")
            authority, text = f"{REDACTED}@{authority}", slash + text
        if cut and not text:
            # Likewise.
            authority = ""
        authority, credentials = _without_credentials(authority)
        # An empty path and `/` are the same resource (RFC 9110 section 4.2.3).
        if not cut and not text.startswith("/"):
            text = "/" + text
    path, mark, rest = text.partition("?")
    # A fragment is not to be sent (RFC 9112 section 3.2); it may be what a login answers with.
    path, fragment, _ = path.partition("#")
    if fragment:
        mark = rest = ""
    path = _without_userinfo(path, cut=cut and not mark)
    place: Literal["", "path", "query"] = "" if not cut else "query" if mark else "path"
    route = _route(path, place == "path", routes)
    masked = _query(rest, query)
    if query == "drop" and place == "query":
        place = ""
    path_bytes, fits = _limit(path.encode(), MAX_BYTES)
    query_bytes = b""
    if not fits:
        place = "path"
    else:
        query_bytes, fits = _limit(masked.encode(), max(0, MAX_BYTES - len(path_bytes) - 1))
        if not fits:
            place = "query"
    form: Literal["absolute", "origin", "other"] = "absolute" if absolute else "origin"
    if not absolute and path and not path.startswith("/"):
        form = "other"
    kind = TargetClass(form, route, scheme, authority, credentials, place)
    return Target(kind, path_bytes, query_bytes)


def mask(query: str) -> str:
    """Replace every value of a query string: `a=1&b=2` becomes `a=REDACTED&b=REDACTED`.

    A part without `=` is replaced whole, since `?secret` looks like `?name`, and so is one
    that may end in the padding of base64: `?c2VjcmV0cw==`.
    """
    return _VALUE.sub(REDACTED, query)


@lru_cache(maxsize=1024)
def _origin(route: str) -> TargetClass:
    """Return the class of a target in origin form that is all there."""
    return TargetClass("origin", route, "", "", False, "")


def _query(text: str, setting: str) -> str:
    return text if setting == "raw" else mask(text) if setting == "mask" else ""


def _without_userinfo(path: str, *, cut: bool) -> str:
    """Replace credentials of URLs that a path contains; cut: its end is missing."""
    path, found = _USERINFO.subn(f"{REDACTED}:{REDACTED}@", path)
    if not found and not path.startswith("/") and "@" in path[1:]:
        return f"{REDACTED}@{path.rpartition('@')[2]}"  # a target of no form that there is
    path = _USERINFO_ENCODED.sub(f"{REDACTED}%3A{REDACTED}%40", path)
    return _USERINFO_CUT.sub(REDACTED, path) if cut else path


def _without_credentials(authority: str) -> tuple[str, bool]:
    """Return host and port, and whether something stood before them."""
    before, at, host = authority.rpartition("@")
    return host, bool(at and before)


def _route(path: str, cut: bool, routes: Routes) -> str:
    """Return a path's route; if its end is cut off, of the segments that are whole."""
    if not path.startswith("/"):
        return ""
    if not cut:
        return routes.route(path)
    whole = path.rpartition("/")[0]
    return (routes.route(whole) if whole else "") + "/*"


def _text(raw: bytes, cut: bool) -> str:
    """Decode a target, a byte that is not UTF-8 as the `%XX` it should have been."""
    if raw.isascii():
        return raw.decode("ascii")
    text = raw.decode("utf-8", "surrogateescape")
    if cut:
        # Half a character at the end is the capture limit's doing, not the client's.
        text = text.rstrip("".join(map(chr, range(0xDC80, 0xDD00))))
    return _ESCAPED.sub(lambda match: f"%{ord(match[0]) & 0xFF:02X}", text)


def _limit(text: bytes, size: int) -> tuple[bytes, bool]:
    """Cut UTF-8 at a character's end; say whether it fitted."""
    if len(text) <= size:
        return text, True
    return text[:size].decode("utf-8", "ignore").encode(), False
