"""Where a model that is served is: `grpc://HOST:PORT/MODEL`."""

import re
from dataclasses import dataclass

from cifar_deploy.errors import UserError

SCHEMES = ("grpc", "grpcs")


@dataclass(frozen=True)
class Address:
    """A model on a server that speaks the Open Inference Protocol, by gRPC."""

    host: str  # with its port
    model: str
    version: str = ""  # "": the server's choice
    secure: bool = False  # TLS

    def __str__(self) -> str:
        version = f"/{self.version}" if self.version else ""
        return f"{SCHEMES[self.secure]}://{self.host}/{self.model}{version}"

    @property
    def name(self) -> str:
        """How it is called in tables, as a file's name is."""
        return str(self)


def read(text: str) -> Address | None:
    """The address that `text` is, `grpc[s]://HOST:PORT/MODEL[/VERSION]`; None for anything else.

    Raises UserError for an address of another kind.
    """
    scheme, found, rest = text.partition("://")
    if not found or not re.fullmatch(r"[a-z][a-z0-9+]*", scheme):
        return None
    parts = re.fullmatch(r"([^/@\s]+:\d+)/([^/\s]+)(?:/(\d+))?/?", rest)
    if scheme not in SCHEMES or not parts:
        raise UserError(
            f"{text}: a served model is asked by gRPC; name the port and the model, as "
            "grpc://localhost:8001/custom_resnet (grpcs:// with TLS)"
        )
    host, model, version = parts.groups()
    return Address(host, model, version or "", scheme == "grpcs")
