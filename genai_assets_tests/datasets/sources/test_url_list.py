import asyncio
import csv
import gzip
import itertools
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from genai_assets.datasets.sources.downloads import DownloadCache, Manners, download, jittered, retry_after
from genai_assets.datasets.sources.source import Fetched, SourceUnreadable, Surroundings
from genai_assets.datasets.sources.url_list import UrlListOptions, UrlListSource
from genai_assets_tests.datasets.sources.odd_server import Request, head, in_turn, odd_server, respond
from genai_assets_tests.datasets.sources.test_addresses import Answers

PICTURE = b"\x89PNG\r\n\x1a\n a picture, for all that downloads know"


@pytest.fixture
def server():
    with odd_server() as running:
        yield running


@pytest.fixture
def surroundings(tmp_path) -> Surroundings:
    return Surroundings(style="house", licence="LicenseRef-own", cache=tmp_path / "cache", max_file_bytes=10_000)


def write_list(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(itertools.chain.from_iterable(rows))))
        writer.writeheader()
        writer.writerows(rows)
    return path


def source_of(tmp_path, surroundings, urls, *, rows=None, clock=time.time, **options) -> UrlListSource:
    path = write_list(
        tmp_path / "list.csv", rows or [{"url": url, "text": f"picture {n}"} for n, url in enumerate(urls)]
    )
    quick = {"delay_seconds": 0, "attempts": 1, "total_seconds": 5.0, "allow_private_addresses": True}
    source = UrlListSource(UrlListOptions(path=path, **{**quick, **options}), surroundings, clock=clock)
    # Backing off is tested by itself; here nobody needs to be waited for.
    source._manners = Manners(**{**source._manners.__dict__, "backoff_seconds": 0.01})
    return source


def fetch_all(source: UrlListSource) -> dict[str, Fetched]:
    return {fetched.key: fetched for fetched in source.fetch([listed.key for listed in source.list()])}


def fetch_one(source: UrlListSource) -> Fetched:
    [fetched] = fetch_all(source).values()
    return fetched


def test_pictures_come_with_what_their_rows_say_of_them(tmp_path, surroundings, server):
    server.answers["/a/red_cup.png"] = respond(PICTURE, Content_Type="text/html")
    url = server.url("/a/red_cup.png")
    rows = [
        {"url": f"{url}?token=geheim", "caption": "a  red cup", "concept": "cup", "licence": "CC0-1.0", "author": "Ada"}
    ]
    fetched = fetch_one(source_of(tmp_path, surroundings, [], rows=rows))
    assert fetched.data == b""  # the token is part of what is asked for, and this server knows no such path
    server.answers["/a/red_cup.png?token=geheim"] = respond(PICTURE, Content_Type="text/html")
    source = source_of(tmp_path, surroundings, [], rows=rows)
    fetched = fetch_one(source)
    assert fetched.data == PICTURE
    said = fetched.description
    assert (said.caption, said.concept, said.licence, said.style) == ("a red cup", "cup", "CC0-1.0", "house")
    assert said.provenance == {"author": "Ada", "url": url, "list": "list.csv"}
    assert [(listed.key, listed.concept) for listed in source.list()] == [(url, "cup")]
    assert source.name == "urls:list" and "geheim" not in repr(fetched)


def test_a_name_in_the_address_becomes_the_caption_when_asked_for(tmp_path, surroundings, server):
    server.answers["/a/red_cup-2.png"] = respond(PICTURE)
    (tmp_path / "list.txt").write_text(f"# ours\n\n{server.url('/a/red_cup-2.png')}\n")
    for captions, caption in (("columns", ""), ("file_names", "red cup 2")):
        options = UrlListOptions(path=tmp_path / "list.txt", captions=captions, allow_private_addresses=True)
        assert fetch_one(UrlListSource(options, surroundings)).description.caption == caption


