"""Words on their way to a terminal: whole lines, escaped, in one write, and no error of the
terminal's own.
"""

import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.terminal import LONGEST_LINE, MOST_LINES, on_lines, on_one_line, write_lines


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
