"""Enrolment by file: keys are made here, the droplet says who we are there, and we take its word.

New keys wait in `keys/new` until their answer comes, and only then take the place of the old ones,
by the pointer: asking for new keys never breaks a path that works, nor does half an answer.
"""

import contextlib
from pathlib import Path
from urllib.parse import urlsplit

import tomlkit
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509 import InvalidVersion, load_pem_x509_certificates

from keys import certs, sshkey
from keys.enrolment import EnrolmentAnswer, EnrolmentRequest
from keys.errors import KeyFileError
from keys.files import write_private, write_whole
from keys.keyring import load_token_key, make_token_key, thumbprint
from keys.locked import Unlock
from keys.pointer import FAMILIES, Family, Names, read_pointer, write_pointer

from .. import settings

TOKEN_KEY, TLS_KEY, SSH_KEY, CA = "token.key", "tls.key", "ssh_ed25519", "ca.crt"


class EnrolError(Exception):
    """The answer cannot be taken; says why. Nothing was changed."""


def make_request(
    home: Path,
    *,
    fresh: bool = False,
    new_ssh: bool = False,
    identity: Path | None = None,
    unlock: Unlock | None = None,
) -> str:
    """Return the request for the keys that wait in `home`/keys/new, made if there are none.

    The SSH key is asked for, too, where there is one that can prove itself: the one in use, unless
    a new one waits.

    Args:
        home: the directory of the settings.
        fresh: whether keys that wait are given up for new ones.
        new_ssh: whether a new SSH key is to take the place of the one in use.
        identity: the SSH key that the settings name, where they do.
        unlock: how to get the passphrase that keys have; None: they have none.

    Raises:
        KeyFileError: what waits there is not such a key; it is left as it was.
        OSError: a file cannot be read or written.
    """
    new = home / "keys" / "new"
    token, tls = new / TOKEN_KEY, new / TLS_KEY
    if fresh:
        for name in (TOKEN_KEY, TLS_KEY, SSH_KEY, f"{SSH_KEY}.pub"):
            (new / name).unlink(missing_ok=True)
    if not tls.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        write_private(tls, certs.private_pem(key, unlock), replace=False)
    if not token.exists():
        make_token_key(token, unlock)
    waiting = new / SSH_KEY
    if new_ssh and not waiting.exists():
        sshkey.make_key(waiting, unlock)
    csr = certs.make_request(_tls_key(tls, unlock)).decode("ascii")
    public = load_token_key(token, unlock).public_key()
    used = identity or home / "keys" / read_pointer(home / "keys").ssh
    ssh = _ssh_key(waiting if waiting.exists() else used, unlock)
    if ssh is None:
        return EnrolmentRequest(public, csr).to_text()
    proof = sshkey.prove(ssh, "", "", thumbprint(public))
    line = sshkey.public_line(ssh.public_key())
    return EnrolmentRequest(public, csr, line, proof).to_text()


def _ssh_key(path: Path, unlock: Unlock | None) -> Ed25519PrivateKey | None:
    """Return the key in `path`, if it is one that can be asked for."""
    try:
        return sshkey.load_key(path, unlock)
    except (KeyFileError, OSError):  # of another kind, or kept in an agent
        return None


def _tls_key(path: Path, unlock: Unlock | None) -> ec.EllipticCurvePrivateKey:
    try:
        return certs.load_private(path.read_bytes(), unlock)
    except KeyFileError as exc:
        raise KeyFileError(f"{path}: {exc}") from exc


