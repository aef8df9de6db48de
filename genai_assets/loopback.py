"""This machine's own addresses: which hosts mean it alone, and how a browser here opens what listens.

Belongs here: the judgement of a host's name, and of the ``Host`` that a request asks for. Who listens where is the
business of ``pages``, ``serving`` and ``up``.

What listens on loopback asks nobody for a password, for only people at this machine can reach it. A page of another
site could reach it, too, through their browser, under a name of its own that it points at this machine (DNS
rebinding). Its requests carry that name as ``Host``, so this is what they are known by.
"""

import re
from ipaddress import ip_address

LOOPBACK = "127.0.0.1"

_HOST = re.compile(r"(?:\[(?P<ipv6>[^\[\]]+)\]|(?P<name>[^\[\]:]+))(?::\d*)?")


def is_loopback(host: str) -> bool:
    """Whether a host is ``localhost`` or a loopback address; no name is looked up."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def asks_for_loopback(header: str | None) -> bool:
    """Whether a request's header ``Host`` (a name or address, perhaps a port) names loopback; False without one."""
    host = _HOST.fullmatch(header or "")
    return host is not None and is_loopback(host["ipv6"] or host["name"])


def reachable(host: str) -> str:
    """What to write into a URL to reach, from this machine, what listens on ``host``, which may mean "all"."""
    host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host
