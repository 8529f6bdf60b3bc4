"""What the API server says when it does not do what it was asked."""

from __future__ import annotations

from typing import Final

from mesh.errors import PeerError


class ApiError(PeerError):
    """It answered with an error. `code` is HTTP's; `retry_after_s`: what it asks us to wait."""

    def __init__(self, what: str, code: int, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{what}: the API server says {code}: {message}")
        self.code, self.message, self.retry_after_s = code, message, retry_after_s


class NotFound(ApiError):
    pass


class Conflict(ApiError):
    """Somebody else changed it first, or it exists already."""


class Expired(ApiError):
    """410: the version or the place in a list is too old; or 504: the server has never been where we have."""


class Unreachable(PeerError):
    """It did not answer, or broke off."""


# A version is a database's; one that was restored from a copy counts on from there.
SET_BACK: Final = "Too large resource version"
KINDS: dict[int, type[ApiError]] = {404: NotFound, 409: Conflict, 410: Expired}


def api_error(what: str, code: int, message: str, retry_after_s: float = 0.0) -> ApiError:
    kind = Expired if code == 504 and SET_BACK in message else KINDS.get(code, ApiError)
    return kind(what, code, message, retry_after_s)
