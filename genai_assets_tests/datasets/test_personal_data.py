"""Personal data in captions: found where it is, masked wherever it is told, and not seen where there is none."""

from datetime import date, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_assets.datasets.personal_data import KINDS, find_personal_data, mask

REGIONS = ("US", "GB", "DE", "FR")

EMAILS = [
    "portrait of jane.doe@example.com",
    "mail me at bob@shop.co.uk",
    "jane (at) example (dot) org",
    "jane[at]example.org",
    "müller@bücher.example",
    "a+b@mail.example.museum",
    "contact: JOHN@EXAMPLE.COM.",
    "a mug (mug@pots.example)",
]
NUMBERS = [
    "call +49 30 901820",
    "phone 650-253-0000 for price",
    "tel. 020 7946 0958",
    "+1 650-253-0000",
    "sofa, ring (650) 253-0000",
    "0171 1234567",
    "call 6502530000",
    "+33 1 42 68 53 00",
    "Tel: 030 901820",
    "☎ 01 42 68 53 00",
]
SECRETS = [
    "key AKIAIOSFODNN7EXAMPLE",
    "token ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "password: hunter2",
    "api_key=9f8a7b6c5d",
    "-----BEGIN RSA PRIVATE KEY-----",
    "https://user:pa55word@host.example/x",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.sig",
    "Zx8Qp2Lm9Rt4Vb7Nc1Kd6Fh3",
    "d41d8cd98f00b204e9800998ecf8427e",
    "xoxb-123456789012-123456789012-abcdefghij",
]
NOTHING = [
    "2023-10-05 calendar",
    "poster 1920 x 1080 pixels",
    "ISBN 978-3-16-148410-0 book",
    "EAN 4006381333931",
    "product 12345678",
    "part no. 650 253 0000",
    "model 650.253.0000",
    "serial 0301 901820",
    "lens 100-200-3000 mm",
    "timetable 10.000.000",
    "pi 3.14159265358979",
    "lat 52.5200 13.4050",
    "barcode 5 012345 678900",
    "years 1914-1918 1939-1945",
    "10 000 000 000 won note",
    "key",
    "password manager icon",
    "secret garden behind a wall",
    "Japanese “secret” button",
    "token of love: a ring",
    "a girl @ the beach",
    "icon@2x.png",
    "Mercedes-Benz 300SL Gullwing coupe 1955",
    "Volkswagen_Golf_GTI_Mk7_2017_blue",
    "supercalifragilisticexpialidocious",
    "Boeing 747-8 Intercontinental, D-ABYA",
]

names = st.from_regex(r"[a-z]{3,10}(\.[a-z]{3,8})?", fullmatch=True)


def kinds_in(text: str) -> set[str]:
    return {finding.kind for finding in find_personal_data(text, KINDS, REGIONS)}


@pytest.mark.parametrize(
    ("kind", "texts"), [("e-mail address", EMAILS), ("telephone number", NUMBERS), ("secret", SECRETS)]
)
def test_personal_data_of_each_kind_is_found(kind, texts):
    assert [text for text in texts if kinds_in(text) != {kind}] == []


def test_dates_sizes_numbers_of_products_and_words_are_left_alone():
    assert {text: found for text in NOTHING if (found := kinds_in(text))} == {}


@given(st.dates(date(1900, 1, 1), date(2099, 12, 31)), st.sampled_from(["%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%Y%m%d"]))
def test_no_date_is_a_telephone_number(day, form):
    assert kinds_in(f"the beach, {day:{form}}") == set()
    assert kinds_in(f"{day:{form}} - {day + timedelta(days=3):{form}}") == set()


def test_a_bare_row_of_digits_is_a_telephone_number_only_when_a_word_announces_it():
    assert kinds_in("poster 6502530000") == set()
    assert kinds_in("phone 6502530000") == {"telephone number"}


def test_national_numbers_are_found_for_the_countries_that_are_set():
    text = "fax 030 901820"
    assert find_personal_data(text, KINDS, ("US",)) == ()
    assert [finding.kind for finding in find_personal_data(text, KINDS, ("US", "DE"))] == ["telephone number"]


@settings(deadline=None)
@given(names, names, st.sampled_from(["com", "org", "museum", "co.uk"]), st.sampled_from(["", "a cup, ", "from "]))
def test_a_masked_address_gives_neither_name_nor_domain_away(name, domain, top, before):
    text = f"{before}{name}@{domain}.{top}, on a shelf"
    masked = mask(text, find_personal_data(text, KINDS, REGIONS))
    assert masked == f"{before}{name[0]}…@{domain[0]}…, on a shelf"


@pytest.mark.parametrize("text", [*EMAILS, *NUMBERS, *SECRETS])
def test_what_is_masked_is_not_found_again(text):
    found = find_personal_data(text, KINDS, REGIONS)
    masked = mask(text, found)
    assert find_personal_data(masked, KINDS, REGIONS) == ()
    for finding in found:
        assert text[finding.start : finding.end] not in masked


@settings(deadline=None)
@given(st.text(max_size=120))
def test_any_text_is_looked_through_and_findings_do_not_overlap(text):
    found = find_personal_data(text, KINDS, ("US",))
    assert all(0 <= one.start < one.end <= len(text) for one in found)
    assert all(one.end <= other.start for one, other in pairwise(found))


def test_only_the_kinds_asked_for_are_looked_for():
    text = "jane@example.com, +49 30 901820"
    assert {finding.kind for finding in find_personal_data(text, ["e-mail address"])} == {"e-mail address"}
    assert find_personal_data(text, []) == ()


def test_looking_for_keys_leaves_the_settings_of_detect_secrets_as_they_were():
    from detect_secrets.settings import get_settings

    before = get_settings().json()
    find_personal_data("key AKIAIOSFODNN7EXAMPLE")
    assert get_settings().json() == before
