"""The command line as people and scripts meet it: words, exit codes, files."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keys.sshkey import fingerprint
from tests.droplet import Sshd, free_port

ROOT = Path(__file__).parents[2]
DEADLINE = 20.0


def tunnel(
    *arguments: str, home: Path, answers: str = "", module: str = "tunnel"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "CATALYST_HOME": str(home)},
        input=answers,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


class Up:
    """A running `catalyst-tunnel up`."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.home = home
        self.log = home / "up.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tunnel", "up", *arguments],
                cwd=ROOT,
                env={**os.environ, "CATALYST_HOME": str(home)},
                stderr=log,
            )

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.02)

    def said(self) -> str:
        return self.log.read_text()

    def __enter__(self) -> "Up":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    place = tmp_path / "home"
    place.mkdir()
    return place


@pytest.fixture
def ready(home: Path, sshd: Sshd) -> Path:
    """A home that `init` has made, whose key sshd lets in."""
    done = tunnel(
        *init_arguments(sshd), "--host-key-fingerprint", fingerprint(sshd.host_key), home=home
    )
    assert done.returncode == 0, done.stderr
    sshd.authorize(authorized_line(done.stdout))
    return home


def init_arguments(sshd: Sshd, port: int | None = None) -> list[str]:
    return [
        *("init", "--yes", "--ssh-host", sshd.host, "--ssh-port", str(sshd.port)),
        *("--ssh-user", sshd.user, "--target", f"127.0.0.1:{free_port()}"),
        *("--listen", f"127.0.0.1:{port or free_port()}"),
    ]


def authorized_line(said: str) -> str:
    [line] = [line for line in said.splitlines() if line.startswith("restrict,")]
    return line


@pytest.mark.parametrize(
    "command",
    [
        [],
        *(
            [one]
            for one in ("init", "enroll", "up", "status", "down", "demo", "completion", "keys")
        ),
        *(["keys", one] for one in ("request", "accept", "list", "rotate", "status", "revoke")),
    ],
)
def test_help_of_every_command(home: Path, command: list[str]) -> None:
    done = tunnel(*command, "--help", home=home)
    assert done.returncode == 0
    assert "Usage: catalyst-tunnel" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(home: Path, shell: str) -> None:
    assert "_CATALYST_TUNNEL_COMPLETE" in tunnel("completion", shell, home=home).stdout


def test_usage_faults_exit_with_2(home: Path) -> None:
    assert tunnel("status", "--no-such-option", home=home).returncode == 2
    assert tunnel("fly", home=home).returncode == 2


def test_nothing_is_running(home: Path) -> None:
    done = tunnel("status", home=home)
    assert done.returncode == 3
    assert "catalyst-tunnel up" in done.stderr
    done = tunnel("status", "--json", home=home)
    assert (done.returncode, json.loads(done.stdout)["up"]) == (3, False)
    assert tunnel("down", home=home).returncode == 3


def test_up_without_settings(home: Path) -> None:
    done = tunnel("up", home=home)
    assert done.returncode == 2
    assert "catalyst-tunnel init" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_fault_of_the_settings_at_once(home: Path) -> None:
    (home / "config.toml").write_text(
        '[tunnel]\nlisten = "0.0.0.0:5000"\nhold = "long"\ncolour = "red"\n[ssh]\nport = 99999\n'
    )
    done = tunnel("up", home=home)
    assert done.returncode == 2
    for key in ("listen", "hold", "colour", "port", "host", "identity", "known_hosts"):
        assert re.search(rf"config\.toml: \[(tunnel|ssh)\] {key}: ", done.stderr), key


def test_malformed_toml_is_told_with_its_place(home: Path) -> None:
    (home / "config.toml").write_text("[tunnel\n")
    done = tunnel("up", home=home)
    assert done.returncode == 2
    assert "line 1" in done.stderr


def test_init_makes_everything_and_never_trusts_unseen(home: Path, sshd: Sshd) -> None:
    done = tunnel(*init_arguments(sshd), home=home)
    assert done.returncode == 2
    assert fingerprint(sshd.host_key) in done.stdout
    assert not (home / "known_hosts").exists()
    key = home / "keys" / "ssh_ed25519"
    assert key.stat().st_mode & 0o777 == 0o600
    made = key.read_bytes()

    done = tunnel("init", "--yes", "--host-key-fingerprint", "SHA256:" + "A" * 43, home=home)
    assert done.returncode == 1
    assert "no host key with the fingerprint" in done.stderr
    assert not (home / "known_hosts").exists()

    done = tunnel("init", home=home, answers="y\n")
    assert done.returncode == 0, done.stderr
    assert sshd.host_key.split()[1] in (home / "known_hosts").read_text()
    assert key.read_bytes() == made
    shown = tunnel("init", "--show-key", home=home).stdout
    line = authorized_line(done.stdout)
    assert shown.strip() == line
    for option in ("restrict", "port-forwarding", "permitopen=", 'permitlisten="127.0.0.1:1"'):
        assert option in line


