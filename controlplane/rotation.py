"""A new root in three steps, none of which a connection notices: believe in it, sign with it, drop the old one.

Owns the commands and the waiting times; the files are `ca`'s. A running control plane sees each step within a second
and tells every tunnel.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from controlplane.ca import (
    LONGEST,
    NEXT,
    NEXT_KEY,
    PREVIOUS,
    ROOT,
    ROOT_KEY,
    complete_activation,
    load_authority,
    new_root,
)
from controlplane.private_files import write_private
from controlplane.settings import load
from mesh.errors import OperatorError

SPREAD_S: Final = 5 * 60
"""Tunnels that are connected know a root within seconds; those that reconnect get some time."""


class Rotation:
    """The three steps. Raises OperatorError: not this step's turn, or too early."""

    def __init__(self, state: Path, trust_domain: str) -> None:
        self._directory = state / "ca"
        self._trust_domain = trust_domain
        self.authority = load_authority(state, trust_domain)

    def prepare(self) -> None:
        """Makes the next root: from now on everybody believes in both, and the old one signs."""
        if self._is(PREVIOUS):
            raise OperatorError("the last rotation is not finished: run `controlplane ca finish` first")
        if self._is(NEXT):
            raise OperatorError("a next root is prepared already: run `controlplane ca activate`")
        new_root(self._directory, self._trust_domain, datetime.now(UTC))

    def activate(self, now: float, *, early: bool = False) -> None:
        """The next root signs; the one before it is believed in until `finish`."""
        if not (self._is(NEXT) and self._is(NEXT_KEY)):
            raise OperatorError("no next root is prepared: run `controlplane ca prepare` first")
        self._wait(NEXT, SPREAD_S, now, early, "prepared")
        # The previous one is kept before it is replaced; what is interrupted, whoever loads the files next completes.
        pem = (self._directory / ROOT).read_bytes()
        write_private(self._directory / PREVIOUS, pem, replace=True, mode=0o644)
        (self._directory / NEXT_KEY).replace(self._directory / ROOT_KEY)
        complete_activation(self._directory)

    def finish(self, now: float, *, early: bool = False) -> None:
        """Nobody believes in the previous root any more: connections that rest on it are cut."""
        if not self._is(PREVIOUS):
            raise OperatorError("there is no previous root: run `controlplane ca activate` first")
        self._wait(PREVIOUS, LONGEST.total_seconds(), now, early, "activated")
        (self._directory / PREVIOUS).unlink()

    def describe(self) -> list[str]:
        """A line for each root there is."""
        roles = {ROOT: "signs", NEXT: "next, believed in", PREVIOUS: "previous, believed in"}
        return [f"{role:24}{_shown(self._directory / name)}" for name, role in roles.items() if self._is(name)]

    def _is(self, name: str) -> bool:
        return (self._directory / name).exists()

    def _wait(self, name: str, needed_s: float, now: float, early: bool, what: str) -> None:
        left_s = (self._directory / name).stat().st_mtime + needed_s - now
        if left_s > 0 and not early:
            raise OperatorError(
                f"it was {what} too short a time ago: wait another {round(left_s / 60) or 1} min, "
                "or say --now and let connections fail"
            )


def _shown(path: Path) -> str:
    root = x509.load_pem_x509_certificate(path.read_bytes())
    digest = root.fingerprint(hashes.SHA256()).hex()[:16]
    return f"sha256 {digest}   until {root.not_valid_after_utc:%Y-%m-%d}   {len(root.public_bytes(Encoding.DER))} bytes"


def _rotation() -> Rotation:
    settings = load(os.environ)
    return Rotation(settings.state_dir, settings.mesh.trust_domain)


@click.group()
def commands() -> None:
    """The mesh's root: show it, replace it in three steps."""


@commands.command()
def status() -> None:
    """The roots there are, and what each is for."""
    click.echo("\n".join(_rotation().describe()))


@commands.command()
def prepare() -> None:
    """Step 1: make the next root; every tunnel believes in both."""
    _rotation().prepare()
    click.echo(f"the next root is believed in; run `controlplane ca activate` in {SPREAD_S // 60} min or later")


@commands.command()
@click.option("--now", "early", is_flag=True, help="Even if tunnels may not know the next root yet.")
def activate(early: bool) -> None:
    """Step 2: sign with the next root; every tunnel still believes in both."""
    _rotation().activate(time.time(), early=early)
    hours = round(LONGEST.total_seconds() / 3600)
    click.echo(
        f"the new root signs; run `controlplane ca finish` in {hours} h or later, and give nodes that may be "
        "installed until then the new root-cert.pem"
    )


@commands.command()
@click.option("--now", "early", is_flag=True, help="Even if certificates of the previous root may still be in use.")
def finish(early: bool) -> None:
    """Step 3: believe in the new root alone."""
    _rotation().finish(time.time(), early=early)
    click.echo("the previous root is no longer believed in")
