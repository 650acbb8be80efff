"""`init`: everything that the gateway needs, under one directory. What exists is kept."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from keys import certs
from keys.files import write_private, write_whole
from keys.token import LEEWAY

from . import registry
from .settings import Layout, Settings, parse
from .site import DEFAULT_NGINX, FILES, Site, has_ipv6, installed_version, render
from .state import prepare

USER = "catalyst-gateway"
REGISTRAR = "catalyst-registrar"


_CLOSED = """\
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
PrivateTmp=yes
PrivateDevices=yes"""
_CONFINED = """\
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service"""
"""What both units are denied, systemd.exec(5)."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What `init` has to know."""

    domain: str
    https_port: int
    upstream: str
    listen: str
    tls_ca: str | None


def settings_text(answers: Answers) -> str:
    """Return the settings file, with the defaults that people look for written out."""

    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)  # a JSON string is a TOML basic string

    plain = Settings(answers.domain)
    limits, service = plain.limits, plain.service
    ca = f"tls_ca = {quoted(answers.tls_ca)}" if answers.tls_ca else '# tls_ca = "ca.pem"'
    return f"""\
# catalyst-gateway. A change takes effect at once, but for those marked (start).

[gateway]
domain = {quoted(answers.domain)}  # (start) tokens are made out to it
https_port = {answers.https_port}  # (start) NGINX's, for the URL that clients are told
upstream = {quoted(answers.upstream)}  # (start) the service
listen = {quoted(answers.listen)}  # (start) loopback only: what arrives over ssh
socket_group = {quoted(plain.socket_group)}  # (start) NGINX's group, for the Unix socket
ssh_user = {quoted(plain.ssh_user)}  # the account of the tunnels: its sessions end with their keys
state = {quoted(plain.state)}  # (start) or a Redis URL, for several gateways
stop_without_state = false  # whether operators may call urgent tools while the state is away
silence = {plain.silence:g}  # (start) seconds until the service must begin its answer
drain = {plain.drain:g}  # seconds that running requests are given at the end
{ca}  # the private CA of NGINX's certificate, if it has one; told to clients

[limits]  # for each client
requests_per_second = {limits.requests_per_second:g}
burst = {limits.burst}
streams = {limits.streams}  # requests that run at once
body = {limits.body}  # bytes

[service]
endpoint = {quoted(service.endpoint)}
reads = {json.dumps(list(service.reads))}  # paths for GET; with "/" at the end: all below it
urgent = {json.dumps(sorted(service.urgent))}  # tools with a lane of their own

[tools]  # which may be called; "*" stands for all
operator = ["*"]
observer = []
"""


def program() -> tuple[str, ...]:
    """Return the words that call this program later, the first one absolute."""
    path = str(Path(sys.argv[0]).resolve())
    return (sys.executable, "-m", "gateway") if path.endswith("__main__.py") else (path,)


def unit_text(layout: Layout, drain: float) -> str:
    """Return the systemd unit, systemd.exec(5)."""
    directory = layout.directory
    return f"""\
[Unit]
Description=catalyst-gateway, in front of the orchestration service
Documentation=file://{directory}/gateway.toml
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
User={USER}
ExecStart={" ".join(program())} serve --dir {directory}
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=1
TimeoutStopSec={drain + 10:g}
UMask=0077
LimitNOFILE=65536
ReadWritePaths={layout.state} {layout.socket.parent}
InaccessiblePaths={layout.ca_key.parent}
CapabilityBoundingSet=
{_CLOSED}
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
{_CONFINED}

[Install]
WantedBy=multi-user.target
"""


def registrar_unit_text(layout: Layout) -> str:
    """Return the systemd unit of the registrar.

    It is root, without most of what root may: files of root's are its own, those in run/ are not
    (DAC_OVERRIDE, CHOWN), nor are the ssh sessions that it ends (KILL).
    """
    directory = layout.directory
    return f"""\
[Unit]
Description=catalyst-gateway's registrar, which changes who may come in
Documentation=file://{directory}/gateway.toml
Before={USER}.service

[Service]
Type=exec
ExecStart={" ".join(program())} registrar --dir {directory}
Restart=always
RestartSec=1
TimeoutStopSec=40
UMask=0077
ReadWritePaths={directory}
CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_KILL
{_CLOSED}
PrivateNetwork=yes
RestrictAddressFamilies=AF_UNIX
{_CONFINED}

[Install]
WantedBy=multi-user.target
"""


