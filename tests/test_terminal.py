"""Words on their way to a terminal: whole lines, escaped, in one write, and no error of the terminal's own."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.terminal import LONGEST_LINE, MOST_LINES, on_lines, on_one_line, write_lines

ROOT = Path(__file__).parents[1]


@given(st.one_of(st.text(st.characters()), st.binary(), st.integers(), st.none()))
def test_anything_becomes_one_line_that_prints(thing: object) -> None:
    shown = on_one_line(thing)

    assert shown.isprintable()
    assert len(shown) <= LONGEST_LINE
    shown.encode()  # halves of surrogate pairs too


def test_what_moves_a_cursor_is_escaped_and_what_is_long_is_cut() -> None:
    assert on_one_line("a\x1b[2Jb\nc\x00 \u202eé") == "a\\x1b[2Jb\\nc\\x00 \\u202eé"
    assert on_one_line(b"\xff ok") == "\\xff ok"
    assert on_one_line("x" * 100_000, 60) == "x" * 20 + " ... (100,000 characters)"
    assert on_one_line("\x00" * 50, 60).endswith(" ... (50 characters)")


def test_a_message_keeps_its_lines_up_to_a_number() -> None:
    assert on_lines("what\r\n\twhy\n\x07") == "what\n    why\n\\x07"
    many = on_lines("line\n" * 10_000).split("\n")
    assert len(many) == MOST_LINES + 1
    assert many[-1] == "... (9,801 more lines)"


class Counting(io.StringIO):
    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


def test_one_write_for_a_message() -> None:
    stream = Counting()
    write_lines("one\ntwo", stream)
    assert (stream.getvalue(), stream.writes) == ("one\ntwo\n", 1)


def test_no_letter_no_reader_and_no_stream_is_an_error() -> None:
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    write_lines("±1 \udc80", ascii_only)
    assert ascii_only.buffer.getvalue() == b"\\xb11 \\udc80\n"

    reader, writer = os.pipe()
    os.close(reader)
    pipe = os.fdopen(writer, "w")
    write_lines("nobody listens", pipe)
    with pytest.raises(BrokenPipeError):  # so there was something to survive
        pipe.close()
    write_lines("closed", pipe)


def test_messages_of_several_processes_do_not_run_into_each_other() -> None:
    code = (
        "import sys; from train.errors import print_error\n"
        "for _ in range(300): print_error('\\n'.join([sys.argv[1] * 40] * 5))"
    )
    reader, writer = os.pipe()
    processes = []
    for rank in range(3):
        environ = os.environ | {"RANK": str(rank), "LOCAL_RANK": "0"}
        command = [sys.executable, "-c", code, str(rank)]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environ, stderr=writer))
    os.close(writer)
    with os.fdopen(reader) as pipe:
        lines = pipe.read().splitlines()
    assert [process.wait() for process in processes] == [0, 0, 0]

    messages = [lines[start : start + 5] for start in range(0, len(lines), 5)]
    assert len(messages) == 900
    for first, *rest in messages:
        rank = rest[0][0]
        assert first == ("" if rank == "0" else f"rank {rank}: ") + rank * 40
        assert rest == [rank * 40] * 4
