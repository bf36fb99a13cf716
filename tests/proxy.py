"""A TCP proxy of our own, to take a server away and give it back."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

PIECE = 64 * 1024
STARTING = (
    b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 19\r\nConnection: close\r\n\r\n"
    b"404 page not found\n"
)
"""What some reverse proxies answer while what is behind them starts."""
SORRY = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 29\r\nConnection: close\r\n\r\n"
    b"<p>Back in a few minutes.</p>"
)
"""What others show meanwhile."""


class Proxy:
    """In front of a server on this machine: `url` is the server's address by way of the proxy."""

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        assert parts.port, "an address with a port"
        self.target = parts.port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.url = parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{self.port}").geturl()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._away = False
        self._instead: bytes | None = None
        self._left: int | None = None
        self.cuts = 0
        """How often `cut_after` has cut."""
        self._losing: dict[bytes, int] = {}
        threading.Thread(target=self._accept, name=f"proxy-{self.port}", daemon=True).start()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Every connection is cut, and new ones are closed at once."""
        self._away = True
        self._cut()
        try:
            yield
        finally:
            self._away = False

    @contextmanager
    def answering(self, instead: bytes) -> Iterator[None]:
        """Every connection gets this in the server's place, whatever it asks; nothing at all: it hangs."""
        self._instead = instead
        self._cut()
        try:
            yield
        finally:
            self._instead = None
            self._cut()

    def cut_after(self, sent: int) -> None:
        """Cut whatever is open once `sent` more bytes have gone to the server: amid an upload, say."""
        with self._lock:
            self._left = sent

    def has_cut(self, times: int) -> bool:
        """Whether `cut_after` has cut so often by now."""
        return self.cuts >= times

    def lose_answers(self, to: bytes, times: int) -> None:
        """Have so many lines cut on which `to` was asked, when the answer comes: the server has done what it
        was asked, and nobody hears of it."""
        with self._lock:
            self._losing[to] = times

    def is_losing(self) -> bool:
        """Whether answers of `lose_answers` are still to be lost."""
        return any(self._losing.values())

    def close(self) -> None:
        self._away = True
        self._listener.close()
        self._cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._away:
                client.close()
                continue
            if self._instead is not None:
                threading.Thread(target=self._answer, args=(client, self._instead), daemon=True).start()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                self._open |= {client, server}
            doomed = threading.Event()
            for source, sink, up in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pump, args=(source, sink, up, doomed), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, up: bool, doomed: threading.Event) -> None:
        """One direction of a line. `doomed`: its next answer is lost."""
        with contextlib.suppress(OSError):
            while piece := source.recv(PIECE):
                if up and self._loses(piece):
                    doomed.set()
                if not up and doomed.is_set():
                    break
                sink.sendall(piece)
                if up and self._spent(len(piece)):
                    self._cut()
        for end in (source, sink):
            with self._lock:
                self._open.discard(end)
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _answer(self, client: socket.socket, instead: bytes) -> None:
        with self._lock:
            self._open.add(client)
        with contextlib.suppress(OSError):
            while client.recv(PIECE):
                if instead:
                    client.sendall(instead)
                    client.shutdown(socket.SHUT_WR)
                    instead = b""  # the rest is only read: closed before it, the line would lose the answer
        with self._lock:
            self._open.discard(client)
        client.close()

    def _loses(self, piece: bytes) -> bool:
        """Whether the answer to what is asked here is to be lost; it counts as lost from now on."""
        with self._lock:
            for asked, times in self._losing.items():
                if times and asked in piece:
                    self._losing[asked] -= 1
                    return True
        return False

    def _spent(self, count: int) -> bool:
        """Whether these bytes were the last that `cut_after` allowed."""
        with self._lock:
            if self._left is None:
                return False
            self._left -= count
            if self._left > 0:
                return False
            self._left = None
            self.cuts += 1
            return True

    def _cut(self) -> None:
        with self._lock:
            ends = list(self._open)
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
