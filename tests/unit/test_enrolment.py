import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from keys import sshkey
from keys.enrolment import CLIENT, ROLES, SIZE, EnrolmentAnswer, EnrolmentRequest
from keys.keyring import base64url, thumbprint, to_jwk

KEY = Ed25519PrivateKey.from_private_bytes(b"1" * 32)
JWK = to_jwk(KEY.public_key())
CSR = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
REQUEST = EnrolmentRequest(KEY.public_key(), CSR)
ANSWER = EnrolmentAnswer(
    client="laptop",
    role="operator",
    url="https://mcp.example.com/mcp",
    audience="catalyst-gateway:mcp.example.com",
    kid=thumbprint(KEY.public_key()),
    certificate=PEM,
    ca=None,
    ssh_target="127.0.0.1:5001",
)
Read = Callable[[bytes], EnrolmentRequest | EnrolmentAnswer]
PAPERS: list[tuple[Read, str, dict[str, Any]]] = [
    (EnrolmentRequest.read, "request", json.loads(REQUEST.to_text())),
    (EnrolmentAnswer.read, "answer", json.loads(ANSWER.to_text())),
]
BOTH = pytest.mark.parametrize(("read", "kind", "good"), PAPERS, ids=["request", "answer"])


def text(members: object) -> bytes:
    return json.dumps(members).encode()


# As documented.


def test_a_request_is_as_documented() -> None:
    assert json.loads(REQUEST.to_text()) == {
        "catalyst": "request",
        "version": 1,
        "token_key": {"kty": "OKP", "crv": "Ed25519", "x": JWK["x"]},
        "csr": CSR,
    }


@pytest.mark.parametrize("ca", [None, PEM])
def test_an_answer_is_as_documented(ca: str | None) -> None:
    assert json.loads(replace(ANSWER, ca=ca).to_text()) == {
        "catalyst": "answer",
        "version": 1,
        "client": "laptop",
        "role": "operator",
        "url": "https://mcp.example.com/mcp",
        "audience": "catalyst-gateway:mcp.example.com",
        "kid": ANSWER.kid,
        "certificate": PEM,
        "ca": ca,
        "ssh_target": "127.0.0.1:5001",
    }


def test_there_is_no_secret_in_a_request() -> None:
    secret = KEY.private_bytes_raw()
    for form in (base64url(secret), secret.hex(), "PRIVATE", '"d"'):
        assert form not in REQUEST.to_text()


def test_a_request_survives_its_file() -> None:
    assert EnrolmentRequest.read(REQUEST.to_text().encode()) == REQUEST


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("ca", [None, PEM])
def test_an_answer_survives_its_file(role: Any, ca: str | None) -> None:
    answer = replace(ANSWER, role=role, ca=ca)
    assert EnrolmentAnswer.read(answer.to_text().encode()) == answer


@BOTH
def test_the_order_of_members_is_free(read: Read, kind: str, good: dict[str, Any]) -> None:
    assert read(text(dict(reversed(good.items())))) == read(text(good))


# Members.


@BOTH
def test_every_member_must_be_there(read: Read, kind: str, good: dict[str, Any]) -> None:
    for name in good:
        rest = {one: value for one, value in good.items() if one != name}
        with pytest.raises(ValueError, match=kind):
            read(text(rest))


@BOTH
@pytest.mark.parametrize(
    "name", ["", "private_key", "comment", "Csr", "csr ", "__class__", "_text"]
)
def test_no_other_member_may_be_there(
    read: Read, kind: str, good: dict[str, Any], name: str
) -> None:
    with pytest.raises(ValueError, match=f"an enrolment {kind} has these members, and no others: "):
        read(text({**good, name: "x"}))


@BOTH
def test_no_member_may_be_there_twice(read: Read, kind: str, good: dict[str, Any]) -> None:
    for name in good:
        twice = text(good)[:-1] + b', "%s": "x"}' % name.encode()
        escaped = text(good)[:-1] + b', "\\u%04x%s": "x"}' % (ord(name[0]), name[1:].encode())
        for paper in (twice, escaped):
            with pytest.raises(ValueError, match="named twice"):
                read(paper)


