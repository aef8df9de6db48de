"""The licence policy: which pictures may be trained on.

Belongs here: the decision and its reason. Which licences a team allows is a setting; what a source's licence is, the
source says.
"""

from collections.abc import Iterable


class LicencePolicy:
    """Allows the SPDX identifiers it is given and refuses all others, also the ones nobody thought of."""

    def __init__(self, allowed: Iterable[str]):
        # SPDX identifiers are compared without regard to case (SPDX specification 2.3, annex D.2).
        self._allowed = {licence.casefold(): licence for licence in allowed}

    def refusal(self, licence: str) -> str | None:
        """Why pictures under ``licence`` are refused; None when they are allowed."""
        if not licence.strip():
            return "no licence is stated; state one, or leave the pictures out"
        if licence.strip().casefold() in self._allowed:
            return None
        return f"licence {licence} is not allowed (allowed: {', '.join(self._allowed.values())})"
