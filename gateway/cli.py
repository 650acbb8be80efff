"""The droplet's command line: the only place that prints and exits."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from . import __version__
from .settings import Layout, SettingsError, directory

EXIT_CODES = """\b
Exit codes:
  0    success
  1    failure, told on stderr; for `audit verify`: the log was tampered with
  2    usage or settings at fault; for `audit verify`: the log cannot be read
  130  interrupted"""


def fail(text: str, code: int = 1) -> NoReturn:
    """Say what is wrong on stderr and exit."""
    for line in text.splitlines():
        click.secho(line, fg="red", err=True)
    sys.exit(code)


def _words(exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror
    return str(exc)


def _layout(given: Path | None) -> Layout:
    return Layout(directory(given))


_dir = click.option(
    "--dir",
    "given",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where everything of the gateway lives.  "
    "[$CATALYST_GATEWAY_DIR, else /etc/catalyst-gateway]",
)


def _settings(layout: Layout) -> Any:
    from .settings import load

    try:
        return load(layout.settings)
    except SettingsError as exc:
        fail(str(exc), 2)
    except FileNotFoundError:
        fail(f"{layout.settings} does not exist. Run `catalyst-gateway init` first.", 2)
    except OSError as exc:
        fail(_words(exc), 2)


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
@_dir
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

    layout = _layout(given)
    ca = str(tls_ca.absolute()) if tls_ca else None
    try:
        make(layout, Answers(domain, https_port, upstream, listen, ca), click.echo)
        made = settings.load(layout.settings)
    except (OSError, ValueError) as exc:
        fail(_words(exc), 2)
    wanted = (domain, upstream.rstrip("/"), settings.read_listen(listen), https_port, ca)
    if (made.domain, made.upstream, made.listen, made.https_port, made.tls_ca) != wanted:
        fail(f"{layout.settings} was there already and is kept: edit it, or remove it first.", 2)
    click.echo(next_commands(layout, domain))


@cli.command(
    epilog="\b\nExample:\n  catalyst-gateway check-config && systemctl reload catalyst-gateway"
)
@_dir
def check_config(given: Path | None) -> None:
    """Check settings, registry and CA, and tell every fault."""
    from .check import faults

    layout = _layout(given)
    found = faults(layout)
    if found:
        fail("\n".join(found), 2)
    click.echo(f"{layout.directory}: all good")


@cli.command(epilog="\b\nExample:\n  catalyst-gateway serve --dir /etc/catalyst-gateway")
@_dir
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def serve(given: Path | None, verbose: bool) -> None:
    """Run the gateway until SIGTERM; SIGHUP looks at settings and registry again.

    Requests that run are finished first.
    """
    from .check import missing
    from .serve import ServeError, configure_log, run

    configure_log(verbose)
    layout = _layout(given)
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
@_dir
def add(given: Path | None, name: str, role: Any, days: int) -> None:
    """Let a client in: its request on stdin, the answer for it on stdout."""
    from keys.enrolment import SIZE, EnrolmentRequest
    from keys.errors import KeyFileError

    from . import clients

    layout = _layout(given)
    settings = _settings(layout)
    if sys.stdin is None or sys.stdin.isatty():
        fail("The request comes on stdin: catalyst-gateway client add NAME ... < request", 2)
    try:
        request = EnrolmentRequest.read(sys.stdin.buffer.read(SIZE + 1))
        answer = clients.add(layout, settings, name, role, request, days)
    except (clients.ClientError, ValueError) as exc:
        fail(str(exc), 2)
    except KeyFileError as exc:
        fail(f"{layout.ca_key.parent}: {exc}", 1)
    except OSError as exc:
        fail(_words(exc), 1)
    click.echo(answer.to_text(), nl=False)
    click.echo(f"{name} may come in as {role} (key {answer.kid}).", err=True)


@client.command(
    name="list",
    epilog="\b\nExamples:\n  catalyst-gateway client list\n  catalyst-gateway client list --json",
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@_dir
def list_(given: Path | None, as_json: bool) -> None:
    """List the clients, with their keys."""
    from . import registry as registries

    layout = _layout(given)
    try:
        registry = registries.load(layout.registry)
    except (OSError, ValueError) as exc:
        fail(_words(exc), 2)
    if as_json:
        click.echo(registries.to_text(registry), nl=False)
        return
    for one in registry.clients:
        state = "revoked" if one.revoked else one.role
        click.echo(f"{one.name:<24} {state}")
        for key in one.keys:
            mark = " (revoked)" if key.revoked else ""
            certificates = ", ".join(sorted(key.certificates))
            click.echo(f"  key {key.kid}{mark}\n  certificate {certificates}")
    if not registry.clients:
        click.echo("No clients yet: catalyst-gateway client add NAME --role operator < request")


@client.command(epilog="\b\nExample:\n  catalyst-gateway client revoke laptop")
@click.argument("name")
@_dir
def revoke(given: Path | None, name: str) -> None:
    """Never let a client in again, and end what it has open."""
    from . import clients

    layout = _layout(given)
    try:
        clients.revoke(layout, name)
    except (clients.ClientError, ValueError) as exc:
        fail(str(exc), 2)
    except OSError as exc:
        fail(_words(exc), 1)
    click.echo(f"{name} is revoked. A gateway that runs ends its streams within a second.")


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
@_dir
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

    layout = _layout(given)
    settings = _settings(layout)
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
        fail(_words(exc), 1)
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
@_dir
def verify(given: Path | None, logs: tuple[Path, ...], as_json: bool) -> None:
    """Find lines of the audit log that were removed or changed; rotated logs oldest first."""
    from dataclasses import asdict

    from .audit import verify as check

    paths = list(logs) or [_layout(given).audit]
    try:
        report = check(paths)
    except OSError as exc:
        fail(_words(exc), 2)
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2))
    else:
        for finding in report.findings:
            click.secho(f"line {finding.line}: {finding.text}", fg="red")
        verdict = "tampered with" if report.findings else "intact"
        click.echo(f"{report.lines} lines, {report.first} to {report.last}: {verdict}")
        click.echo(f"head {report.head}")
    sys.exit(1 if report.findings else 0)


@cli.command(
    epilog="\b\nExample, as root on the droplet:\n"
    "  catalyst-gateway sshd-config --user catalyst \\\n"
    "      > /etc/ssh/sshd_config.d/60-catalyst.conf\n"
    "  sshd -t && systemctl reload ssh"
)
@click.option("--user", default="catalyst", show_default=True, help="Account of the tunnels.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    default=["127.0.0.1:5000"],
    show_default=True,
    help="What may be reached; may be repeated.",
)
def sshd_config(user: str, targets: tuple[str, ...]) -> None:
    """Print the sshd rules that let an account forward to the service, and nothing else."""
    from .sshd import match_block

    try:
        click.echo(match_block(user, list(targets)), nl=False)
    except ValueError as exc:
        fail(str(exc), 2)


@cli.command(epilog='\b\nExample:\n  eval "$(catalyst-gateway completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        fail(f"There is no completion for {shell}.", 2)
    click.echo(kind(cli, {}, "catalyst-gateway", "_CATALYST_GATEWAY_COMPLETE").source())


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
        click.secho(_words(exc), fg="red", err=True)
        code = 1
    os._exit(code)  # not by way of a flush that would fail once more
