"""The least API that a client can call, in a process of its own: whatever it is asked, it answers.

It costs next to nothing, so that it does not hide what the clients cost.
"""

import socket
import threading

_BODY = b'{"events": [{"title": "Stand-up", "at": "2026-01-05T09:00:00Z"}]}'
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_BODY)
) + _BODY


class CalendarAPI:
    """Listens on a free port of the loopback interface; a thread for each connection."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        threading.Thread(target=self._accept, daemon=True).start()

    def origin(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_serve, args=(connection,), daemon=True).start()


def _serve(connection: socket.socket) -> None:
    """Answer each GET; none has a body, and nobody sends two at once."""
    head = b""
    while octets := connection.recv(65536):
        head += octets
        if head.endswith(b"\r\n\r\n"):
            connection.sendall(_ANSWER)
            head = b""
