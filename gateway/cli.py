"""The droplet's command line: the only place that prints and exits."""

import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from keys.errors import in_words

from . import __version__
from .cli_keys import KEYS
from .terminal import dir_option, fail, layout_of, settings_of

EXIT_CODES = """\b
Exit codes:
  0    success
  1    failure, told on stderr; for `audit verify`: the log was tampered with
  2    usage or settings at fault; for `audit verify`: the log cannot be read
  130  interrupted"""


def _checked(read: Callable[[str], object]) -> Callable[..., str | None]:
    def check(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
        try:
            if value is not None:
                read(value)
        except ValueError as exc:
            raise click.BadParameter(str(exc)) from exc
        return value

    return check


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nFirst time, as root on the droplet:\n"
    "  catalyst-gateway init --domain droplet.example.com\n"
    "  catalyst-gateway client add laptop --role operator < request > answer\n\n" + EXIT_CODES,
)
@click.version_option(__version__, prog_name="catalyst-gateway")
def cli() -> None:
    """Let known clients through to an MCP service, and nobody else."""


def _domain(value: str) -> object:
    from .settings import read_domain

    return read_domain(value)


def _upstream(value: str) -> object:
    from .settings import read_upstream

    return read_upstream(value)


def _listen(value: str) -> object:
    from .settings import read_listen

    return read_listen(value)


@cli.command(
    epilog="\b\nExample:\n"
    "  catalyst-gateway init --domain droplet.example.com --upstream http://127.0.0.1:5000"
)
@click.option(
    "--domain",
    required=True,
    callback=_checked(_domain),
    help="Name by which clients reach NGINX here.",
)
@click.option(
    "--upstream",
    default="http://127.0.0.1:5000",
    show_default=True,
    callback=_checked(_upstream),
    help="The service.",
)
@click.option(
    "--listen",
    default="127.0.0.1:5001",
    show_default=True,
    callback=_checked(_listen),
    help="Loopback address for what arrives over ssh.",
)
@click.option("--https-port", type=click.IntRange(1, 65535), default=443, show_default=True)
@click.option(
    "--tls-ca",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="CA of NGINX's certificate, where it is a private one.",
)
@dir_option
def init(
    given: Path | None,
    domain: str,
    upstream: str,
    listen: str,
    https_port: int,
    tls_ca: Path | None,
) -> None:
    """Make settings, client CA, registry, NGINX site and systemd unit; say what comes next.

    What exists already is kept.
    """
    from . import settings
    from .init import Answers, make, next_commands

    layout = layout_of(given)
    ca = str(tls_ca.absolute()) if tls_ca else None
    try:
        make(layout, Answers(domain, https_port, upstream, listen, ca), click.echo)
        made = settings.load(layout.settings)
    except (OSError, ValueError) as exc:
        fail(in_words(exc), 2)
    wanted = (domain, upstream.rstrip("/"), settings.read_listen(listen), https_port, ca)
    if (made.domain, made.upstream, made.listen, made.https_port, made.tls_ca) != wanted:
        fail(f"{layout.settings} was there already and is kept: edit it, or remove it first.", 2)
    click.echo(next_commands(layout, domain))


@cli.command(
    epilog="\b\nExample:\n  catalyst-gateway check-config && systemctl reload catalyst-gateway"
)
@dir_option
def check_config(given: Path | None) -> None:
    """Check settings, registry and CA, and tell every fault."""
    from .check import faults

    layout = layout_of(given)
    found = faults(layout)
    if found:
        fail("\n".join(found), 2)
    click.echo(f"{layout.directory}: all good")


@cli.command(epilog="\b\nExample:\n  catalyst-gateway serve --dir /etc/catalyst-gateway")
@dir_option
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def serve(given: Path | None, verbose: bool) -> None:
    """Run the gateway until SIGTERM; SIGHUP looks at settings and registry again.

    Requests that run are finished first.
    """
    from .check import missing
    from .serve import ServeError, configure_log, run

    configure_log(verbose)
    layout = layout_of(given)
    if layout.settings.exists() and (gone := missing(layout)):
        fail("\n".join(gone), 2)
    try:
        run(layout, lambda where: click.echo(f"gateway ready on {where}"))
    except ServeError as exc:
        fail(str(exc), 2)


