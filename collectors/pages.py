"""Tables that programs write into pages of the documentation, between two marks."""

from __future__ import annotations

from pathlib import Path

from episode_store.errors import UserError
from episode_store.files import write_bytes


def write_tables(page: Path, name: str, tables: str) -> None:
    """Puts tables between the marks `<!-- name -->` and `<!-- /name -->` of a page.

    Raises:
      UserError: there is no page, or it has no such marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{page}: expected a page with the marks {begin} and {end}: {error}") from None
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise UserError(f"{page}: expected the marks {begin} and {end} around the tables")
    write_bytes(page, f"{before}{begin}\n{tables.rstrip()}\n{end}{after}".encode())
