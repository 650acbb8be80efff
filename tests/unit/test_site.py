"""The rendered site: what is filled in, what is refused, and what the text says."""

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway import site as module
from gateway.site import Site, has_ipv6, installed_version, render

SITE = Site("droplet.example", Path("/etc/catalyst-gateway"))
OLD, NEW = (1, 22, 1), (1, 25, 1)


def lines(text: str) -> list[str]:
    """Its directives, without comments and indentation."""
    bare = (re.sub(r"\s+", " ", line.split("#")[0]).strip() for line in text.splitlines())
    return [line for line in bare if line]


def test_the_files_and_where_they_point() -> None:
    files = render(SITE)
    assert set(files) == {"site.conf", "proxy.conf", "identity.conf"}
    directives = lines(files["site.conf"])
    assert "server unix:/etc/catalyst-gateway/run/gateway.sock;" in directives
    assert "include /etc/catalyst-gateway/nginx/proxy.conf;" in directives
    assert "include /etc/catalyst-gateway/nginx/identity.conf;" in lines(files["proxy.conf"])
    assert "ssl_client_certificate /etc/catalyst-gateway/nginx/client-ca.pem;" in directives
    live = "/etc/letsencrypt/live/droplet.example"
    assert f"ssl_certificate {live}/fullchain.pem;" in directives
    assert f"ssl_certificate_key {live}/privkey.pem;" in directives


@pytest.mark.parametrize("version", [OLD, NEW])
def test_nothing_of_the_template_is_left(version: tuple[int, int, int]) -> None:
    for text in render(replace(SITE, nginx=version)).values():
        assert not re.search(r"@[a-z_]+@", text)
        assert not re.search(r"#: \w+$", text, re.MULTILINE)


@pytest.mark.parametrize("version", [(1, 22, 1), (1, 24, 0), (1, 25, 0)])
def test_http2_on_the_listen_line_before_its_directive(version: tuple[int, int, int]) -> None:
    directives = lines(render(replace(SITE, nginx=version))["site.conf"])
    assert "listen 443 ssl http2;" in directives
    assert "listen [::]:443 ssl http2;" in directives
    assert "http2 on;" not in directives


@pytest.mark.parametrize("version", [(1, 25, 1), (1, 26, 3), (1, 29, 0), (2, 0, 0)])
def test_http2_as_a_directive_since_then(version: tuple[int, int, int]) -> None:
    directives = lines(render(replace(SITE, nginx=version))["site.conf"])
    assert "listen 443 ssl;" in directives
    assert "listen [::]:443 ssl;" in directives
    assert "http2 on;" in directives
    assert not [line for line in directives if line.startswith("listen") and "http2" in line]


@pytest.mark.parametrize("version", [OLD, NEW])
def test_no_listener_on_ipv6_where_there_is_none(version: tuple[int, int, int]) -> None:
    text = render(replace(SITE, ipv6=False, nginx=version))["site.conf"]
    assert "[::]" not in text
    assert "listen 80;" in lines(text)


def test_the_redirect_names_the_port_only_where_it_must() -> None:
    assert "return 308 https://droplet.example$request_uri;" in lines(render(SITE)["site.conf"])
    high = render(replace(SITE, https_port=8443, http_port=8080))["site.conf"]
    assert "return 308 https://droplet.example:8443$request_uri;" in lines(high)
    assert "listen 8080;" in lines(high)


def test_what_a_header_says_about_a_client_is_set_in_one_file_only() -> None:
    files = render(SITE)
    assert "proxy_set_header" not in "".join(
        line for name in ("site.conf", "proxy.conf") for line in lines(files[name])
    )
    set_once = [line.split()[1].lower() for line in lines(files["identity.conf"])]
    assert len(set_once) == len(set(set_once))


def test_names_that_are_global_in_nginx_are_ours() -> None:
    names = re.findall(
        r"^(?:upstream|log_format|map \S+) \$?(\S+)|zone=(\w+):",
        render(SITE)["site.conf"],
        re.MULTILINE,
    )
    assert len(names) >= 10
    for name in ("".join(pair) for pair in names):
        assert name.startswith("catalyst"), name


HOSTILE = ['"', "'", ";", " ", "\n", "\t", "$", "{", "}", "\\", "#", "\0", "é", "*", "(", "|", ":"]


@pytest.mark.parametrize("character", HOSTILE)
@pytest.mark.parametrize(
    "field", ["domain", "directory", "tls_certificate", "tls_key", "webroot", "access_log"]
)
@pytest.mark.parametrize("place", ["{}", "a{}b", "{}b"])
def test_values_that_mean_something_to_nginx_are_refused(
    field: str, place: str, character: str
) -> None:
    value: Any = ("" if field == "domain" else "/") + place.format(character)
    own: dict[str, Any] = {field: Path(value) if field == "directory" else value}
    wrong = replace(SITE, **own)
    with pytest.raises(ValueError, match=field):
        render(wrong)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("domain", ""),
        ("domain", "-a.example"),
        ("domain", "a..example"),
        ("domain", "Droplet.example"),
        ("domain", "droplet.example\n"),
        ("domain", "_"),
        ("domain", "*.example"),
        ("domain", "a." * 127 + "b"),
        ("directory", Path("relative")),
        ("directory", Path("/" + "x" * 90)),
        ("tls_key", "privkey.pem"),
        ("https_port", 0),
        ("https_port", 65536),
        ("http_port", -1),
        ("http_port", 443),
        ("rate", 0),
        ("connections", 0),
    ],
)
def test_other_values_that_are_none(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        render(replace(SITE, **{field: value}))


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"(?s)domain.*webroot.*rate"):
        render(replace(SITE, domain="a b", webroot="x", rate=0))


def test_a_value_is_not_taken_for_a_placeholder() -> None:
    text = render(replace(SITE, webroot="/var/@domain@"))["site.conf"]
    assert "root /var/@domain@;" in lines(text)


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("nginx version: nginx/1.22.1", (1, 22, 1)),
        ("nginx version: nginx/1.24.0 (Ubuntu)", (1, 24, 0)),
        ("nginx version: openresty/1.27.1.2", (1, 27, 1)),
        ("something else", None),
    ],
)
def test_the_version_is_read_from_what_the_program_says(
    said: str,
    version: tuple[int, int, int] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = tmp_path / "nginx"
    program.write_text(f"#!/bin/sh\n[ \"$1\" = -v ] && echo '{said}' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert installed_version() == version


def test_no_nginx_is_no_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "SBIN", ())
    assert installed_version() is None


def test_ipv6_is_asked_of_the_kernel() -> None:
    listening = subprocess.run(
        ["python3", "-c", "import socket; socket.socket(socket.AF_INET6).bind(('::', 0))"],
        capture_output=True,
    )
    assert has_ipv6() == (listening.returncode == 0)
