"""Work on batches spread over processes, its results in the order of the batches."""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

PR_SET_PDEATHSIG = 1
Work = TypeVar("Work")
Result = TypeVar("Result")


def spread(work: Callable[[Work], Result], batches: Iterator[Work], processes: int) -> Iterator[Result]:
    """`work(batch)` for every batch, in order. One process more, this one, reads and adds up.

    Each helper holds one batch at a time: memory is bounded, and neither side waits for the other's pipe. The
    helpers inherit this process's limits and die with it. MemoryError in a helper is raised here.
    """
    if processes < 2:
        yield from map(work, batches)
        return
    helpers = [_Helper(work) for _ in range(processes)]
    try:
        turn = 0
        for batch in batches:
            helper = helpers[turn % processes]
            if helper.busy:
                yield helper.take()
            helper.give(batch)
            turn += 1
        for _ in range(processes):
            helper = helpers[turn % processes]
            if helper.busy:
                yield helper.take()
            turn += 1
    finally:
        for helper in helpers:
            helper.stop()


class _Helper(Generic[Work, Result]):
    """A forked process: it knows `work` and everything it needs already."""

    def __init__(self, work: Callable[[Work], Result]) -> None:
        context = multiprocessing.get_context("fork")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work, os.getpid()), daemon=True)
        self._process.start()
        theirs.close()
        self.busy = False

    def give(self, batch: Work) -> None:
        self._ours.send(batch)
        self.busy = True

    def take(self) -> Result:
        self.busy = False
        try:
            found = self._ours.recv()
        except EOFError:  # killed by the kernel, or its allocator gave up
            raise MemoryError from None
        if isinstance(found, BaseException):
            raise found
        result: Result = found
        return result

    def stop(self) -> None:
        self._ours.close()
        self._process.kill()
        self._process.join()


def _serve(connection: Connection, work: Callable[[Work], Result], parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return
    while True:
        try:
            batch = connection.recv()
        except EOFError:
            return
        try:
            connection.send(work(batch))
        except Exception as error:  # told to the one process that can report it
            connection.send(error)
