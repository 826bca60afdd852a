"""SQL statements without their literals.

`analyse` cuts a statement into tokens and writes it again with `?` for every literal:
strings of all notations, numbers, bit strings, TRUE and FALSE, and what is left of a literal
where the text was cut. Placeholders (`?`, `$1`, `:name`, `%s`) and names stay; comments,
which may hold anything, go; runs of space become one. A list after IN becomes its first
element, rows after VALUES become the first row, and that `(?)` if it only has literals.

Which characters a literal ends at depends on settings of the server that are not seen here
(MySQL's NO_BACKSLASH_ESCAPES, PostgreSQL's standard_conforming_strings, character sets with
a backslash inside a character). The default is taken; where it makes no sense of the text
and the other reading does, that; where neither does or both do (an apostrophe in a comment
may end what a backslash left open), or the end that would tell is missing, or a backslash may
be half a character, only what all agree on is shown.
What doesn't begin like SQL, as when its beginning was lost, isn't shown at all.

Sources: https://dev.mysql.com/doc/refman/9.0/en/literals.html,
https://www.postgresql.org/docs/current/sql-syntax-lexical.html.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from tracer.protocols.sql_summary import (
    LITERAL,
    OTHER,
    QUOTED,
    SPACE,
    WORD,
    Token,
    summarise,
)

Dialect = Literal["mysql", "postgresql"]

# Statements remembered, and the bytes of their texts, before all are forgotten.
MAX_STATEMENTS = 8192
MAX_BYTES = 4 << 20

MASK = "?"


class Statement(NamedTuple):
    """What may be shown of a statement; a string is empty where there is no plain answer.

    masked: the text without literals. operation, collection, procedure, namespace: if there
    is just one of that kind. summary: `{operation} {target} ...`. statements: how many.
    """

    masked: str
    operation: str
    collection: str
    summary: str
    procedure: str = ""
    namespace: str = ""
    statements: int = 1


NOTHING = Statement("", "", "", "")

# Words a statement can begin with. What begins with another may be the rest of a literal.
VERBS = frozenset(
    "ABORT ALTER ANALYZE BACKUP BEGIN BINLOG CACHE CALL CHANGE CHECK CHECKPOINT CHECKSUM CLONE"
    " CLOSE CLUSTER COMMENT COMMIT COPY CREATE DEALLOCATE DECLARE DELETE DESC DESCRIBE DISCARD"
    " DO DROP END EXECUTE EXPLAIN FETCH FLUSH GET GRANT HANDLER HELP IMPORT INSERT INSTALL KILL"
    " LISTEN LOAD LOCK MERGE MOVE NOTIFY OPTIMIZE PREPARE PURGE REASSIGN REFRESH REINDEX RELEASE"
    " RENAME REPAIR REPLACE RESET RESIGNAL RESTART REVOKE ROLLBACK SAVEPOINT SECURITY SELECT SET"
    " SHOW SHUTDOWN SIGNAL START STOP TABLE TRUNCATE UNINSTALL UNLISTEN UNLOCK UPDATE USE VACUUM"
    " VALUES WITH XA".split()
)

# No quantifier below can be matched in two ways, so that hostile text takes no longer.
_PLAIN_STRING = r"'(?:[^']++|'')*+'"
_ESCAPED_STRING = r"'(?:[^'\\]++|\\(?s:.)|'')*+'"
# In GBK, Big5 or Shift JIS a backslash or a backtick may be the second half of a character.
_HALVED_STRING = r"'(?:[^\x00-\x7f]\\|[^'\\]|\\(?s:.)|'')*+'"
_HALVED = {
    "mysql": re.compile(r"[^\x00-\x7f]\\|\ufffd`"),
    "postgresql": re.compile(r"[^\x00-\x7f]\\"),
}
_NUMBER = r"\.?\d (?: [eE][+-]\d | [\w.$] )*+"
# PostgreSQL before 15 takes a string right behind a number: 1$a$text$a$.
_NUMBER_BEFORE_STRING = r"\.?\d (?: [eE][+-]\d | [\w.] | \$(?!(?:[^\W\d]\w*+)?\$) )*+"


def _named(number: str) -> str:
    return rf"""
    | (?P<number> {number} )
    | (?P<word> [^\W\d] [\w$]*+ )
    | (?P<other> (?s:.) )
