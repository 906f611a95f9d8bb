"""An HTTP proxy that serves nothing and remembers what it was asked."""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

PROXIES = ("http_proxy", "https_proxy", "all_proxy")


class RecordingProxy(socketserver.ThreadingTCPServer):
    """Answers every request with status 502."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Refusal)
        self.requests: list[str] = []

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables that name it, in both spellings; none says what it is not for."""
        url = f"http://127.0.0.1:{self.server_address[1]}"
        names = [*PROXIES, *(name.upper() for name in PROXIES)]
        return dict.fromkeys(names, url)


class _Refusal(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, RecordingProxy)
        self.server.requests.append(self.rfile.readline().decode(errors="replace").strip())
        self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\nConnection: close\r\n\r\nproxy")


@contextmanager
def recording_proxy() -> Iterator[RecordingProxy]:
    """Run such a proxy on a free port until the block ends."""
    with RecordingProxy() as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
