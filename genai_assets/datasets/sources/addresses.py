"""Addresses on a network: which may be asked for a picture, and what of one may be written down.

Belongs here: the judgement of IP addresses (public, or a way into somebody's own network), the parts of an aiohttp
session that hold every connection to it, and web addresses (URLs) without their secrets. What is fetched is the
sources' business.

A list of URLs is data that others wrote. Whoever wrote it could name the address of a router, a database or a cloud's
metadata service and have this machine ask it (server-side request forgery, CWE-918). So the address that is connected
to is itself the one that is judged: a name is looked up once, all its answers are judged, and the socket is made for a
judged answer only. A name that answers otherwise a moment later (DNS rebinding) therefore gains nothing.
"""

import functools
import re
import socket
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

if TYPE_CHECKING:
    from collections.abc import Callable

IPAddress = IPv4Address | IPv6Address

SCHEMES = ("http", "https")

_REFUSED_4 = {
    IPv4Network(block): what
    for block, what in {
        "0.0.0.0/8": "this network",
        "10.0.0.0/8": "private",
        "100.100.100.200/32": "a cloud's own service",
        "100.64.0.0/10": "shared by a provider's customers",
        "127.0.0.0/8": "loopback",
        "168.63.129.16/32": "a cloud's own service",  # public by number; within Azure it is the platform's endpoint
        "169.254.0.0/16": "link-local",
        "172.16.0.0/12": "private",
        "192.0.0.0/24": "reserved for protocols",
        "192.0.2.0/24": "documentation",
        "192.31.196.0/24": "AS112",
        "192.52.193.0/24": "multicast tunnels",
        "192.88.99.0/24": "6to4 relays",
        "192.168.0.0/16": "private",
        "192.175.48.0/24": "AS112",
        "198.18.0.0/15": "benchmarks",
        "198.51.100.0/24": "documentation",
        "203.0.113.0/24": "documentation",
        "224.0.0.0/4": "multicast",
        "240.0.0.0/4": "reserved",
    }.items()
}
_REFUSED_6 = {
    IPv6Network(block): what
    for block, what in {
        "::/128": "unspecified",
        "::1/128": "loopback",
        "64:ff9b:1::/48": "a network's own translation",
        "100::/64": "discarded",
        "100:0:0:1::/64": "a dummy prefix",
        "2001::/23": "reserved for protocols",
        "2001:db8::/32": "documentation",
        "2620:4f:8000::/48": "AS112",
        "3fff::/20": "documentation",
        "5f00::/16": "segment routing",
        "fd00:ec2::254/128": "a cloud's own service",
        "fd20:ce::254/128": "a cloud's own service",
        "fc00::/7": "private",
        "fe80::/10": "link-local",
        "fec0::/10": "site-local",
        "ff00::/8": "multicast",
    }.items()
}
"""The special-purpose address registries of IANA (RFC 6890 and after), and where clouds give out credentials, which
comes first; nobody's pictures lie in any of them, but perhaps one's own in those of :data:`_OWN`."""

_OWN = frozenset({"loopback", "private", "shared by a provider's customers"})

