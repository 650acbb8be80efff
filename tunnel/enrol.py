"""Enrolment by file: keys are made here, the droplet says who we are there, and we take its word.

New keys wait in `keys/new` until their answer comes, and only then take the place of the old ones:
asking for new keys never breaks a path that works.
"""

import contextlib
from pathlib import Path
from urllib.parse import urlsplit

import tomlkit
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import InvalidVersion, load_pem_x509_certificates

from keys import certs
from keys.enrolment import EnrolmentAnswer, EnrolmentRequest
from keys.errors import KeyFileError
from keys.files import write_private, write_whole
from keys.keyring import load_token_key, make_token_key, thumbprint

from . import settings

TOKEN_KEY, TLS_KEY, CERTIFICATE, CA = "token.key", "tls.key", "tls.crt", "ca.crt"


class EnrolError(Exception):
    """The answer cannot be taken; says why. Nothing was changed."""


def make_request(home: Path, *, fresh: bool = False) -> str:
    """Return the request for the keys that wait in `home`/keys/new, made if there are none.

    Args:
        home: the directory of the settings.
        fresh: whether keys that wait are given up for new ones.

    Raises:
        KeyFileError: what waits there is not such a key; it is left as it was.
        OSError: a file cannot be read or written.
    """
    new = home / "keys" / "new"
    token, tls = new / TOKEN_KEY, new / TLS_KEY
    if fresh:
        token.unlink(missing_ok=True)
        tls.unlink(missing_ok=True)
    if not tls.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        write_private(tls, certs.private_pem(key), replace=False)
    if not token.exists():
        make_token_key(token)
    csr = certs.make_request(_tls_key(tls))
    return EnrolmentRequest(load_token_key(token).public_key(), csr.decode("ascii")).to_text()


def _tls_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        return certs.load_private(path.read_bytes())
    except KeyFileError as exc:
        raise KeyFileError(f"{path}: {exc}") from exc


def install(file: Path, text: bytes) -> EnrolmentAnswer:
    """Take the answer in `text`: keys, certificate, and [https] in the settings `file`.

    What a crash left half done is completed by the same answer: whatever does not wait in keys/new
    any longer is in its place already.

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
    token, tls = (_newest(new, keys, name) for name in (TOKEN_KEY, TLS_KEY))
    if not token.exists() or not tls.exists():
        raise EnrolError("No request waits for an answer here: `catalyst-tunnel keys request`.")
    if thumbprint(load_token_key(token).public_key()) != answer.kid:
        raise EnrolError("That answer is for another token key: take the one to the last request.")
    try:
        ours = certs.belongs(answer.certificate.encode(), _tls_key(tls))
        if answer.ca is not None:
            load_pem_x509_certificates(answer.ca.encode())
    except (ValueError, InvalidVersion) as exc:
        raise EnrolError("A certificate in that answer is not one.") from exc
    if not ours:
        raise EnrolError("The certificate in that answer is for another key.")
    _check(answer)
    content = _with_https(file, answer)
    settings.parse(file, content)

    if answer.ca is not None:
        write_whole(keys / CA, answer.ca.encode(), replace=True, mode=0o644)
    for path in (token, tls):
        path.replace(keys / path.name)
    write_whole(keys / CERTIFICATE, answer.certificate.encode(), replace=True, mode=0o644)
    with contextlib.suppress(OSError):  # something else lies there, and may stay
        new.rmdir()
    write_private(file, content.encode(), replace=True)
    return answer


def _newest(new: Path, keys: Path, name: str) -> Path:
    return new / name if (new / name).exists() else keys / name


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
        "cert": f"keys/{CERTIFICATE}",
        "key": f"keys/{TLS_KEY}",
        "token_key": f"keys/{TOKEN_KEY}",
    }
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
