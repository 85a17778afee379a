"""An array that grows at its end without copying what is there."""

from __future__ import annotations

import numpy as np


class GrowingArray:
    """A view of the first rows of a shared buffer.

    Appending writes behind the last used row and returns a new view; older views stay as they were. Only one thread
    may append at a time.
    """

    def __init__(self, array: np.ndarray) -> None:
        self._buffer = array
        self._used = [len(array)]
        self.array = array

    def appended(self, rows: np.ndarray) -> GrowingArray:
        """Return a view with more rows, copying the old ones only when the buffer is full or already continued."""
        length, total = len(self.array), len(self.array) + len(rows)
        if self._used[0] != length or total > len(self._buffer):
            buffer = np.empty((max(total, length + length // 2), *self._buffer.shape[1:]), self._buffer.dtype)
            buffer[:length] = self.array
            grown = GrowingArray(buffer)
        else:
            grown = GrowingArray.__new__(GrowingArray)
            grown._buffer, grown._used = self._buffer, self._used
        grown._buffer[length:total] = rows
        grown._used[0] = total
        grown.array = grown._buffer[:total]
        return grown
