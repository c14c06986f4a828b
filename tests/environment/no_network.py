"""Refuse every connection but those to this machine, and remember which were wanted."""

import socket

LOCAL = ("127.0.0.1", "::1", "localhost")
wanted: list[str] = []


def refuse_network() -> None:
    """From now on; who swallows the error is found in `wanted` all the same."""
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def checked(host: object) -> None:
        if isinstance(host, str) and host not in LOCAL:
            wanted.append(host)
            raise ConnectionRefusedError(f"a connection to {host} was wanted")

    def guarded_connect(self: socket.socket, address: object) -> None:
        checked(address[0] if isinstance(address, tuple) else None)
        connect(self, address)

    def guarded_resolve(host: object, *rest: object, **more: object) -> object:
        checked(host.decode() if isinstance(host, bytes) else host)
        return resolve(host, *rest, **more)

    socket.socket.connect = guarded_connect
    socket.getaddrinfo = guarded_resolve
