import asyncio
import contextlib
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import aiohttp
import pytest
import yarl
from aiohttp.abc import AbstractResolver
from hypothesis import given
from hypothesis import strategies as st

from genai_assets.datasets.sources import addresses

# Written down from IANA's registries of special-purpose addresses, of multicast addresses and of IPv6's address space;
# not taken from the code that is tested.
SPECIAL_4 = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
    *("192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24"),
    *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32"),
]
SPECIAL_6 = [
    *("::/128", "::1/128", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001:2::/48", "2001:db8::/32"),
    *("2001:10::/28", "2001:20::/28", "2620:4f:8000::/48", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10"),
    *("fec0::/10", "ff00::/8", "2001::/32", "200::/7", "4000::/3", "8000::/3", "e000::/4"),
]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "192.0.1.0",
    "2606:4700::1111",
    "2a00:1450:4001::200e",
    "64:ff9b::808:808",
]

specials_4 = st.sampled_from(SPECIAL_4).flatmap(
    lambda block: st.integers(int(IPv4Network(block)[0]), int(IPv4Network(block)[-1])).map(IPv4Address)
)
specials_6 = st.sampled_from(SPECIAL_6).flatmap(
    lambda block: st.integers(int(IPv6Network(block)[0]), int(IPv6Network(block)[-1])).map(IPv6Address)
)


def number(value: int, base: str) -> str:
    return {"decimal": f"{value}", "hex": f"0x{value:x}", "HEX": f"0X{value:X}", "octal": f"0{value:o}"}[base]


@st.composite
def spellings(draw, address: IPv4Address) -> str:
    """One of the ways in which inet_aton, and so some resolver, takes an IPv4 address."""
    parts = draw(st.integers(1, 4))
    value = int(address)
    heads = [value >> 8 * (3 - place) & 0xFF for place in range(parts - 1)]
    tail = value & (1 << 8 * (5 - parts)) - 1
    bases = draw(st.lists(st.sampled_from(["decimal", "hex", "HEX", "octal"]), min_size=parts, max_size=parts))
    return ".".join(number(part, base) for part, base in zip([*heads, tail], bases, strict=True))


@st.composite
def carriers(draw, address: IPv4Address) -> IPv6Address:
    """One of the IPv6 addresses that lead to an IPv4 address."""
    value = int(address)
    prefix = draw(st.integers(0, 2**64 - 1))
    interface = draw(st.sampled_from([0x00005EFE, 0x02005EFE]))
    return draw(
        st.sampled_from(
            [
                IPv6Address((0xFFFF << 32) | value),
                IPv6Address(value),
                IPv6Address((0xFFFF << 48) | value),
                IPv6Address((0x64FF9B << 96) | value),
                IPv6Address((0x2002 << 112) | (value << 80) | prefix),
                IPv6Address((0x2A00 << 112) | (interface << 32) | value),
            ]
        )
    )


@given(specials_4)
def test_every_special_purpose_ipv4_address_is_refused(address):
    assert addresses.refusal(address)


@given(specials_6)
def test_every_special_purpose_ipv6_address_is_refused(address):
    assert addresses.refusal(address)


OWN = ["10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]


@pytest.mark.parametrize(
    "address", ["10.1.2.3", "100.64.0.1", "127.0.0.1", "172.31.0.1", "192.168.1.1", "::1", "fd12::1"]
)
def test_ones_own_network_may_be_asked_when_it_is_allowed(address):
    assert addresses.refusal(ip_address(address)) and not addresses.refusal(ip_address(address), allow_private=True)


@given(specials_4)
def test_allowing_private_addresses_allows_no_others(address):
    if not any(address in IPv4Network(block) for block in OWN):
        assert addresses.refusal(address, allow_private=True)


CREDENTIALS = ["169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fe80::a9fe:a9fe"]


@pytest.mark.parametrize("address", CREDENTIALS)
def test_where_clouds_give_out_credentials_is_never_asked(address):
    assert addresses.refusal(ip_address(address), allow_private=True)
    url = addresses.web_address(f"http://[{address}]/" if ":" in address else f"http://{address}/")
    with pytest.raises(addresses.AddressRefused, match="only public and private addresses are asked"):
        addresses.check_url(url, allow_private=True)


@given(specials_4.flatmap(spellings))
def test_every_spelling_of_a_refused_ipv4_address_is_refused_in_a_url(host):
    with pytest.raises(addresses.AddressRefused):
        addresses.check_url(addresses.web_address(f"http://{host}/cup.png"))


@given(specials_4.flatmap(carriers))
def test_every_ipv6_address_that_carries_a_refused_ipv4_address_is_refused(address):
    assert addresses.refusal(address)
    with pytest.raises(addresses.AddressRefused):
        addresses.check_url(addresses.web_address(f"http://[{address}]/cup.png"))


@given(specials_4.map(str), st.sampled_from(["{}.", " {}", "%31{}"]))
def test_a_refused_address_in_disguise_is_still_that_address(spelled, disguise):
    if disguise == "%31{}":
        spelled, disguise = spelled[1:], "%3" + spelled[0] + "{}"
    assert addresses.literal_address(disguise.format(spelled)) is not None


@pytest.mark.parametrize(
    "host", ["１２７.0.0.1", "127。0。0。1", "⑫7.0.0.1", "[::ffff:127.0.0.1]", "fe80::1%eth0", "0"]
)
def test_odd_writings_of_private_hosts_are_seen_through(host):
    address = addresses.literal_address(host)
    assert address is not None and addresses.refusal(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_let_through(address):
    assert addresses.refusal(ip_address(address)) == ""


@given(st.integers(0, 2**32 - 1).map(IPv4Address))
def test_an_ipv4_address_is_let_through_only_where_python_too_calls_it_global(address):
    if not addresses.refusal(address):
        assert address.is_global


@given(st.integers(0, 2**128 - 1).map(IPv6Address))
def test_an_ipv6_address_outside_of_global_unicast_is_refused(address):
    if address not in IPv6Network("2000::/3") and address not in IPv6Network("64:ff9b::/96"):
        assert addresses.refusal(address)


@pytest.mark.parametrize("host", ["example.com", "deadbeef", "0x", "1.2.3.4.5", "", "08.8.8.8", "a" * 300, "\u0660x"])
def test_a_name_is_no_address(host):
    assert addresses.literal_address(host) is None


@pytest.mark.parametrize(
    "url", ["ftp://example.com/cup.png", "file:///etc/passwd", "data:image/png,x", "//example.com/cup"]
)
def test_only_http_and_https_are_asked(url):
    with pytest.raises(addresses.AddressRefused, match="only http and https"):
        addresses.check_url(addresses.web_address(url), allow_private=True)


@pytest.mark.parametrize("url", ["http://[::1", "http://example.com:99999/", "http://example.com:x/", "http://a\\@b/"])
def test_what_is_no_address_is_refused_without_being_shown_whole(url):
    with pytest.raises(addresses.AddressRefused, match="cannot be understood"):
        addresses.web_address(url)


class Answers(AbstractResolver):
    """A name server that answers with what it is told, each time with the next."""

    def __init__(self, *rounds: list[str]):
        self.rounds = list(rounds)

    async def resolve(self, host, port=0, family=socket.AF_UNSPEC):
        found = self.rounds.pop(0) if len(self.rounds) > 1 else self.rounds[0]
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
            for address in found
        ]

    async def close(self):
        pass


async def ask(resolver: AbstractResolver, url: str) -> None:
    async with aiohttp.ClientSession(
        connector=addresses.connector(allow_private=False, connections=1, resolver=lambda: resolver)
    ) as session:
        await session.get(url)


@pytest.mark.parametrize("answer", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["::ffff:169.254.169.254"]])
def test_a_name_that_leads_to_a_private_address_is_refused(answer):
    with pytest.raises(aiohttp.ClientConnectorError) as caught:
        asyncio.run(ask(Answers(answer), "http://pictures.example/cup.png"))
    refused = addresses.refusal_within(caught.value)
    assert refused is not None and "pictures.example leads to" in str(refused)


def test_an_address_that_no_name_server_was_asked_for_is_refused_by_the_socket():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        with pytest.raises(aiohttp.ClientConnectorError) as caught:
            asyncio.run(ask(Answers(["93.184.216.34"]), f"http://127.0.0.1:{port}/"))
    assert "loopback" in str(addresses.refusal_within(caught.value))


def test_the_answer_that_was_judged_is_the_one_that_is_connected_to():
    """A name that is public when it is judged and private a moment later is looked up once only."""
    rebinding = Answers(["93.184.216.34"], ["127.0.0.1"])
    connected: list[str] = []

    def watched(info):
        connected.append(info[4][0])
        raise OSError("no connection is made in this test")

    async def run():
        resolver = addresses.PublicResolver(rebinding)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=resolver, socket_factory=watched)
        ) as session:
            await session.get("http://pictures.example/cup.png")

    with pytest.raises(aiohttp.ClientConnectorError):
        asyncio.run(run())
    assert connected == ["93.184.216.34"]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://User:Pass@Pictures.Example/Cup.png", "https://pictures.example/Cup.png"),
        ("https://a.example/c.png?size=2&token=abc&Access_Token=x", "https://a.example/c.png?size=2"),
        ("https://a.example/c.png?X-Amz-Signature=1&X-Amz-Date=2&v=3", "https://a.example/c.png?v=3"),
        ("https://a.blob.example/c.png?sv=1&sr=b&sig=xyz&se=2", "https://a.blob.example/c.png"),
        ("https://a.example/c.png?st=5&sr=6", "https://a.example/c.png?st=5&sr=6"),
        ("https://a.example/c%20d.png?x=%2F#part", "https://a.example/c%20d.png?x=%2F"),
        ("http://[::1", "(an address that cannot be understood)"),
    ],
)
def test_what_is_recorded_of_an_address_has_no_secrets_and_nothing_else_is_lost(url, shown):
    assert addresses.recordable(url) == shown
    assert addresses.recordable(shown) == shown


def test_signing_anew_is_the_same_address_but_another_key_parameter_is_not():
    first, second = ("https://a.example/c.png?Expires=1&Signature=x", "https://a.example/c.png?Expires=2&Signature=y")
    assert addresses.unsigned(first) == addresses.unsigned(second)
    assert addresses.unsigned("https://a.example/?token=1") != addresses.unsigned("https://a.example/?token=2")


@given(st.text(max_size=60), st.sampled_from(["https://", "http://", ""]))
def test_no_text_is_too_odd_to_be_recorded(text, scheme):
    assert isinstance(addresses.recordable(scheme + text), str)
    with contextlib.suppress(addresses.AddressRefused):
        assert isinstance(addresses.web_address(scheme + text), yarl.URL)