def test_init_declined(home: Path, sshd: Sshd) -> None:
    tunnel(*init_arguments(sshd), home=home)
    done = tunnel("init", home=home, answers="n\n")
    assert done.returncode == 1
    assert not (home / "known_hosts").exists()


def test_init_asks_for_what_it_needs(home: Path, sshd: Sshd) -> None:
    answers = f"{sshd.host}\n{sshd.port}\n{sshd.user}\n\n127.0.0.1:{free_port()}\ny\n"
    done = tunnel("init", home=home, answers=answers)
    assert done.returncode == 0, done.stderr
    assert f"port = {sshd.port}" in (home / "config.toml").read_text()


def test_init_does_not_overwrite_settings(ready: Path, sshd: Sshd) -> None:
    before = (ready / "config.toml").read_bytes()
    done = tunnel(*init_arguments(sshd), home=ready)
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert (ready / "config.toml").read_bytes() == before


def test_up_status_down(ready: Path) -> None:
    with Up(ready, "--log-format", "json") as up:
        up.until(lambda: "link up" in up.said())
        done = tunnel("status", home=ready)  # nothing listens on the target yet
        assert done.returncode == 4
        assert "target_refused" in done.stdout
        done = tunnel("status", "--json", home=ready)
        assert done.returncode == 4
        data = json.loads(done.stdout)
        assert (data["up"], data["paths"][0]["state"]) == (False, "up")
        # A second tunnel on the same home is told who has the port.
        second = tunnel("up", home=ready)
        assert second.returncode == 2
        assert f"pid {up.process.pid}" in second.stderr
        assert tunnel("down", home=ready).returncode == 0
        assert up.process.wait(DEADLINE) == 0
        for line in up.said().splitlines():
            assert {"time", "level", "event"} <= json.loads(line).keys()
    assert tunnel("status", home=ready).returncode == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_in_order(ready: Path, number: signal.Signals) -> None:
    with Up(ready) as up:
        up.until(lambda: "link up" in up.said())
        began = time.monotonic()
        up.process.send_signal(number)
        assert up.process.wait(DEADLINE) == 0
        assert time.monotonic() - began < 2
        assert "Traceback" not in up.said()


def test_the_first_connection_may_fail(ready: Path, sshd: Sshd) -> None:
    sshd.stop()
    with Up(ready) as up:
        up.until(lambda: "connect_failed" in up.said())
        sshd.start()
        up.until(lambda: "link up" in up.said())


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda home, sshd: sshd.authorize(), "auth_denied"),
        (
            lambda home, sshd: (home / "known_hosts").write_text(
                f"[127.0.0.1]:{sshd.port} {sshd.public_key}\n"
            ),
            "host_key_changed",
        ),
        (lambda home, sshd: (home / "known_hosts").write_text(""), "host_key_unknown"),
    ],
    ids=["key-not-installed", "other-host-key", "unknown-host"],
)
def test_permanent_refusals_are_said_once_with_the_remedy(
    ready: Path, sshd: Sshd, spoil: Callable[[Path, Sshd], object], code: str
) -> None:
    spoil(ready, sshd)
    with Up(ready) as up:
        up.until(lambda: code in up.said())
        attempts = sshd.log().count("Connection from") or sshd.log().count("Connection closed")
        assert attempts <= 2
        done = tunnel("status", home=ready)  # which has it look once more
        assert done.returncode == 4
        assert code in done.stdout
        assert up.said().count(code) == 1
        assert "Traceback" not in up.said()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_that_others_can_read_is_refused(ready: Path, mode: int) -> None:
    (ready / "keys" / "ssh_ed25519").chmod(mode)
    done = tunnel("up", home=ready)
    assert done.returncode == 2
    assert "chmod 600" in done.stderr


def test_a_key_that_is_none(ready: Path) -> None:
    (ready / "keys" / "ssh_ed25519").write_text("not a key\n")
    with Up(ready) as up:
        up.until(lambda: "key_unusable" in up.said())
        assert "Traceback" not in up.said()


def test_one_tunnel_a_home(ready: Path) -> None:
    with Up(ready) as up:
        up.until(lambda: "link up" in up.said())
        file = ready / "config.toml"
        file.write_text(re.sub(r'listen = "[^"]+"', 'listen = "127.0.0.1:0"', file.read_text()))
        second = tunnel("up", home=ready)
        assert second.returncode == 2
        assert f"pid {up.process.pid}" in second.stderr
        assert tunnel("status", home=ready).returncode == 4  # the first is still the one


