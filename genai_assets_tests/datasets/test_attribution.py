"""Attribution: everybody is credited, by licence and source, and who cannot be is told."""

import json

import pandas as pd
import pytest

from genai_assets.datasets.attribution import attribution_text, collect_credits, write_attribution
from genai_assets.datasets.records import Record, to_frame

ALLOWED = ("MIT", "CC-BY-4.0", "CC0-1.0", "LicenseRef-own")


def record(number: int, licence: str, source: str = "folder:a", **provenance: str) -> Record:
    return Record(
        id=f"{number:064x}",
        caption=f"thing {number}",
        concept=f"thing-{number}",
        style="acme",
        source=source,
        licence=licence,
        width=64,
        height=64,
        provenance=provenance,
    )


@pytest.fixture
def manifest() -> pd.DataFrame:
    icons = {
        "package": "@icons/x",
        "version": "1.2.0",
        "author": "X Inc",
        "licence_notice": "https://x.example/LICENCE",
    }
    return to_frame(
        [
            *(record(number, "MIT", "icons:x", **icons, file=f"{number}.svg") for number in range(3)),
            record(10, "CC BY 4.0", attribution="Photo by Ada, 2024"),
            record(11, "CC-BY-4.0", author="Grace", title="A cup", url="https://example.org/cup"),
            record(12, "CC-BY-4.0"),
            record(13, "CC0-1.0"),
            record(14, "GPL-3.0-only OR CC-BY-4.0", author="Linus"),
        ]
    )


def test_every_record_is_credited_once_or_counted_as_uncredited(manifest: pd.DataFrame) -> None:
    found = collect_credits(manifest, ALLOWED)
    assert sum(each.records for each in found) == len(manifest)
    for each in found:
        assert sum(credit.records for credit in each.credits) + each.uncredited == each.records
    (icons,) = [each for each in found if each.source == "icons:x"]
    (credit,) = icons.credits
    assert credit.records == 3
    assert credit.text == "X Inc, from the package @icons/x 1.2.0, licence: https://x.example/LICENCE"


def test_a_credit_that_is_owed_and_not_stated_is_told_apart_from_one_that_is_not_owed(manifest: pd.DataFrame) -> None:
    owed = {each.licence: each.owed for each in collect_credits(manifest, ALLOWED)}
    assert owed == {"MIT": 0, "CC-BY-4.0": 1, "CC0-1.0": 0, "GPL-3.0-only OR CC-BY-4.0": 0}
    text = attribution_text(collect_credits(manifest, ALLOWED), of="dataset x")
    assert "**To whom is not stated, though the licence asks for it** (1)" in text
    assert "No credit stated (1)" in text


def test_a_title_alone_names_nobody() -> None:
    (credits,) = collect_credits(to_frame([record(1, "MIT", title="A cup"), record(2, "MIT", author="Ada")]), ALLOWED)
    assert ([credit.text for credit in credits.credits], credits.owed) == (["Ada"], 1)


def test_of_a_choice_of_licences_the_allowed_one_is_named(manifest: pd.DataFrame) -> None:
    (choice,) = [each for each in collect_credits(manifest, ALLOWED) if " OR " in each.licence]
    assert [licence.id for licence in choice.relied_on] == ["CC-BY-4.0"]


def test_the_text_names_licences_with_links_and_obligations_and_is_the_same_for_any_order(manifest, tmp_path) -> None:
    write_attribution(tmp_path / "one.md", manifest, ALLOWED, of="model m-1")
    write_attribution(tmp_path / "two.md", manifest.sample(frac=1, random_state=1), ALLOWED, of="model m-1")
    text = (tmp_path / "one.md").read_text()
    assert text == (tmp_path / "two.md").read_text()
    assert text.startswith("# Attribution: model m-1\n\nMade of 8 records.")
    assert "[Creative Commons Attribution 4.0](https://creativecommons.org/licenses/by/4.0/)" in text
    assert "attribution, keep the notice, state changes" in text
    assert "Photo by Ada, 2024" in text
    assert "“A cup” by Grace, https://example.org/cup" in text


def test_a_licence_that_the_policy_no_longer_allows_is_still_credited() -> None:
    (found,) = collect_credits(to_frame([record(1, "CC-BY-SA-4.0", author="Ada")]), ALLOWED)
    assert found.relied_on[0].id == "CC-BY-SA-4.0"
    assert "share alike" in found.obligations


def test_what_others_wrote_is_text_and_no_markup() -> None:
    frame = to_frame([record(1, "MIT", attribution="<script>x</script> [Ada](javascript:1)\n# heading")])
    text = attribution_text(collect_credits(frame, ALLOWED), of="x")
    assert "<script>" not in text.replace("\\<", "")
    assert "\n# heading" not in text
    assert json.loads(frame["provenance"].iloc[0])["attribution"].startswith("<script>")
