"""What a job's console tells: as it was said, brackets included."""

import io
import logging

import pytest
from rich.console import Console

from genai_assets.defs.orchestra import _Teller


@pytest.mark.parametrize("said", ["read [/data/x]", "read /data/[icons]/a.png", "[bold]"])
def test_brackets_in_what_an_asset_says_are_no_markup(said: str):
    written = io.StringIO()
    record = logging.LogRecord("story", logging.INFO, "", 0, said, None, None)
    record.dagster_meta = {"step_key": "raw_data", "orig_message": said}
    _Teller(Console(file=written, width=200)).handle(record)
    assert written.getvalue().split(maxsplit=1) == ["raw_data", f"{said}\n"]
