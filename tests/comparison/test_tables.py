"""The text of a table: what is in its cells, at the width of a file and of a terminal."""

from train.comparison.tables import Table

TABLE = Table(
    "Title",
    ("set-up", "effective batch", "outcome"),
    (("[bold]one[/bold]", "1,000 ± 0", ":smile: 5"), ("two", "-", "0.5 (60 rows)")),
)


def test_a_row_is_a_line_and_names_are_no_markup() -> None:
    assert str(TABLE).split("\n") == [
        "Title",
        "  set-up            effective batch        outcome",
        "  [bold]one[/bold]        1,000 ± 0      :smile: 5",
        "  two                             -  0.5 (60 rows)",
    ]


def test_a_narrow_terminal_folds_cells_and_breaks_no_word() -> None:
    for width in (44, 10):  # no table fits in 10 characters: that is no reason to break words
        text = TABLE.text(width)

        assert len(text.split("\n")) > len(str(TABLE).split("\n"))
        assert sorted(text.split()) == sorted(str(TABLE).split())
    assert max(map(len, TABLE.text(44).split("\n"))) <= 44


def test_a_long_table_of_one_word_is_whole() -> None:
    name = "x" * 3000

    assert name in str(Table("Title", ("key", "value"), ((name, "1"),)))
