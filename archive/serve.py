"""Runs the page of an archive: its address, the host names that it answers to, and the server."""

from __future__ import annotations

import ipaddress
import re
import signal
import socket
from collections.abc import Sequence

import uvicorn
from fastapi import FastAPI

from archive.connections import Connection
from runtime.interruption import STOPPING
from utils import InputError

LOOPBACK = ["127.0.0.1", "localhost", "[::1]"]
PROXIES = ["127.0.0.1", "::1"]
SECONDS_TO_END = 3
"""What running requests are left when the server is ended."""


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_hosts(host: str, more: Sequence[str]) -> list[str]:
    """The host names and addresses that the page answers to.

    Args:
        host: address that is listened at.
        more: further names.

    Raises:
        InputError: one is no name; or the address stands for all of the machine, and no further name is given.
    """
    for name in more:
        if not re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]", name):
            raise InputError(f"--allow-host {name!r}: expected a host name or an address without a port.")
    if is_loopback(host):
        return [*LOOPBACK, *more]
    if host in ("0.0.0.0", "::", ""):
        if not more:
            raise InputError(
                f"--host {host}: say under which name or address others open the page, once for each: "
                "--allow-host archive.example.org. Requests under other names are refused."
            )
        return [*LOOPBACK, *more]
    return [f"[{host}]" if ":" in host else host, *more]


def open_socket(host: str, port: int) -> socket.socket:
    """Take an address, without listening yet.

    Args:
        host: name or address of this machine.
        port: 0: any that is free.

    Raises:
        InputError: it is taken, or there is no such one.
    """
    if not 0 <= port <= 65535:  # larger ones would be taken modulo 65536
        raise InputError(f"--port {port}: expected 0 to 65535.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as fault:
        raise InputError(
            f"{host}, port {port}, can't be had ({fault.strerror}): choose another --port or --host."
        ) from fault
    return taken


def url_of(listening: socket.socket) -> str:
    """The address of the page."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def configured(app: FastAPI, behind_proxy: bool) -> uvicorn.Config:
    """The server of a page.

    Args:
        app: the page.
        behind_proxy: believe the client addresses that a reverse proxy on this machine tells.
    """
    return uvicorn.Config(
        app,
        http=Connection,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=SECONDS_TO_END,
        proxy_headers=behind_proxy,
        forwarded_allow_ips=PROXIES,
    )


def run(app: FastAPI, listening: socket.socket, behind_proxy: bool, announcement: str) -> None:
    """Serve at an address until SIGINT or SIGTERM.

    Args:
        app: the page.
        listening: the address, see `open_socket`.
        behind_proxy: see `configured`.
        announcement: is printed once a signal ends the server in order, even before it has started.
    """
    server = uvicorn.Server(configured(app, behind_proxy))
    # The server sets the same handlers when it starts, and at its end sends the signals again to those before.
    before = [signal.signal(number, server.handle_exit) for number in STOPPING]
    try:
        print(announcement, flush=True)
        server.run(sockets=[listening])
    finally:
        for number, handler in zip(STOPPING, before, strict=True):
            signal.signal(number, handler)