@pytest.mark.parametrize("option", ["--listen=0.0.0.0:1", "--target=x:0", "--ssh-user=a b"])
def test_init_writes_nothing_that_up_would_refuse(home: Path, option: str) -> None:
    done = tunnel("init", "--yes", "--ssh-host", "droplet", option, home=home)
    assert done.returncode == 2
    assert list(home.iterdir()) == []


def test_status_of_a_damaged_control_file(home: Path) -> None:
    (home / "run").mkdir(mode=0o700)
    file = home / "run" / "up.json"
    file.write_text("garbage")
    file.chmod(0o600)
    for arguments in (["status"], ["status", "--json"], ["down"]):
        done = tunnel(*arguments, home=home)
        assert done.returncode == 1
        assert "damaged" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_port_that_is_taken(ready: Path) -> None:
    settings = (ready / "config.toml").read_text()
    port = int(re.search(r'listen = "127.0.0.1:(\d+)"', settings)[1])  # type: ignore[index]
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        done = tunnel("up", home=ready)
    assert done.returncode == 2
    assert f"pid {os.getpid()}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_whose_twin_is_taken(ready: Path) -> None:
    settings = (ready / "config.toml").read_text()
    port = int(re.search(r'listen = "127.0.0.1:(\d+)"', settings)[1])  # type: ignore[index]
    with socket.socket(socket.AF_INET6) as other:
        try:
            other.bind(("::1", port))
        except OSError:
            pytest.skip("no IPv6 loopback here")
        other.listen()
        done = tunnel("up", home=ready)
    assert done.returncode == 2
    assert "::1" in done.stderr


@contextlib.contextmanager
def demo(*command: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Run the demo until the block ends, then interrupt it; it has to end in order."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
        _, logged = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    assert "Traceback" not in logged
    assert process.returncode == 0


def settings_of(process: subprocess.Popen[str]) -> Path:
    """Read what the demo says, up to the settings that it names."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"status --config (\S+)", line):
            return Path(found[1])
    raise AssertionError("the demo has ended")


def until_healthy(port: int) -> None:
    end = time.monotonic() + DEADLINE
    while True:
        try:
            with urllib.request.urlopen(f"http://localhost:{port}/system/health") as answer:
                assert json.load(answer)["status"] == "ok"
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_the_demo_runs_and_its_keys_are_rotated(tmp_path: Path) -> None:
    """Also where temporary files have names that are too long for a Unix socket."""
    pytest.importorskip("fastmcp", reason="needs the demo extra")
    port, far = free_port(), tmp_path / ("x" * 80)
    far.mkdir()
    with demo("-m", "tunnel", "demo", "--port", str(port), TMPDIR=str(far)) as process:
        config = settings_of(process)
        until_healthy(port)
        done = tunnel("keys", "rotate", "--drain", "1", "--config", str(config), home=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "rotated: ssh, token" in done.stdout
    assert not config.exists()


def test_the_demo_without_a_gateway_as_on_windows(tmp_path: Path) -> None:
    pytest.importorskip("fastmcp", reason="needs the demo extra")
    port = free_port()
    program = "from tunnel import cli; from tunnel.demo import run; run.GATEWAY = False; cli.main()"
    with demo("-c", program, "demo", "--port", str(port)) as process:
        config = settings_of(process)
        until_healthy(port)
        done = tunnel("tools", "--config", str(config), home=tmp_path)
        assert "start_trading_cycle" in done.stdout
    assert not config.exists()


def test_the_gateway_prints_rules_that_sshd_accepts(tmp_path: Path, home: Path) -> None:
    done = tunnel("sshd-config", "--user", "catalyst", home=home, module="gateway")
    assert done.returncode == 0
    assert "Match User catalyst" in done.stdout
    bad = tunnel("sshd-config", "--user", "a\nPermitRootLogin yes", home=home, module="gateway")
    assert bad.returncode == 2


def test_the_bridge_and_status_start_without_what_they_do_not_need(tmp_path: Path) -> None:
    """They are started by the second; cryptography alone costs 50 ms and 10 MB."""
    script = (
        "import sys; import tunnel.bridge.run, tunnel.control, tunnel.status;"
        "from tunnel.cli_base import file_of; file_of(None);"
        "heavy = {'aiohttp', 'asyncssh', 'cryptography', 'jwt', 'rich'};"
        "print(*sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=DEADLINE
    )
    assert done.stdout.strip() == ""
