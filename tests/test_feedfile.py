"""picows_fast.cli.feedfile: what is written is read back, and whatever is not a feed is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from picows_fast.cli.feedfile import (
    FeedCutOffError,
    FeedError,
    FeedWriter,
    check_feed,
    read_feed,
    repeat_feed,
)

MESSAGES = [
    (0, ""),
    (0, '{"op":"subscribed"}'),
    (17, 'quotes " and \\ and \n and \x00'),
    (1_000_000, "ünïcödé \u20ac \U0001f4c8"),
    (2**63 - 1, "x" * 100_000),
]


def write_lines(path: Path, *lines: str) -> Path:
    path.write_bytes(gzip.compress("".join(lines).encode("utf-8", "surrogatepass")))
    return path


def write_messages(path: Path, messages: list[tuple[int, str]]) -> Path:
    with FeedWriter(path, replace=True) as writer:
        for microseconds, text in messages:
            writer.write(microseconds, text)
        assert writer.messages == len(messages)
    return path


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    return write_messages(tmp_path / "feed.jsonl.gz", MESSAGES)


def test_round_trip(feed: Path) -> None:
    assert list(read_feed(feed)) == MESSAGES


def test_repeated_feed_goes_on_in_time(tmp_path: Path) -> None:
    feed = repeat_feed(write_messages(tmp_path / "feed", [(0, "a"), (7, "b")]))
    assert [next(feed) for _ in range(5)] == [(0, "a"), (7, "b"), (7, "a"), (14, "b"), (14, "a")]


def test_repeated_feed_that_is_emptied(tmp_path: Path) -> None:
    path = write_messages(tmp_path / "feed", [(0, "a")])
    feed = repeat_feed(path)
    assert next(feed) == (0, "a")
    write_messages(path, [])
    with pytest.raises(FeedError, match="holds no messages"):
        next(feed)


def test_path_may_be_a_string(feed: Path) -> None:
    assert list(read_feed(str(feed))) == MESSAGES


def test_format_is_one_compact_json_array_a_line(feed: Path) -> None:
    lines = gzip.decompress(feed.read_bytes()).decode("ascii").splitlines(keepends=True)
    assert lines == [
        json.dumps([microseconds, text], separators=(",", ":")) + "\n"
        for microseconds, text in MESSAGES
    ]


def test_summary(feed: Path) -> None:
    summary = check_feed(feed)
    assert summary.messages == len(MESSAGES)
    assert summary.payload_bytes == sum(len(text.encode()) for _, text in MESSAGES)
    assert summary.microseconds == MESSAGES[-1][0]


def test_messages_come_before_the_file_is_read_to_its_end(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "feed", '[0,"good"]\n', "bad\n")
    messages = read_feed(path)
    assert next(messages) == (0, "good")
    with pytest.raises(FeedError, match="line 2"):
        next(messages)


def test_other_spellings_of_the_same_json_are_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "feed", ' [ 1 , "a" ] \r\n', '[2, "\u20ac"]\n', '[3,"end"]')
    assert list(read_feed(path)) == [(1, "a"), (2, "\u20ac"), (3, "end")]


def test_joined_gzip_files_are_one_feed(feed: Path, tmp_path: Path) -> None:
    joined = tmp_path / "joined"
    joined.write_bytes(feed.read_bytes() * 2)
    assert list(read_feed(joined)) == MESSAGES * 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "not JSON"),
        ("[0,", "not JSON"),
        ('[0,"a"] x', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("{}", "not a JSON array"),
        ("null", "not a JSON array"),
        ("[0]", "not a JSON array"),
        ('[0,"a",1]', "not a JSON array"),
        ('["0","a"]', "whole number of microseconds"),
        ('[0.5,"a"]', "whole number of microseconds"),
        ('[true,"a"]', "whole number of microseconds"),
        ('[-1,"a"]', "the time must be 0 to"),
        ('[9223372036854775808,"a"]', "the time must be 0 to"),
        (f'[{"9" * 5000},"a"]', "not JSON"),
        ("[0,1]", "must be a JSON string"),
        ("[0,null]", "must be a JSON string"),
        ('[0,"\\ud800"]', "not valid Unicode"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = write_lines(tmp_path / "bad.gz", '[0,"a"]\n', '[1,"b"]\n', line + "\n", '[2,"c"]\n')
    with pytest.raises(FeedError) as caught:
        check_feed(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert reason in str(caught.value)


def test_line_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "bad.gz"
    path.write_bytes(gzip.compress(b'[0,"a"]\n[1,"\xff"]\n'))
    with pytest.raises(FeedError, match="line 2: not JSON"):
        check_feed(path)


def read_up_to_fault(path: Path) -> tuple[list[tuple[int, str]], FeedError | None]:
    """What comes out of a file before the fault, if there is one, is reported."""
    got = []
    try:
        for entry in read_feed(path):
            got.append(entry)
    except FeedError as error:
        return got, error
    return got, None


def test_file_cut_at_every_byte(tmp_path: Path) -> None:
    messages = [(n, f"message {n * n}") for n in range(20)]
    whole = write_messages(tmp_path / "whole", messages).read_bytes()
    cut = tmp_path / "cut"
    for size in range(1, len(whole)):
        cut.write_bytes(whole[:size])
        got, error = read_up_to_fault(cut)
        assert str(cut) in str(error)
        assert got == messages[: len(got)]
        if isinstance(error, FeedCutOffError):
            assert list(read_feed(cut, allow_cut_off=True)) == got
        if got:
            assert check_feed(cut)[::3] == (len(got), True)
        else:
            with pytest.raises(FeedError):
                check_feed(cut)
    assert check_feed(tmp_path / "whole")[::3] == (20, False)


@pytest.mark.parametrize("trailing", [b"x", b"not gzip", b"\x1f\x8b", b"\x1f\x8b\x08\x00\x00"])
def test_trailing_data(feed: Path, trailing: bytes) -> None:
    feed.write_bytes(feed.read_bytes() + trailing)
    got, error = read_up_to_fault(feed)
    assert "gzip" in str(error)
    assert got == MESSAGES[: len(got)]


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    messages = [(0, "some text, long enough to be compressed, to be compressed")]
    whole = write_messages(tmp_path / "whole", messages).read_bytes()
    bad = tmp_path / "bad"
    harmless = 0
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 0xFF
        bad.write_bytes(flipped)
        got, error = read_up_to_fault(bad)
        if error is None:
            assert got == messages
            harmless += 1
        else:
            assert str(bad) in str(error)
    # Only the gzip header has bytes that carry nothing: time, level, system, file name.
    assert harmless <= 4 + 1 + 1 + len("whole.part") + 1


@pytest.mark.parametrize("content", [b"", gzip.compress(b"")], ids=["no bytes", "no lines"])
def test_no_messages(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty"
    path.write_bytes(content)
    assert list(read_feed(path)) == []
    with pytest.raises(FeedError, match="holds no messages"):
        check_feed(path)


def test_not_gzip(tmp_path: Path) -> None:
    path = tmp_path / "plain"
    path.write_text('[0,"a"]\n')
    with pytest.raises(FeedError, match="not readable as gzip") as caught:
        check_feed(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(FeedError, match="No such file"):
        check_feed(tmp_path / "missing")
    with pytest.raises(FeedError, match="directory"):
        check_feed(tmp_path)


def test_recording_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "feed"
    path.write_bytes(b"an earlier recording")
    writer = FeedWriter(path, replace=True)
    writer.write(0, "a")
    assert path.read_bytes() == b"an earlier recording"
    writer.close()
    assert list(read_feed(path)) == [(0, "a")]
    assert [entry.name for entry in tmp_path.iterdir()] == ["feed"]
    writer.close()
    writer.discard()
    assert list(read_feed(path)) == [(0, "a")]


def test_discarded_recording_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "feed"
    path.write_bytes(b"an earlier recording")
    writer = FeedWriter(path, replace=True)
    writer.write(0, "a")
    writer.discard()
    writer.close()
    assert path.read_bytes() == b"an earlier recording"
    assert [entry.name for entry in tmp_path.iterdir()] == ["feed"]


def test_recording_is_saved_when_its_block_is_left_by_an_exception(tmp_path: Path) -> None:
    path = tmp_path / "feed"

    def interrupted() -> None:
        with FeedWriter(path) as writer:
            writer.write(0, "a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(read_feed(path)) == [(0, "a")]


def test_writer_refuses_what_it_could_not_complete(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        FeedWriter(tmp_path)
    with pytest.raises(FileNotFoundError):
        FeedWriter(tmp_path / "missing" / "feed")
    assert list(tmp_path.iterdir()) == []
