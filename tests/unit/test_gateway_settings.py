"""gateway.toml: what is read, and every fault told at once, in words and with its place."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.init import Answers, settings_text
from gateway.settings import (
    Layout,
    Limits,
    Service,
    Settings,
    SettingsError,
    directory,
    load,
    parse,
    read_domain,
    read_listen,
    read_upstream,
)

FILE = Path("gateway.toml")
LEAST = b'[gateway]\ndomain = "droplet.example"\n'


def read(text: str) -> Settings:
    return parse(FILE, LEAST + text.encode())


def faults(text: str | bytes) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        parse(FILE, text.encode() if isinstance(text, str) else text)
    return str(caught.value).splitlines()


def fault(text: str) -> str:
    [one] = faults(LEAST.decode() + text)
    assert one.startswith("gateway.toml: [")
    return one


def test_the_least() -> None:
    assert parse(FILE, LEAST) == Settings("droplet.example")
    assert Settings("a").listen == ("127.0.0.1", 5001)
    assert Settings("a").tools == {"operator": {"*"}, "observer": frozenset()}


def test_what_init_writes_are_the_defaults() -> None:
    answers = Answers("droplet.example", 443, "http://127.0.0.1:5000", "127.0.0.1:5001", None)
    assert parse(FILE, settings_text(answers).encode()) == Settings("droplet.example")


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), st.integers(1, 65535))
def test_what_init_writes_is_read(name: str, port: int) -> None:
    answers = Answers("a.b", port, "http://[::1]:80", f"[::1]:{port}", f"/etc/{name}.pem")
    made = parse(FILE, settings_text(answers).encode())
    assert (made.https_port, made.listen, made.tls_ca) == (port, ("::1", port), f"/etc/{name}.pem")


def test_everything() -> None:
    settings = read(
        'https_port = 8443\nupstream = "http://[::1]:5000/"\nlisten = "[::1]:6000"\n'
        'socket_group = "nginx"\nstate = "redis://localhost/1"\nstop_without_state = true\n'
        'silence = 60\ndrain = 0\ntls_ca = "my ca.pem"\n'
        "[limits]\nrequests_per_second = 0.5\nburst = 1\nstreams = 2\nurgent_per_second = 1\n"
        "urgent_burst = 3\nurgent_streams = 4\nbody = 5\nslow = 6\n"
        '[service]\nendpoint = "/v1/mcp"\nreads = []\nurgent = ["halt"]\n'
        '[tools]\noperator = ["a", "b"]\nobserver = ["a"]\n'
    )
    assert settings == Settings(
        domain="droplet.example",
        https_port=8443,
        upstream="http://[::1]:5000",
        listen=("::1", 6000),
        socket_group="nginx",
        state="redis://localhost/1",
        stop_without_state=True,
        silence=60.0,
        drain=0.0,
        tls_ca="my ca.pem",
        limits=Limits(0.5, 1, 2, 1.0, 3, 4, 5, 6.0),
        service=Service("/v1/mcp", (), frozenset({"halt"})),
        tools={"operator": frozenset({"a", "b"}), "observer": frozenset({"a"})},
    )
    assert settings.audience == "catalyst-gateway:droplet.example"
    assert settings.url == "https://droplet.example:8443/mcp"
    assert settings.ssh_target == "[::1]:6000"
    assert Settings("a.b").url == "https://a.b/mcp"
    assert Settings("a.b").ssh_target == "127.0.0.1:5001"


def test_every_fault_at_once() -> None:
    told = faults(
        '[gateway]\ndomain = "A B"\nhttps_port = 0\nupstream = "x"\nlisten = "0.0.0.0:1"\n'
        'colour = "red"\nsilence = "long"\n[limits]\nburst = 0\nmore = 1\n'
        '[service]\nendpoint = "mcp"\n[tools]\nobserver = [1]\nroot = []\n[others]\n'
    )
    for place in (
        *("domain", "https_port", "upstream", "listen", "colour", "silence"),
        *("[limits] burst", "[limits] more", "[service] endpoint", "[tools] observer"),
        *("[tools] root", "[others]"),
    ):
        assert [line for line in told if f"{place}:" in line], place
    assert len(told) == 12


@pytest.mark.parametrize(
    ("line", "words"),
    [
        *(
            ("https_port = 65536", "between"),
            ("https_port = true", "whole"),
            ("https_port = 1.0", "whole"),
        ),
        *(("silence = 0", "between"), ("silence = nan", "between"), ("silence = inf", "between")),
        *(
            ("drain = -1", "between"),
            ("drain = true", "number"),
            ("stop_without_state = 1", "true"),
        ),
        *(
            ('state = "memory"', "sqlite"),
            ('state = "http://x"', "Redis"),
            ('state = ""', "sqlite"),
        ),
        *(('socket_group = "a b"', "word"), ('socket_group = ""', "word"), ('tls_ca = ""', "word")),
        *(('tls_ca = "a\\nb"', "word"), ("domian = 1", "unknown key"), ("listen = 5001", "string")),
        *(("[limits]\nburst = 1.5", "whole"), ("[limits]\nrequests_per_second = 0", "between")),
        *(
            ("[limits]\nrequests_per_second = nan", "between"),
            ("[limits]\nbody = 67108865", "between"),
        ),
        *(("[limits]\nslow = 0.5", "between"), ("[limits]\nstreams = -1", "between")),
        *(('[service]\nreads = "/a"', "list"), ('[service]\nreads = ["a"]', "paths")),
        *(('[service]\nreads = ["/a?b"]', "paths"), ("[service]\nurgent = [1]", "names")),
        *(('[service]\nendpoint = "/"', "path"), ('[service]\nendpoint = "/a b"', "path")),
        *(('[tools]\noperator = "*"', "list"), ('[tools]\noperator = [""]', "names")),
        ("[[tools]]", "table"),
        ("[gatewy]", "unknown table"),
    ],
)
def test_a_fault_in_words(line: str, words: str) -> None:
    assert words in fault(line)


def test_the_domain_is_missing() -> None:
    assert "[gateway] domain: is missing" in faults("")[0]
    assert len(faults("")) == 1
    assert "must be a table" in faults("gateway = 1")[0]


@pytest.mark.parametrize(
    "text",
    [
        b"[gateway",
        b"\xff",
        b"a = ",
        b"x = " + b"9" * 5000,
        b"x = " + b"[" * 5000,
        b"\0",
        b"a=1\na=2",
    ],
)
def test_what_is_not_toml(text: bytes) -> None:
    [told] = faults(text)
    assert told.startswith("gateway.toml: is not TOML: ")


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_whatever_the_file_holds(text: bytes) -> None:
    with pytest.raises(SettingsError):
        parse(FILE, text)


def test_a_password_in_a_file_that_others_read(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_bytes(LEAST + b'state = "redis://user:hunter2@localhost"\n')
    file.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod o=") as caught:
        load(file)
    assert "hunter2" not in str(caught.value)
    file.chmod(0o640)
    assert load(file).state.startswith("redis://")


def test_a_password_is_in_no_fault() -> None:
    told = faults(LEAST + b'state = "redis:/user:hunter2@localhost"\nmore = 1\n')
    assert "hunter2" not in "".join(told)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "gateway.toml")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)


# Addresses.


@pytest.mark.parametrize(
    "value", ["a", "a.b", "droplet.example.com", "127.0.0.1", "a-b.c1", "xn--a"]
)
def test_domains(value: str) -> None:
    assert read_domain(value) == value


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            "A.b",
            "a b",
            "a..b",
            ".a",
            "a.",
            "-a",
            "a-",
            "a.-b",
            "a_b",
            "*.a",
            "ä.de",
            "a\n",
            "a/b",
        ),
        *("a:443", "https://a", "[::1]", "a;b", "a$b", 'a"b', "x" * 64, ".".join(["a" * 60] * 5)),
    ],
)
def test_what_is_no_domain(value: str) -> None:
    with pytest.raises(ValueError, match="domain name"):
        read_domain(value)


@pytest.mark.parametrize(
    "value",
    ["http://127.0.0.1:5000", "http://localhost:1", "http://[::1]:65535", "http://a-b.c_d:80"],
)
def test_upstreams(value: str) -> None:
    assert read_upstream(value) == value
    assert read_upstream(f"{value}/") == value


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            "127.0.0.1:5000",
            "https://127.0.0.1:5000",
            "http://127.0.0.1",
            "http://a:0",
            "http://:80",
        ),
        *("http://a:65536", "http://a:99999", "http://a:x", "http://a:80/x", "http://a:80//"),
        *("http://u:p@a:80", "http://a:80?x", "http://a:80#x", "HTTP://a:80", "http://a b:80"),
        *("http://a:80\n", "unix:/x", "http://[::1:80", "http://::1:80", "http://a:+80"),
    ],
)
def test_what_is_no_upstream(value: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        read_upstream(value)


def test_listen() -> None:
    assert read_listen("127.0.0.1:5001") == ("127.0.0.1", 5001)
    assert read_listen("127.9.9.9:1") == ("127.9.9.9", 1)
    assert read_listen("[::1]:65535") == ("::1", 65535)


@pytest.mark.parametrize(
    "value",
    [
        *("0.0.0.0:5001", "[::]:5001", "10.0.0.1:5001", "203.0.113.7:80", "[2001:db8::1]:80"),
        *(
            "[::ffff:8.8.8.8]:80",
            "192.168.1.1:80",
            "169.254.1.1:1",
            "126.255.255.255:80",
            "128.0.0.1:80",
        ),
        *("0:80", "127.1:80", "2130706433:80", "0177.0.0.1:80", "127.0.0.01:80", "localhost:5001"),
        *("", ":5001", "*:5001", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:999999"),
        *(
            "127.0.0.1:-1",
            "127.0.0.1:+1",
            "127.0.0.1:5001 ",
            "127.0.0.1:5001\n",
            "::1:5001",
            "[::1]",
        ),
        *("127.0.0.1:\u0661", "[::1%lo]:80", "unix:/x"),
    ],
)
def test_what_is_no_loopback_address(value: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        read_listen(value)


# Places.


def test_where_it_lives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CATALYST_GATEWAY_DIR", raising=False)
    assert directory(None) == Path("/etc/catalyst-gateway")
    monkeypatch.setenv("CATALYST_GATEWAY_DIR", "")
    assert directory(None) == Path("/etc/catalyst-gateway")
    monkeypatch.setenv("CATALYST_GATEWAY_DIR", "/srv/gw")
    assert directory(None) == Path("/srv/gw")
    monkeypatch.chdir(tmp_path)
    assert directory(Path("here")) == tmp_path / "here"


def test_everything_is_under_one_directory() -> None:
    layout = Layout(Path("/x"))
    for name in (
        *("settings", "registry", "ca_key", "ca_certificate", "nginx", "client_ca"),
        "socket",
    ):
        assert getattr(layout, name).is_relative_to("/x")
    assert layout.audit.parent == layout.state
    assert layout.ca_key.parent not in {layout.state, layout.socket.parent, layout.nginx}