"""


def _mysql(single: str, name: str = r"`(?:[^`]++|``)++`") -> re.Pattern[str]:
    return re.compile(
        rf"""
        (?P<space> [\s\x00-\x1f\x7f]++ | --(?=[\s\x00-\x1f]|\Z)[^\n]*+ | \#[^\n]*+
            | /\*(?!M?!)(?s:.*?)(?:\*/|\Z) )
        | (?P<code> /\*M?!\d{{0,6}} )
        | (?P<dollars> \$(?P<tag>\w*+)\$ (?s:.*?) (?: \$(?P=tag)\$ | \Z ) )
        | (?P<close> \*/ )
        | (?P<string> [xXbBnN]?(?:{single}) | {single.replace("'", '"')} )
        | (?P<quoted> {name} )
        | (?P<cut> [xXbBnN]?['"`] (?s:.*) )
        {_named(_NUMBER)}""",
        re.VERBOSE,
    )


def _postgresql(single: str, escaped: str = _ESCAPED_STRING) -> re.Pattern[str]:
    return re.compile(
        rf"""
        (?P<space> [\s\x00-\x1f\x7f]++ | --[^\n]*+ )
        | (?P<nested> /\* )
        | (?P<string> [eE](?:{escaped}) | (?:[xXbBnN]|[uU]&)?(?:{single})
            | \$(?P<tag>(?:[^\W\d]\w*+)?)\$ (?s:.*?) \$(?P=tag)\$ )
        | (?P<placeholder> \$\d{{1,5}}(?![\w$]) )
        | (?P<quoted> "(?:[^"]++|"")++" )
        | (?P<cut> (?: [eExXbBnN]?['"] | [uU]&['"] | \$(?:[^\W\d]\w*+)?\$ ) (?s:.*) )
        {_named(_NUMBER_BEFORE_STRING)}""",
        re.VERBOSE,
    )


def _quick(firsts: str, rest: str) -> re.Pattern[str]:
    """Compile a pattern that begins with one set of characters: those are searched for quickly.

    rest: what may follow, alternatives told apart by looking back at the first character.
    """
    return re.compile(
        rf"""
        [{firsts}.\d'"] (?:
            {rest}
            | (?: (?<=\.)\d | (?<=\d)(?<![\w$].) ) (?: [eE][+-]\d | [\w.$] )*+
        )""",
        re.VERBOSE,
    )


# Strings, numbers and quoted names, right for texts without any of the marks. What has no end
# goes on to the end.
_SINGLE, _NO_END = r"(?:[^']++|'')*+'", r"(?s:.*)"
_QUICK: dict[Dialect, tuple[re.Pattern[str], re.Pattern[str]]] = {
    "mysql": (
        re.compile(r"[-\\#$/\ufffd](?:(?<=[\\#$])|(?<=-)-|(?<=/)\*|(?<=\ufffd)`)"),
        _quick(
            "xXbBnN`",
            rf"""
            (?<=') (?: {_SINGLE} | {_NO_END} )
            | (?<=") (?: (?:[^"]++|"")*+" | {_NO_END} )
            | (?<=`) (?: (?:[^`]++|``)++` | {_NO_END} )
            | (?<=[xXbBnN])(?<![\w$].) (?: '{_SINGLE} | ['"`]{_NO_END} )""",
        ),
    ),
    "postgresql": (
        re.compile(r"[-\\$/](?:(?<=[\\$])|(?<=-)-|(?<=/)\*)"),
        _quick(
            "eExXbBnNuU",
            rf"""
            (?<=') (?: {_SINGLE} | {_NO_END} )
            | (?<=") (?: (?:[^"]++|"")++" | {_NO_END} )
            | (?<=[eExXbBnN])(?<![\w$].) (?: '{_SINGLE} | ['"]{_NO_END} )
            | (?<=[uU])(?<![\w$].) & (?: '{_SINGLE} | ['"]{_NO_END} )""",
        ),
    ),
}


# Of each dialect the usual reading, the other, and the usual one where characters may end so.
_PATTERNS: dict[Dialect, tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]] = {
    "mysql": (
        _mysql(_ESCAPED_STRING),
        _mysql(_PLAIN_STRING),
        _mysql(_HALVED_STRING, r"`(?:\ufffd`|[^`]|``)++` | \ufffd`"),
    ),
    "postgresql": (
        _postgresql(_PLAIN_STRING),
        _postgresql(_ESCAPED_STRING),
        _postgresql(_PLAIN_STRING, _HALVED_STRING),
    ),
}
_KINDS = {
    "space": SPACE,
    "string": LITERAL,
    "dollars": LITERAL,
    "number": LITERAL,
    "cut": LITERAL,
    "quoted": QUOTED,
    "word": WORD,
}
# Only where there is one can the readings differ.
_ESCAPED_QUOTE = re.compile(r"""\\['"]""")
_NESTING = re.compile(r"/\*|\*/")


