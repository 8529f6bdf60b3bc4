"""Every failure says whose fault it is, because that decides what to do about it.

A function that only parses a value raises ValueError; the door that took the value in knows whose it was and raises
one of these from it. `main.py` decides what follows.
"""


class MeshError(Exception):
    """Base of all errors that this project raises on purpose. Its text is a sentence for a person."""


class OperatorError(MeshError):
    """Configuration or surroundings are wrong, and only a person can change that: exit code 2, never a retry.

    `where` is the place to look at (`shop.yaml:12`, `XDS_ROOT_CA`); it leads the sentence that `str()` gives.
    """

    def __init__(self, why: str, where: str = "") -> None:
        super().__init__(why, where)
        self.why = why
        self.where = where

    def __str__(self) -> str:
        sentence = f"{self.where}: {self.why}" if self.where else self.why
        return " ".join(sentence.split())


class PeerError(MeshError):
    """The other side broke its contract or went away: drop the exchange, back off, try again."""


class LocalError(MeshError):
    """We broke a contract of our own, a bug: crash loudly rather than go on with a wrong state."""
