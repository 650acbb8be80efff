import os
import sys
from pathlib import Path

import pytest

from keys.errors import KeyFileError
from keys.pointer import Names, pointer_file, read_pointer, write_pointer

NAMES = Names("ssh_ed25519-2", "token-3.key", "tls-4")


def test_without_a_pointer_the_names_are_the_first_ones(tmp_path: Path) -> None:
    assert read_pointer(tmp_path) == Names("ssh_ed25519", "token.key", "tls")


def test_what_is_pointed_at_is_read(tmp_path: Path) -> None:
    write_pointer(tmp_path, NAMES)
    assert read_pointer(tmp_path) == NAMES
    write_pointer(tmp_path, Names())
    assert read_pointer(tmp_path) == Names()


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_it_is_closed_to_others_and_refused_when_it_is_not(tmp_path: Path) -> None:
    write_pointer(tmp_path, NAMES)
    assert pointer_file(tmp_path).stat().st_mode & 0o777 == 0o600
    pointer_file(tmp_path).chmod(0o666)
    with pytest.raises(KeyFileError, match="chmod 600"):
        read_pointer(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"version":2,"ssh":"a","token":"b","tls":"c"}',
        b'{"version":1,"ssh":"a","token":"b"}',
        b'{"version":1,"ssh":"a","token":"b","tls":"c","more":1}',
        b'{"version":1,"ssh":"a","ssh":"a","token":"b","tls":"c"}',
        b'{"version":1,"ssh":"../a","token":"b","tls":"c"}',
        b'{"version":1,"ssh":"/etc/a","token":"b","tls":"c"}',
        b'{"version":1,"ssh":"a\\\\b","token":"b","tls":"c"}',
        b'{"version":1,"ssh":"","token":"b","tls":"c"}',
        b'{"version":1,"ssh":"..","token":"b","tls":"c"}',
        b'{"version":1,"ssh":1,"token":"b","tls":"c"}',
        b'{"version":1,"ssh":"a","token":"b","tls":"c"',
        b"\xff",
    ],
)
def test_a_damaged_one_is_refused_with_what_to_do(tmp_path: Path, text: bytes) -> None:
    pointer_file(tmp_path).write_bytes(text)
    pointer_file(tmp_path).chmod(0o600)
    with pytest.raises(KeyFileError, match=r"damaged: .*Write it anew"):
        read_pointer(tmp_path)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="root can give files away")
def test_one_of_another_user_is_refused(tmp_path: Path) -> None:
    write_pointer(tmp_path, NAMES)
    os.chown(pointer_file(tmp_path), 12345, 12345)
    if os.geteuid() == 12345:
        return
    with pytest.raises(KeyFileError, match="another user"):
        read_pointer(tmp_path)
