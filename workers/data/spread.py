"""Work on batches spread over processes, its results in the order of the batches."""

import ctypes
import mmap
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

PR_SET_PDEATHSIG = 1
MAX_HELPERS = 4
AREA_BYTES = 8 << 20
"""Memory that two processes share: what does not fit goes through a pipe, which takes longer."""
Work = TypeVar("Work")
Result = TypeVar("Result")


def usual_helpers() -> int:
    """One more than there are cores: a helper that waits for its turn leaves its core to another."""
    return min(MAX_HELPERS, len(os.sched_getaffinity(0)) + 1)


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


class _Channel:
    """One end of the way between two processes that speak in turn, the same memory in both.

    Large buffers (of bytes, arrays, columns) are laid into the memory as they are; only where they lie goes
    through the pipe.
    """

    def __init__(self, connection: Connection, area: mmap.mmap) -> None:
        self._connection, self._area = connection, area

    def send(self, said: object) -> None:
        buffers: list[pickle.PickleBuffer] = []
        pieces = [memoryview(pickle.dumps(said, protocol=5, buffer_callback=buffers.append))]
        pieces += [buffer.raw() for buffer in buffers]
        ends = list(accumulate((len(piece) for piece in pieces), initial=0))
        shared = ends[-1] <= len(self._area)
        if shared:
            for (start, end), piece in zip(pairwise(ends), pieces, strict=True):
                self._area[start:end] = piece
        self._connection.send((shared, ends))
        if not shared:
            for piece in pieces:
                self._connection.send_bytes(piece)

    def receive(self) -> Any:
        """What the other side said, free of the shared memory. Raises EOFError when it is gone."""
        shared, ends = self._connection.recv()
        places = list(pairwise(ends))
        pieces = [self._area[start:end] if shared else self._connection.recv_bytes() for start, end in places]
        return pickle.loads(pieces[0], buffers=pieces[1:])

    def close(self) -> None:
        self._connection.close()


class _Helper(Generic[Work, Result]):
    """A forked process: it knows `work` and everything it needs already."""

    def __init__(self, work: Callable[[Work], Result]) -> None:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        self._area = mmap.mmap(-1, AREA_BYTES)
        self._channel = _Channel(ours, self._area)
        arguments = (_Channel(theirs, self._area), work, os.getpid())
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self.busy = False

    def give(self, batch: Work) -> None:
        self._channel.send(batch)
        self.busy = True

    def take(self) -> Result:
        self.busy = False
        try:
            found = self._channel.receive()
        except EOFError:  # killed by the kernel, or its allocator gave up
            raise MemoryError from None
        if isinstance(found, BaseException):
            raise found
        result: Result = found
        return result

    def stop(self) -> None:
        self._channel.close()
        self._process.kill()
        self._process.join()
        self._area.close()


def _serve(channel: _Channel, work: Callable[[Any], object], parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return
    while True:
        try:
            batch = channel.receive()
        except EOFError:
            return
        try:
            channel.send(work(batch))
        except Exception as error:  # told to the one process that can report it
            channel.send(error)