@cli.group()
def client() -> None:
    """Say who may come in."""


@client.command(
    epilog="\b\nExamples:\n"
    "  catalyst-gateway client add laptop --role operator < request > answer\n"
    "  ssh laptop catalyst-tunnel keys request | catalyst-gateway client add ... > answer"
)
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["operator", "observer"]),
    required=True,
    help="An observer reads; an operator calls tools too.",
)
@click.option(
    "--days",
    type=click.IntRange(1, 3650),
    default=365,
    show_default=True,
    help="Life of the client certificate.",
)
@dir_option
def add(given: Path | None, name: str, role: Any, days: int) -> None:
    """Let a client in: its request on stdin, the answer for it on stdout."""
    from keys.enrolment import SIZE, EnrolmentRequest
    from keys.errors import KeyFileError

    from . import clients
    from .changing import ConflictError

    layout = layout_of(given)
    settings = settings_of(layout)
    if sys.stdin is None or sys.stdin.isatty():
        fail("The request comes on stdin: catalyst-gateway client add NAME ... < request", 2)
    try:
        request = EnrolmentRequest.read(sys.stdin.buffer.read(SIZE + 1))
        answer = clients.add(layout, settings, name, role, request, days)
    except (clients.ClientError, ConflictError, ValueError) as exc:
        fail(str(exc), 2)
    except KeyFileError as exc:
        fail(f"{layout.ca_key.parent}: {exc}", 1)
    except OSError as exc:
        fail(in_words(exc), 1)
    click.echo(answer.to_text(), nl=False)
    click.echo(f"{name} may come in as {role} (key {answer.kid}).", err=True)


