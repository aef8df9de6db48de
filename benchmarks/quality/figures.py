"""Figures that benchmarks write into pages of the docs: between two marks, and nowhere else."""

from pathlib import Path

from genai_assets import durable


def write_between(page: Path, begin: str, end: str, text: str, *, what: str) -> None:
    """Put text between the marks of a page, in the place of what was there.

    Args:
        page: a text file.
        begin, end: the marks, whole lines.
        text: with its last line's end.
        what: it is, for the error.

    Raises:
        ValueError: the page has no marks.
    """
    before, first, rest = page.read_text().partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"{page} has no place for the {what}: {begin.strip()} … {end.strip()}")
    durable.write_text(page, f"{before}{begin}{text}{end}{after}")