def make(layout: Layout, answers: Answers, say: Callable[[str], object]) -> None:
    """Make what is missing; `say` is told each file that is made.

    Raises:
        OSError: something cannot be written.
        ValueError: an answer is at fault; nothing was made.
    """
    now = time.time()
    site = render(site_of(layout, answers.domain, answers.https_port))
    text = settings_text(answers).encode()
    parse(layout.settings, text)
    for directory, mode in (
        (layout.directory, 0o755),
        (layout.ca_key.parent, 0o700),
        (layout.nginx, 0o755),
        (layout.state, 0o700),
        (layout.socket.parent, 0o750),
        (layout.sessions, 0o700),
        (layout.issued, 0o755),
    ):
        if not directory.exists():
            directory.mkdir(parents=True)
            directory.chmod(mode)

    def put(path: Path, text: Callable[[], bytes]) -> None:
        if not path.exists():
            write_whole(path, text(), replace=False, mode=0o644)
            say(f"made {path}")

    first = not layout.registry.exists()
    put(layout.settings, lambda: text)
    put(layout.registry, lambda: registry.to_text(registry.Registry()).encode())
    if not (layout.ca_key.exists() and layout.ca_certificate.exists()):
        authority = certs.make_authority(f"catalyst clients of {answers.domain}", now)
        write_private(layout.ca_key, authority.key_pem(), replace=True)  # half a CA issued nothing
        write_whole(layout.ca_certificate, authority.certificate_pem(), replace=True, mode=0o644)
        say(f"made {layout.ca_key} (it stays here; `serve` never reads it)")
    put(layout.client_ca, layout.ca_certificate.read_bytes)
    for name in FILES:
        put(layout.nginx / name, site[name].encode)
    put(layout.directory / f"{USER}.service", lambda: unit_text(layout, 25.0).encode())
    put(layout.directory / f"{REGISTRAR}.service", lambda: registrar_unit_text(layout).encode())
    # The state forgets nothing from before its beginning where nobody could have come in before.
    prepare(layout.state, now - LEEWAY - 2 if first else now)


def site_of(layout: Layout, domain: str, https_port: int) -> Site:
    """Return the site for the NGINX that is installed here."""
    return Site(
        domain,
        layout.directory,
        https_port=https_port,
        nginx=installed_version() or DEFAULT_NGINX,
        ipv6=has_ipv6(),
    )


def next_commands(layout: Layout, domain: str) -> str:
    """Return what an operator does next."""
    directory, site = layout.directory, layout.nginx / "site.conf"
    ssh_user = Settings(domain).ssh_user
    own = "" if os.environ.get("CATALYST_GATEWAY_DIR") else f" --dir {directory}"
    return f"""
Next, as root:

  useradd --system --no-create-home --shell /usr/sbin/nologin --groups www-data {USER}
  chown -R {USER}: {layout.state} {layout.socket.parent}
  systemctl enable --now {directory}/{REGISTRAR}.service {directory}/{USER}.service

  useradd --system --no-create-home --shell /usr/sbin/nologin {ssh_user}
  catalyst-gateway sshd-config{own} > /etc/ssh/sshd_config.d/60-catalyst.conf
  sshd -t && systemctl reload ssh

  apt-get install nginx certbot
  certbot certonly --webroot -w /var/www/html -d {domain} --deploy-hook 'systemctl reload nginx'
  ln -s {site} /etc/nginx/sites-enabled/catalyst
  nginx -t && systemctl reload nginx

For each laptop: `catalyst-tunnel keys request > request` there, then here

  catalyst-gateway client add laptop --role operator{own} < request > answer

and `catalyst-tunnel keys accept answer` there.
"""
