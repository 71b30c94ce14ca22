"""docs/results.md: one screen, whose rows name a command and a page that there are."""

import re

from tests.house.fresh_copy import ROOT

TABLE = ROOT / "docs" / "results.md"
PAGES = ROOT / "docs" / "results"


def rows() -> list[list[str]]:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in lines[1:]]


def test_it_is_one_screen() -> None:
    assert TABLE.read_text().count("\n") <= 45


def test_each_row_has_claim_figure_command_and_page() -> None:
    wrong = [row for row in rows() if len(row) != 4 or "`" not in row[2] or "](" not in row[3]]

    assert len(rows()) >= 15
    assert wrong == []


def test_each_command_is_there() -> None:
    missing = []
    for *_, command, _ in rows():
        for path in re.findall(r"tests/\S+\.py", command):
            if not (ROOT / path).exists():
                missing.append(path)
        for module in re.findall(r"-m (tests\.[\w.]+)", command):
            path = ROOT / module.replace(".", "/")
            if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists():
                missing.append(module)

    assert missing == []


def test_each_page_is_linked_and_says_on_which_machine() -> None:
    linked = set(re.findall(r"\]\(results/(\w+)\.md", TABLE.read_text()))

    assert linked == {page.stem for page in PAGES.glob("*.md")}
    for page in PAGES.glob("*.md"):
        assert "Machine unless said otherwise" in page.read_text(), page.name