@BOTH
def test_every_member_must_be_of_its_kind(read: Read, kind: str, good: dict[str, Any]) -> None:
    for name, value in good.items():
        for wrong in (None, True, False, 0, 2, 1.0, "", [], {}, [value], {"value": value}):
            if (name, wrong) == ("ca", None):
                continue
            with pytest.raises(ValueError) as caught:
                read(text({**good, name: wrong}))
            said = str(caught.value)
            assert len(said.split()) > 3, f"in words, not {said!r}"


@BOTH
@pytest.mark.parametrize("version", [0, 2, -1, 1.0, True, "1", [1], None, 10**30])
def test_another_version(read: Read, kind: str, good: dict[str, Any], version: object) -> None:
    with pytest.raises(ValueError, match=f"enrolment {kind} is of another version"):
        read(text({**good, "version": version}))


@BOTH
def test_one_paper_for_the_other(read: Read, kind: str, good: dict[str, Any]) -> None:
    other = next(paper for _, name, paper in PAPERS if name != kind)
    with pytest.raises(ValueError, match=f"not an enrolment {kind}"):
        read(text(other))
    with pytest.raises(ValueError, match="has these members"):
        read(text({**other, "catalyst": kind}))


# The paper as a whole.


@BOTH
@pytest.mark.parametrize(
    "paper",
    [
        b"",
        b" ",
        b"{}",
        b"[]",
        b"null",
        b"1",
        b'"request"',
        b"\xff\xfe",
        b"\0" * 100,
        b"[" * 60_000,
        b"1" * 60_000,
        b"-----BEGIN CERTIFICATE REQUEST-----",
        b'{"catalyst": NaN}',
        b'{"catalyst": 1e999}',
        b'{"catalyst": "\\ud800"}',
        b'{"catalyst": ["request"]}',
        b'{"catalyst": "Request"}',
    ],
)
def test_what_is_no_paper(read: Read, kind: str, good: dict[str, Any], paper: bytes) -> None:
    with pytest.raises(ValueError, match=f"that is not an enrolment {kind}"):
        read(paper)


@BOTH
def test_another_encoding(read: Read, kind: str, good: dict[str, Any]) -> None:
    for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig"):
        with pytest.raises(ValueError, match=f"that is not an enrolment {kind}"):
            read(json.dumps(good).encode(encoding))


@BOTH
def test_the_size_of_a_paper(read: Read, kind: str, good: dict[str, Any]) -> None:
    paper = text(good)
    fitting = paper + b" " * (SIZE - len(paper))
    assert read(fitting) == read(paper)
    with pytest.raises(ValueError, match=f"too large for an enrolment {kind}"):
        read(fitting + b" ")
    with pytest.raises(ValueError, match="too large"):
        read(b"1" * 10_000_000)