_PUBLIC_6 = IPv6Network("2000::/3")  # all that IANA gives out as global unicast (RFC 4291, section 2.4)
_MAPPED = IPv6Network("::ffff:0:0/96")
_COMPATIBLE = IPv6Network("::/96")
_TRANSLATED = IPv6Network("::ffff:0:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_6TO4 = IPv6Network("2002::/16")
_PRINTABLE = re.compile(r"[!-~]+")
_PLAIN = re.compile(r"https?://[a-z0-9.-]+(?::\d+)?(?:/[^?#\s]*)?")
_ISATAP = (0x00005EFE, 0x02005EFE)


class AddressRefused(OSError):
    """An address that must not be asked; the message names it, and why."""


def refusal(address: IPAddress, *, allow_private: bool = False) -> str:
    """Why no connection may be made to ``address`` ("loopback"); empty for one that is public.

    With ``allow_private``, also empty for one's own network and machine; what nobody can want is refused all the same:
    link-local addresses (where clouds give out credentials), multicast, reserved and documentation ones.

    An IPv6 address that carries an IPv4 address (mapped, compatible, translated, NAT64, 6to4, ISATAP) is judged by
    both. Everything outside of IPv6's global unicast space is refused.
    """
    blocks: Mapping[Any, str] = _REFUSED_4 if isinstance(address, IPv4Address) else _REFUSED_6
    if what := next((what for block, what in blocks.items() if address in block), ""):
        return "" if allow_private and what in _OWN else what
    if isinstance(address, IPv4Address):
        return ""
    carried = _carried(address)
    if carried is not None and (what := refusal(carried)):
        return f"{what} ({carried})"
    if address in _NAT64 and carried is not None:
        return ""  # how an IPv6-only network reaches a public IPv4 address
    return "" if address in _PUBLIC_6 else "not a public address"


def _carried(address: IPv6Address) -> IPv4Address | None:
    number = int(address)
    if any(address in block for block in (_MAPPED, _COMPATIBLE, _TRANSLATED, _NAT64)):
        return IPv4Address(number & 0xFFFFFFFF)
    if address in _6TO4:
        return IPv4Address(number >> 80 & 0xFFFFFFFF)
    if (number >> 32 & 0xFFFFFFFF) in _ISATAP:
        return IPv4Address(number & 0xFFFFFFFF)
    return None


def literal_address(host: str) -> IPAddress | None:
    """The address that ``host`` spells, None when it is a name.

    All spellings count that some resolver reads as an address: ``127.0.0.1``, ``0x7f.1``, ``017700000001``,
    ``2130706433``, ``[::1]``, ``::ffff:7f00:1``, ``fe80::1%eth0``, with a dot at the end or in full-width digits.
    """
    host = unquote(host).strip().strip("[]").rstrip(".")
    try:
        host = host.encode("idna").decode() if not host.isascii() else host  # full-width digits and dots become plain
    except UnicodeError:
        return None
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host)) if host and not any(sign.isspace() for sign in host) else None
    except OSError:
        return None


def check(host: str, address: IPAddress, *, allow_private: bool = False) -> None:
    """Nothing for an address that may be asked.

    Raises:
        AddressRefused: it may not; the message names ``host``, too.
    """
    if what := refusal(address, allow_private=allow_private):
        leads = f"{host} leads to {address}" if str(address) != host.strip("[]") else f"{address}"
        asked = "public and private" if allow_private else "public"
        raise AddressRefused(f"{leads}, which is {what}: only {asked} addresses are asked")


def web_address(text: str) -> yarl.URL:
    """A URL as it is to be asked for. What is percent-encoded already stays so, to the letter: signatures cover it.

    Raises:
        AddressRefused: it cannot be understood.
    """
    try:
        url = yarl.URL(text, encoded=_PRINTABLE.fullmatch(text) is not None)
        _ = url.host, url.port  # yarl reads them only now
        return url
    except ValueError:
        raise AddressRefused(f"{recordable(text)} cannot be understood as a web address") from None


def check_url(url: yarl.URL, *, allow_private: bool = False) -> None:
    """Nothing for a web address that may be asked, as far as it can be told without looking its name up.

    Raises:
        AddressRefused: another scheme than http and https, no host, or a host that spells a refused address.
    """
    if url.scheme not in SCHEMES:
        raise AddressRefused(f"{url.scheme or 'no scheme'}: only http and https addresses are asked")
    if not url.host:
        raise AddressRefused(f"{recordable(str(url))} names no host")
    if (address := literal_address(url.host)) is not None:
        check(url.host, address, allow_private=allow_private)