def test_user_name_and_password_are_used_and_not_kept(tmp_path, surroundings, server):
    server.answers["/cup.png"] = respond(PICTURE)
    fetched = fetch_one(source_of(tmp_path, surroundings, [f"http://ada:geheim@127.0.0.1:{server.port}/cup.png"]))
    assert fetched.data == PICTURE
    assert server.requests[0].headers["authorization"].startswith("Basic ")
    kept = b"".join(path.read_bytes() for path in surroundings.cache.rglob("*") if path.is_file())
    assert b"geheim" not in kept and "geheim" not in repr(fetched)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_list_gives_the_same_pictures(tmp_path, surroundings, kind):
    rows = [
        {"page": "https://a.example/1.png", "text": "one, two"},
        {"page": "https://a.example/2.png", "text": "three"},
    ]
    path = tmp_path / f"list.{kind}"
    if kind == "parquet":
        import pandas as pd

        pd.DataFrame(rows).to_parquet(path)
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["page", "text"], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    source = UrlListSource(UrlListOptions(path=path, url_column="page"), surroundings)
    told = [(listed.key, listed.state) for listed in source.list()]
    assert [key for key, _ in told] == ["https://a.example/1.png", "https://a.example/2.png"]
    rows[1]["text"] = "four"
    as_csv = write_list(tmp_path / "other.csv", rows)
    again = [
        listed.state for listed in UrlListSource(UrlListOptions(path=as_csv, url_column="page"), surroundings).list()
    ]
    assert again[0] == told[0][1] and again[1] != told[1][1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("list.csv", None, "there is no list"),
        ("list.csv", b"", "holds no addresses"),
        ("list.csv", b"link,text\nx,y\n", "no column 'url' or 'image_url' or 'URL'; its columns are link, text"),
        ("list.csv", b"url,text\nhttp://a.example/1.png\n", "line 2 has fewer cells"),
        ("list.csv", b"url\nhttp://a.example/1.png,2\n", "line 2 has more cells"),
        ("list.csv", b'url\n""\n', "line 2: url must be a web address"),
        ("list.csv", b"url\n\xff\n", "not UTF-8"),
        ("list.jsonl", b'{"url": "http://a.example/1.png"}\n{', "line 2 is not JSON"),
        ("list.jsonl", b"[1]", "not a JSON object"),
        ("list.parquet", b"PAR1", "cannot be read"),
        ("list.xlsx", b"", "its name must end in"),
    ],
)
def test_a_list_that_cannot_be_read_says_why_and_is_never_empty(tmp_path, surroundings, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceUnreadable, match=said):
        list(UrlListSource(UrlListOptions(path=path), surroundings).list())


def test_addresses_that_are_listed_twice_are_two_pictures_and_one_download(tmp_path, surroundings, server):
    server.answers["/cup.png"] = respond(PICTURE)
    fetched = fetch_all(source_of(tmp_path, surroundings, [server.url("/cup.png")] * 2))
    assert list(fetched) == [server.url("/cup.png"), server.url("/cup.png") + "#2"]
    assert [one.description.caption for one in fetched.values()] == ["picture 0", "picture 1"]
    assert len(server.requests) == 1


# What servers answer


@pytest.mark.parametrize("status", ["404 Not Found", "410 Gone", "403 Forbidden", "451 Unavailable For Legal Reasons"])
def test_a_picture_that_is_not_there_is_refused_at_once(tmp_path, surroundings, server, status):
    server.answers["/cup.png"] = respond(b"", status)
    fetched = fetch_one(source_of(tmp_path, surroundings, [server.url("/cup.png")], attempts=4))
    assert (fetched.refusal, fetched.passing) == (f"HTTP {status}", False)
    assert len(server.requests) == 1


def test_a_server_that_is_out_of_order_for_a_moment_is_asked_again(tmp_path, surroundings, server):
    broken = respond(b"", "500 Internal Server Error")
    server.answers["/cup.png"] = in_turn(broken, broken, respond(PICTURE))
    assert fetch_one(source_of(tmp_path, surroundings, [server.url("/cup.png")], attempts=3)).data == PICTURE
    assert len(server.requests) == 3


def test_a_server_that_stays_out_of_order_is_given_up_for_now(tmp_path, surroundings, server):
    server.answers["/cup.png"] = respond(b"", "503 Service Unavailable")
    fetched = fetch_one(source_of(tmp_path, surroundings, [server.url("/cup.png")], attempts=2))
    assert (fetched.refusal, fetched.passing) == ("HTTP 503 Service Unavailable (2 attempts)", True)
    assert len(server.requests) == 2


