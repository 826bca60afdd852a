"""A queue between two threads that is bounded by bytes and never makes its writer wait."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class BoundedQueue(Generic[Item]):
    """First in, first out; what does not fit is refused, for the caller to count.

    max_bytes: what items may occupy in all. An item larger than that is still taken by an
        empty queue, or a single large batch could never pass.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._items: deque[tuple[Item, int]] = deque()
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: Item, size: int) -> bool:
        """Append `item` of `size` bytes; False where it does not fit or the queue is closed."""
        with self._changed:
            if self._closed or (self._items and self._bytes + size > self.max_bytes):
                return False
            self._items.append((item, size))
            self._bytes += size
            self._changed.notify()
            return True

    def get(self, timeout: float | None = None) -> Item | None:
        """Take the oldest item; None after `timeout` seconds or once closed and empty."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._items or self._closed, timeout):
                return None
            if not self._items:
                return None
            item, size = self._items.popleft()
            self._bytes -= size
            return item

    def get_up_to(self, size: int, timeout: float | None = None, linger: float = 0.0) -> list[Item]:
        """Take what is there, oldest first, up to `size` bytes and at least one item.

        Waits for the first item, and then for `linger` seconds for as many as that takes. An
        empty list means closed and empty, or that `timeout` seconds have passed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed, timeout)
            if linger and self._items:
                self._changed.wait_for(lambda: self._bytes >= size or self._closed, linger)
            taken: list[Item] = []
            while self._items and (not taken or self._items[0][1] <= size):
                item, item_size = self._items.popleft()
                self._bytes -= item_size
                size -= item_size
                taken.append(item)
            return taken

    def close(self) -> None:
        """Refuse what comes from now on; what is queued can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether `close` was called and nothing is left to take."""
        with self._changed:
            return self._closed and not self._items

    def fill(self) -> float:
        """How full the queue is, from 0 to 1."""
        return min(1.0, self._bytes / self.max_bytes)

    def __len__(self) -> int:
        return len(self._items)