class PublicResolver(AbstractResolver):
    """Looks names up by another resolver and lets through what leads to public addresses only.

    One refused answer among public ones refuses the name: no honest server has such a mixture.
    """

    def __init__(self, inner: AbstractResolver, *, trusted: frozenset[str] = frozenset(), allow_private: bool = False):
        """``inner`` does the looking up; hosts in ``trusted`` may lead anywhere."""
        self._inner = inner
        self._allow_private = allow_private
        self._trusted = trusted

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of ``host``.

        Raises:
            AddressRefused: one of them is not public.
            OSError: there is no such name, or it could not be looked up.
        """
        answers = await self._inner.resolve(host, port, family)
        if host not in self._trusted:
            for answer in answers:
                check(host, ip_address(answer["host"].partition("%")[0]), allow_private=self._allow_private)
        return answers

    async def close(self) -> None:
        """Close the inner resolver."""
        await self._inner.close()


def public_socket(address_info: tuple[Any, ...], *, allow_private: bool = False) -> socket.socket:
    """A socket for the one address that is about to be connected to; what aiohttp calls as its ``socket_factory``.

    It comes after everything that could turn a name into an address, so nothing can come between it and the
    connection.

    Raises:
        AddressRefused: the address is not public.
    """
    family, kind, protocol, _, place = address_info
    check(str(place[0]), ip_address(str(place[0]).partition("%")[0]), allow_private=allow_private)
    return socket.socket(family, kind, protocol)


def refusal_within(error: BaseException) -> AddressRefused | None:
    """The refusal that aiohttp wrapped up in an error of its own; None when that is about something else."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, AddressRefused):
            return seen
        inner = getattr(seen, "os_error", None)
        seen = inner if isinstance(inner, BaseException) and inner is not seen else seen.__cause__ or seen.__context__
    return None


def connector(
    *, allow_private: bool, connections: int, resolver: "Callable[[], AbstractResolver] | None" = None
) -> aiohttp.TCPConnector:
    """A connector that reaches public addresses only, and with ``allow_private`` those of one's own network.

    ``resolver`` makes what looks names up; the system's by default. To be called in a running event loop.
    """
    return aiohttp.TCPConnector(
        limit=connections,
        resolver=PublicResolver((resolver or aiohttp.ThreadedResolver)(), allow_private=allow_private),
        socket_factory=functools.partial(public_socket, allow_private=allow_private),
    )


_SIGNING_PREFIXES = ("x-amz-", "x-goog-", "x-oss-", "x-cos-", "x-ms-", "q-sign", "q-ak", "q-signature")
_SIGNING = frozenset(
    {
        *("signature", "expires", "policy", "key-pair-id", "hmac", "hdnts", "hdnea"),
        *("awsaccesskeyid", "googleaccessid", "ossaccesskeyid"),
        *("sig", "sv", "se", "sp", "sr", "st", "spr", "skoid", "sktid", "skt", "ske", "sks", "skv"),  # Azure
    }
)
_SECRET = frozenset(
    {
        *("token", "access_token", "accesstoken", "auth_token", "id_token", "refresh_token", "jwt"),
        *("auth", "authorization", "api_key", "apikey", "api-key", "sas", "session", "sessionid", "session_id"),
        *("password", "passwd", "pwd", "secret", "client_secret"),
    }
)


def unsigned(url: str) -> str:
    """A URL without what a store signs it with (presigned S3, Google, Azure and CloudFront addresses), without user
    name, password and fragment: the same for the same file, however often the address is signed anew.
    """
    return _without(url, _SIGNING)


def recordable(url: str) -> str:
    """A URL as it may be kept in a manifest, shown or logged: :func:`unsigned`, and without parameters that are
    known for secrets (``token``, ``api_key``, ``password`` and their like). A secret in the path is not recognised.
    """
    return _without(url, _SIGNING | _SECRET)


def _without(url: str, parameters: frozenset[str]) -> str:
    if _PLAIN.fullmatch(url):
        return url
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:  # unbalanced brackets and their like: nothing of it can be trusted to be no secret
        return "(an address that cannot be understood)"
    azure = "sig" in {name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    kept = [piece for piece in parts.query.split("&") if piece and not _is_dropped(piece, parameters, azure=azure)]
    return urlunsplit((parts.scheme.lower(), host.lower(), parts.path, "&".join(kept), ""))


def _is_dropped(piece: str, parameters: frozenset[str], *, azure: bool) -> bool:
    name = unquote(piece.partition("=")[0]).lower()
    if len(name) == 2 and not azure:
        return False  # "sr", "st" and their like sign an address only together with "sig"
    return name in parameters or name.startswith(_SIGNING_PREFIXES)
