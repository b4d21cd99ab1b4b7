"""A server of one file on this machine, which goes on where a download stopped; it may cut short or be slow."""

from __future__ import annotations

import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = bytes(range(256)) * 4096  # 1 MiB
PIECE = 2**16  # bytes


class Server(ThreadingHTTPServer):
    """Serves CONTENT under every path but a few that misbehave."""

    content = CONTENT
    etag = '"one"'
    cut_at: int | None = None
    wrong_start = 0  # bytes by which a rest begins too late
    pause = 0.0  # seconds after each piece

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        """The address of the file."""
        return f"http://127.0.0.1:{self.server_port}/weights.pt"


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server

    def do_GET(self) -> None:
        """Send the file, or the rest of it."""
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if self.path == "/missing":
            return self.send_error(404)
        content, start = self.server.content, 0
        if asked and self.headers.get("If-Range") == self.server.etag:
            found = re.fullmatch(r"bytes=(\d+)-", asked)
            assert found is not None
            start = int(found[1])
            start += self.server.wrong_start
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", self.server.etag)
        self.send_header("Content-Type", "text/html" if self.path == "/page" else "application/octet-stream")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start : self.server.cut_at]
        for place in range(0, len(rest), PIECE):
            self.wfile.write(rest[place : place + PIECE])
            time.sleep(self.server.pause)
        return None

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        """Take it that a killed client hangs up."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True
