"""A log that a flood cannot fill: so many lines a second, and how many were left out."""

import logging
from collections.abc import Callable
from time import monotonic

MOST_A_SECOND = 10


class Sparing:
    """Of one logger."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._second = 0.0
        self._said = self._left_out = 0

    def info(self, line: str) -> None:
        """Says it, or counts it for the next line that is said."""
        now = self._clock()
        if now - self._second >= 1:
            self._second, self._said = now, 0
        if self._said >= MOST_A_SECOND:
            self._left_out += 1
            return
        if self._left_out:
            self._logger.info("%d lines like the next were left out", self._left_out)
        self._said, self._left_out = self._said + 1, 0
        self._logger.info("%s", line)
