"""The droplet's command line as people and scripts meet it: words, exit codes, files.

Whatever is wrong, nobody is shown a traceback: `gateway()` and `told()` see to that.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway import check, settings
from gateway.audit import AuditLog
from gateway.settings import Layout
from gateway.site import find_nginx
from keys import certs, sshkey
from keys.enrolment import SIZE, EnrolmentAnswer, EnrolmentRequest
from keys.keyring import thumbprint
from tests.droplet import free_port
from tests.gatewayserver import GatewayServer
from tests.nginxserver import CONFIG
from tunnel.demo.nginx import make_certificate

ROOT = Path(__file__).parents[2]
DEADLINE = 30.0
DOMAIN = "droplet.example"
AS_ROOT = os.geteuid() == 0

Done = subprocess.CompletedProcess[str]


def gateway(*arguments: str | Path, stdin: bytes | None = b"", **own: Any) -> Done:
    """Run a command; no traceback, whatever it is."""
    run = subprocess.run(
        [sys.executable, "-m", "gateway", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        timeout=DEADLINE,
        input=stdin,
        **own,
    )
    done = Done(run.args, run.returncode, run.stdout.decode(), run.stderr.decode())
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    return done


def refused(done: Done, code: int = 2) -> str:
    """Return what it said on stderr when it refused."""
    assert done.returncode == code, (done.stdout, done.stderr)
    assert done.stderr
    return done.stderr


def init(place: Path, *arguments: str) -> Done:
    return gateway("init", "--domain", DOMAIN, *arguments, "--dir", place)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that `init` has made."""
    made = tmp_path / "gateway"
    done = init(made, "--listen", f"127.0.0.1:{free_port()}")
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for commands that must change nothing."""
    made = tmp_path_factory.mktemp("untouched") / "gateway"
    assert init(made).returncode == 0
    return made


def request(
    key: Ed25519PrivateKey | None = None, ssh_key: Ed25519PrivateKey | None = None
) -> bytes:
    """A new enrolment request."""
    token_key = key or Ed25519PrivateKey.generate()
    csr = certs.make_request(ec.generate_private_key(ec.SECP256R1()))
    made = EnrolmentRequest(token_key.public_key(), csr.decode())
    if ssh_key is not None:
        proof = sshkey.prove(ssh_key, "", "", thumbprint(token_key.public_key()))
        made = replace(made, ssh_key=sshkey.public_line(ssh_key.public_key()), ssh_proof=proof)
    return made.to_text().encode()


def add(place: Path, name: str = "laptop", text: bytes | None = None, *more: str) -> Done:
    paper = request() if text is None else text
    return gateway("client", "add", name, "--role", "operator", *more, "--dir", place, stdin=paper)


def registry(place: Path) -> list[dict[str, Any]]:
    clients = json.loads((place / "registry.json").read_text())["clients"]
    assert isinstance(clients, list)
    return clients


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def edit(place: Path, pattern: str, line: str) -> None:
    """Replace a line of gateway.toml."""
    file = place / "gateway.toml"
    text, count = re.subn(rf"(?m)^{pattern}.*$", lambda _: line, file.read_text())
    assert count == 1
    file.write_text(text)


# Help.

COMMANDS = [
    *(["init"], ["check-config"], ["serve"], ["client", "add"], ["client", "list"]),
    *(["client", "revoke"], ["nginx"], ["audit", "verify"], ["sshd-config"], ["completion"]),
    *(["registrar"], ["ca", "rotate"]),
]


@pytest.mark.parametrize("command", [[], ["client"], ["audit"], ["ca"], *COMMANDS])
def test_help_of_every_command(command: list[str]) -> None:
    for flag in ("--help", "-h"):
        done = gateway(*command, flag)
        assert done.returncode == 0
        assert done.stdout.startswith("Usage: catalyst-gateway")
        assert "\x1b" not in done.stdout
    if command in COMMANDS:
        assert "Example" in done.stdout
        examples = done.stdout.partition("Example")[2]
        assert f"catalyst-gateway {' '.join(command)}" in examples


def test_help_tells_the_exit_codes() -> None:
    said = gateway("--help").stdout
    for code in (0, 1, 2, 130):
        assert re.search(rf"(?m)^ +{code} ", said), code


def test_the_version() -> None:
    assert re.fullmatch(
        r"catalyst-gateway, version \d+\.\d+\.\d+\S*\n", gateway("--version").stdout
    )


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["fly"],
            ["client"],
            ["client", "fly"],
            ["serve", "--no-such-option"],
            ["init"],
            ["client", "add"],
        ),
        *(
            ["client", "add", "a", "--role", "root"],
            ["client", "add", "a", "--role", "operator", "--days", "0"],
        ),
        *(
            ["completion", "tcsh"],
            ["nginx", "--https-port", "0"],
            ["audit", "verify", "/no/such/file"],
        ),
        ["client", "add", "a", "--role", "operator", "--days", "99999"],
        ["init", "--domain", "a.b", "--https-port", "65536"],
        ["init", "--domain", "a.b", "--tls-ca", "/no/such/file"],
        ["check-config", "--dir", __file__],
    ],
)
def test_usage_faults(arguments: list[str]) -> None:
    assert "Usage" in refused(gateway(*arguments))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    done = gateway("completion", shell)
    assert done.returncode == 0
    assert "_CATALYST_GATEWAY_COMPLETE" in done.stdout


def test_sshd_config() -> None:
    done = gateway("sshd-config", "--user", "catalyst", "--target", "127.0.0.1:5001")
    assert done.returncode == 0
    assert done.stdout.startswith("Match User catalyst\n")
    assert "PermitOpen 127.0.0.1:5001\n" in done.stdout
    assert "not the name" in refused(gateway("sshd-config", "--user", "a\nPermitRootLogin yes"))
    assert "host:port" in refused(gateway("sshd-config", "--target", "any"))


def test_sshd_config_with_a_registry(place: Path) -> None:
    """Keys from there and no others, and no further than the gateway."""
    target = settings.load(place / "gateway.toml").ssh_target
    rules = gateway("sshd-config", "--dir", place).stdout
    command = f"{sys.executable} -m gateway authorized-keys --dir {place} --target {target} %t %k"
    assert f"    AuthorizedKeysCommand {command}\n" in rules
    assert "    AuthorizedKeysFile none\n" in rules
    assert f"    PermitOpen {target}\n" in rules
    assert rules.startswith("Match User catalyst\n")

    both = ["--target", "127.0.0.1:1", "--target", "127.0.0.1:2"]
    rules = gateway("sshd-config", *both, "--dir", place).stdout
    assert "--target 127.0.0.1:1 --target 127.0.0.1:2 %t" in rules
    assert "PermitOpen 127.0.0.1:1 127.0.0.1:2\n" in rules
    plain = gateway("sshd-config", "--keys", "file", "--dir", place).stdout
    assert "AuthorizedKeys" not in plain
    assert "PermitOpen 127.0.0.1:5000\n" in plain

    said = refused(gateway("sshd-config", "--user", "other", "--dir", place))
    assert 'ssh_user = "catalyst"' in said
    assert "host:port" in refused(gateway("sshd-config", "--target", "a b:1", "--dir", place))
    shutil.rmtree(place / "run")
    assert "ssh-sessions is not there" in refused(gateway("sshd-config", "--dir", place))
    (place / "registry.json").unlink()
    assert "AuthorizedKeys" not in gateway("sshd-config", "--dir", place).stdout
    missing = refused(gateway("sshd-config", "--keys", "registry", "--dir", place))
    assert "ssh-sessions is not there" in missing


def test_a_path_that_sshd_could_misread(tmp_path: Path) -> None:
    from gateway.sshd import Lookup, match_block

    for program in ("catalyst-gateway", "/a b/%u", '/a"b', "/a\nb\nPermitRootLogin", "/a#"):
        with pytest.raises(ValueError):
            match_block("catalyst", ["127.0.0.1:1"], Lookup((program,), tmp_path, "nobody"))
    for directory in ("/a b", "/a%h", "/a\tb"):
        with pytest.raises(ValueError):
            match_block("catalyst", ["127.0.0.1:1"], Lookup(("/bin/x",), Path(directory), "nobody"))


@pytest.mark.skipif(not AS_ROOT, reason="gives files away")
def test_a_program_that_sshd_would_not_run(tmp_path: Path) -> None:
    from gateway.sshd import command_fault

    assert command_fault("/bin/sh") is None
    program = tmp_path / "program"
    assert "No such file" in str(command_fault(str(program)))
    program.write_text("")
    os.chown(program, 65534, -1)
    assert f"{program} is not root's alone" in str(command_fault(str(program)))
    os.chown(program, 0, -1)
    program.chmod(0o775)
    assert "chmod go-w" in str(command_fault(str(program)))
    program.chmod(0o755)
    tmp_path.chmod(0o777)
    assert f"{tmp_path} is not root's alone" in str(command_fault(str(program)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--target is missing"),
        (["--target", "x"], "host:port"),
        (["--target", "127.0.0.1:1"], "not sshd that asks"),
    ],
)
def test_a_key_that_sshd_did_not_ask_about(place: Path, arguments: list[str], words: str) -> None:
    key = Ed25519PrivateKey.generate()
    assert add(place, "laptop", request(ssh_key=key)).returncode == 0
    line = sshkey.public_line(key.public_key()).split()
    done = gateway("authorized-keys", *arguments, *line, "--dir", place)
    assert words in refused(done, 1)
    assert done.stdout == ""


@pytest.mark.parametrize(
    "key", [["ssh-rsa", "AAAA"], ["ssh-ed25519", "AAAA"], ["x", "x\ny"], ["", ""], ["a b", "c"]]
)
def test_what_is_no_key_of_ours_has_no_line(untouched: Path, key: list[str]) -> None:
    done = gateway("authorized-keys", "--target", "127.0.0.1:1", *key, "--dir", untouched)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_a_full_disk_is_told(place: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        run = subprocess.run(
            [sys.executable, "-m", "gateway", "client", "list", "--dir", str(place)],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=DEADLINE,
        )
    assert run.returncode == 1
    assert run.stderr.decode() == "No space left on device\n"


# init


def test_init_makes_everything_closed_as_it_should_be(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "gateway"
    done = gateway("init", "--domain", DOMAIN, "--dir", place, preexec_fn=lambda: os.umask(0))
    assert done.returncode == 0, done.stderr
    modes = {
        "": 0o755,
        "ca": 0o700,
        "ca/ca.key": 0o600,
        "ca/ca.pem": 0o644,
        "catalyst-gateway.service": 0o644,
        "gateway.toml": 0o644,
        "nginx": 0o755,
        "nginx/client-ca.pem": 0o644,
        "nginx/site.conf": 0o644,
        "catalyst-registrar.service": 0o644,
        "issued": 0o755,
        "registry.json": 0o644,
        "run": 0o750,
        "run/ssh-sessions": 0o700,
        "state": 0o700,
    }
    assert {name: mode(place / name) for name in modes} == modes
    secret = (place / "ca" / "ca.key").read_text()
    assert secret not in done.stdout + done.stderr
    others = [one for one in place.rglob("*") if one.is_file() and one.name != "ca.key"]
    assert not [one for one in others if b"PRIVATE KEY" in one.read_bytes()]
    for file in (place / "state").iterdir():
        assert mode(file) & 0o077 == 0, file
    assert certs.load_authority((place / "ca/ca.pem").read_bytes(), secret.encode())
    for word in ("systemctl", "certbot", "client add", str(place)):
        assert word in done.stdout
    assert gateway("check-config", "--dir", place).returncode == 0


def test_init_again_keeps_what_is_there(tmp_path: Path) -> None:
    place = tmp_path / "gateway"
    first = init(place)
    assert first.returncode == 0
    (place / "nginx" / "site.conf").write_text("# mine\n")
    (place / "gateway.toml").write_text((place / "gateway.toml").read_text() + "# mine\n")
    assert add(place).returncode == 0
    before = {one: one.read_bytes() for one in place.rglob("*") if one.is_file()}
    again = init(place)
    assert again.returncode == 0
    assert "made " not in again.stdout
    assert {one: one.read_bytes() for one in place.rglob("*") if one.is_file()} == before

    (place / "nginx" / "proxy.conf").unlink()
    assert init(place).stdout.count("made ") == 1
    assert (place / "nginx" / "proxy.conf").exists()


@pytest.mark.parametrize(
    "other",
    [
        ["--domain", "other.example"],
        ["--upstream", "http://127.0.0.1:5999"],
        ["--listen", "127.0.0.1:5999"],
        ["--https-port", "8443"],
    ],
)
def test_init_does_not_pass_over_other_answers(tmp_path: Path, other: list[str]) -> None:
    assert init(tmp_path / "gateway").returncode == 0
    before = (tmp_path / "gateway" / "gateway.toml").read_bytes()
    assert "is kept" in refused(init(tmp_path / "gateway", *other))
    assert (tmp_path / "gateway" / "gateway.toml").read_bytes() == before


@pytest.mark.parametrize(
    "bad",
    [
        *(
            ["--domain", one]
            for one in ("", "A.b", "a b", "a..b", "-a", "a;b", "a\nb", "*.a", "https://a")
        ),
        *(
            ["--upstream", one]
            for one in ("", "127.0.0.1:1", "https://a:1", "http://a", "http://a:1/x")
        ),
        *(
            ["--listen", one]
            for one in ("", "0.0.0.0:5001", "[::]:5001", "203.0.113.7:1", "10.0.0.1:1")
        ),
        *(
            ["--listen", one]
            for one in ("*:1", "localhost:1", "127.0.0.1", "127.0.0.1:65536", "[::ffff:8.8.8.8]:1")
        ),
        ["--https-port", "80"],
    ],
)
def test_init_makes_nothing_of_bad_answers(tmp_path: Path, bad: list[str]) -> None:
    place = tmp_path / "gateway"
    refused(init(place, *bad))
    assert not place.exists()


@pytest.mark.parametrize("name", ["a b", "a;b", "a$b", "ä", 'a"b', "x" * 100])
def test_init_in_a_directory_that_nginx_could_misread(tmp_path: Path, name: str) -> None:
    assert "directory" in refused(init(tmp_path / name))
    assert not (tmp_path / name).exists()


def test_init_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in refused(init(tmp_path / "file" / "gateway"))
    assert "is a file" in refused(init(tmp_path / "file"))
    assert "/proc" in refused(init(Path("/proc/catalyst-gateway")))


@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
def test_init_in_a_closed_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "Permission denied" in refused(init(tmp_path / "gateway"))


# check-config


def test_every_fault_at_once(place: Path) -> None:
    edit(place, "listen", 'listen = "0.0.0.0:1"')
    edit(place, "upstream", 'upstream = "x"')
    (place / "registry.json").write_text("{}")
    (place / "nginx" / "client-ca.pem").write_text("x")
    (place / "ca" / "ca.key").chmod(0o644)
    shutil.rmtree(place / "run")
    shutil.rmtree(place / "state")
    said = refused(gateway("check-config", "--dir", place)).splitlines()
    for words in (
        *("[gateway] listen: must be a loopback", "[gateway] upstream: ", "registry.json: must be"),
        *(
            "client-ca.pem: is not a PEM",
            "chmod 600",
            f"{place}/run: is not",
            f"{place}/state: is not",
        ),
    ):
        assert len([line for line in said if words in line]) == 1, (words, said)
    assert len(said) == 7


def test_faults_of_the_ca(place: Path, tmp_path: Path) -> None:
    key, pem = place / "ca" / "ca.key", place / "ca" / "ca.pem"
    good = key.read_bytes(), pem.read_bytes()
    other = certs.make_authority("other", time.time())
    for one, text, words in (
        (key, other.key_pem(), "not the one of its certificate"),
        (key, b"x", "not a PEM private key"),
        (pem, b"x", "not a PEM certificate"),
        (
            place / "nginx/client-ca.pem",
            certs.make_authority("a", 0).certificate_pem(),
            "has expired",
        ),
    ):
        one.write_bytes(text)
        [said] = refused(gateway("check-config", "--dir", place)).splitlines()
        assert words in said
        key.write_bytes(good[0])
        pem.write_bytes(good[1])
    pem.unlink()
    assert "ca.pem: No such file" in refused(gateway("check-config", "--dir", place))


def test_what_is_no_fault(place: Path) -> None:
    bundle = place / "nginx" / "client-ca.pem"
    bundle.write_bytes(
        bundle.read_bytes() + certs.make_authority("b", time.time()).certificate_pem()
    )
    (place / "ca" / "ca.key").unlink()  # kept elsewhere between enrolments
    done = gateway("check-config", "--dir", place)
    assert (done.returncode, done.stdout) == (0, f"{place}: all good\n")


def test_the_private_ca_of_the_site(place: Path) -> None:
    edit(place, "# tls_ca", 'tls_ca = "nowhere.pem"')
    assert "nowhere.pem: No such file" in refused(gateway("check-config", "--dir", place))
    before = registry(place)
    assert "nowhere.pem: No such file" in refused(add(place), 1)
    (place / "nowhere.pem").write_bytes(b"\xff")
    assert "nowhere.pem: is not a PEM" in refused(gateway("check-config", "--dir", place))
    assert "nowhere.pem: is not a PEM" in refused(add(place))
    assert registry(place) == before  # nobody is let in who gets no answer
    shutil.copy(place / "ca" / "ca.pem", place / "nowhere.pem")
    answer = EnrolmentAnswer.read(add(place).stdout.encode())
    assert answer.ca == (place / "ca" / "ca.pem").read_text()


def test_a_directory_in_which_nothing_is(tmp_path: Path) -> None:
    for command in (
        ["check-config"],
        ["serve"],
        ["nginx"],
        ["client", "list"],
        ["client", "add", "a", "--role", "observer"],
    ):
        assert str(tmp_path) in refused(gateway(*command, "--dir", tmp_path))
    refused(gateway("client", "revoke", "a", "--dir", tmp_path), 1)
    refused(gateway("audit", "verify", "--dir", tmp_path))


@pytest.mark.skipif(not AS_ROOT, reason="becomes another user")
def test_checked_by_the_gateways_own_user_who_may_not_see_the_ca(place: Path) -> None:
    parents = [one for one in place.parents if mode(one) & 0o005 != 0o005]
    modes = [mode(one) for one in parents]
    for one in parents:
        one.chmod(0o755)
    os.chown(place / "state", 65534, -1)
    os.chown(place / "run", 65534, -1)
    os.seteuid(65534)
    try:
        assert check.faults(Layout(place)) == []
    finally:
        os.seteuid(0)
        for one, old in zip(parents, modes, strict=True):
            one.chmod(old)


# client


def test_a_clients_life(place: Path) -> None:
    said = gateway("client", "list", "--dir", place).stdout
    assert "No clients yet" in said

    key = Ed25519PrivateKey.generate()
    done = add(place, "laptop", request(key), "--days", "7")
    assert done.returncode == 0, done.stderr
    answer = EnrolmentAnswer.read(done.stdout.encode())
    started = settings.load(place / "gateway.toml")
    assert (answer.client, answer.role, answer.ca) == ("laptop", "operator", None)
    assert answer.kid == thumbprint(key.public_key())
    assert answer.url == f"https://{DOMAIN}/mcp"
    assert answer.audience == f"catalyst-gateway:{DOMAIN}"
    assert answer.ssh_target == started.ssh_target
    facts = certs.facts(answer.certificate.encode())
    assert 6.9 < (facts.not_after - time.time()) / 86400 <= 7
    assert "laptop may come in as operator" in done.stderr
    [client] = registry(place)
    assert client["keys"][0]["certificates"] == [facts.thumbprint]
    assert mode(place / ".lock") == 0o600

    listed = gateway("client", "list", "--dir", place).stdout
    for words in ("laptop", "operator", answer.kid, facts.thumbprint):
        assert words in listed
    told = json.loads(gateway("client", "list", "--json", "--dir", place).stdout)
    assert told["generation"] == 1
    [listed_key] = told["clients"][0]["keys"]
    assert listed_key == {
        "kid": answer.kid,
        "revoked": False,
        "certificates": [{"thumbprint": facts.thumbprint, "not_after": int(facts.not_after)}],
    }

    assert "is revoked" in gateway("client", "revoke", "laptop", "--dir", place).stdout
    assert registry(place)[0]["revoked"] is True
    assert re.search(r"laptop +revoked", gateway("client", "list", "--dir", place).stdout)
    assert gateway("client", "revoke", "laptop", "--dir", place).returncode == 0

    assert "known already" in refused(add(place, "laptop", request(key)))
    assert "known already" in refused(add(place, "other", request(key)))
    back = add(place)
    assert back.returncode == 0
    [client] = registry(place)
    assert client["revoked"] is False
    assert [one["revoked"] for one in client["keys"]] == [True, False]
    assert "known already" in refused(add(place, "third", request(key)))


def test_an_ssh_key_is_enrolled_listed_and_revoked(place: Path) -> None:
    key = Ed25519PrivateKey.generate()
    line = sshkey.public_line(key.public_key())
    name = sshkey.fingerprint(line)
    assert add(place, "laptop", request(ssh_key=key)).returncode == 0
    [client] = registry(place)
    assert client["ssh_keys"] == [{"key": line, "revoked": False}]
    listed = gateway("client", "list", "--dir", place).stdout
    assert f"ssh key {name}\n" in listed
    assert re.search(r"until 20\d\d-\d\d-\d\d\n", listed)

    edit(place, "ssh_user", 'ssh_user = "k1-nobody-has-this"')
    said = gateway("client", "revoke", "laptop", "--dir", place)
    assert said.returncode == 0
    assert "0 of its ssh sessions were ended" in said.stdout
    for who in ("laptop", "desk"):
        assert "SSH key is known already" in refused(add(place, who, request(ssh_key=key)))
    other = Ed25519PrivateKey.generate()
    assert add(place, "laptop", request(ssh_key=other)).returncode == 0
    [client] = registry(place)
    assert [one["revoked"] for one in client["ssh_keys"]] == [True, False]
    told = json.loads(gateway("client", "list", "--json", "--dir", place).stdout)
    assert told["generation"] == 3
    assert told["clients"][0]["ssh_keys"][0] == {"fingerprint": name, "revoked": True}


def test_an_ssh_key_of_somebody_else(untouched: Path) -> None:
    """Whoever has seen a public key cannot have it let in under his name."""
    paper = json.loads(request(ssh_key=Ed25519PrivateKey.generate()))
    for other in (request(ssh_key=Ed25519PrivateKey.generate()), request()):
        mixed = json.dumps(paper | {"token_key": json.loads(other)["token_key"]}).encode()
        assert "ssh_proof is not one" in refused(add(untouched, "laptop", mixed))
    for name in ("ssh_key", "ssh_proof"):
        rest = {one: value for one, value in paper.items() if one != name}
        assert "has these members" in refused(add(untouched, "laptop", json.dumps(rest).encode()))
    assert registry(untouched) == []


def test_names_and_keys_that_are_taken(place: Path) -> None:
    paper = request()
    assert add(place, "laptop", paper).returncode == 0
    before = registry(place)
    assert "there already" in refused(add(place, "laptop"))
    assert "known already" in refused(add(place, "other", paper))
    assert registry(place) == before
    assert "no client called 'nobody'" in refused(
        gateway("client", "revoke", "nobody", "--dir", place)
    )


@pytest.mark.parametrize(
    "name",
    ["", "A", "a b", "../a", "a/b", "a\nb", "ä", ".a", "a" * 64, "a;b", "a\x1b[31m", "\udcff"],
)
def test_bad_names(untouched: Path, name: str) -> None:
    assert "cannot be a client's name" in refused(add(untouched, name))
    assert "no client called" in refused(gateway("client", "revoke", name, "--dir", untouched))
    assert registry(untouched) == []


def altered(**changes: Any) -> bytes:
    return json.dumps(json.loads(request()) | changes).encode()


def private_jwk() -> bytes:
    paper = json.loads(request())
    paper["token_key"]["d"] = "c2VjcmV0LXNlY3JldA"
    return json.dumps(paper).encode()


def other_csr() -> str:
    """A request whose signature is that of another one."""
    one, two = (json.loads(request())["csr"].splitlines() for _ in range(2))
    return "\n".join([*one[:-3], *two[-3:]]) + "\n"


@pytest.mark.parametrize(
    "paper",
    [
        *(
            b"",
            b"\0",
            b"garbage",
            b"\xff" * 100,
            b"{}",
            b"[]",
            b"null",
            b"[" * 60_000,
            b"x" * (2 * SIZE),
        ),
        *(
            altered(more=1),
            altered(version=2),
            altered(catalyst="answer"),
            altered(csr="x"),
            altered(csr=""),
        ),
        *(
            altered(csr=None),
            altered(token_key=None),
            altered(token_key={"kty": "OKP"}),
            private_jwk(),
        ),
        *(
            altered(csr=other_csr()),
            altered(csr="x" * SIZE),
            altered() + b" " * SIZE,
            altered() * 2,
        ),
        b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0LXNlY3JldA\n-----END PRIVATE KEY-----\n",
    ],
)
def test_bad_requests(untouched: Path, paper: bytes) -> None:
    said = refused(add(untouched, "laptop", paper))
    assert "c2VjcmV0" not in said
    assert len(said) < 400
    assert registry(untouched) == []


def test_no_stdin_at_all(place: Path) -> None:
    command = f'exec "{sys.executable}" -m gateway client add a --role observer --dir "{place}" <&-'
    run = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("The request comes on stdin")


def test_a_ca_that_cannot_be_used(place: Path) -> None:
    key, pem = place / "ca" / "ca.key", place / "ca" / "ca.pem"
    good = key.read_bytes(), pem.read_bytes()
    other = certs.make_authority("other", time.time()).key_pem()
    for one, text in ((key, b"x"), (key, b""), (key, other), (pem, b"x"), (key, None), (pem, None)):
        one.unlink()
        if text is not None:
            one.write_bytes(text)
        said = refused(add(place), 1)
        assert str(place / "ca") in said
        assert "PRIVATE" not in said
        key.write_bytes(good[0])
        pem.write_bytes(good[1])
    key.unlink()
    key.mkdir()
    assert "Is a directory" in refused(add(place), 1)
    assert registry(place) == []


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff", b"[1", b'{"version": 2, "clients": []}'])
def test_a_broken_registry_is_told_with_its_name_and_left_alone(place: Path, text: bytes) -> None:
    file = place / "registry.json"
    file.write_bytes(text)
    for done in (
        *(add(place), gateway("client", "revoke", "a", "--dir", place)),
        *(gateway("client", "list", "--dir", place), gateway("serve", "--dir", place)),
    ):
        assert refused(done).count(str(file)) == 1
    assert file.read_bytes() == text


def test_broken_settings(place: Path) -> None:
    (place / "gateway.toml").write_text("x = " + "9" * 5000)
    for done in (add(place), gateway("serve", "--dir", place), gateway("nginx", "--dir", place)):
        assert "gateway.toml: is not TOML" in refused(done)


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gateway", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe)


def test_clients_that_are_added_at_once_all_survive(place: Path) -> None:
    """All of them wait for the lock, which this test holds, and are let go at once."""
    names = [f"laptop{number}" for number in range(4)]
    with (place / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        running = [
            start("client", "add", name, "--role", "observer", "--dir", place) for name in names
        ]
        for one in running:
            assert one.stdin is not None
            one.stdin.write(request())
            one.stdin.close()
            one.stdin = None
        deadline = time.monotonic() + DEADLINE
        while waiting(place / ".lock") < len(names):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert registry(place) == []
    for one in running:
        _, said = one.communicate(timeout=DEADLINE)
        assert one.returncode == 0, said
    assert sorted(one["name"] for one in registry(place)) == names


def waiting(file: Path) -> int:
    """How many wait for a lock on a file: the lines with an arrow in /proc/locks."""
    inode = f":{file.stat().st_ino} "
    lines = Path("/proc/locks").read_text().splitlines()
    return sum("->" in line and inode in line for line in lines)


def test_an_interrupt(place: Path) -> None:
    with (place / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        running = start("client", "revoke", "a", "--dir", place)
        deadline = time.monotonic() + DEADLINE
        while not waiting(place / ".lock"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=DEADLINE)
    assert running.returncode == 130
    assert b"Traceback" not in said


# nginx


def test_the_site_is_rendered(place: Path) -> None:
    site = place / "nginx" / "site.conf"
    site.write_text("# old\n")
    printed = gateway("nginx", "--print", "--dir", place)
    assert printed.returncode == 0
    assert f"server_name {DOMAIN};" in printed.stdout
    assert site.read_text() == "# old\n"
    done = gateway("nginx", "--dir", place)
    assert done.returncode == 0
    assert site.read_text() == printed.stdout
    assert mode(site) == 0o644
    assert "nginx -t" in done.stdout


@pytest.mark.parametrize(
    "bad",
    [
        *(
            ["--tls-cert", "/a b"],
            ["--tls-key", "/a;b"],
            ["--access-log", "/a\nb"],
            ["--tls-key", "/$x"],
        ),
        *(["--http-port", "443"], ["--https-port", "80"], ["--access-log", "/a{b}"]),
    ],
)
def test_values_that_nginx_could_misread(untouched: Path, bad: list[str]) -> None:
    before = (untouched / "nginx" / "site.conf").read_bytes()
    for more in ([], ["--print"]):
        refused(gateway("nginx", *bad, *more, "--dir", untouched))
    assert (untouched / "nginx" / "site.conf").read_bytes() == before


def test_a_site_that_cannot_be_written(place: Path) -> None:
    shutil.rmtree(place / "nginx")
    (place / "nginx").write_text("")
    refused(gateway("nginx", "--dir", place), 1)


def test_nginx_takes_the_site(place: Path, tmp_path: Path) -> None:
    program = find_nginx()
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no nginx on this machine, and CI must have one: apt install nginx-light")
        pytest.skip("no nginx on this machine: apt install nginx-light")
    home = tmp_path / "nginx"
    (home / "temp").mkdir(parents=True)
    make_certificate(home)
    [key] = [one for one in home.glob("*") if one.is_file() and b"PRIVATE" in one.read_bytes()]
    [pem] = [one for one in home.glob("*") if one.is_file() and b"BEGIN CERT" in one.read_bytes()]
    done = gateway(
        *("nginx", "--https-port", str(free_port()), "--http-port", str(free_port())),
        *("--tls-cert", pem, "--tls-key", key, "--access-log", home / "access.log", "--dir", place),
    )
    assert done.returncode == 0, done.stderr
    config = home / "nginx.conf"
    config.write_text(CONFIG.format(user="", directory=home, site=place))
    tested = subprocess.run(
        [program, "-t", "-p", home, "-c", config, "-e", home / "error.log"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert tested.returncode == 0, tested.stderr
    assert "[warn]" not in tested.stderr


# audit verify


@pytest.fixture
def log(place: Path) -> Path:
    """An audit log with a few lines."""
    file = place / "state" / "audit.jsonl"
    audit = AuditLog(file)
    audit.open()
    for number in range(5):
        audit.append({"decision": "allow", "client": f"laptop{number}"})
    audit.close()
    return file


def test_an_intact_log(place: Path, log: Path) -> None:
    for done in (gateway("audit", "verify", "--dir", place), gateway("audit", "verify", log)):
        assert done.returncode == 0, done.stdout
        assert "intact" in done.stdout
    done = gateway("audit", "verify", "--json", "--dir", place)
    report = json.loads(done.stdout)
    assert report["findings"] == []
    assert report["lines"] == len(log.read_text().splitlines()) >= 5
    assert report["head"] == json.loads(log.read_text().splitlines()[-1])["hash"]


@pytest.mark.parametrize("how", ["changed", "removed", "cut off", "swapped", "made up", "emptied"])
def test_a_log_that_was_tampered_with(place: Path, log: Path, how: str) -> None:
    lines = log.read_text().splitlines(keepends=True)
    place_of = next(number for number, line in enumerate(lines) if "laptop2" in line)
    match how:
        case "changed":
            lines[place_of] = lines[place_of].replace("laptop2", "laptop9")
        case "removed":
            del lines[place_of]
        case "cut off":
            lines = lines[:-1]
        case "swapped":
            lines[place_of : place_of + 2] = reversed(lines[place_of : place_of + 2])
        case "made up":
            lines.append(lines[-1].replace("laptop4", "laptop5"))
        case "emptied":
            lines = []
    log.write_text("".join(lines))
    done = gateway("audit", "verify", "--dir", place)
    assert done.returncode == 1
    assert "tampered with" in done.stdout
    assert re.search(r"(?m)^line \d+: ", done.stdout)
    done = gateway("audit", "verify", "--json", "--dir", place)
    assert done.returncode == 1
    assert json.loads(done.stdout)["findings"]


def test_a_log_of_something_else(place: Path, log: Path) -> None:
    for text in (b"\xff\xfe\n", b"{}\n", b"null\n", b"[" * 5000 + b"\n", os.urandom(4096)):
        log.write_bytes(text)
        assert gateway("audit", "verify", "--dir", place).returncode == 1


def test_a_log_that_cannot_be_read(place: Path, log: Path) -> None:
    """That is neither intact nor tampered with: another exit code."""
    log.unlink()
    assert "audit.jsonl: No such file" in refused(gateway("audit", "verify", "--dir", place))
    log.mkdir()
    assert "audit.jsonl: Is a directory" in refused(gateway("audit", "verify", "--dir", place))


# The systemd unit.


def test_the_unit(place: Path) -> None:
    unit = place / "catalyst-gateway.service"
    lines = unit.read_text().splitlines()
    assert f"InaccessiblePaths={place}/ca" in lines
    assert f"ReadWritePaths={place}/state {place}/run" in lines
    assert "User=catalyst-gateway" in lines
    for word in (
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "CapabilityBoundingSet=",
        "UMask=0077",
    ):
        assert word in lines
    [command] = [line.partition("=")[2] for line in lines if line.startswith("ExecStart=")]
    assert command == f"{sys.executable} -m gateway serve --dir {place}"
    assert os.access(command.split()[0], os.X_OK)


def test_the_registrars_unit(place: Path) -> None:
    lines = (place / "catalyst-registrar.service").read_text().splitlines()
    assert f"ReadWritePaths={place}" in lines
    assert "CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_KILL" in lines
    assert not [line for line in lines if line.startswith("User=")]
    for word in ("NoNewPrivileges=yes", "ProtectSystem=strict", "PrivateNetwork=yes"):
        assert word in lines
    [command] = [line.partition("=")[2] for line in lines if line.startswith("ExecStart=")]
    assert command == f"{sys.executable} -m gateway registrar --dir {place}"


@pytest.mark.parametrize("name", ["catalyst-gateway", "catalyst-registrar"])
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd on this machine")
def test_systemd_takes_the_unit(place: Path, name: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", place / f"{name}.service"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    ours = [line for line in done.stderr.splitlines() if name in line]
    assert ours == []
    assert done.returncode == 0, done.stderr


# serve


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GatewayServer]:
    with GatewayServer(tmp_path / "gateway", f"http://127.0.0.1:{free_port()}") as one:
        yield one


def told(server: GatewayServer) -> str:
    """What it logged; no traceback."""
    said = server.log.read_text()
    assert "Traceback" not in said, said
    return said


def test_its_doors(server: GatewayServer) -> None:
    assert server.socket.is_socket()
    assert mode(server.socket) == 0o660
    assert mode(server.socket.parent) == 0o750
    doors = {one.name for one in server.socket.parent.iterdir()}
    assert doors == {"gateway.sock", "ssh-sessions"}
    with socket.create_connection(("127.0.0.1", server.port), 5):
        pass
    assert server.stop() == 0
    assert not server.socket.exists()
    told(server)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once(server: GatewayServer, number: int) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 5):  # an idle one keeps it not
        began = time.monotonic()
        server.signal(number)
        assert server.wait() == 0
    assert time.monotonic() - began < 3
    told(server)


def test_a_second_one_on_the_same_directory(server: GatewayServer) -> None:
    [said] = refused(gateway("serve", "--dir", server.directory)).splitlines()
    assert str(server.directory) in said or str(server.port) in said
    assert server.running
    assert server.socket.is_socket()  # the first one's, left alone
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(server.socket))


def test_a_second_one_that_has_another_port(server: GatewayServer) -> None:
    """Two on one audit log and one socket would undo each other."""
    server.change("listen", f'"127.0.0.1:{free_port()}"')
    assert str(server.directory) in refused(gateway("serve", "--dir", server.directory))
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(server.socket))


def test_what_a_killed_one_left_is_replaced(server: GatewayServer) -> None:
    server.kill()
    assert server.socket.is_socket()
    server.start()
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(server.socket))
    assert mode(server.socket) == 0o660
    assert server.stop() == 0
    told(server)


def test_the_port_is_taken(place: Path) -> None:
    port = settings.load(place / "gateway.toml").listen[1]
    with socket.create_server(("127.0.0.1", port)):
        said = refused(gateway("serve", "--dir", place))
    assert f"127.0.0.1:{port} cannot be listened on" in said
    assert "ss -ltnp" in said
    assert not (place / "run" / "gateway.sock").exists()


@pytest.mark.parametrize("name", ["run", "state"])
def test_a_directory_is_missing(place: Path, name: str) -> None:
    shutil.rmtree(place / name)
    assert str(place / name) in refused(gateway("serve", "--dir", place))


@pytest.mark.parametrize("listen", ["0.0.0.0:5001", "[::]:5001", "10.1.2.3:5001"])
def test_a_public_address(place: Path, listen: str) -> None:
    edit(place, "listen", f'listen = "{listen}"')
    assert "must be a loopback address" in refused(gateway("serve", "--dir", place))
