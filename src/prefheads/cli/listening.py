"""A socket for a web server, with what can go wrong told in a line."""

from __future__ import annotations

import errno
import socket

from prefheads.errors import DataError


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one.

    Raises:
        DataError: The port is taken or not allowed, or no such host.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        hint = "; give another --port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else ""
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise DataError(f"{host}:{port}: {reason}{hint}") from None
