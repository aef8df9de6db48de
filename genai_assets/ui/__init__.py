"""The page people use: type a prompt, look at pictures, rate them. One HTML file without external resources.

Belongs here: what the browser is given. What it calls is ``serving.service``.
"""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files


@cache
def page() -> bytes:
    """The page as UTF-8 HTML; style and script are inline and allowed by their hash in the service's policy."""
    return files(__name__).joinpath("page.html").read_bytes()


@cache
def content_security_policy() -> str:
    """The page's Content-Security-Policy: its own inline style and script by hash, its own origin, nothing else."""
    text = page().decode()

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        return " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'" for block in blocks
        )

    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {hashes('script')}",
            f"style-src {hashes('style')}",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