@BOTH
@given(data=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_refused_in_words(
    read: Read, kind: str, good: dict[str, Any], data: bytes
) -> None:
    with pytest.raises(ValueError, match=f"that is not an enrolment {kind}"):
        read(data)


# The key of a request.


@pytest.mark.parametrize(
    "change",
    [
        {"d": base64url(KEY.private_bytes_raw())},
        {"d": ""},
        {"kid": ANSWER.kid},
        {"use": "sig"},
        {"kty": "EC"},
        {"kty": None},
        {"crv": "Ed448"},
        {"crv": "X25519"},
        {"crv": ["Ed25519"]},
        {"x": ""},
        {"x": 1},
        {"x": None},
        {"x": base64url(bytes(31))},
        {"x": base64url(bytes(33))},
        {"x": f"{JWK['x']}="},
        {"x": f"{JWK['x']}\n"},
        {"x": "!" * 43},
    ],
)
def test_a_token_key_of_another_kind(change: dict[str, Any]) -> None:
    members = json.loads(REQUEST.to_text())
    members["token_key"] |= change
    with pytest.raises(ValueError, match="the token key") as caught:
        EnrolmentRequest.read(text(members))
    assert base64url(KEY.private_bytes_raw()) not in str(caught.value)


def test_a_token_key_whose_private_part_came_first_and_twice() -> None:
    paper = REQUEST.to_text().replace('"kty"', '"d": "x", "kty": "OKP", "kty"')
    with pytest.raises(ValueError, match="named twice"):
        EnrolmentRequest.read(paper.encode())


# The client and the role of an answer.


@pytest.mark.parametrize(
    "client",
    [
        "Laptop",
        "-laptop",
        ".laptop",
        "_laptop",
        "lap top",
        "laptop\n",
        "laptop\0",
        "../laptop",
        "lap/top",
        "lap\\top",
        "lap;top",
        "$laptop",
        'lap"top',
        "l\u00e4ptop",
        "l\u0430ptop",
        "\u0661",
        "x" * 64,
    ],
)
def test_a_client_name_that_would_need_quoting(client: str) -> None:
    assert not CLIENT.fullmatch(client)
    with pytest.raises(ValueError, match="no client"):
        EnrolmentAnswer.read(text(json.loads(ANSWER.to_text()) | {"client": client}))


@pytest.mark.parametrize("client", ["a", "0", "laptop-2.home_office", "x" * 63])
def test_client_names_that_are_fine(client: str) -> None:
    paper = text(json.loads(ANSWER.to_text()) | {"client": client})
    assert EnrolmentAnswer.read(paper).client == client


@pytest.mark.parametrize("role", ["admin", "Operator", "operator ", "operator,observer", "*"])
def test_a_role_that_is_not_known(role: str) -> None:
    with pytest.raises(ValueError, match="no role"):
        EnrolmentAnswer.read(text(json.loads(ANSWER.to_text()) | {"role": role}))


# The SSH key of a request.

SSH = Ed25519PrivateKey.from_private_bytes(b"2" * 32)
LINE = sshkey.public_line(SSH.public_key())
PROOF = sshkey.prove(SSH, "", "", ANSWER.kid)
WITH_SSH = replace(REQUEST, ssh_key=LINE, ssh_proof=PROOF)


def test_a_request_with_an_ssh_key() -> None:
    assert EnrolmentRequest.read(WITH_SSH.to_text().encode()) == WITH_SSH
    told = json.loads(WITH_SSH.to_text())
    assert (told["ssh_key"], told["ssh_proof"]) == (LINE, PROOF)
    assert base64url(SSH.private_bytes_raw()) not in WITH_SSH.to_text()


@pytest.mark.parametrize(
    "change",
    [
        {"ssh_key": None},
        {"ssh_key": ""},
        {"ssh_key": f"{LINE} comment"},
        {"ssh_key": f'command="sh" {LINE}'},
        {"ssh_key": sshkey.public_line(KEY.public_key())},
        {"ssh_proof": None},
        {"ssh_proof": ""},
        {"ssh_proof": f"{PROOF}="},
        {"ssh_proof": sshkey.prove(KEY, "", "", ANSWER.kid)},
        {"ssh_proof": sshkey.prove(SSH, "", "", base64url(bytes(32)))},
        {"ssh_proof": sshkey.prove(SSH, "", "laptop", ANSWER.kid)},
        {"ssh_proof": sshkey.prove(SSH, ANSWER.audience, "", ANSWER.kid)},
        {"ssh_proof": base64url(SSH.sign(ANSWER.kid.encode()))},
    ],
)
def test_an_ssh_key_that_is_not_proved(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"ssh_key|ssh_proof|ssh key"):
        EnrolmentRequest.read(text(json.loads(WITH_SSH.to_text()) | change))


@pytest.mark.parametrize("name", ["ssh_key", "ssh_proof"])
def test_an_ssh_key_and_its_proof_come_together(name: str) -> None:
    members = json.loads(WITH_SSH.to_text())
    del members[name]
    with pytest.raises(ValueError, match="has these members"):
        EnrolmentRequest.read(text(members))
