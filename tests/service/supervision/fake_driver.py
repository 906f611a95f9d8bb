"""Stands in for the process of Ray's driver: a service without Ray, which fails as it is told.

    python fake_driver.py MODE FOLDER

Its /readyz answers 503 while the file `lost` is in the folder. For each line of the file `processes` there,
it runs a process that is called so, in a session of its own, as Ray does.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from safelight.service.runtime.shared_listener import NAME, receive_listener

MODE, FOLDER = sys.argv[1], Path(sys.argv[2])
PENDING = {"ready": False, "stages": {"denoise": {"ready": False}}, "reason": None, "failed": False}


class Service(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        is_lost = (FOLDER / "lost").exists()
        self.send_response(503 if is_lost else 200)
        self.end_headers()
        self.wfile.write(json.dumps(PENDING if is_lost else {}).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


def send(kind: str, text: str = "") -> None:
    sys.stdout.write(json.dumps({"kind": kind, "text": text}) + "\n")
    sys.stdout.flush()


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    settings = pickle.load(sys.stdin.buffer)
    for name in (FOLDER / "processes").read_text().split():
        command = ["bash", "-c", f'exec -a "{name}" sleep 600']
        if not name.startswith("ray::"):  # Ray's own programs are known by their file's name
            link = FOLDER / name
            link.unlink(missing_ok=True)  # of an earlier run
            link.symlink_to("/bin/sleep")
            command = [str(link), "600"]
        subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    if MODE == "silent":
        time.sleep(600)
    was_ready = (FOLDER / "was_ready").exists()
    (FOLDER / "was_ready").touch()
    if MODE == "refuses" or (MODE == "ready once" and was_ready):
        send("failed", "no such tensor")
        return
    server = HTTPServer(("127.0.0.1", settings.port), Service, bind_and_activate=False)
    server.socket.close()
    server.socket = receive_listener(Path(os.environ["RAY_TMPDIR"]) / NAME)
    server.server_activate()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    send("started")
    send("ready", f"http://127.0.0.1:{settings.port}")
    if MODE == "fails":
        (FOLDER / "lost").touch()
        send("failing", "Denoiser cannot be started again: no weights")
    if MODE == "lost":
        send("lost", "the raylet does not answer")
    for line in sys.stdin.buffer:
        if line == b"stop\n" and MODE != "hung":
            send("progress", "stopping")
            return
    sys.exit(1)


if __name__ == "__main__":
    main()
