import base64
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from keys.sshkey import KeyFileError, authorized_line, fingerprint, make_key, public_half

OPENSSH = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="no ssh-keygen on this machine"
)


def ssh_keygen(*args: object) -> str:
    done = subprocess.run(
        ["ssh-keygen", *map(str, args)], capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout


def test_a_key_and_its_public_half(tmp_path: Path) -> None:
    key = tmp_path / "keys" / "ssh_ed25519"
    public = make_key(key)
    kind, blob = public.split()
    assert kind == "ssh-ed25519"
    assert base64.b64decode(blob, validate=True)[-32:]
    assert public_half(key) == public
    assert key.with_name("ssh_ed25519.pub").read_text() == f"{public}\n"
    assert make_key(tmp_path / "another") != public


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_a_key_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_key(tmp_path / "keys" / "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "keys" / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


@pytest.mark.parametrize("there", ["a key", "", "damaged"])
def test_a_key_is_never_overwritten(tmp_path: Path, there: str) -> None:
    key = tmp_path / "key"
    key.write_text(there)
    with pytest.raises(FileExistsError):
        make_key(key)
    assert key.read_text() == there
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key"]


@OPENSSH
def test_openssh_reads_our_keys_and_agrees(tmp_path: Path) -> None:
    key = tmp_path / "key"
    public = make_key(key)
    assert ssh_keygen("-y", "-P", "", "-f", key).split()[:2] == public.split()
    for file in (key, key.with_name("key.pub")):
        bits, shown, *_, kind = ssh_keygen("-l", "-f", file).split()
        assert (bits, shown, kind) == ("256", fingerprint(public), "(ED25519)")


@OPENSSH
@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_we_read_the_keys_of_openssh_and_agree(tmp_path: Path, kind: str) -> None:
    key = tmp_path / "key"
    ssh_keygen("-q", "-t", kind, "-N", "", "-C", "me@laptop", "-f", key)
    public = key.with_name("key.pub").read_text()
    assert public_half(key).split() == public.split()[:2]
    assert fingerprint(public) == ssh_keygen("-l", "-f", key).split()[1]


@OPENSSH
@pytest.mark.parametrize("cipher", ["aes256-ctr", "chacha20-poly1305@openssh.com", "3des-cbc"])
def test_a_key_with_a_passphrase_is_told_as_one(tmp_path: Path, cipher: str) -> None:
    key = tmp_path / "key"
    ssh_keygen("-q", "-t", "ed25519", "-N", "passphrase", "-Z", cipher, "-f", key)
    with pytest.raises(KeyFileError, match="without a passphrase") as told:
        public_half(key)
    assert str(key) in str(told.value)


def test_what_is_no_private_key(tmp_path: Path) -> None:
    made = tmp_path / "made"
    public = make_key(made)
    head, *body, tail = made.read_text().splitlines()
    blob = base64.b64decode("".join(body))
    unknown = base64.b64encode(blob.replace(b"ssh-ed25519", b"ssh-ed25520")).decode()
    cut = base64.b64encode(blob[:-40]).decode()
    file = tmp_path / "file"
    for content in (
        "",
        "damaged",
        "\0" * 100,
        public,
        f"{head}\n{tail}\n",
        f"{head}\n!!!!\n{tail}\n",
        f"{head}\n{cut}\n{tail}\n",
        f"{head}\n{unknown}\n{tail}\n",
        "-----BEGIN PRIVATE KEY-----\nMC4=\n-----END PRIVATE KEY-----\n",
    ):
        file.write_text(content)
        with pytest.raises(KeyFileError):
            public_half(file)
        assert file.read_text() == content
    with pytest.raises(FileNotFoundError):
        public_half(tmp_path / "none")


@pytest.mark.parametrize(
    "line", ["", "ssh-ed25519", "ssh-ed25519 ???", "ssh-ed25519 AAA", "restrict ssh-ed25519 AAAA"]
)
def test_what_is_no_public_key_line(line: str) -> None:
    with pytest.raises(KeyFileError):
        fingerprint(line)


def test_a_comment_changes_no_fingerprint() -> None:
    assert fingerprint("ssh-ed25519 AAAA") == fingerprint("ssh-ed25519 AAAA me@laptop and more")
    assert fingerprint("ssh-ed25519 AAAA") != fingerprint("ssh-ed25519 AAAB")


def test_the_line_for_the_droplet_closes_every_door() -> None:
    line = authorized_line("ssh-ed25519 AAAA", ["127.0.0.1:5000", "[::1]:5432"], "me@laptop")
    assert "\n" not in line
    options, *rest = line.split(" ")
    assert rest == ["ssh-ed25519", "AAAA", "me@laptop"]
    assert sorted(options.split(",")) == sorted(
        [
            "restrict",
            "port-forwarding",
            'permitopen="127.0.0.1:5000"',
            'permitopen="[::1]:5432"',
            'permitlisten="127.0.0.1:1"',
            'command="/usr/sbin/nologin"',
        ]
    )
    # sshd reads from left to right: what is restricted first can be given back after.
    assert options.startswith("restrict,port-forwarding,")


@OPENSSH
def test_openssh_reads_the_line(tmp_path: Path) -> None:
    public = make_key(tmp_path / "key")
    file = tmp_path / "authorized_keys"
    file.write_text(authorized_line(public, ["127.0.0.1:5000", "db:5432"], "me@laptop") + "\n")
    _, shown, comment, kind = ssh_keygen("-l", "-f", file).split()
    assert (shown, comment, kind) == (fingerprint(public), "me@laptop", "(ED25519)")
