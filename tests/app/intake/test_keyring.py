import hashlib
import os
from pathlib import Path

import pytest

from app.intake.keyring import Key, KeysError, digest_of, parse_keys, plain_key, read_keys

ONE, OTHER = "0123456789abcdef", "fedcba9876543210"
HEX = hashlib.sha256(ONE.encode()).hexdigest()


def test_a_key_is_written_in_four_ways_and_kept_in_one() -> None:
    digest = digest_of(ONE.encode())
    for text, name in (
        (ONE, "key-1"),
        (f" web.shop-1_ : {ONE} ", None),
        (f"web:{ONE}", "web"),
        (f"web:sha256:{HEX}", "web"),
        (f"sha256:{HEX.upper()}", "key-1"),
    ):
        if name is None:
            with pytest.raises(KeysError, match="name"):
                parse_keys([text])
        else:
            assert parse_keys(["", text, " "]) == (Key(name, digest),)
    assert ONE not in repr(parse_keys([ONE]))


def test_keys_without_a_name_are_called_by_their_place() -> None:
    keys = parse_keys([ONE, f"web:{OTHER}", "x" * 16])
    assert [key.name for key in keys] == ["key-1", "web", "key-3"]


def test_a_name_may_have_two_keys_while_one_replaces_the_other() -> None:
    assert [key.name for key in parse_keys([f"web:{ONE}", f"web:{OTHER}"])] == ["web", "web"]


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        ([], "no key"),
        (["", " "], "no key"),
        ([ONE[:-1]], "^key 1: .* at least 16"),
        ([OTHER, "", ONE[:-1]], "^key 2: .* at least 16"),
        ([f"web:{ONE[:-1]}"], "at least 16"),
        (["web:"], "at least 16"),
        ([f"two words:{ONE}"], "name"),
        ([f":{ONE}"], "name"),
        ([f"{'n' * 65}:{ONE}"], "name"),
        ([f"web:sha256:{HEX[:-1]}"], "64 hexadecimal"),
        ([f"sha256:{ONE}"], "64 hexadecimal"),
        ([f"{ONE}\x00"], "printable"),
        ([f"{ONE}\udcff"], "printable"),
        ([ONE, ONE], "^key 2: the key of key 1 is given twice$"),
        ([OTHER, f"a:{ONE}", f"b:sha256:{HEX}"], "^key 3: the key of key 2 is given twice$"),
    ],
)
def test_what_is_no_key_is_told_and_not_shown(texts: list[str], why: str) -> None:
    with pytest.raises(KeysError, match=why) as caught:
        parse_keys(texts)
    assert ONE[:8] not in str(caught.value)


def test_a_file_has_one_a_line_with_comments(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(
        b"\xef\xbb\xbf# who may ask\r\n\r\n  # and one more\r\n"
        + f"web:{ONE}\r\n{OTHER},#{OTHER}\r\n".encode()
    )
    web, comma = read_keys(file)
    assert web == Key("web", digest_of(ONE.encode()))
    assert comma == Key("file-key-2", digest_of(f"{OTHER},#{OTHER}".encode()))


@pytest.mark.parametrize("odd", ["\x0b", "\x1c", "\u2028"])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, odd: str) -> None:
    """Else the end of a comment, or of what no client could send, would be a key."""
    file = tmp_path / "keys"
    file.write_text(f"# a note{odd}{OTHER}\n{ONE}\n")
    assert [key.digest for key in read_keys(file)] == [digest_of(ONE.encode())]
    file.write_text(f"{OTHER}{odd}{OTHER}\n{ONE}\n")
    with pytest.raises(KeysError, match="line 1: a key is no printable text"):
        read_keys(file)


@pytest.mark.parametrize(
    ("last", "why"),
    [(ONE[:-1], "a key has at least 16"), (f"a b:{ONE}", "a name"), (f"x:{OTHER}", "of line 3")],
)
def test_the_line_that_is_wrong_is_named(tmp_path: Path, last: str, why: str) -> None:
    """Comments and blank lines count, as an editor counts them."""
    file = tmp_path / "keys"
    file.write_text(f"# who may ask\n\n{OTHER}\n\n  # new\n{last}\n")
    with pytest.raises(KeysError, match=f"^line 6: .*{why}") as caught:
        read_keys(file)
    assert last[-8:] not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"\xff\xfe\n", b"short\n", bytes(2**20)])
def test_a_file_without_keys_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(KeysError):
        read_keys(file)
    file.write_bytes(ONE.encode() + b"\n" + b"#" * 2**20)
    with pytest.raises(KeysError, match="1 MiB"):
        read_keys(file)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """Opening a pipe would wait for whoever writes into it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path / "none", tmp_path, pipe):
        with pytest.raises(KeysError, match="no such file"):
            read_keys(path)


def test_a_client_sends_the_key_and_not_its_name() -> None:
    assert plain_key(f" web:{ONE}") == ONE
    assert plain_key(ONE) == ONE
    assert plain_key(f"web:sha256:{HEX}") is None
    assert plain_key(f"sha256:{HEX}") is None
