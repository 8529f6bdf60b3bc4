"""The systemd units as they are in deploy/systemd, read for what they grant."""

from pathlib import Path

UNITS = Path(__file__).parents[2] / "deploy/systemd"
DIRECT = UNITS / "nodemesh-ztunnel-direct.conf"
PROGRAMS = "/opt/nodemesh/bin/"


def unit(name):
    return UNITS / f"nodemesh-{name}.service"


def settings(name, key):
    """Every word that the unit gives to `key`, in order."""
    lines = (line.partition("=") for line in unit(name).read_text().splitlines() if not line.startswith("#"))
    return [word for found, _, value in lines if found == key for word in value.split()]


def capabilities(name):
    """As setpriv wants them: `sys_admin`."""
    return [word.removeprefix("CAP_").lower() for word in settings(name, "CapabilityBoundingSet")]
