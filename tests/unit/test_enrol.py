"""Enrolment at the laptop: what leaves it, what is taken, and what a crash leaves behind."""

import datetime
import json
import stat
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keys import certs
from keys.enrolment import SIZE, EnrolmentAnswer, EnrolmentRequest
from keys.errors import KeyFileError
from keys.files import write_private
from keys.keyring import base64url, load_token_key, make_token_key, thumbprint
from keys.pointer import Names, read_pointer
from keys.sshkey import make_key, public_half
from tunnel import settings
from tunnel.custody import enrol
from tunnel.custody.enrol import EnrolError, install, make_request
from tunnel.settings import SettingsError

BAD = (EnrolError, ValueError, KeyFileError, SettingsError)
Tree = dict[str, tuple[bytes, int] | None]


@dataclass
class Droplet:
    """Answers requests, as `client add` does."""

    authority: certs.Authority

    def answer(self, request: str, **other: Any) -> bytes:
        asked = EnrolmentRequest.read(request.encode())
        certificate = certs.issue(self.authority, asked.csr.encode(), "laptop", time.time(), 1)
        good = {
            "client": "laptop",
            "role": "operator",
            "url": "https://droplet.example/mcp",
            "audience": "catalyst-gateway:droplet.example",
            "kid": thumbprint(asked.token_key),
            "certificate": certificate.decode(),
            "ca": None,
            "ssh_target": "127.0.0.1:5001",
        }
        return EnrolmentAnswer(**{**good, **other}).to_text().encode()


@pytest.fixture(scope="module")
def droplet() -> Droplet:
    return Droplet(certs.make_authority("test", time.time()))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "home" / "config.toml"


def tree(home: Path) -> Tree:
    """Everything below `home`: content and mode of files."""
    return {
        str(one.relative_to(home)): (one.read_bytes(), stat.S_IMODE(one.stat().st_mode))
        if one.is_file()
        else None
        for one in sorted(home.rglob("*"))
    }


def usable(file: Path) -> None:
    """What is installed fits together and the settings name it."""
    https = settings.load_unchecked(file).https
    assert https is not None
    key = certs.load_private(https.key.read_bytes())
    assert certs.belongs(https.cert.read_bytes(), key)
    load_token_key(https.token_key)


# The request.


def test_a_request_may_be_asked_for_again(file: Path) -> None:
    first = make_request(file.parent)
    before = tree(file.parent)
    second = make_request(file.parent)
    assert tree(file.parent) == before
    one, other = (EnrolmentRequest.read(text.encode()) for text in (first, second))
    assert thumbprint(one.token_key) == thumbprint(other.token_key)
    keys = [x509.load_pem_x509_csr(paper.csr.encode()).public_key() for paper in (one, other)]
    assert keys[0] == keys[1]


def test_the_private_halves_are_not_in_the_request(file: Path) -> None:
    text = make_request(file.parent)
    new = file.parent / "keys" / "new"
    token = load_token_key(new / "token.key").private_bytes_raw()
    number = certs.load_private((new / "tls.key").read_bytes()).private_numbers().private_value
    secrets = [token, number.to_bytes(32, "big")]
    assert "PRIVATE" not in text
    paper = json.loads(text)
    der = x509.load_pem_x509_csr(paper["csr"].encode()).public_bytes(certs.Encoding.DER)
    for secret in secrets:
        assert base64url(secret) not in text
        assert secret.hex() not in text.lower()
        assert secret not in der
    assert set(paper["token_key"]) == {"kty", "crv", "x"}


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_what_is_private_is_closed_to_others(file: Path, droplet: Droplet) -> None:
    request = make_request(file.parent)
    assert {mode for _, mode in filter(None, tree(file.parent).values())} == {0o600}
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((file.parent / "keys").stat().st_mode) == 0o700
    install(file, droplet.answer(request, ca=droplet.authority.certificate_pem().decode()))
    modes = {name: found[1] for name, found in tree(file.parent).items() if found}
    assert modes == {
        "config.toml": 0o600,
        "keys/ca.crt": 0o644,
        "keys/tls.crt": 0o644,
        "keys/tls.key": 0o600,
        "keys/token.key": 0o600,
    }