def analyse(text: str, dialect: Dialect, *, cut: bool = False) -> Statement:
    """Mask and summarise a statement, or several; text may be anything.

    cut: its end is missing, so that a literal without an end is no sign of a wrong reading.
    Takes time proportional to the text's length.
    """
    usual, other, halved = _PATTERNS[dialect]
    tokens, odd = _tokens(text, usual)
    unsure = cut
    if _HALVED[dialect].search(text):
        unsure = True
        tokens = _agreed(tokens, _tokens(text, halved)[0])
    if _ESCAPED_QUOTE.search(text):
        tokens2, odd2 = _tokens(text, other)
        if cut or odd == odd2 or (odd and unsure):
            tokens = _agreed(tokens, tokens2)
        elif odd:
            tokens = tokens2
    tokens = _without_settings(tokens)
    dense = [token for token in tokens if token.kind != SPACE]
    first = next((token for token in dense if token.text != "("), None)
    if first is None or first.kind != WORD or first.text.upper() not in VERBS:
        return NOTHING
    summary = summarise(dense)
    return Statement(
        masked="".join(_collapsed(tokens)).strip(" ;"),
        operation=summary.operation,
        collection=summary.collection,
        summary=summary.text,
        procedure=summary.procedure,
        namespace=summary.namespace,
        statements=summary.statements,
    )


