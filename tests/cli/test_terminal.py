"""The service from the terminal: a real sshd, both eras, with `up` and without."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastmcp", reason="needs the demo extra")

from keys.sshkey import fingerprint
from tests.cli.test_cli import DEADLINE, ROOT, Up, authorized_line, init_arguments, tunnel
from tests.droplet import Sshd
from tests.mcpservice import BINARY, STEERING, Odd

MODULE = [sys.executable, "-m", "tunnel"]
_CONTROLLING = [  # stdin becomes the terminal whose Ctrl-C is heard
    *(sys.executable, "-c"),
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, [sys.executable, '-m', 'tunnel', *sys.argv[1:]])",
]
SLOW = ("run_backtest", "steps=600", "seconds_per_step=0.5")
TOOLS = {
    *("start_trading_cycle", "stop_trading", "get_cycle", "run_backtest"),
    *("typed", "steering", "asking"),
}


class Laptop:
    """A home that `init` has made, and what its droplet has."""

    def __init__(self, home: Path, sshd: Sshd) -> None:
        self.home = home
        self.sshd = sshd
        home.mkdir()
        arguments = [*init_arguments(sshd), "--host-key-fingerprint", fingerprint(sshd.host_key)]
        done = tunnel(*arguments, home=home)
        assert done.returncode == 0, done.stderr
        sshd.authorize(authorized_line(done.stdout))
        found = re.search(r'^target = "127\.0\.0\.1:(\d+)"', self.config, re.MULTILINE)
        assert found is not None
        self.port = int(found[1])

    @property
    def config(self) -> str:
        return (self.home / "config.toml").read_text()

    def says(self, *arguments: str, answers: str = "") -> subprocess.CompletedProcess[str]:
        done = tunnel(*arguments, home=self.home, answers=answers)
        assert "Traceback" not in done.stderr
        return done

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*MODULE, *arguments],
            cwd=ROOT,
            env={**os.environ, "CATALYST_HOME": str(self.home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def sees(
        self, *arguments: str, keys: tuple[bytes, Callable[[], bool]] | None = None
    ) -> tuple[int, str]:
        """Run a command in a pseudo terminal; return its exit code and all that it showed.

        `keys` are typed once the condition with them holds.
        """
        pty = pytest.importorskip("pty", reason="no pseudo terminals here")
        master, slave = pty.openpty()
        env = {**os.environ, "CATALYST_HOME": str(self.home), "TERM": "xterm", "COLUMNS": "120"}
        process = subprocess.Popen(
            [*_CONTROLLING, *arguments],
            cwd=ROOT,
            env=env,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        if keys is not None:
            until(keys[1])
            os.write(master, keys[0])
        seen = b""
        with contextlib.suppress(OSError):  # how the end of a terminal shows
            while piece := os.read(master, 65536):
                seen += piece
        os.close(master)
        return process.wait(DEADLINE), seen.decode()


@pytest.fixture
def laptop(tmp_path: Path, sshd: Sshd) -> Laptop:
    return Laptop(tmp_path / "home", sshd)


@pytest.fixture(params=["new", "old"])
def service(request: pytest.FixtureRequest, laptop: Laptop) -> Iterator[Odd]:
    """The service, of one era and then of the other."""
    with Odd(*(["--old"] if request.param == "old" else []), port=laptop.port) as odd:
        yield odd


@pytest.fixture
def modern(laptop: Laptop) -> Iterator[Odd]:
    with Odd(port=laptop.port) as odd:
        yield odd


@pytest.fixture(params=["up", "own"])
def road(request: pytest.FixtureRequest, laptop: Laptop) -> Iterator[str]:
    """Whether a tunnel runs, or the command makes its way alone."""
    if request.param == "own":
        yield "own"
        return
    with Up(laptop.home) as up:
        up.until(lambda: "link up" in up.said())
        yield "up"


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_help(tmp_path: Path) -> None:
    commands = tunnel("--help", home=tmp_path).stdout
    for command in ("tools", "resources", "read", "call"):
        done = tunnel(command, "--help", home=tmp_path)
        assert done.returncode == 0
        assert f"Usage: catalyst-tunnel {command}" in done.stdout
        assert "Examples:" in done.stdout
        assert command in commands


def test_everything_in_both_eras_with_up_and_without(
    laptop: Laptop, service: Odd, road: str
) -> None:
    lines = [line.split("\t") for line in laptop.says("tools").stdout.splitlines()]
    assert {line[0] for line in lines} == TOOLS
    assert all(len(line) == 4 for line in lines)

    done = laptop.says("resources")
    assert "catalyst://system/health\tapplication/json\t" in done.stdout
    assert "odd://of/{name}\t" in done.stdout

    done = laptop.says("read", "catalyst://system/health")
    assert json.loads(done.stdout)["trading"] == "idle"

    done = laptop.says("call", "stop_trading", "reason=emergency")
    assert done.returncode == 0
    # Whoever waits for longer than a second is told what for, and nothing else is said.
    assert all(line.endswith("...") for line in done.stderr.splitlines())
    assert json.loads(done.stdout)["reason"] == "emergency"
    assert service.executions("stop_trading") == 1

    done = laptop.says("call", "run_backtest", "steps=2", "seconds_per_step=0")
    assert "run_backtest: 2 of 2 session 2 of 2" in done.stderr
    assert json.loads(done.stdout)["steps"] == 2

    done = laptop.says("call", "get_cycle", "cycle_id=none")
    assert (done.returncode, done.stdout) == (1, "")
    assert "There is no cycle 'none'." in done.stderr

    done = laptop.says("read", "odd://nothing")
    assert (done.returncode, done.stdout) == (1, "")
    assert "odd://nothing" in done.stderr


def test_json_of_everything(laptop: Laptop, modern: Odd) -> None:
    assert {one["name"] for one in json.loads(laptop.says("tools", "--json").stdout)} == TOOLS
    one = json.loads(laptop.says("tools", "stop_trading", "--json").stdout)
    assert one["inputSchema"]["required"] == ["reason"]
    both = json.loads(laptop.says("resources", "--json").stdout)
    assert both["resourceTemplates"][0]["uriTemplate"] == "odd://of/{name}"
    result = json.loads(laptop.says("read", "catalyst://system/health", "--json").stdout)
    assert result["contents"][0]["uri"] == "catalyst://system/health"
    done = laptop.says("read", "odd://nothing", "--json")
    assert done.returncode == 1
    assert "odd://nothing" in json.loads(done.stdout)["error"]["message"]
    done = laptop.says("call", "get_cycle", "cycle_id=none", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["isError"] is True


TYPED = '{"count": 3, "ratio": 0.5, "on": true, "names": ["x","y"], "more": {"z":1}, "kind":"b"}'


def test_arguments_arrive_with_their_types(laptop: Laptop, modern: Odd) -> None:
    """As words, as an object, from stdin; with the flag in front: `call TOOL --json OBJECT`."""
    words = ["count=3", "ratio=0.5", "on=true", 'names=["x", "y"]', 'more={"z": 1}', "kind=b"]
    for arguments in (words, [TYPED], ["-"]):
        done = laptop.says("call", "typed", "--json", *arguments, answers=TYPED)
        assert done.returncode == 0, done.stderr
        came = json.loads(done.stdout)["structuredContent"]["came"]
        assert came == [3, 0.5, True, ["x", "y"], {"z": 1}, "b"]


MISFITS = [
    (["typed"], "count: is missing; it wants an integer."),
    (["typed", "count=many"], "count: wants an integer, not 'many'."),
    (["typed", "count=1", "knd=b"], "knd: there is no such argument. Is kind meant?"),
    (["typed", "count=1", "kind=c"], "kind: 'c' is not one of ['a', 'b']."),
    (["typed", "count=1", 'names=["x", 2]'], "names: "),
    (["typed", "count"], "'count' is not NAME=VALUE"),
    (["typed", "{count: 1}"], "The arguments are not JSON"),
    (["run_backtest", "steps=0", "seconds_per_step=0"], "steps: 0 is less than the minimum"),
    (["stop_tradin", "reason=x"], "Is stop_trading meant?"),
]


def test_what_does_not_fit_is_told_and_nothing_is_called(laptop: Laptop, modern: Odd) -> None:
    with Up(laptop.home) as up:
        up.until(lambda: "link up" in up.said())
        for arguments, told in MISFITS:
            done = laptop.says("call", *arguments)
            assert (done.returncode, done.stdout) == (2, ""), arguments
            assert told in done.stderr
    assert sum(modern.get("/system/executions").values()) == 0


def test_settings_that_are_missing_or_faulty(tmp_path: Path) -> None:
    done = tunnel("tools", home=tmp_path)
    assert done.returncode == 2
    assert "catalyst-tunnel init" in done.stderr
    (tmp_path / "config.toml").write_text("[tunnel]\nlisten = 5\n")
    for arguments in (["tools"], ["call", "stop_trading", "reason=x"]):
        done = tunnel(*arguments, home=tmp_path)
        assert done.returncode == 2
        assert "listen" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_service_is_down_and_comes_back(laptop: Laptop, road: str) -> None:
    for arguments in (["tools"], ["call", "stop_trading", "reason=emergency"]):
        done = laptop.says(*arguments, "--json")
        assert done.returncode == 4
        assert "nothing listens where the service should" in done.stderr
        assert json.loads(done.stdout)["error"]["data"]["code"] == "target_refused"
    with Odd(port=laptop.port) as odd:
        assert laptop.says("call", "stop_trading", "reason=emergency").returncode == 0
        assert odd.executions("stop_trading") == 1


def test_no_path_is_up(laptop: Laptop) -> None:
    laptop.sshd.stop()
    file = laptop.home / "config.toml"
    file.write_text(laptop.config.replace("hold = 30", "hold = 3"))
    done = laptop.says("call", "stop_trading", "reason=emergency")
    assert (done.returncode, done.stdout) == (4, "")
    assert "Asking the service for its tools..." in done.stderr
    assert "No path is up yet." in done.stderr
    assert "it is safe to call again" in done.stderr


def test_the_tunnel_that_runs_has_no_path_up(laptop: Laptop) -> None:
    laptop.sshd.authorize()
    with Up(laptop.home) as up:
        up.until(lambda: "auth_denied" in up.said())
        process = laptop.begin("call", "stop_trading", "reason=emergency")
        try:
            assert process.stderr is not None
            said = [process.stderr.readline() for _ in range(2)]
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
        assert "Asking the service for its tools..." in said[0]
        assert "authorized_keys" in said[1]


def test_the_link_is_cut_in_the_middle_of_a_call(laptop: Laptop, service: Odd, road: str) -> None:
    process = laptop.begin("call", *SLOW)
    try:
        until(lambda: service.executions("run_backtest") == 1)
        laptop.sshd.kill_sessions()
        out, err = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    assert (process.returncode, out) == (5, "")
    assert "it may have run, or not" in err
    assert "Traceback" not in err
    assert service.executions("run_backtest") == 1


def test_the_tunnel_is_killed_in_the_middle_of_a_call(laptop: Laptop, modern: Odd) -> None:
    with Up(laptop.home) as up:
        up.until(lambda: "link up" in up.said())
        process = laptop.begin("call", *SLOW)
        try:
            until(lambda: modern.executions("run_backtest") == 1)
            up.process.kill()
            _, err = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
    assert process.returncode == 5
    assert "it may have run, or not" in err
    assert modern.executions("run_backtest") == 1


def test_ctrl_c_cancels_the_call_on_the_service(laptop: Laptop, service: Odd, road: str) -> None:
    process = laptop.begin("call", *SLOW)
    try:
        until(lambda: service.executions("run_backtest") == 1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert "run_backtest was cancelled, but it may have run" in err
    assert "Traceback" not in err
    until(lambda: service.get("/performance")["backtests_cancelled"] == 1)
    assert service.executions("run_backtest") == 1


def test_ctrl_c_before_anything_was_called(laptop: Laptop) -> None:
    laptop.sshd.stop()
    process = laptop.begin("call", "stop_trading", "reason=emergency")
    try:
        assert process.stderr is not None
        assert "Asking the service" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "nothing was called" in err
    assert "Traceback" not in err


def test_a_tool_that_asks_back(laptop: Laptop, service: Odd) -> None:
    done = laptop.says("call", "asking")
    assert done.returncode in (1, 5)
    assert "elicitation" in done.stderr


def test_a_pipe_gets_the_bytes_as_they_are(laptop: Laptop, modern: Odd) -> None:
    assert laptop.says("call", "steering").stdout == f"{STEERING}\n"
    assert laptop.says("read", "odd://steering").stdout == STEERING
    process = laptop.begin("read", "odd://binary", "-o", str(laptop.home / "file"))
    assert process.communicate(timeout=DEADLINE) == ("", "")
    assert (laptop.home / "file").read_bytes() == BINARY


def test_a_terminal_gets_tables_and_nothing_that_steers_it(laptop: Laptop, modern: Odd) -> None:
    with Up(laptop.home) as up:
        up.until(lambda: "link up" in up.said())
        code, seen = laptop.sees("tools")
        assert code == 0
        assert re.search(r"typed.+destructive", seen)
        assert re.search(r"get_cycle.+read only", seen)
        for arguments in (["call", "steering"], ["read", "odd://steering"], ["tools", "steering"]):
            code, seen = laptop.sees(*arguments)
            assert code == 0
            assert "\\x1b" in seen
            for spell in ("\x1b]0;owned", "\x1b[31m", "\x9b2J", "\x1b[2J", "\u202e"):
                assert spell not in seen
        code, seen = laptop.sees("read", "odd://binary")
        assert code == 2
        assert "-o FILE" in seen
        code, seen = laptop.sees("call", "run_backtest", "steps=2", "seconds_per_step=0.3")
        assert code == 0
        assert "session 1 of 2" in seen
        assert re.search(r"profit_cents\S*\s+274", seen)


def test_ctrl_c_in_a_terminal(laptop: Laptop, modern: Odd) -> None:
    with Up(laptop.home) as up:
        up.until(lambda: "link up" in up.said())
        code, seen = laptop.sees(
            "call", *SLOW, keys=(b"\x03", lambda: modern.executions("run_backtest") == 1)
        )
    assert code == 130
    assert "was cancelled" in seen
    assert "Traceback" not in seen
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")  # the cursor is back
    until(lambda: modern.get("/performance")["backtests_cancelled"] == 1)


def test_completion_knows_names_without_asking(laptop: Laptop) -> None:
    with Odd(port=laptop.port):
        for command in ("tools", "resources"):
            assert laptop.says(command).returncode == 0
    laptop.sshd.stop()

    def completes(*words: str) -> list[str]:
        done = subprocess.run(
            MODULE,
            cwd=ROOT,
            env={
                **os.environ,
                "CATALYST_HOME": str(laptop.home),
                "_CATALYST_TUNNEL_COMPLETE": "fish_complete",
                "COMP_WORDS": " ".join(("catalyst-tunnel", *words)),
                "COMP_CWORD": words[-1],
            },
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        assert done.stderr == ""
        return [line.split(",", 1)[1].split("\t")[0] for line in done.stdout.splitlines()]

    tools = {"start_trading_cycle", "steering", "stop_trading"}
    assert set(completes("call", "st")) == tools
    assert "mode=conservative" in completes("call", "start_trading_cycle", "mode")
    assert "reason=" in completes("call", "stop_trading", "re")
    assert completes("read", "catalyst://sys") == ["catalyst://system/health"]
