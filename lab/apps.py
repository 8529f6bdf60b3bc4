"""The applications in a pod: nginx, an iperf3 server and a socat echo, unmodified, knowing nothing of a mesh."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

HTTP_PORT: Final = 8080
IPERF_PORT: Final = 5201
ECHO_PORT: Final = 7007

_NGINX: Final = """\
daemon off;
master_process off;
pid {dir}/nginx.pid;
error_log {dir}/nginx-error.log warn;
events {{ worker_connections 512; }}
http {{
  log_format lab '$remote_addr $request_method $uri $status $request_length';
  access_log {dir}/nginx-access.log lab;
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
  keepalive_requests 1000000;
  default_type text/plain;
  client_max_body_size 64m;
  server {{
    {listen}
    location / {{ return 200 "$remote_addr {name}\\n"; }}
    location /one {{ access_log off; return 200 "1"; }}
  }}
}}
"""


def commands(name: str, directory: Path, addresses: Sequence[str] = ()) -> dict[str, list[str]]:
    """Process name -> command line. `GET /` and `POST /` answer with the address of the client that nginx saw.
    `addresses`: where several share a namespace, each listens on its own."""
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "nginx.conf"
    at = [f"[{each}]" if ":" in each else each for each in addresses] or ["0.0.0.0", "[::]"]
    listen = " ".join(f"listen {each}:{HTTP_PORT};" for each in at)
    config.write_text(_NGINX.format(dir=directory, listen=listen, name=name))
    nginx = ["nginx", "-e", str(directory / "nginx-error.log"), "-c", str(config)]
    if addresses:
        return {f"nginx-{name}": nginx, **{f"echo{n}-{name}": _echo_at(each) for n, each in enumerate(at)}}
    echo = f"TCP6-LISTEN:{ECHO_PORT},ipv6only=0,fork,reuseaddr,backlog=128,nodelay"
    return {
        f"nginx-{name}": nginx,
        f"iperf3-{name}": ["iperf3", "-s", "-p", str(IPERF_PORT), "--forceflush"],
        f"echo-{name}": ["socat", echo, "EXEC:cat"],
    }


def echo(name: str, version: str, port: int = HTTP_PORT) -> list[str]:
    """An HTTP server that tells what it saw (`echo.py`)."""
    return [sys.executable, "-m", "lab.echo", name, version, str(port)]


def _echo_at(address: str) -> list[str]:
    family = 6 if address.startswith("[") else 4
    return ["socat", f"TCP{family}-LISTEN:{ECHO_PORT},bind={address},fork,reuseaddr,backlog=128,nodelay", "EXEC:cat"]
