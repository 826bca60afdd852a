"""URL paths to routes of low cardinality: `/users/123` becomes `/users/{id}`.

A path is folded one segment at a time, with no knowledge of the application:

    segment                                           becomes
    ------------------------------------------------  ---------------------------
    `users`, `en-US`, `.well-known`, `index.html`     itself: a word
    `v1`, `v2.1`, `v1beta1`                           itself: a version
    `oauth2`, `base64`, `k8s`, `step-2`, `2fa`        itself: a word with one or two digits
    `123`, `-4`, `1.2.3`, `2024-05-01`, `10.0.0.1`    `{id}`: nothing but a number
    UUID, ULID, hex of 8 and more, `a1b2c3`,          `{id}`: more digits than a word has
      `order-12345`, `my-title-98765`
    `dGhpcyBJcyBBVG9rZW4`                             `{id}`: letters in no order of case
    `a@b.example`, `@alice`, `a=b`, `a%2Fb`,          `{id}`: characters that words do not need
      `two%20words`, `1,2`
    six words and more, or over 64 characters         `{id}`: a title or a token
    `123.png`, `main.3f2a1b9c.js`, `a1b2c3.tar.gz`    `{id}.png`, `{id}.js`, `{id}.tar.gz`
    `123:cancel`                                      `{id}:cancel` (a custom verb)
    `Users(7)`, `Users('x')`                          `Users({id})` (OData key)
    `cart;jsessionid=8F2C`                            `cart` (path parameters say nothing)
    `caf%C3%A9`                                       `café`
    `{id}`, `{anything}`, `*`                         itself: already a template

What is below the 12th segment becomes one `*`. All identifiers share one placeholder: a slot
that holds a number now and a UUID then stays one route.

Sources: RFC 3986 section 3.3 (segments), 6.2.2.2 (percent-encoding); OpenTelemetry HTTP spans,
"Name" (a span's name must be of low cardinality).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import unquote

_ID = "{id}"
_NAME = "{name}"
_REST = "*"

_MAX_SEGMENTS = 12
_MAX_WORD = 64  # characters of a segment
_MAX_WORDS = 5  # words of a segment, `terms-and-conditions` has 3
_MAX_DIGITS = 3  # digits of a segment, so that `jquery-3.6.0.js` stays
_MAX_PART = 32  # characters of one word
_MAX_PART_DIGITS = 2  # digits of one word
_MAX_RUNS = 3  # runs of letters or digits in one word, `k8s` has 3

_TEMPLATE = re.compile(r"\{\w*\}|\*")
_FOLDED = re.compile(
    r"\{id\}(?:(?:\.[A-Za-z][A-Za-z0-9]{0,4}){1,2}|:[A-Za-z]+)|[^\W\d]\w*\(\{id\}\)"
)
_VERSION = re.compile(r"[vV]\d{1,3}(?:\.\d{1,3}){0,3}(?:(?:alpha|beta|rc|dev)\d{0,2})?")
_ODATA = re.compile(r"([^\W\d]\w{0,63})\(.*\)", re.DOTALL)
_VERB = re.compile(r"(.+):([A-Za-z]{1,32})", re.DOTALL)
_EXTENSION = re.compile(r"(.+?)((?:\.[A-Za-z][A-Za-z0-9]{0,4}){1,2})", re.DOTALL)
_WORD_CHARACTERS = re.compile(r"\$?[\w.~-]+|:\w+")
_NUMBER = re.compile(r"[-+_.~]?\d[\d.xX_~-]*")
_HEX = re.compile(r"(?=.*\d)[0-9A-Fa-f]{8,}|[0-9A-Fa-f]{16,}")
_SEPARATORS = re.compile(r"[-_.~$:]+")
_RUNS = re.compile(r"\d+|\D+")
_CASE_CHANGES = re.compile(r"[a-z](?=[A-Z])|[A-Z](?=[a-z])")
_KNOWN = frozenset(
    {"sha224", "sha256", "sha384", "sha512", "x509", "h264", "h265", "log4j2", "mp3", "mp4"}
)


class RouteTable:
    """Route names of one tracer, and the bound on how many there may be.

    max_routes: distinct names that `route` gives at most, `/*` included.
    max_cached: paths whose route is remembered; the least recently used are forgotten.

    When words turn out to be names (`/wiki/{title}`) no rule can tell, so the bound is kept by
    stages, each coarser than the one before, and names once given stay what they are:

    1. A place in the tree with more than a tenth of `max_routes` different words takes any
       further word as `{name}`.
    2. When nine tenths of all names are in use, a new one becomes `/first/*`.
    3. When no name is left but the last, it becomes `/*`.
    """

    def __init__(self, max_routes: int = 1000, max_cached: int = 16384) -> None:
        if max_routes < 1 or max_cached < 1:
            raise ValueError("max_routes and max_cached must be positive")
        self.max_routes = max_routes
        self._max_exact = min(max_routes - 1, max_routes * 9 // 10)
        self._max_words = max(1, max_routes // 10)
        self._known: set[str] = set()
        self._words: dict[str, set[str]] = {}
        self._overflowed = 0
        self._cached = lru_cache(max_cached)(self._resolve)

    def __len__(self) -> int:
        """Return how many distinct names have been given."""
        return len(self._known)

    @property
    def overflowed(self) -> int:
        """How many paths got a coarser name for the bound's sake, counted when first seen."""
        return self._overflowed

    def route(self, path: str) -> str:
        """Return the route of `path`, which is a URL's path without its query.

        What does not begin with `/` is no path and comes back as it is.
        """
        return self._cached(path)

    def routes(self, paths: Sequence[str]) -> list[str]:
        """Return the route of each path."""
        return list(map(self._cached, paths))

    def _resolve(self, path: str) -> str:
        if not path.startswith("/"):
            return path
        segments = [fold_segment(segment) for segment in path[1:].split("/", _MAX_SEGMENTS)]
        if len(segments) > _MAX_SEGMENTS:
            segments[_MAX_SEGMENTS] = _REST
        exact = "/" + "/".join(segments)
        if exact in self._known:
            return exact
        if len(self._known) < self._max_exact:
            name = self._within_words(segments)
            self._overflowed += name != exact
            self._known.add(name)
            return name
        self._overflowed += 1
        name = f"/{segments[0]}/{_REST}"
        if name not in self._known and (not segments[0] or len(self._known) >= self.max_routes - 1):
            name = f"/{_REST}"
        self._known.add(name)
        return name

    def _within_words(self, segments: list[str]) -> str:
        """Name a new route, with `{name}` for a word too many at its place; note its words."""
        prefix = ""
        for segment in segments:
            if segment and not _TEMPLATE.fullmatch(segment):
                words = self._words.setdefault(prefix, set())
                if segment not in words and len(words) >= self._max_words:
                    segment = _NAME
                else:
                    words.add(segment)
            prefix = f"{prefix}/{segment}"
        return prefix


