"""What of a URL is not shown, wherever in it it stands."""

import pytest
import sqlalchemy as sa

from genai_assets.credentials import secrets_of, shown, without_credentials
from genai_assets.database import Database


@pytest.mark.parametrize(
    ("url", "left"),
    [
        ("postgresql+psycopg://me:sesame@db/genai", "postgresql+psycopg://me:***@db/genai"),
        ("postgresql+psycopg://db/genai?user=me&password=sesame", "postgresql+psycopg://db/genai?password=***&user=me"),
        ("trino://me@db/genai?access_token=sesame&x=1", "trino://me@db/genai?access_token=***&x=1"),
        ("https://me.example/a?sp=r&sig=sesame", "https://me.example/a?sig=***&sp=r"),
        ("sqlite:////home/me/log.sqlite", "sqlite:////home/me/log.sqlite"),
    ],
)
def test_passwords_and_keys_of_a_url_become_asterisks(url, left):
    assert shown(sa.make_url(url)) == left
    assert "sesame" not in without_credentials(f"it reads {url}")


def test_secrets_are_known_as_they_are_and_as_a_url_has_them():
    found = secrets_of(sa.make_url("postgresql+psycopg://me:a%2Fb@db/genai?token=c d"))
    assert found == {"a/b", "a%2Fb", "c d", "c%20d", "c+d"}


def test_a_database_that_cannot_be_had_is_named_without_the_password_of_its_query():
    with pytest.raises(ValueError, match=r"the database nobase://db/x\?password=\*\*\* needs a dialect"):
        Database("nobase://db/x?password=sesame", sa.MetaData())