@pytest.mark.parametrize("name", ["token.key", "tls.key"])
def test_a_key_that_is_none_is_told_and_left(file: Path, name: str) -> None:
    write_private(file.parent / "keys" / "new" / name, b"precious\n", replace=False)
    with pytest.raises(KeyFileError, match=name):
        make_request(file.parent)
    assert (file.parent / "keys" / "new" / name).read_bytes() == b"precious\n"


def test_a_request_changes_no_keys_that_work(file: Path, droplet: Droplet) -> None:
    install(file, droplet.answer(make_request(file.parent)))
    before = tree(file.parent)
    make_request(file.parent)
    after = tree(file.parent)
    assert {name: after[name] for name in before} == before
    usable(file)


# The answer.


def test_an_answer_completes_settings_that_are_not_there(file: Path, droplet: Droplet) -> None:
    install(file, droplet.answer(make_request(file.parent)))
    usable(file)
    read = settings.load(file)
    assert read.paths == ("https",)
    assert read.https is not None
    assert (read.https.host, read.https.port, read.https.base) == ("droplet.example", 443, b"/mcp")
    assert (read.https.client, read.https.audience) == (
        "laptop",
        "catalyst-gateway:droplet.example",
    )
    assert read.https.ca_file is None


def test_a_private_ca_is_installed_and_named(file: Path, droplet: Droplet) -> None:
    ca = droplet.authority.certificate_pem().decode()
    install(file, droplet.answer(make_request(file.parent), ca=ca * 2))
    read = settings.load(file, "https").https
    assert read is not None
    assert read.ca_file is not None
    assert read.ca_file.read_text() == ca * 2


WRITTEN = """\
# mine
[tunnel]
hold = 12  # seconds
paths = ["ssh"]

[ssh]
host = "droplet.example"  # the new one
known_hosts = "known"

[https]
# as I like it
use_proxy = true
url = "https://old.example/mcp"
client = "old"

[[forward]]
name = "raw"
listen = "127.0.0.1:7000"
target = "127.0.0.1:8000"
"""


def test_what_a_person_wrote_stays(file: Path, droplet: Droplet) -> None:
    request = make_request(file.parent)
    file.write_text(WRITTEN)
    install(file, droplet.answer(request))
    text = file.read_text()
    for line in ("# mine", "# seconds", "# the new one", "# as I like it", "use_proxy = true"):
        assert line in text
    content = tomllib.loads(text)
    before = tomllib.loads(WRITTEN)
    assert content["ssh"] == before["ssh"]
    assert content["forward"] == before["forward"]
    assert content["tunnel"] == {"hold": 12, "paths": ["ssh", "https"]}
    assert content["https"]["url"] == "https://droplet.example/mcp"
    assert content["https"]["client"] == "laptop"
    assert content["https"]["use_proxy"] is True


@pytest.mark.parametrize(
    ("given", "after"),
    [
        ('["ssh"]', ["ssh", "https"]),
        ('["https"]', ["https"]),
        ('["ssh", "https"]', ["ssh", "https"]),
        ('["https", "ssh"]', ["https", "ssh"]),
        (None, None),
    ],
)
def test_only_ssh_alone_gets_https_beside_it(
    file: Path, droplet: Droplet, given: str | None, after: list[str] | None
) -> None:
    request = make_request(file.parent)
    lines = ["[tunnel]", "hold = 1", *([f"paths = {given}"] if given else [])]
    file.write_text("\n".join([*lines, "[ssh]", 'host = "droplet.example"', ""]))
    install(file, droplet.answer(request))
    assert tomllib.loads(file.read_text())["tunnel"].get("paths") == after
    assert "https" in settings.load_unchecked(file).paths


def test_a_byte_order_mark_is_no_hindrance(file: Path, droplet: Droplet) -> None:
    request = make_request(file.parent)
    file.write_bytes(b'\xef\xbb\xbf[ssh]\r\nhost = "droplet.example"\r\n')
    install(file, droplet.answer(request))
    assert settings.load_unchecked(file).ssh.host == "droplet.example"


