"""Markdown of the house as a browser shows it: whole tables with headings, links that lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT)
    for folder in (".", "docs", "benchmarks", "deploy", "embedded", "examples")
    for path in (ROOT / folder).glob("*.md" if folder in (".", "docs") else "**/*.md")
)


def text_of(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip())[1:-1]]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_row_of_a_table_has_its_cells_and_every_column_a_heading(page: Path) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", text_of(page), flags=re.MULTILINE):
        heading, *rows = table.splitlines()
        assert any(cells(heading)), f"no headings: {rows[1]}"
        assert [row for row in rows if len(cells(row)) != len(cells(heading))] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_within_the_house_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (ROOT / page).parent / name if name else ROOT / page
        assert place.exists(), target
        assert not anchor or anchor in anchors(place.resolve().relative_to(ROOT)), target


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_picture_says_what_it_shows(page: Path) -> None:
    assert all(words.strip() for words in re.findall(r"!\[([^\]]*)\]\(", text_of(page)))
