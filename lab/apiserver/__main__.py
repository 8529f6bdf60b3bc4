"""`python -m lab.apiserver DIRECTORY [--port N] [--address A]... [--rbac] [--bookmarks SECONDS]`.

DIRECTORY holds what outlives the process: the objects, the authority (`ca.crt`), the tokens' key. `apiserver.sock` in
it is the administrator's door.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import click
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lab.apiserver.access import Access
from lab.apiserver.server import Server
from lab.apiserver.store import Store


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--port", default=6443, show_default=True)
@click.option("--address", "addresses", multiple=True, default=["127.0.0.1"], help="A name or address to serve under.")
@click.option("--rbac", is_flag=True, help="Refuse what no role in the store allows.")
@click.option("--bookmarks", default=60.0, help="Seconds of silence between two bookmarks.")
def main(directory: Path, port: int, addresses: tuple[str, ...], rbac: bool, bookmarks: float) -> None:
    """Serve until SIGTERM."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    asyncio.run(serve(directory, port, addresses, rbac=rbac, bookmark_s=bookmarks))


async def serve(directory: Path, port: int, addresses: tuple[str, ...], *, rbac: bool, bookmark_s: float) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    store = Store(directory / "objects.json")
    server = Server(store, Access(store, _key(directory / "tokens.key"), rbac=rbac), bookmark_s=bookmark_s)
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, None, port, ssl_context=certificate(directory, addresses)).start()
    await web.SockSite(runner, _private(directory / "apiserver.sock")).start()
    await stopped.wait()
    await server.close(runner)


def _private(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    return listener


def _key(path: Path) -> bytes:
    if not path.exists():
        path.write_bytes(secrets.token_bytes(32))
    return path.read_bytes()


def certificate(directory: Path, addresses: tuple[str, ...]) -> ssl.SSLContext:
    """A self-signed one, which is its own authority; the same over restarts."""
    key_path, path = directory / "server.key", directory / "ca.crt"
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        key_path.write_bytes(key.private_bytes(*pem))
        path.write_bytes(_self_signed(key, addresses).public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, key_path)
    return context


def _self_signed(key: ec.EllipticCurvePrivateKey, addresses: tuple[str, ...]) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
    now = datetime.now(UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=365))
        .add_extension(x509.SubjectAlternativeName([_general_name(each) for each in addresses]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)


if __name__ == "__main__":
    main()
