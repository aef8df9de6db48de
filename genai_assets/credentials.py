"""What of a URL must not be shown: passwords and keys, in front of its host or in its query.

Belongs here: leaving them out of what a person or a log reads. Where they come from is settings'.
"""

import re
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    import sqlalchemy as sa

_SECRET = re.compile(r"pass|pwd|secret|token|key|credential|signature|^sig$", re.IGNORECASE)
_HIDDEN = "***"


def shown(url: "sa.URL") -> str:
    """A database's URL for messages, with asterisks for what is secret."""
    query = {name: _HIDDEN if _SECRET.search(name) else value for name, value in url.query.items()}
    return url.set(query=query).render_as_string(hide_password=True).replace(quote(_HIDDEN), _HIDDEN)


def secrets_of(url: "sa.URL") -> set[str]:
    """What of a database's URL must not be shown, each as it is and as a URL has it."""
    plain = {str(url.password)} if url.password else set()
    for name, values in url.query.items():
        if _SECRET.search(name):
            plain |= {values} if isinstance(values, str) else set(values)
    return {form for secret in plain if secret for form in (secret, quote(secret, safe=""), quote_plus(secret))}


def without_credentials(text: str) -> str:
    """A setting's value, with an ellipsis for what a URL in it keeps secret.

    Where a password ends cannot be told from what follows, for it may have spaces: then rather too much is left out.
    """

    def hidden(found: re.Match[str]) -> str:
        return f"{found[1]}{found[2]}=…" if _SECRET.search(found[2]) else found[0]

    text = re.sub(r"(://[^:/@\s]*):[^@]+@", r"\1:…@", text)
    return re.sub(r"([?&])([^=&\s]+)=[^&]+", hidden, text)
