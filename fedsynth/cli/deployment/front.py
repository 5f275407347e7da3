"""The front of a link: an nginx that lets silos reach what their SuperNodes ask for, and nobody anything else."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Sequence
from pathlib import Path

from fedsynth.cli.deployment.link_folder import LinkFolder, LinkSettings
from fedsynth.errors import UserError
from fedsynth.files import atomic_file

SILO_PATHS = (
    "activate-node",
    "confirm-message-received",
    "deactivate-node",
    "get-fab",
    "get-run",
    "pull-messages",
    "pull-object",
    "push-messages",
    "push-object",
    "send-node-heartbeat",
)
"""What a SuperNode with a key asks for below ``/v1/fleet/``. ``register-node`` and ``unregister-node`` stand there too,
for SuperNodes without one; and what starts, lists and stops runs is below ``/v1/control/``, on the same port."""

LARGEST_BODY = "64m"
"""Flower cuts arrays into objects of 5 MiB each; the rest of a message is smaller."""

_TEMPLATE = """\
# Written by 'fedsynth link init --front nginx', and written anew by every 'fedsynth link init': do not edit it here.
# Run it as the user whose link it is:
#   {command}
daemon off;
worker_processes auto;
pid "{work}/nginx.pid";
error_log "{work}/error.log" warn;

events {{
    worker_connections 1024;
}}

http {{
    # Who, when, which path, how much: nothing of a message.
    log_format front '$time_iso8601 $remote_addr "$request_method $uri" $status $request_length $bytes_sent'
                     ' $request_time';
    access_log "{work}/access.log" front;
    server_tokens off;
    default_type application/octet-stream;

    client_body_temp_path "{work}/body";
    proxy_temp_path "{work}/proxy";
    fastcgi_temp_path "{work}/fastcgi";
    uwsgi_temp_path "{work}/uwsgi";
    scgi_temp_path "{work}/scgi";

    # Silos behind one address share these. Requests far above the rate wait, and then get 503, on which Flower retries.
    limit_req_zone $binary_remote_addr zone=requests:10m rate=300r/s;
    limit_conn_zone $binary_remote_addr zone=connections:10m;
    limit_req zone=requests burst=3000 delay=600;
    limit_req_log_level warn;
    limit_conn connections 200;
    large_client_header_buffers 4 8k;
    client_header_timeout 15s;
    client_body_timeout 60s;
    send_timeout 60s;
    keepalive_timeout 75s;
    client_max_body_size {largest_body};
    client_body_buffer_size 1m;

    upstream superlink {{
        server 127.0.0.1:{superlink_port};
        keepalive 64;
        # The SuperLink closes a connection that was idle for 5 s: let go of it before.
        keepalive_timeout 3s;
    }}

    server {{
{listen}
        ssl_certificate "{certificate}";
        ssl_certificate_key "{key}";
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:front:5m;

        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_ssl_trusted_certificate "{authority}";
        proxy_ssl_verify on;
        proxy_ssl_name localhost;
        proxy_connect_timeout 10s;
        proxy_read_timeout 600s;
        proxy_send_timeout 600s;
        proxy_buffering off;
        # A request is not sent twice: a message that has arrived would be there twice.
        proxy_next_upstream off;

        # The path that is asked for is the path that was compared, however the request has written it.
        location ~ ^/v1/fleet/({paths})$ {{
            limit_except POST {{
                deny all;
            }}
            proxy_pass https://superlink/v1/fleet/$1;
        }}
        location = /health {{
            limit_except GET {{
                deny all;
            }}
            proxy_pass https://superlink/health;
        }}
        location / {{
            return 404;
        }}
    }}
}}
"""


def write_front(folder: LinkFolder, settings: LinkSettings) -> None:
    """Write the nginx configuration of a link, and make the folder that nginx works in."""
    work = folder.front_work
    work.mkdir(parents=True, exist_ok=True, mode=0o700)
    text = _TEMPLATE.format(
        command=shlex.join(front_command(folder)),
        work=work,
        listen="\n".join(f"        listen {address} ssl;" for address in _listen(settings)),
        superlink_port=settings.superlink_port,
        certificate=folder.certificate,
        key=folder.key,
        authority=folder.authority,
        largest_body=LARGEST_BODY,
        paths="|".join(SILO_PATHS),
    )
    with atomic_file(folder.front) as temporary:
        temporary.write_text(text, encoding="utf-8")


def front_command(folder: LinkFolder) -> Sequence[str]:
    """Return the command that runs the front in the foreground."""
    return ["nginx", "-c", str(folder.front), "-e", str(folder.front_work / "error.log")]


def check_front_folder(path: Path) -> None:
    """Refuse a folder whose name nginx would read otherwise.

    Raises:
        UserError: names it.
    """
    if not str(path).isprintable() or set('"\\$') & set(str(path)):
        raise UserError(f"folder = '{path}': nginx cannot read paths with quotes, backslashes or $; use another folder")


def _listen(settings: LinkSettings) -> list[str]:
    """Where nginx listens: on this machine alone where the certificate names no other, otherwise everywhere."""
    outside = [host for host in settings.hosts if not _is_local(host)]
    if not outside:
        return [f"127.0.0.1:{settings.port}"]
    return [str(settings.port), *([f"[::]:{settings.port}"] if any(":" in host for host in outside) else [])]


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