def with_json(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def changed(text: bytes) -> bytes:
        content = json.loads(text)
        change(content)
        return json.dumps(content).encode()

    return changed


def member(**values: Any) -> Callable[[bytes], bytes]:
    return with_json(lambda content: content.update(values))


def foreign_certificate() -> str:
    authority = certs.make_authority("other", time.time())
    request = certs.make_request(ec.generate_private_key(ec.SECP256R1()))
    return certs.issue(authority, request, "laptop", time.time(), 1).decode()


def ed25519_certificate() -> str:
    key = Ed25519PrivateKey.generate()
    name = x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.public_key(key.public_key()).not_valid_before(now).not_valid_after(now)
    return builder.sign(key, None).public_bytes(certs.Encoding.PEM).decode()


GARBAGE_PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

REFUSED: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "not JSON": lambda _: b"Permission denied (publickey).\n",
    "not UTF-8": lambda text: text + b"\xff",
    "null": lambda _: b"null",
    "a list": lambda text: b"[" + text + b"]",
    "deep": lambda _: b"[" * 30_000,
    "cut short": lambda text: text[: len(text) // 2],
    "twice": lambda text: text + text,
    "a member twice": lambda text: text.replace(b"{", b'{"client": "x", ', 1),
    "huge": lambda text: text + b" " * SIZE,
    "a request": member(catalyst="request"),
    "another version": member(version=2),
    "a version as text": member(version="1"),
    "true for a version": member(version=True),
    "no version": with_json(lambda content: content.pop("version")),
    "one member more": member(extra=1),
    "one member less": with_json(lambda content: content.pop("audience")),
    "another kid": member(kid="A" * 43),
    "an empty kid": member(kid=""),
    "another certificate": lambda text: member(certificate=foreign_certificate())(text),
    "an Ed25519 certificate": lambda text: member(certificate=ed25519_certificate())(text),
    "garbage for a certificate": member(certificate="garbage"),
    "PEM garbage for a certificate": member(certificate=GARBAGE_PEM),
    "two certificates": with_json(
        lambda content: content.update(certificate=content["certificate"] * 2)
    ),
    "no certificate": member(certificate=None),
    "garbage for a CA": member(ca="garbage"),
    "PEM garbage for a CA": member(ca=GARBAGE_PEM),
    "an empty CA": member(ca=""),
    "a number for a CA": member(ca=1),
    "plain http": member(url="http://droplet.example/mcp"),
    "an url with a password": member(url="https://user:pw@droplet.example/mcp"),
    "an url with a query": member(url="https://droplet.example/mcp?x"),
    "an url with a new line": member(url='https://droplet.example/mcp"\n[ssh]\nhost = "evil'),
    "an url of nothing": member(url="https://"),
    "a client with spaces": member(client="my laptop"),
    "a client in capitals": member(client="Laptop"),
    "a client with a new line": member(client="laptop\n"),
    "a client with a quote": member(client='laptop"\nrole = "x'),
    "a client with an escape": member(client="\x1b[31mlaptop"),
    "a client with a path": member(client="../laptop"),
    "a long client": member(client="x" * 64),
    "no client": member(client=""),
    "another role": member(role="root"),
    "an audience with a new line": member(audience="catalyst-gateway:x\ny"),
    "an ssh target with a new line": member(ssh_target='127.0.0.1:5001"\ngateway = true'),
    "an ssh target with an escape": member(ssh_target="\x1b[2J:1"),
    "no ssh target": member(ssh_target="droplet"),
}


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_answer_is_refused_in_words_and_changes_nothing(
    file: Path, droplet: Droplet, case: str, config: bool
) -> None:
    request = make_request(file.parent)
    if config:
        file.write_text(WRITTEN)
    text = REFUSED[case](droplet.answer(request))
    before = tree(file.parent)
    with pytest.raises(BAD) as caught:
        install(file, text)
    assert len(str(caught.value)) > 10
    assert str(caught.value).replace("\n", "").isprintable()
    assert tree(file.parent) == before
    install(file, droplet.answer(request))  # the right one is still taken
    usable(file)


@pytest.mark.parametrize(
    "text",
    [
        b"[tunnel\n",
        b"a = 1\na = 2\n",
        b"a = " + b"[" * 5000,
        b"\xff\xfe\x00",
        b"a = '\x00'\n",
        b"https = 1\nhttps = 2\n",
        b"nobody = 1\n",
        b"[tunnel]\npaths = 7\n",
        b"tunnel = 'x'\n",
        b"[[https]]\nurl = 'x'\n",
        b"https = 'x'\n",
        b"[https]\nnobody = 1\n",
        b"[ssh]\n",
    ],
)
def test_settings_at_fault_are_told_and_nothing_is_changed(
    file: Path, droplet: Droplet, text: bytes
) -> None:
    request = make_request(file.parent)
    file.write_bytes(text)
    before = tree(file.parent)
    with pytest.raises(SettingsError, match=r"config\.toml"):
        install(file, droplet.answer(request))
    assert tree(file.parent) == before


@pytest.mark.parametrize("https", ['https = "x"\n', "https = {}\n", "https.use_proxy = false\n"])
def test_https_in_other_shapes_of_toml(file: Path, droplet: Droplet, https: str) -> None:
    """Taken or refused, and never written so that it means something else."""
    request = make_request(file.parent)
    file.write_text(https + '[ssh]\nhost = "droplet.example"\n')
    before = tree(file.parent)
    try:
        install(file, droplet.answer(request))
    except SettingsError:
        assert tree(file.parent) == before
        return
    usable(file)
    assert settings.load_unchecked(file).ssh.host == "droplet.example"


def test_without_a_request_there_is_no_answer(file: Path, droplet: Droplet, tmp_path: Path) -> None:
    answer = droplet.answer(make_request(tmp_path / "other"))
    file.parent.mkdir()
    with pytest.raises(EnrolError, match="keys request"):
        install(file, answer)
    assert tree(file.parent) == {}


@pytest.mark.parametrize("name", ["token.key", "tls.key"])
def test_a_waiting_key_that_was_spoilt_is_told(file: Path, droplet: Droplet, name: str) -> None:
    answer = droplet.answer(make_request(file.parent))
    (file.parent / "keys" / "new" / name).write_bytes(b"spoilt")
    before = tree(file.parent)
    with pytest.raises(KeyFileError):
        install(file, answer)
    assert tree(file.parent) == before


def test_the_answer_to_an_older_request_is_refused(file: Path, droplet: Droplet) -> None:
    old = droplet.answer(make_request(file.parent))
    install(file, old)
    make_request(file.parent)
    before = tree(file.parent)
    with pytest.raises(EnrolError, match="another token key"):
        install(file, old)
    assert tree(file.parent) == before


def test_enrolling_again_replaces_everything(file: Path, droplet: Droplet) -> None:
    install(file, droplet.answer(make_request(file.parent)))
    before = tree(file.parent)
    install(file, droplet.answer(make_request(file.parent), client="desktop"))
    usable(file)
    after = tree(file.parent)
    assert {"keys/token.key", "keys/tls.key", "keys/tls.crt"} <= before.keys()
    assert after.keys() - before.keys() == {
        "keys/current.json",
        "keys/token-2.key",
        "keys/tls-2.key",
        "keys/tls-2.crt",
    }
    assert before.keys() - after.keys() == {"keys/token.key", "keys/tls.key", "keys/tls.crt"}
    assert read_pointer(file.parent / "keys") == Names("ssh_ed25519", "token-2.key", "tls-2")


def test_the_same_answer_twice_is_no_harm(file: Path, droplet: Droplet) -> None:
    answer = droplet.answer(make_request(file.parent))
    install(file, answer)
    before = tree(file.parent)
    install(file, answer)
    assert tree(file.parent) == before


def test_something_else_in_the_way_is_left_there(file: Path, droplet: Droplet) -> None:
    request = make_request(file.parent)
    (file.parent / "keys" / "new" / ".DS_Store").write_bytes(b"x")
    install(file, droplet.answer(request))
    usable(file)
    assert (file.parent / "keys" / "new" / ".DS_Store").exists()


# A crash in the middle.


class Crash(BaseException):
    """The machine goes down."""


def crash_at(patch: pytest.MonkeyPatch, step: int, kind: type[BaseException]) -> list[str]:
    """Have the `step`-th change of a file fail; returns the changes that were made."""
    done: list[str] = []

    def counted(change: Callable[..., Any], name: str) -> Callable[..., Any]:
        def do(*args: Any, **named: Any) -> Any:
            if len(done) == step:
                raise kind(28, "No space left on device")
            done.append(name)
            return change(*args, **named)

        return do

    patch.setattr(enrol, "write_whole", counted(enrol.write_whole, "write_whole"))
    patch.setattr(enrol, "write_private", counted(enrol.write_private, "write_private"))
    patch.setattr(enrol, "write_pointer", counted(enrol.write_pointer, "write_pointer"))
    patch.setattr(Path, "unlink", counted(Path.unlink, "unlink"))
    patch.setattr(Path, "rmdir", counted(Path.rmdir, "rmdir"))
    return done


# Write CA, two keys, certificate, settings; then the pointer, and remove three old files, where
# there are some; remove what may have waited, four files, and their directory.
STEPS = {False: 10, True: 14}


@pytest.mark.parametrize("again", ["answer", "request"])
@pytest.mark.parametrize("kind", [Crash, OSError])
@pytest.mark.parametrize(
    ("enrolled", "step"), [(again, step) for again, steps in STEPS.items() for step in range(steps)]
)
def test_a_crash_at_any_step_can_be_mended(
    file: Path,
    droplet: Droplet,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    enrolled: bool,
    kind: type[BaseException],
    again: str,
) -> None:
    ca = droplet.authority.certificate_pem().decode()
    if enrolled:
        install(file, droplet.answer(make_request(file.parent), ca=ca))
    answer = droplet.answer(make_request(file.parent), ca=ca)
    with monkeypatch.context() as patch:
        done = crash_at(patch, step, kind)
        try:
            install(file, answer)
        except (Crash, OSError):
            assert len(done) == step
        else:  # the directory stays, which does not matter
            assert (kind, step) == (OSError, STEPS[enrolled] - 1)
    if again == "request":  # the answer was lost as well
        answer = droplet.answer(make_request(file.parent), ca=ca)
    install(file, answer)
    usable(file)
    assert not (file.parent / "keys" / "new").exists()
    kid = EnrolmentAnswer.read(answer).kid
    https = settings.load_unchecked(file).https
    assert https is not None
    assert thumbprint(load_token_key(https.token_key).public_key()) == kid


@pytest.mark.parametrize("enrolled", STEPS)
def test_the_steps_are_all_that_there_are(
    file: Path, droplet: Droplet, monkeypatch: pytest.MonkeyPatch, enrolled: bool
) -> None:
    if enrolled:
        install(file, droplet.answer(make_request(file.parent)))
    answer = droplet.answer(
        make_request(file.parent), ca=droplet.authority.certificate_pem().decode()
    )
    with monkeypatch.context() as patch:
        done = crash_at(patch, -1, Crash)
        install(file, answer)
    assert len(done) == STEPS[enrolled]


def test_a_key_made_by_hand_is_taken(file: Path, droplet: Droplet) -> None:
    """Keys that wait are used whoever put them there."""
    make_token_key(file.parent / "keys" / "new" / "token.key")
    install(file, droplet.answer(make_request(file.parent)))
    usable(file)


# The SSH key.


def asked_for(text: str) -> str | None:
    return EnrolmentRequest.read(text.encode()).ssh_key


def test_the_ssh_key_in_use_is_asked_for(file: Path) -> None:
    public = make_key(file.parent / "keys" / "ssh_ed25519")
    text = make_request(file.parent)
    assert asked_for(text) == public
    assert "PRIVATE" not in text


def test_a_key_that_cannot_prove_itself_is_not_asked_for(file: Path) -> None:
    assert asked_for(make_request(file.parent)) is None
    write_private(file.parent / "keys" / "ssh_ed25519", b"spoilt", replace=False)
    assert asked_for(make_request(file.parent)) is None


def test_the_ssh_key_that_the_settings_name_is_asked_for(file: Path, tmp_path: Path) -> None:
    make_key(file.parent / "keys" / "ssh_ed25519")
    public = make_key(tmp_path / "mine")
    assert asked_for(make_request(file.parent, identity=tmp_path / "mine")) == public


def test_a_new_ssh_key_waits_and_then_takes_the_place_of_the_old(
    file: Path, droplet: Droplet
) -> None:
    keys = file.parent / "keys"
    old = make_key(keys / "ssh_ed25519")
    request = make_request(file.parent, new_ssh=True)
    new = asked_for(request)
    assert new not in (None, old)
    assert asked_for(make_request(file.parent)) == new
    assert public_half(keys / "ssh_ed25519") == old
    install(file, droplet.answer(request))
    usable(file)
    identity = settings.load_unchecked(file).ssh.identity
    assert identity is not None
    assert public_half(identity) == new
    assert identity.with_name(f"{identity.name}.pub").read_text() == f"{new}\n"
    assert not (keys / "ssh_ed25519").exists()
    assert not (keys / "new").exists()