def test_a_server_that_asks_to_come_back_later_is_left_alone_until_then(tmp_path, surroundings, server):
    server.answers["/1.png"] = in_turn(respond(b"", "429 Too Many Requests", Retry_After="1"), respond(PICTURE))
    server.answers["/2.png"] = respond(PICTURE)
    urls = [server.url("/1.png"), server.url("/2.png")]
    fetched = fetch_all(source_of(tmp_path, surroundings, urls, attempts=2, at_once_a_host=1))
    assert all(one.data == PICTURE for one in fetched.values())
    first, *later = [request.at for request in server.requests]
    assert len(later) == 2 and min(later) - first >= 0.99, "the pause is the host's, not the one picture's"


def test_a_server_that_asks_for_a_long_pause_is_not_asked_again_in_this_run(tmp_path, surroundings, server):
    for n in range(5):
        server.answers[f"/{n}.png"] = respond(b"", "429 Too Many Requests", Retry_After="3600")
    urls = [server.url(f"/{n}.png") for n in range(5)]
    fetched = fetch_all(source_of(tmp_path, surroundings, urls, attempts=3, at_once_a_host=1))
    assert len(server.requests) == 1
    assert {one.refusal for one in fetched.values()} == {"the server asks to wait 3600 s; run again later"}
    assert all(one.passing for one in fetched.values())


