"""Where the server listens, who may ask it, and how much it takes."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path

from sirius_dspy.errors import ServerError

TOKEN_VARIABLE = "SIRIUS_SERVER_TOKEN"
"""The environment variable that the token is read from."""

_SHORTEST_TOKEN = 16


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of a server.

    Attributes:
        data: Folder of its files, jobs and weights.
        host: Address to listen at. Without a token, only one of this machine's own is allowed.
        port: 0 takes a free one.
        token: What clients must send as their API key; `None` asks for no key.
        max_upload_bytes: Largest upload.
        max_body_bytes: Largest body of any other request.
        max_connections: Number of connections at a time; further ones are answered with status 503.
        header_timeout_s: Seconds that a connection may take to send the head of a request.
        body_timeout_s: Seconds that a client may take to send a body.

    Raises:
        ServerError: Others could reach the server without a token, or the token is short.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    max_upload_bytes: int = 256 << 20
    max_body_bytes: int = 8 << 20
    max_connections: int = 128
    header_timeout_s: float = 10.0
    body_timeout_s: float = 120.0

    def __post_init__(self) -> None:
        """Refuse a server that anyone could use."""
        if self.token is None and not is_loopback(self.host):
            raise ServerError(
                f"At the address {self.host!r}, other machines could use the server. Set a token of at least "
                f"{_SHORTEST_TOKEN} characters in {TOKEN_VARIABLE} or with `--token-file`, or listen at 127.0.0.1."
            )
        if self.token is not None and (len(self.token) < _SHORTEST_TOKEN or not _is_sendable(self.token)):
            raise ServerError(
                f"The token must have at least {_SHORTEST_TOKEN} printable ASCII characters without spaces. "
                "`python -c 'import secrets; print(secrets.token_urlsafe())'` prints one."
            )


def is_loopback(host: str) -> bool:
    """Return whether an address, or the host of a request, is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_token(file: Path | None) -> str | None:
    """Read the token from a file or, without one, from the environment.

    Raises:
        ServerError: The file cannot be read.
    """
    if file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ServerError(
            f"The token cannot be read from {str(file)!r}. Pass a file that holds nothing else."
        ) from error


def _is_sendable(token: str) -> bool:
    return token.isascii() and token.isprintable() and " " not in token