def fold_segment(segment: str) -> str:
    """Return the template of one path segment; see the module's table."""
    # Most are one of these two, and what follows would say the same of them.
    if segment.isalpha() and segment.islower() and len(segment) < 16:
        return segment
    if segment.isdigit() and segment.isascii():
        return _ID
    if "(" not in segment:
        segment = segment.partition(";")[0]
    if "%" in segment:
        segment = unquote(segment, errors="replace")
    if not segment or _TEMPLATE.fullmatch(segment) or _FOLDED.fullmatch(segment):
        return segment
    if match := _ODATA.fullmatch(segment):
        return f"{match[1]}({_ID})"
    if match := _VERB.fullmatch(segment):
        return segment if _is_word(match[1]) else f"{_ID}:{match[2]}"
    if "@" in segment:
        return _ID
    if match := _EXTENSION.fullmatch(segment):
        return segment if _is_word(match[1]) else _ID + match[2]
    return segment if _is_word(segment) else _ID


def _is_word(text: str) -> bool:
    """Tell whether `text` looks like a word that a programmer chose, not like a value."""
    if len(text) > _MAX_WORD or not _WORD_CHARACTERS.fullmatch(text):
        return False
    if _VERSION.fullmatch(text):
        return True
    if _NUMBER.fullmatch(text) or _HEX.fullmatch(text):
        return False
    parts = [part for part in _SEPARATORS.split(text) if part and part.lower() not in _KNOWN]
    digits = sum(character.isdigit() for part in parts for character in part)
    return len(parts) <= _MAX_WORDS and digits <= _MAX_DIGITS and all(map(_is_word_part, parts))


def _is_word_part(part: str) -> bool:
    """Tell whether `part`, which has no separators, looks like a word."""
    if len(part) > _MAX_PART or sum(map(str.isdigit, part)) > _MAX_PART_DIGITS:
        return False
    if len(_RUNS.findall(part)) > _MAX_RUNS:
        return False
    changes = len(_CASE_CHANGES.findall(part))
    return not (len(part) >= 16 and changes * 3 >= len(part)) and not (
        len(part) >= 8 and changes * 2 >= len(part)
    )
