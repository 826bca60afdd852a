"""What servers say of failures, shown without what they quote, of databases without numbers."""

from __future__ import annotations

import re

# A quotation mark, but for the one of "doesn't".
_QUOTE = r"""(?:"|(?<!n)'|'(?!t\b))"""
_QUOTED = re.compile(rf"{_QUOTE}.*{_QUOTE}", re.DOTALL)
_QUOTED_CUT = re.compile(rf"{_QUOTE}.*", re.DOTALL)
# Also what hangs on to it: dates, times, addresses.
_NUMBER = re.compile(r"(?<![\w$])[-+.]?\d[\w.:+/-]*")


def masked_message(message: str, cut: bool) -> str:
    """Return a server's message without what it quotes, which may be data.

    From the first quotation mark to the last, since what is quoted may hold some itself; to
    the end if the message was cut or there is but one.
    """
    masked = message if cut else _QUOTED.sub("?", message)
    return _QUOTED_CUT.sub("?", masked)


def masked_error(message: str, cut: bool) -> str:
    """Return a database's message likewise, without numbers, too: literals need no quotes there.

    `date field value out of range: 1974-13-05`, `Unknown thread id: 4711`.
    """
    return _NUMBER.sub("?", masked_message(message, cut))