class Statements:
    """Remembers what `analyse` said.

    By the bytes of a statement, and by the text that a simpler mask leaves, for statements
    that differ in their literals alone.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect: Dialect = dialect
        self._marks, self._simple = _QUICK[dialect]
        self._name = "`" if dialect == "mysql" else '"'
        self._known: dict[tuple[bytes, bool] | str, Statement] = {}
        self._bytes = 0

    def get(self, raw: bytes, cut: bool = False) -> Statement:
        """Return what may be shown of a statement given as UTF-8 as far as possible."""
        key = raw, cut
        known = self._known.get(key)
        if known is None:
            text = raw.decode("utf-8", "replace")
            if self._marks.search(text):
                known = analyse(text, self._dialect, cut=cut)
            else:
                masked = self._simple.sub(self._mask, text)
                known = self._known.get(masked)
                if known is None:
                    known = analyse(masked, self._dialect)
                    self._keep(masked, known, len(masked))
            self._keep(key, known, len(raw))
        return known

    def _keep(self, key: tuple[bytes, bool] | str, statement: Statement, size: int) -> None:
        if len(self._known) >= MAX_STATEMENTS or self._bytes > MAX_BYTES:
            self._known.clear()
            self._bytes = 0
        self._known[key] = statement
        self._bytes += size

    def _mask(self, match: re.Match[str]) -> str:
        text = match[0]
        return text if text[0] == self._name and text[-1] == self._name and text[1:] else MASK


def _tokens(text: str, pattern: re.Pattern[str]) -> tuple[list[Token], bool]:
    """Cut a text into tokens; also whether this reading makes no sense of it."""
    tokens: list[Token] = []
    odd = False
    at = code = 0
    while at < len(text):
        match = pattern.match(text, at)
        assert match and match.lastgroup, "the last alternative takes any character"
        group, at, shown = match.lastgroup, match.end(), match[0]
        kind = _KINDS.get(group, OTHER)
        if kind == LITERAL:
            shown = MASK
            odd = odd or group == "cut"
        elif kind == WORD and shown.upper() in ("TRUE", "FALSE"):
            kind, shown = LITERAL, MASK
        elif group == "nested":
            kind, at = SPACE, _comment_end(text, at)
        elif group == "code":
            # MySQL runs what is in such a comment.
            kind, code = SPACE, code + 1
        elif group == "close":
            if code:
                kind, code = SPACE, code - 1
            else:
                shown, at = "*", match.start() + 1
        elif shown == "\\":
            odd = True
        if kind == SPACE:
            shown = " "
            if tokens and tokens[-1].kind == SPACE:
                tokens.pop()
        tokens.append(Token(kind, shown, at))
    return tokens, odd


# What stands before a setting's value; words and names there are the value, but for some.
_BEFORE_VALUE = ("=", ":=", "TO", ",")
_SAID = frozenset("DEFAULT ON OFF NULL LOCAL".split())


def _without_settings(tokens: list[Token]) -> list[Token]:
    """Mask what SET gives to settings without quotes: `SET app.token TO abc`, `SET a = b, c`."""
    dense = [number for number, token in enumerate(tokens) if token.kind != SPACE]
    masked = list(tokens)
    verb = before = ""
    sets = False
    for place, number in enumerate(dense):
        token = tokens[number]
        word = token.text.upper() if token.kind == WORD else token.text
        if not verb:
            verb = word
        sets = sets or (word == "SET" and verb in ("SET", "ALTER"))
        after = tokens[dense[place + 1]].text if place + 1 < len(dense) else ";"
        value = sets and before in _BEFORE_VALUE and after in (",", ";")
        if value and token.kind in (WORD, QUOTED) and word not in _SAID:
            masked[number] = Token(LITERAL, MASK, token.end)
        before = word
        if word == ";":
            verb, sets = "", False
    return masked


def _comment_end(text: str, at: int) -> int:
    """Return where a comment that may have others in it ends; at: behind its opening."""
    depth = 1
    for mark in _NESTING.finditer(text, at):
        depth += 1 if mark[0] == "/*" else -1
        if not depth:
            return mark.end()
    return len(text)


def _agreed(one: list[Token], two: list[Token]) -> list[Token]:
    """Return the tokens that two readings have in common, and a mask for the rest."""
    same = 0
    while same < min(len(one), len(two)) and one[same] == two[same]:
        same += 1
    rest = [] if len(one) == len(two) == same else [Token(LITERAL, MASK, one[-1].end)]
    return one[:same] + rest


def _collapsed(tokens: list[Token]) -> list[str]:
    """Return the tokens' texts with lists of values made short."""
    out: list[str] = []
    at = 0
    while at < len(tokens):
        token = tokens[at]
        out.append(token.text)
        at += 1
        if token.kind != WORD:
            continue
        word = token.text.upper()
        if word not in ("IN", "VALUES", "VALUE"):
            continue
        group = _group(tokens, at, plain=word == "IN")
        if group is None:
            continue
        if group.plain:
            inner = "".join(item.text for item in tokens[group.start + 1 : group.close])
            rows = word != "IN" and "$" in inner
            out += [" (", inner if rows else group.first, ")" if group.closed else ""]
        else:
            out += [item.text for item in tokens[at : group.end]]
        at = group.end
        while word != "IN":
            comma = _dense(tokens, at)
            if comma >= len(tokens) or tokens[comma].text != ",":
                break
            following = _group(tokens, comma + 1)
            if following is None:
                if _dense(tokens, comma + 1) >= len(tokens):
                    at = len(tokens)
                break
            at = following.end
    return out


class _Group(NamedTuple):
    """Parentheses: tokens[start] opens them, tokens[close] closes them, tokens[end] follows."""

    start: int
    close: int
    end: int
    closed: bool  # not cut off
    plain: bool  # nothing but values
    first: str  # value


def _group(tokens: list[Token], at: int, *, plain: bool = False) -> _Group | None:
    """Find parentheses at a place, or None if there are none; plain: none with only values."""
    start = _dense(tokens, at)
    if start < len(tokens) and tokens[start].text.upper() == "ROW":
        start = _dense(tokens, start + 1)
    if start >= len(tokens) or tokens[start].text != "(":
        return None
    only, depth, first = plain, 0, ""
    plain = True
    for place in range(start, len(tokens)):
        token = tokens[place]
        if token.text == "(":
            depth += 1
        elif token.text == ")":
            depth -= 1
            if not depth:
                return _Group(start, place, place + 1, True, plain and bool(first), first)
        elif token.kind == LITERAL or token.text == MASK:
            first = first or MASK
        elif token.text.startswith("$") and len(token.text) > 1:
            first = first or token.text
        elif token.kind == WORD and token.text.upper() in ("NULL", "DEFAULT"):
            first = first or MASK
        elif token.kind != SPACE and token.text not in (",", "-", "+"):
            if only:
                return None
            plain = False
    end = len(tokens)
    return _Group(start, end, end, False, plain and bool(first), first)


def _dense(tokens: list[Token], at: int) -> int:
    """Return the place of the next token that is no space."""
    while at < len(tokens) and tokens[at].kind == SPACE:
        at += 1
    return at