def test_a_body_without_end_is_refused_as_soon_as_it_is_too_long(tmp_path, surroundings, server):
    sent = 0

    async def endless(_request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(head(Content_Type="image/png", Connection="close"))
        while True:
            writer.write(b"x" * 4096)
            await writer.drain()
            sent += 4096

    server.answers["/cup.png"] = endless
    fetched = fetch_one(source_of(tmp_path, surroundings, [server.url("/cup.png")], attempts=4))
    assert (fetched.refusal, fetched.passing) == ("larger than the limit of 10,000 bytes", False)
    assert sent < 20_000_000 and len(server.requests) == 1
    assert not [path for path in surroundings.cache.rglob("*") if path.is_file()]


def test_a_body_that_is_announced_too_long_is_not_read(tmp_path, surroundings, server):
    async def announced(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(length=10_001))

    server.answers["/cup.png"] = announced
    fetched = fetch_one(source_of(tmp_path, surroundings, [server.url("/cup.png")]))
    assert fetched.refusal == "larger than the limit of 10,000 bytes"


def test_a_body_that_is_shorter_than_announced_is_asked_for_again_and_never_kept(tmp_path, surroundings, server):
    async def cut(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(length=500) + PICTURE)
        writer.close()

    server.answers["/cup.png"] = in_turn(cut, respond(PICTURE * 2))
    assert fetch_one(source_of(tmp_path, surroundings, [server.url("/cup.png")], attempts=2)).data == PICTURE * 2
    server.answers["/cup.png"] = cut
    other = Surroundings("house", "LicenseRef-own", tmp_path / "other")
    fetched = fetch_one(source_of(tmp_path, other, [server.url("/cup.png")], attempts=2))
    assert fetched.refusal.startswith("the answer broke off") and fetched.passing


def test_a_compressed_body_counts_as_what_it_unpacks_to(tmp_path, surroundings, server):
    bomb = gzip.compress(bytes(50_000_000))
    server.answers["/cup.png"] = respond(bomb[:9_000] if len(bomb) < 9_000 else bomb, Content_Encoding="gzip")
    server.answers["/small.png"] = respond(gzip.compress(PICTURE), Content_Encoding="gzip")
    big = Surroundings("house", "LicenseRef-own", tmp_path / "other", max_file_bytes=100_000)
    fetched = fetch_all(source_of(tmp_path, big, [server.url("/cup.png"), server.url("/small.png")]))
    assert fetched[server.url("/cup.png")].refusal == "larger than the limit of 100,000 bytes"
    assert fetched[server.url("/small.png")].data == PICTURE


def test_a_dripping_body_ends_with_the_time_it_has(tmp_path, surroundings, server):
    async def drip(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(length=5_000))
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    server.answers["/cup.png"] = drip
    fetched = fetch_one(source_of(tmp_path, surroundings, [server.url("/cup.png")], total_seconds=0.4))
    assert (fetched.refusal, fetched.passing) == ("not all of the answer within 0.4 s", True)


def test_an_empty_answer_is_no_picture(tmp_path, surroundings, server):
    server.answers["/cup.png"] = respond(b"")
    assert fetch_one(source_of(tmp_path, surroundings, [server.url("/cup.png")])).refusal == "the answer is empty"


def test_what_is_no_http_is_a_broken_answer(tmp_path, surroundings, server):
    async def babble(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        writer.close()

    server.answers["/cup.png"] = babble
    fetched = fetch_one(source_of(tmp_path, surroundings, [server.url("/cup.png")]))
    assert fetched.refusal.startswith("the answer broke off")


@pytest.fixture
def self_signed(tmp_path) -> ssl.SSLContext:
    """What a server of anybody's making presents itself with."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    today = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(today - timedelta(1)).not_valid_after(today + timedelta(1))
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "server.pem").write_bytes(key.private_bytes(*plain) + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    return context


def test_a_certificate_that_nobody_vouches_for_is_refused_and_nothing_is_asked(tmp_path, surroundings, self_signed):
    with odd_server(self_signed) as server:
        server.answers["/cup.png"] = respond(PICTURE)
        url = server.url("/cup.png").replace("http:", "https:")
        fetched = fetch_one(source_of(tmp_path, surroundings, [url], attempts=3))
        assert fetched.refusal.startswith("its certificate is not valid") and fetched.passing
        assert not server.requests


# Redirects


def redirect(target: str, status: str = "302 Found"):
    return respond(b"", status, Location=target)


def test_redirects_are_followed_so_far_and_no_further(tmp_path, surroundings, server):
    for n in range(4):
        server.answers[f"/{n}"] = redirect(f"{n + 1}", "308 Permanent Redirect")
    server.answers["/4"] = respond(PICTURE)
    assert fetch_one(source_of(tmp_path, surroundings, [server.url("/0")], max_redirects=4)).data == PICTURE
    other = Surroundings("house", "LicenseRef-own", tmp_path / "other")
    fetched = fetch_one(source_of(tmp_path, other, [server.url("/0")], max_redirects=3))
    assert (fetched.refusal, fetched.passing) == ("more than 3 redirects", False)


def test_a_redirect_that_goes_round_in_circles_ends(tmp_path, surroundings, server):
    server.answers["/a"], server.answers["/b"] = redirect("/b"), redirect("/a")
    fetched = fetch_one(source_of(tmp_path, surroundings, [server.url("/a")], attempts=3))
    assert fetched.refusal == "more than 5 redirects" and len(server.requests) == 6


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://a.example/cup.png", "http://[::1", "//[bad/"])
def test_a_redirect_to_what_is_no_web_address_is_refused(tmp_path, surroundings, server, target):
    server.answers["/cup.png"] = redirect(target)
    fetched = fetch_one(source_of(tmp_path, surroundings, [server.url("/cup.png")]))
    assert fetched.refusal and not fetched.passing and not fetched.data


@pytest.fixture
def public_loopback(monkeypatch):
    """Makes 127.0.0.1 count as public, and nothing else: so that a redirect from a public server can be tested."""
    from genai_assets.datasets.sources import addresses

    judge = addresses.refusal
    public = ip_address("127.0.0.1")
    monkeypatch.setattr(addresses, "refusal", lambda address, **how: "" if address == public else judge(address, **how))


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.2:{port}/", "http://0x7f000002:{port}/", "http://[::1]:{port}/", "http://169.254.169.254/latest/"],
)
@pytest.mark.usefixtures("public_loopback")
def test_a_redirect_into_a_private_network_is_refused(tmp_path, surroundings, server, target):
    server.answers["/cup.png"] = redirect(target.format(port=server.port))
    server.answers["/"] = respond(PICTURE)
    source = source_of(tmp_path, surroundings, [server.url("/cup.png")], allow_private_addresses=False)
    fetched = fetch_one(source)
    assert "only public addresses are asked" in fetched.refusal and not fetched.passing
    assert server.counts() == {"/cup.png": 1}


@pytest.mark.usefixtures("public_loopback")
def test_a_redirect_to_a_name_that_leads_into_a_private_network_is_refused(tmp_path, surroundings, server):
    server.answers["/cup.png"] = redirect(f"http://inside.example:{server.port}/")
    server.answers["/"] = respond(PICTURE)
    source = source_of(tmp_path, surroundings, [server.url("/cup.png")], allow_private_addresses=False)
    source._resolver = lambda: Answers(["127.0.0.2"])
    assert "inside.example leads to 127.0.0.2" in fetch_one(source).refusal
    assert server.counts() == {"/cup.png": 1}


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f.1", "localhost", "[::ffff:7f00:1]", "inside.example"]
)
def test_private_addresses_are_refused_by_default_and_nothing_is_asked(tmp_path, surroundings, server, host):
    server.answers["/cup.png"] = respond(PICTURE)
    source = source_of(tmp_path, surroundings, [server.url("/cup.png", host)], allow_private_addresses=False)
    source._resolver = lambda: Answers(["127.0.0.1"])
    fetched = fetch_one(source)
    assert "only public addresses are asked" in fetched.refusal and not fetched.passing
    assert not server.requests


# Manners


def test_no_more_requests_than_promised_reach_one_host_at_a_time(tmp_path, surroundings, server):
    for n in range(24):
        server.answers[f"/{n}.png"] = respond(PICTURE, after=0.03)
    urls = [server.url(f"/{n}.png") for n in range(24)]
    fetched = fetch_all(source_of(tmp_path, surroundings, urls, at_once=16, at_once_a_host=3))
    assert all(one.data == PICTURE for one in fetched.values())
    assert server.busiest == 3


def test_no_more_requests_than_promised_are_under_way_over_all_hosts(tmp_path, surroundings, server):
    for n in range(24):
        server.answers[f"/{n}.png"] = respond(PICTURE, after=0.03)
    urls = [server.url(f"/{n}.png", f"host-{n % 6}.example") for n in range(24)]
    source = source_of(tmp_path, surroundings, urls, at_once=5, at_once_a_host=4)
    source._resolver = lambda: Answers(["127.0.0.1"])
    assert all(one.data == PICTURE for one in fetch_all(source).values())
    assert server.busiest == 5


def test_requests_to_one_host_are_as_far_apart_as_promised(tmp_path, surroundings, server):
    for n in range(6):
        server.answers[f"/{n}.png"] = respond(PICTURE)
    urls = [server.url(f"/{n}.png") for n in range(6)]
    fetch_all(source_of(tmp_path, surroundings, urls, delay_seconds=0.1, at_once_a_host=4))
    times = sorted(request.at for request in server.requests)
    # The first byte of one may be read late and that of the next early; the whole cannot be too fast.
    assert len(times) == 6 and times[-1] - times[0] >= 0.45


def test_a_host_that_many_others_redirect_to_is_treated_as_politely(tmp_path, surroundings, server):
    busy = busiest = 0

    async def watched(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal busy, busiest
        busy += 1
        busiest = max(busiest, busy)
        await respond(PICTURE, after=0.03)(request, writer)
        busy -= 1

    urls = []
    for n in range(18):
        urls.append(server.url(f"/{n}", f"host-{n % 6}.example"))
        server.answers[f"/{n}"] = redirect(server.url(f"/{n}.png", "store.example"))
        server.answers[f"/{n}.png"] = watched
    source = source_of(tmp_path, surroundings, urls, at_once_a_host=2)
    source._resolver = lambda: Answers(["127.0.0.1"])
    assert all(fetched.data == PICTURE for fetched in fetch_all(source).values())
    assert busiest == 2


def test_two_hosts_that_redirect_to_each_other_do_not_wait_for_each_other(tmp_path, surroundings, server):
    urls = []
    for n in range(8):
        first, then = ("a.example", "b.example") if n % 2 else ("b.example", "a.example")
        urls.append(server.url(f"/{n}", first))
        server.answers[f"/{n}"] = redirect(server.url(f"/{n}.png", then))
        server.answers[f"/{n}.png"] = respond(PICTURE, after=0.02)
    source = source_of(tmp_path, surroundings, urls, at_once=2, at_once_a_host=1)
    source._resolver = lambda: Answers(["127.0.0.1"])
    assert all(fetched.data == PICTURE for fetched in fetch_all(source).values())


def test_a_host_that_does_not_answer_is_left_alone_after_five_pictures(tmp_path, surroundings, server):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    server.answers["/cup.png"] = respond(PICTURE)
    urls = [server.url("/cup.png", "127.0.0.1"), *(f"http://127.0.0.2:{port}/{n}.png" for n in range(40))]
    fetched = fetch_all(source_of(tmp_path, surroundings, urls, at_once_a_host=1))
    refusals = [one.refusal for one in fetched.values() if one.refusal]
    assert len(refusals) == 40 and all(one.passing for one in fetched.values() if one.refusal)
    assert sum(refusal.startswith("no connection to 127.0.0.2") for refusal in refusals) == 5
    assert sum(refusal.startswith("the host failed 5 times in a row") for refusal in refusals) == 35


def test_when_no_host_at_all_can_be_reached_the_source_is_unreadable(tmp_path, surroundings):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    urls = [f"http://127.0.0.{n}:{port}/cup.png" for n in range(2, 40)]
    with pytest.raises(SourceUnreadable, match="none of 20 pictures' hosts could be reached"):
        fetch_all(source_of(tmp_path, surroundings, urls))


def test_servers_are_told_who_asks(tmp_path, surroundings, server):
    server.answers["/cup.png"] = respond(PICTURE)
    fetch_all(source_of(tmp_path, surroundings, [server.url("/cup.png")], user_agent="ours/1 (ada@team.example)"))
    headers = server.requests[0].headers
    assert headers["user-agent"] == "ours/1 (ada@team.example)" and headers["accept-encoding"] == "identity"
    with pytest.raises(ValueError):
        UrlListOptions(path=tmp_path / "list.csv", user_agent="ours\r\nX-Evil: 1")


@pytest.mark.parametrize(
    ("headers", "signal"),
    [
        ({"X_Robots_Tag": "noindex, noai"}, "noai"),
        ({"X_Robots_Tag": "otherbot: noimageai"}, "noimageai"),
        ({"tdm_reservation": "1"}, "tdm"),
        ({"tdm_reservation": "0"}, ""),
        ({"X_Robots_Tag": "noindex"}, ""),
    ],
)
def test_a_reservation_in_the_answer_becomes_the_pictures_opt_out(tmp_path, surroundings, server, headers, signal):
    server.answers["/cup.png"] = respond(PICTURE, **headers)
    server.answers["/moved.png"] = respond(b"", "301 Moved Permanently", Location="/plain.png", **headers)
    server.answers["/plain.png"] = respond(PICTURE)
    urls = [server.url("/cup.png"), server.url("/moved.png")]
    for _ in ("from the server", "from the cache"):
        for fetched in fetch_all(source_of(tmp_path, surroundings, urls)).values():
            assert fetched.data == PICTURE
            assert (signal in fetched.description.opt_out) if signal else not fetched.description.opt_out
    assert server.counts() == {"/cup.png": 1, "/moved.png": 1, "/plain.png": 1}


# Going on, and looking again


def test_what_was_downloaded_is_not_asked_for_again_and_offline_is_enough(tmp_path, surroundings, server):
    server.answers["/1.png"] = respond(PICTURE)
    urls = [server.url("/1.png")]
    fetch_all(source_of(tmp_path, surroundings, urls))
    offline = Surroundings("house", "LicenseRef-own", surroundings.cache, offline=True)
    assert fetch_one(source_of(tmp_path, offline, urls)).data == PICTURE
    source = source_of(tmp_path, offline, [*urls, server.url("/2.png")])
    with pytest.raises(
        SourceUnreadable, match="1 pictures of urls:list were never downloaded and the settings say off"
    ):
        fetch_all(source)
    assert server.counts() == {"/1.png": 1}


def test_a_torn_download_in_the_cache_is_downloaded_again(tmp_path, surroundings, server):
    server.answers["/cup.png"] = respond(PICTURE, ETag="1")
    urls = [server.url("/cup.png")]
    fetch_all(source_of(tmp_path, surroundings, urls))
    [kept] = (path for path in surroundings.cache.rglob("*") if path.is_file())
    whole = kept.read_bytes()
    for torn in (whole[:10], b"", whole[1:], b"x" + whole[1:], whole[:-1], whole + bytes(4), bytes(4096)):
        kept.write_bytes(torn)
        assert fetch_one(source_of(tmp_path, surroundings, urls)).data == PICTURE
    assert len(server.requests) == 8 and "if-none-match" not in server.requests[-1].headers


def test_whether_a_picture_changed_is_asked_once_an_interval_and_without_downloading_it(tmp_path, surroundings, server):
    async def versioned(request: Request, writer: asyncio.StreamWriter) -> None:
        same = request.headers.get("if-none-match") == tag
        writer.write(head("304 Not Modified", 0, ETag=tag) if same else head(length=len(body), ETag=tag) + body)

    tag, body = '"one"', PICTURE
    server.answers["/cup.png"] = versioned
    now = [time.time()]
    source = source_of(tmp_path, surroundings, [server.url("/cup.png")], recheck_days=7, clock=lambda: now[0])

    def states() -> list[str]:
        return [listed.state for listed in source.list()]

    before = states()
    assert fetch_one(source).data == PICTURE and states() == before
    now[0] += 7 * 86_400
    assert states() != before, "what is due is seen by the listing alone"
    assert fetch_one(source).data == PICTURE
    tag, body = '"two"', PICTURE * 2
    [kept] = (path for path in surroundings.cache.rglob("*") if path.is_file())
    os.utime(kept, (now[0], now[0]))  # the 304 came in this test's real time
    assert fetch_one(source).data == PICTURE, "not due again"
    now[0] += 7 * 86_400
    assert fetch_one(source).data == PICTURE * 2
    assert len([path for path in surroundings.cache.rglob("*") if path.is_file()]) == 1
    assert [request.headers.get("if-none-match") for request in server.requests] == [None, '"one"', '"one"']


def test_a_picture_that_was_found_unchanged_is_not_due_again_at_once(tmp_path, surroundings, server):
    server.answers["/cup.png"] = in_turn(respond(PICTURE, ETag="1"), respond(b"", "304 Not Modified", ETag="1"))
    source = source_of(tmp_path, surroundings, [server.url("/cup.png")], recheck_days=7)
    fetch_one(source)
    [kept] = (path for path in surroundings.cache.rglob("*") if path.is_file())
    a_week_ago = time.time() - 7 * 86_400
    os.utime(kept, (a_week_ago, a_week_ago))
    offline = Surroundings("house", "LicenseRef-own", surroundings.cache, offline=True)
    assert fetch_one(source_of(tmp_path, offline, [server.url("/cup.png")], recheck_days=7)).data == PICTURE
    assert len(server.requests) == 1, "offline, what is there has to do"
    for _ in range(3):
        assert fetch_one(source).data == PICTURE
    assert len(server.requests) == 2


def test_without_an_interval_a_listing_never_changes_by_itself(tmp_path, surroundings):
    now = [time.time()]
    source = source_of(tmp_path, surroundings, ["https://a.example/1.png"], clock=lambda: now[0])
    before = [listed.state for listed in source.list()]
    now[0] += 1e9
    assert [listed.state for listed in source.list()] == before


def test_a_server_that_is_down_when_it_is_asked_again_changes_nothing(tmp_path, surroundings, server):
    server.answers["/cup.png"] = in_turn(respond(PICTURE), respond(b"", "503 Service Unavailable"))
    now = [time.time()]
    source = source_of(tmp_path, surroundings, [server.url("/cup.png")], recheck_days=1, clock=lambda: now[0])
    fetch_one(source)
    now[0] += 86_400
    assert fetch_one(source).data == PICTURE and len(server.requests) == 2


def test_closing_early_stops_the_downloads_and_keeps_what_was_whole(tmp_path, surroundings, server):
    for n in range(50):
        server.answers[f"/{n}.png"] = respond(PICTURE, after=0.02)
    urls = [server.url(f"/{n}.png") for n in range(50)]
    source = source_of(tmp_path, surroundings, urls, at_once_a_host=2)
    fetching = source.fetch([listed.key for listed in source.list()])
    next(fetching)
    fetching.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "downloads"]
    cache = DownloadCache(surroundings.cache)
    whole = {url for url in urls if cache.find(url) is not None}
    assert 1 <= len(whole) < 50
    assert len(fetch_all(source_of(tmp_path, surroundings, urls))) == 50
    assert all(server.counts()[f"/{n}.png"] == 1 for n, url in enumerate(urls) if url in whole)


KILLED = """
import sys
from pathlib import Path
from genai_assets.datasets.sources.source import Surroundings
from genai_assets.datasets.sources.url_list import UrlListOptions, UrlListSource
options = UrlListOptions(path=sys.argv[1], allow_private_addresses=True, delay_seconds=0, at_once_a_host=2)
source = UrlListSource(options, Surroundings("house", "LicenseRef-own", Path(sys.argv[2])))
for fetched in source.fetch([listed.key for listed in source.list()]):
    print(fetched.key, flush=True)
"""


def test_a_killed_run_loses_nothing_that_was_given_and_the_next_goes_on(tmp_path, surroundings, server):
    gate = asyncio.Event()

    async def held(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(length=len(PICTURE)) + PICTURE[:10])  # half of it is there when the run is killed
        await gate.wait()

    for n in range(12):
        server.answers[f"/{n}.png"] = respond(PICTURE) if n < 8 else held
    path = write_list(tmp_path / "list.csv", [{"url": server.url(f"/{n}.png")} for n in range(12)])
    run = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), str(surroundings.cache)], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    given = [run.stdout.readline().strip() for _ in range(8)]
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.stdout.close()
    assert sorted(given) == sorted(server.url(f"/{n}.png") for n in range(8))
    for n in range(8, 12):
        server.answers[f"/{n}.png"] = respond(PICTURE)
    server.requests.clear()
    source = source_of(tmp_path, surroundings, [], rows=[{"url": server.url(f"/{n}.png")} for n in range(12)])
    assert all(fetched.data == PICTURE for fetched in fetch_all(source).values())
    assert server.counts() == {f"/{n}.png": 1 for n in range(8, 12)}


def test_what_killed_runs_left_half_written_is_swept_away_in_time(tmp_path):
    cache = DownloadCache(tmp_path)
    body = cache.writer()
    body.write(bytes(3_000_000))
    assert body._file is not None
    body._file.close()  # as a killed process leaves it
    [half] = (tmp_path / "partial").iterdir()
    cache.sweep()
    assert half.exists(), "another process may be writing it"
    os.utime(half, (0, 0))
    cache.sweep()
    assert not half.exists()


def test_a_large_body_goes_to_the_disk_as_it_comes(tmp_path, server):
    body = os.urandom(5_000_000)
    server.answers["/cup.png"] = respond(body)
    big = Surroundings("house", "LicenseRef-own", tmp_path / "cache", max_file_bytes=6_000_000)
    assert fetch_one(source_of(tmp_path, big, [server.url("/cup.png")])).data == body
    assert not list((tmp_path / "cache" / "partial").iterdir())


def test_a_reservation_that_comes_with_not_modified_is_noted(tmp_path, surroundings, server):
    unchanged = respond(b"", "304 Not Modified", ETag="1", tdm_reservation="1")
    server.answers["/cup.png"] = in_turn(respond(PICTURE, ETag="1"), unchanged)
    now = [time.time()]
    source = source_of(tmp_path, surroundings, [server.url("/cup.png")], recheck_days=1, clock=lambda: now[0])
    assert not fetch_one(source).description.opt_out
    now[0] += 86_400
    fetched = fetch_one(source)
    assert fetched.data == PICTURE and "tdm" in fetched.description.opt_out


def test_a_disk_that_is_full_ends_the_run_and_is_not_the_pictures_fault(tmp_path, surroundings, server, monkeypatch):
    server.answers["/cup.png"] = respond(PICTURE)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DownloadCache, "keep", full)
    with pytest.raises(SourceUnreadable, match="downloads cannot be kept"):
        fetch_all(source_of(tmp_path, surroundings, [server.url("/cup.png")]))


# Small promises


@given(st.floats(0.01, 10), st.integers(1, 8), st.text(max_size=20))
def test_the_pause_before_another_attempt_doubles_and_is_the_same_each_time(first, attempt, key):
    pause = jittered(first, attempt, key)
    assert first * 2 ** (attempt - 1) / 2 <= pause <= first * 2 ** (attempt - 1)
    assert pause == jittered(first, attempt, key)


def test_pictures_that_failed_together_do_not_come_back_together():
    assert len({round(jittered(1.0, 1, str(n)), 3) for n in range(100)}) > 80


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("12", 12), (" 0 ", 0), ("", None), ("soon", None), ("-5", None), ("1e9", None), ("9" * 40, 999999999)],
)
def test_retry_after_is_read_in_seconds(value, seconds):
    assert retry_after(value, now=0) == seconds


def test_retry_after_is_read_as_a_date():
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", now=20) == 40
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", now=90) == 0


@given(st.text(max_size=40))
def test_no_retry_after_is_too_odd(value):
    assert (seconds := retry_after(value, now=0.0)) is None or seconds >= 0


def test_a_download_of_nothing_is_nothing(tmp_path):
    assert list(download([], DownloadCache(tmp_path), Manners())) == []
