"""A listening socket from which several processes accept connections, and which outlives each of them.

The process that has bound it hands it out over a Unix socket, and accepts nothing itself. A connection that
comes while no other process accepts waits in the socket's queue instead of being refused.
"""

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "http.sock"  # of the Unix socket, in the service's folder
MESSAGE = b"listener"
CONNECT_SECONDS = 10.0
BACKLOG = 2048  # connections that wait until they are accepted


@contextmanager
def sharing(listener: socket.socket, path: Path) -> Iterator[None]:
    """Hand out `listener`, a bound socket, to every process that connects to `path`, until the block ends."""

    class HandOut(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            socket.send_fds(self.request, [MESSAGE], [listener.fileno()])

    with socketserver.UnixStreamServer(str(path), HandOut) as server:
        thread = threading.Thread(target=server.serve_forever, name="listener", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            path.unlink(missing_ok=True)


def receive_listener(path: Path) -> socket.socket:
    """The socket that another process hands out at `path`; it listens.

    Raises:
        OSError: Nothing hands it out.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(CONNECT_SECONDS)
        connection.connect(str(path))
        _, [descriptor], *_ = socket.recv_fds(connection, len(MESSAGE), 1)
    listener = socket.socket(fileno=descriptor)
    start_listening(listener)
    return listener


def start_listening(listener: socket.socket) -> None:
    """Let a bound socket listen, if it does not yet.

    Connections of an earlier service may linger at its port, and its own will when it has ended: SO_REUSEADDR
    keeps them from keeping a server away. Set earlier, it would give the port to other programs.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.listen(BACKLOG)