@client.command(
    name="list",
    epilog="\b\nExamples:\n  catalyst-gateway client list\n  catalyst-gateway client list --json",
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@dir_option
def list_(given: Path | None, as_json: bool) -> None:
    """List the clients, with their keys, and until when their certificates last."""
    from . import registry as registries
    from .clients import listing

    layout = layout_of(given)
    try:
        told = listing(layout, registries.load(layout.registry))
    except (OSError, ValueError) as exc:
        fail(in_words(exc), 2)
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    for one in told["clients"]:
        click.echo(f"{one['name']:<24} {'revoked' if one['revoked'] else one['role']}")
        for key in one["keys"]:
            click.echo(f"  key {key['kid']}{_mark(key)}")
            for certificate in key["certificates"]:
                click.echo(
                    f"    certificate {certificate['thumbprint']} "
                    f"until {_day(certificate['not_after'])}"
                )
        for key in one["ssh_keys"]:
            click.echo(f"  ssh key {key['fingerprint']}{_mark(key)}")
    if not told["clients"]:
        click.echo("No clients yet: catalyst-gateway client add NAME --role operator < request")


def _mark(key: dict[str, Any]) -> str:
    return " (revoked)" if key["revoked"] else ""


def _day(epoch: int | None) -> str:
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d") if epoch else "unknown"


@client.command(epilog="\b\nExample:\n  catalyst-gateway client revoke laptop")
@click.argument("name")
@dir_option
def revoke(given: Path | None, name: str) -> None:
    """Never let a client in again, and end what it has open, ssh sessions included."""
    from . import clients, sessions
    from .changing import ConflictError

    layout = layout_of(given)
    try:
        registry = clients.revoke(layout, name)
    except (clients.ClientError, ConflictError, ValueError) as exc:
        fail(str(exc), 2)
    except OSError as exc:
        fail(in_words(exc), 1)
    click.echo(f"{name} is revoked. A gateway that runs ends its streams within a second.")
    revoked = registry.client(name)
    if revoked is None or not revoked.ssh_keys:
        return
    account = settings_of(layout).ssh_user
    ended = sessions.end(layout, account, registry.ssh_accepted(), unknown=True)
    click.echo(f"{ended.count} of its ssh sessions were ended.")
    if ended.missed:
        fail(f"{ended.missed} could not be ended: run this again as root.")


@cli.command(
    epilog="\b\nExamples:\n  catalyst-gateway nginx\n"
    "  catalyst-gateway nginx --print --https-port 8443 --http-port 8080 \\\n"
    "      --tls-cert cert.pem --tls-key key.pem"
)
@click.option("--print", "only_print", is_flag=True, help="Print the site; write nothing.")
@click.option("--https-port", type=click.IntRange(1, 65535), help="[as in the settings]")
@click.option("--http-port", type=click.IntRange(1, 65535), default=80, show_default=True)
@click.option("--tls-cert", help="Certificate chain of the site, PEM.  [certbot's]")
@click.option("--tls-key", help="Its private key.  [certbot's]")
@click.option("--access-log", help="Where NGINX logs requests.  [in /var/log/nginx]")
@dir_option
def nginx(
    given: Path | None,
    only_print: bool,
    https_port: int | None,
    http_port: int,
    tls_cert: str | None,
    tls_key: str | None,
    access_log: str | None,
) -> None:
    """Render the NGINX site for the NGINX that is installed, into DIR/nginx."""
    from dataclasses import replace

    from keys.files import write_whole

    from .init import site_of
    from .site import render

    layout = layout_of(given)
    settings = settings_of(layout)
    site = replace(
        site_of(layout, settings.domain, https_port or settings.https_port),
        http_port=http_port,
        tls_certificate=str(Path(tls_cert).absolute()) if tls_cert else None,
        tls_key=str(Path(tls_key).absolute()) if tls_key else None,
    )
    if access_log is not None:
        site = replace(site, access_log=str(Path(access_log).absolute()))
    try:
        files = render(site)
        if only_print:
            click.echo(files["site.conf"], nl=False)
            return
        for name, text in files.items():
            write_whole(layout.nginx / name, text.encode(), replace=True, mode=0o644)
            click.echo(f"wrote {layout.nginx / name}")
    except ValueError as exc:
        fail(str(exc), 2)
    except OSError as exc:
        fail(in_words(exc), 1)
    click.echo("Then: nginx -t && systemctl reload nginx")


@cli.group()
def audit() -> None:
    """Look after the audit log."""


@audit.command(
    epilog="\b\nExamples:\n  catalyst-gateway audit verify\n"
    "  catalyst-gateway audit verify audit.jsonl.2 audit.jsonl.1 audit.jsonl"
)
@click.argument("logs", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@dir_option
def verify(given: Path | None, logs: tuple[Path, ...], as_json: bool) -> None:
    """Find lines of the audit log that were removed or changed; rotated logs oldest first."""
    from dataclasses import asdict

    from .verify import verify as check

    paths = list(logs) or [layout_of(given).audit]
    try:
        report = check(paths)
    except OSError as exc:
        fail(in_words(exc), 2)
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2))
    else:
        for finding in report.findings:
            click.secho(f"line {finding.line}: {finding.text}", fg="red")
        verdict = "tampered with" if report.findings else "intact"
        click.echo(f"{report.lines} lines, {report.first} to {report.last}: {verdict}")
        click.echo(f"head {report.head}")
    sys.exit(1 if report.findings else 0)


@cli.command(epilog='\b\nExample:\n  eval "$(catalyst-gateway completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        fail(f"There is no completion for {shell}.", 2)
    click.echo(kind(cli, {}, "catalyst-gateway", "_CATALYST_GATEWAY_COMPLETE").source())


for command in KEYS:
    cli.add_command(command)


def main() -> None:
    """Run the command line; neither an interrupt nor a full disk ends it with a traceback."""
    code = 130
    try:
        cli(prog_name="catalyst-gateway", standalone_mode=False)
        return
    except click.ClickException as exc:
        exc.show()
        code = exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        pass
    except OSError as exc:
        click.secho(in_words(exc), fg="red", err=True)
        code = 1
    os._exit(code)  # not by way of a flush that would fail once more