def install(file: Path, text: bytes) -> EnrolmentAnswer:
    """Take the answer in `text`: keys, certificate, and [https] in the settings `file`.

    What a crash left half done is completed by the same answer: what waits in keys/new is removed
    last.

    Raises:
        EnrolError: it is not the answer to the request that was made here.
        ValueError: it is not an answer.
        KeyFileError: what waits in keys/new is not such a key.
        settings.SettingsError: the settings are at fault, before or with the answer in them.
        OSError: a file cannot be read or written.
    """
    answer = EnrolmentAnswer.read(text)
    keys = file.parent / "keys"
    new = keys / "new"
    used = read_pointer(keys)
    content = _with_https(file, answer)
    unlock = settings.parse(file, content).ssh.unlock
    token = _newest(new / TOKEN_KEY, keys / used.token)
    tls = _newest(new / TLS_KEY, keys / f"{used.tls}.key")
    if not token.exists() or not tls.exists():
        raise EnrolError("No request waits for an answer here: `catalyst-tunnel keys request`.")
    if thumbprint(load_token_key(token, unlock).public_key()) != answer.kid:
        raise EnrolError("That answer is for another token key: take the one to the last request.")
    try:
        ours = certs.belongs(answer.certificate.encode(), _tls_key(tls, unlock))
        if answer.ca is not None:
            load_pem_x509_certificates(answer.ca.encode())
    except (ValueError, InvalidVersion) as exc:
        raise EnrolError("A certificate in that answer is not one.") from exc
    if not ours:
        raise EnrolError("The certificate in that answer is for another key.")
    _check(answer)
    if answer.ca is not None:
        write_whole(keys / CA, answer.ca.encode(), replace=True, mode=0o644)
    ssh = new / SSH_KEY
    names = _names(keys, used, token, tls, ssh)
    for waiting, name in ((token, names.token), (tls, f"{names.tls}.key"), (ssh, names.ssh)):
        if waiting.parent == new and waiting.exists():
            write_private(keys / name, waiting.read_bytes(), replace=True)
    if ssh.exists():
        public = f"{sshkey.public_half(ssh, unlock)}\n".encode()
        write_private(keys / f"{names.ssh}.pub", public, replace=True)
    certificate = keys / f"{names.tls}.crt"
    write_whole(certificate, answer.certificate.encode(), replace=True, mode=0o644)
    write_private(file, content.encode(), replace=True)
    if names != used:
        _point(keys, used, names)
    for waiting in (ssh, new / f"{SSH_KEY}.pub", token, tls):
        if waiting.parent == new:
            waiting.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else lies there, and may stay
        new.rmdir()
    return answer


def _point(keys: Path, used: Names, names: Names) -> None:
    """Use `names`, and remove what was used before."""
    write_pointer(keys, names)
    for family in FAMILIES:
        for name in set(used.files(family)) - set(names.files(family)):
            (keys / name).unlink(missing_ok=True)


def _newest(waiting: Path, used: Path) -> Path:
    return waiting if waiting.exists() else used


def _names(keys: Path, used: Names, token: Path, tls: Path, ssh: Path) -> Names:
    """Return the names for these keys: those in use where nothing else has them, or new ones."""
    ours = {path.read_bytes() for path in (token, tls, ssh) if path.exists()}
    families: list[Family] = ["token", "cert"]
    taken = {one.name for one in keys.iterdir() if one.is_file() and one.read_bytes() not in ours}
    private = {used.token, f"{used.tls}.key"}
    if ssh.exists():
        families.append("ssh")
        private.add(used.ssh)
    if not private & taken:
        return used
    # What lies beside a key of ours was left by a crash, and belongs to it.
    free = {one.name for one in keys.iterdir() if one.name not in taken}
    taken -= {f"{name.removesuffix('.key')}.crt" for name in free} | {
        f"{name}.pub" for name in free
    }
    return used.after(families, taken)


def _check(answer: EnrolmentAnswer) -> None:
    """Refuse a target that is no address, since it is shown on the terminal as a line to copy, and
    an audience that is not the gateway of the URL.
    """
    try:
        settings.parse_address(answer.ssh_target)
    except ValueError as exc:
        raise EnrolError(f"That answer's ssh_target {exc}.") from exc
    if answer.audience != f"catalyst-gateway:{urlsplit(answer.url).hostname}":
        raise EnrolError("That answer's tokens are for another gateway than the one of its url.")


def _with_https(file: Path, answer: EnrolmentAnswer) -> str:
    """Return the settings with [https] in them; what a person wrote there stays as it is."""
    try:
        text = file.read_text(encoding="utf-8-sig") if file.exists() else ""
        content = tomlkit.parse(text)
    except UnicodeDecodeError as exc:
        fault = f"{file}: is not TOML, which is UTF-8: {exc.reason}"
        raise settings.SettingsError([fault]) from exc
    except tomlkit.exceptions.ParseError as exc:
        raise settings.SettingsError([f"{file}: is not TOML: {exc}"]) from exc
    if "https" not in content:
        content["https"] = tomlkit.table()
    table = content["https"]
    if not isinstance(table, dict):
        raise settings.SettingsError([f"{file}: [https] must be a table"])
    values = {
        "url": answer.url,
        "client": answer.client,
        "audience": answer.audience,
    }
    for name in ("cert", "key", "token_key"):  # the pointer says which they are
        table.pop(name, None)
    if answer.ca is not None:
        values["ca_file"] = f"keys/{CA}"
    elif table.get("ca_file") == f"keys/{CA}":
        del table["ca_file"]  # ours, and no longer the one of the site
    for name, value in values.items():
        table[name] = value
    tunnel = content.get("tunnel")
    if isinstance(tunnel, dict) and tunnel.get("paths") == ["ssh"]:
        tunnel["paths"] = ["ssh", "https"]
    return tomlkit.dumps(content)
