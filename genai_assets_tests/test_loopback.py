"""What names this machine alone, and what only looks like it."""

import pytest

from genai_assets.loopback import asks_for_loopback, is_loopback, reachable


@pytest.mark.parametrize(
    "header", ["localhost", "LocalHost:3111", "127.0.0.1", "127.0.0.1:3111", "127.8.8.8", "[::1]", "[::1]:3111"]
)
def test_a_request_for_this_machine_is_known_with_and_without_a_port(header):
    assert asks_for_loopback(header)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        ":3111",
        "rebound.example:3111",
        "127.0.0.1.rebound.example",
        "localhost.rebound.example",
        "rebound.example:127.0.0.1",
        "127.0.0.1@rebound.example",
        "rebound.example, 127.0.0.1",
        "0.0.0.0",
        "192.168.0.7",
        "[fe80::1]",
        "[::1",
        "[127.0.0.1].rebound.example",
    ],
)
def test_a_request_for_any_other_host_is_not(header):
    assert not asks_for_loopback(header)


@pytest.mark.parametrize(("host", "alone"), [("::1", True), ("0.0.0.0", False), ("::", False), ("db.internal", False)])
def test_only_loopback_listens_to_this_machine_alone(host, alone):
    assert is_loopback(host) == alone


def test_what_listens_everywhere_or_on_ipv6_has_an_address_that_opens():
    hosts = ("127.0.0.1", "0.0.0.0", "::", "::1", "db.internal")
    assert [reachable(host) for host in hosts] == ["127.0.0.1", "127.0.0.1", "[::1]", "[::1]", "db.internal"]
