import asyncio
import functools
import http.server
import json
import os
import socketserver
import threading
import time
import uuid
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from genai_assets.datasets.sources import addresses, remote
from genai_assets.datasets.sources.remote import RemoteOptions, RemoteSource
from genai_assets.datasets.sources.source import Fetched, SourceUnreadable, Surroundings
from genai_assets_tests.datasets.sources.odd_server import Request, head, in_turn, odd_server, respond

PICTURE = b"\x89PNG\r\n\x1a\n a picture, for all that a source knows"
SECRET = "wJalrXUtnFEMI-geheim"


@pytest.fixture
def surroundings(tmp_path) -> Surroundings:
    return Surroundings(style="house", licence="LicenseRef-own", cache=tmp_path / "cache", max_file_bytes=10_000)


def source_of(surroundings, url, **options) -> RemoteSource:
    return RemoteSource(
        RemoteOptions(url=url, **{"attempts": 1, "backoff_seconds": 0.01, "listing_minutes": 0, **options}),
        surroundings,
    )


def fetch_all(source: RemoteSource) -> dict[str, Fetched]:
    return {fetched.key: fetched for fetched in source.fetch([listed.key for listed in source.list()])}


def states(source: RemoteSource) -> dict[str, str]:
    return {listed.key: listed.state for listed in source.list()}


FOLDER = {
    "cup.png": PICTURE,
    "cup.txt": b"a red\ncup",
    "shelf/plate 1.jpg": PICTURE + b"1",
    "shelf/deep/bowl.webp": PICTURE + b"2",
    "reserved/fork.png": PICTURE + b"3",
    "reserved/.noai": b"",
    "spoon.png": PICTURE + b"4",
    "spoon.noai": b"",
    ".hidden/secret.png": PICTURE,
    "notes.md": b"not a picture",
    "metadata.jsonl": b'{"file_name": "shelf/plate 1.jpg", "text": "a plate", "concept": "plate", "licence": "MIT"}\n',
}


class _Folder:
    """The same files in a place of each kind, written by that place's own means."""

    def __init__(self, url: str, options: dict[str, object], put, remove):
        self.url, self.options, self.put, self.remove = url, options, put, remove


@pytest.fixture(scope="session")
def s3():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3, monkeypatch):
    """A bucket of its own on a real S3 server, and the client that fills it."""
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    client = boto3.client("s3", endpoint_url=s3, region_name="us-east-1")
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    yield name, client
    client.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass


@pytest.fixture
def web(tmp_path):
    """A plain web server with index pages, as Python's own command starts it."""
    root = tmp_path / "www"
    root.mkdir()
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(root)))
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield root, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(10)


def put_on_disk(root: Path, key: str, data: bytes) -> None:
    (root / key).parent.mkdir(parents=True, exist_ok=True)
    (root / key).write_bytes(data)


@pytest.fixture(params=["s3", "http", "memory", "file"])
def folder(request, tmp_path):
    if request.param == "s3":
        bucket, client = request.getfixturevalue("bucket")
        options = {"endpoint_url": request.getfixturevalue("s3"), "client_kwargs": {"region_name": "us-east-1"}}
        yield _Folder(
            f"s3://{bucket}/pictures",
            options,
            lambda key, data: client.put_object(Bucket=bucket, Key=f"pictures/{key}", Body=data),
            lambda key: client.delete_object(Bucket=bucket, Key=f"pictures/{key}"),
        )
    elif request.param == "http":
        root, url = request.getfixturevalue("web")
        yield _Folder(
            f"{url}/pictures",
            {},
            lambda key, data: put_on_disk(root / "pictures", key, data),
            lambda key: (root / "pictures" / key).unlink(),
        )
    elif request.param == "memory":
        memory = fsspec.filesystem("memory")
        name = f"/{uuid.uuid4().hex}"
        yield _Folder(
            f"memory:/{name}",
            {},
            lambda key, data: memory.pipe_file(f"{name}/{key}", data),
            lambda key: memory.rm_file(f"{name}/{key}"),
        )
        memory.rm(name, recursive=True)
    else:
        root = tmp_path / "disk"
        yield _Folder(
            f"file://{root}",
            {},
            lambda key, data: put_on_disk(root, key, data),
            lambda key: (root / key).unlink(),
        )


def test_every_place_gives_the_same_folder(folder, surroundings):
    for key, data in FOLDER.items():
        folder.put(key, data)
    source = source_of(surroundings, folder.url, storage_options=folder.options)
    assert [listed.key for listed in source.list()] == sorted(
        ["cup.png", "shelf/plate 1.jpg", "shelf/deep/bowl.webp", "reserved/fork.png", "spoon.png"]
    )
    fetched = fetch_all(source)
    assert {key: one.data for key, one in fetched.items()} == {key: FOLDER[key] for key in fetched}
    plate = fetched["shelf/plate 1.jpg"].description
    assert (plate.caption, plate.concept, plate.licence, plate.style) == ("a plate", "plate", "MIT", "house")
    assert plate.provenance == {"url": folder.url, "file": "shelf/plate 1.jpg"}
    assert fetched["cup.png"].description.caption == "a red cup"
    assert fetched["shelf/deep/bowl.webp"].description.caption == ""
    signals = {key: one.description.opt_out for key, one in fetched.items() if one.description.opt_out}
    # A web server's index page shows hidden files or not as it likes; Python's does.
    assert signals == {"reserved/fork.png": "noai folder", "spoon.png": "noai sidecar"}


def test_what_changed_is_seen_by_the_listing_and_nothing_else_is(folder, surroundings):
    for key in ("1.png", "2.png", "3.png", "4.png"):
        folder.put(key, PICTURE + key.encode())
    folder.put("4.txt", b"four")
    source = source_of(surroundings, folder.url, storage_options=folder.options)
    before = states(source)
    assert states(source) == before == states(source_of(surroundings, folder.url, storage_options=folder.options))
    folder.put("1.png", PICTURE + b"longer than it was")
    folder.put("4.txt", b"quatre, as they say")
    folder.remove("2.png")
    folder.put("5.png", PICTURE)
    after = states(source)
    assert set(before) - set(after) == {"2.png"} and set(after) - set(before) == {"5.png"}
    assert {key for key in before.keys() & after.keys() if before[key] != after[key]} == {"1.png", "4.png"}


def test_a_picture_that_went_since_the_listing_is_left_out(folder, surroundings):
    for key in ("1.png", "2.png"):
        folder.put(key, PICTURE)
    source = source_of(surroundings, folder.url, storage_options=folder.options)
    keys = [listed.key for listed in source.list()]
    folder.remove("1.png")
    assert [fetched.key for fetched in source.fetch([*keys, "never.png"])] == ["2.png"]


def test_a_picture_that_is_too_large_is_refused_before_it_is_read(folder, surroundings, monkeypatch):
    folder.put("1.png", bytes(10_001))
    folder.put("2.png", PICTURE)
    source = source_of(surroundings, folder.url, storage_options=folder.options)
    keys = [listed.key for listed in source.list()]
    read = []
    place = source._somewhere()
    whole = type(place).read
    monkeypatch.setattr(
        type(place),
        "read",
        lambda self, file, at_most: (read.append(file.path), whole(self, file, at_most))[1],
    )
    fetched = {one.key: one for one in source.fetch(keys)}
    assert fetched["1.png"].refusal == "larger than the limit of 10,000 bytes" and not fetched["1.png"].passing
    assert fetched["2.png"].data == PICTURE
    assert len(read) == 1 and read[0].endswith("2.png")


def test_an_empty_file_is_a_picture_to_be_judged_by_others(folder, surroundings):
    folder.put("1.png", b"")
    fetched = fetch_all(source_of(surroundings, folder.url, storage_options=folder.options))
    assert fetched["1.png"].data == b"" and fetched["1.png"].description is not None


def test_nothing_there_is_unreadable_and_not_empty(folder, surroundings):
    folder.put("elsewhere/notes.md", b"")
    source = source_of(surroundings, f"{folder.url}/pictures", storage_options=folder.options)
    with pytest.raises(SourceUnreadable, match=r"there is nothing at|no picture is listed at"):
        list(source.list())


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (b"{", "metadata.jsonl, line 1 is not JSON"),
        (b'{"name": "cup.png", "text": "a"}', "has no column 'file_name'"),
        (
            b'{"file_name": "cup.png", "words": "a"}',
            "has no column 'text' or 'caption'; its columns are file_name, words",
        ),
        (
            b'{"file_name": "cup.png", "text": "a"}\n{"file_name": "./cup.png", "text": "b"}',
            "line 2 names cup.png again",
        ),
        (b'{"file_name": 3, "text": "a"}', "file_name must be text"),
        (b"\xff", "is not UTF-8"),
    ],
)
def test_metadata_that_cannot_be_understood_says_why(surroundings, rows, said):
    memory = fsspec.filesystem("memory")
    name = uuid.uuid4().hex
    memory.pipe({f"/{name}/cup.png": PICTURE, f"/{name}/metadata.jsonl": rows})
    with pytest.raises(SourceUnreadable, match=said):
        list(source_of(surroundings, f"memory://{name}").list())
    memory.rm(f"/{name}", recursive=True)


def test_names_in_metadata_that_are_not_there_are_refused_one_by_one(surroundings):
    memory = fsspec.filesystem("memory")
    name = uuid.uuid4().hex
    rows = [{"file_name": file, "text": "a"} for file in ("cup.png", "gone.png", "../../etc/passwd.png", "")]
    rows += [{"file_name": "odd.png", "text": 5}]
    memory.pipe({f"/{name}/{file}.png": PICTURE for file in ("cup", "odd")})
    memory.pipe_file(f"/{name}/metadata.jsonl", "\n".join(map(json.dumps, rows)).encode())
    fetched = fetch_all(source_of(surroundings, f"memory://{name}"))
    refusals = {key: one.refusal for key, one in fetched.items() if one.refusal}
    assert refusals["gone.png"] == (
        "metadata.jsonl, line 2 names it, but there is no such picture; add the file, or remove the line"
    )
    assert refusals["odd.png"] == "metadata.jsonl, line 5: text must be text, not 5"
    assert set(refusals) == {"gone.png", "odd.png", "../../etc/passwd.png (line 3)", " (line 4)"}
    assert fetched["cup.png"].data == PICTURE
    memory.rm(f"/{name}", recursive=True)


def test_a_table_with_columns_of_its_own_is_read_as_told(surroundings):
    memory = fsspec.filesystem("memory")
    name = uuid.uuid4().hex
    memory.pipe({f"/{name}/cup.png": PICTURE, f"/{name}/metadata.csv": b'file_name,words\ncup.png,"a cup, red"\n'})
    fetched = fetch_all(source_of(surroundings, f"memory://{name}", columns={"caption": "words"}))
    assert fetched["cup.png"].description.caption == "a cup, red"
    named = fetch_all(source_of(surroundings, f"memory://{name}", columns={"caption": "words"}, captions="file_names"))
    assert named["cup.png"].description.caption == "a cup, red"
    memory.pipe_file(f"/{name}/shelf/red_plate-2.png", PICTURE)
    named = fetch_all(source_of(surroundings, f"memory://{name}", columns={"caption": "words"}, captions="file_names"))
    assert named["shelf/red_plate-2.png"].description.caption == "red plate 2"
    with pytest.raises(ValueError, match="columns maps 'captoin', which is no field"):
        source_of(surroundings, f"memory://{name}", columns={"captoin": "words"})
    memory.rm(f"/{name}", recursive=True)


def test_links_that_lead_out_of_a_folder_are_refused_and_circles_are_not_walked(tmp_path, surroundings):
    root = tmp_path / "disk"
    put_on_disk(root, "in.png", PICTURE)
    put_on_disk(tmp_path, "outside.png", PICTURE)
    (root / "out.png").symlink_to(tmp_path / "outside.png")
    (root / "inside.png").symlink_to(root / "in.png")
    (root / "broken.png").symlink_to(root / "nothing.png")
    os.mkfifo(root / "pipe.png")
    (root / "round").symlink_to(root)
    (root / "above").symlink_to(tmp_path)
    fetched = fetch_all(source_of(surroundings, f"file://{root}"))
    assert {key for key, one in fetched.items() if one.data} == {"in.png", "inside.png"}
    assert "leads out of the folder by a link" in fetched["out.png"].refusal
    assert fetched["pipe.png"].refusal == fetched["broken.png"].refusal == "is not a file that can be read"
    assert len(fetched) == 5


def test_a_part_of_a_folder_that_may_not_be_read_makes_the_source_unreadable(tmp_path, surroundings, monkeypatch):
    put_on_disk(tmp_path, "disk/1.png", PICTURE)
    put_on_disk(tmp_path, "disk/in/2.png", PICTURE)
    ls = LocalFileSystem.ls

    def guarded(self, path, **kwargs):
        if path.endswith("/in"):  # root, who runs some tests, may read whatever its permissions say
            raise PermissionError(13, "Permission denied", path)
        return ls(self, path, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "ls", guarded)
    with pytest.raises(SourceUnreadable, match=r"may not be read: .*Permission denied"):
        list(source_of(surroundings, f"file://{tmp_path / 'disk'}").list())


# S3


def test_a_thousand_objects_are_listed_and_a_bounded_number_is_read_at_a_time(bucket, s3, surroundings, monkeypatch):
    from moto.s3.models import s3_backends

    name, _ = bucket
    backend = s3_backends["123456789012"]["aws"]
    for n in range(1_050):  # by the server's own memory; over HTTP it would take a quarter of a minute
        backend.put_object(name, f"{n:04}.png", PICTURE)
    source = source_of(surroundings, f"s3://{name}", storage_options={"endpoint_url": s3}, at_once=4)
    keys = [listed.key for listed in source.list()]
    assert len(keys) == 1_050, "more than one page of a listing"
    reading, most, lock = 0, 0, threading.Lock()
    whole = remote._FsspecPlace.read

    def counted(self, file, at_most):
        nonlocal reading, most
        with lock:
            reading += 1
            most = max(most, reading)
        try:
            return whole(self, file, at_most)
        finally:
            with lock:
                reading -= 1

    monkeypatch.setattr(remote._FsspecPlace, "read", counted)
    assert sum(one.data == PICTURE for one in source.fetch(keys[:40])) == 40
    assert most == 4


def test_what_is_in_memory_at_a_time_is_bounded_in_bytes(surroundings, monkeypatch):
    memory = fsspec.filesystem("memory")
    name = uuid.uuid4().hex
    memory.pipe({f"/{name}/{n}.png": bytes(4_000) for n in range(12)})
    monkeypatch.setattr(remote, "_MEMORY", 10_000)
    reading, most, lock = 0, 0, threading.Lock()
    whole = remote._FsspecPlace.read

    def counted(self, file, at_most):
        nonlocal reading, most
        with lock:
            reading += file.size
            most = max(most, reading)
        threading.Event().wait(0.02)
        try:
            return whole(self, file, at_most)
        finally:
            with lock:
                reading -= file.size

    monkeypatch.setattr(remote._FsspecPlace, "read", counted)
    assert len(fetch_all(source_of(surroundings, f"memory://{name}", at_once=8))) == 12
    assert most == 8_000
    memory.rm(f"/{name}", recursive=True)


def test_a_wrong_bucket_and_missing_credentials_say_so_without_secrets(s3, bucket, surroundings, monkeypatch):
    with pytest.raises(SourceUnreadable, match="there is nothing at s3://no-such-bucket"):
        list(source_of(surroundings, "s3://no-such-bucket/x", storage_options={"endpoint_url": s3}).list())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(SourceUnreadable, match=r"s3://bucket cannot be read: .*credentials"):
        list(source_of(surroundings, "s3://bucket", storage_options={"endpoint_url": s3}).list())


def test_options_are_taken_from_the_environment_and_never_shown(surroundings, monkeypatch):
    monkeypatch.setenv("OUR_SECRET", SECRET)
    options = {"key": "AKIAEXAMPLE", "secret": "${OUR_SECRET}", "endpoint_url": "http://127.0.0.1:9"}
    options["config_kwargs"] = {"retries": {"max_attempts": 0}}
    source = source_of(surroundings, "s3://bucket", storage_options=options)
    assert source._storage_options["secret"] == SECRET
    assert SECRET not in source._without_secrets(OSError(f"signed with {SECRET}"))
    with pytest.raises(SourceUnreadable) as caught:
        list(source.list())
    assert SECRET not in str(caught.value) and "AKIAEXAMPLE" not in str(caught.value)
    assert "AKIA" not in repr(RemoteOptions(url="s3://bucket", storage_options=options))
    monkeypatch.delenv("OUR_SECRET")
    with pytest.raises(ValueError, match=r"storage_options.secret is to be taken from the variable OUR_SECRET"):
        source_of(surroundings, "s3://bucket", storage_options=options)


def test_a_password_in_the_url_is_in_no_name_and_no_error(surroundings):
    source = source_of(surroundings, "http://ada:geheim@127.0.0.1:9/pictures")
    assert source.name == "url:http://127.0.0.1:9/pictures"
    with pytest.raises(SourceUnreadable) as caught:
        list(source.list())
    assert "geheim" not in str(caught.value)
    with pytest.raises(ValueError, match="may have no query"):
        source_of(surroundings, "http://a.example/pictures?token=verborgen")


def test_user_name_and_password_go_to_the_server_and_nowhere_else(server, surroundings):
    server.answers["/p/"], server.answers["/p/1.png"] = index("1.png"), picture()
    url = f"http://ada:gehe%20im@127.0.0.1:{server.port}/p/"
    fetched = fetch_all(source_of(surroundings, url, listing_minutes=5))
    assert fetched["1.png"].data == PICTURE and "gehe" not in repr(fetched)
    assert {request.headers["authorization"] for request in server.requests} == {"Basic YWRhOmdlaGUgaW0="}
    kept = b"".join(path.read_bytes() for path in surroundings.cache.rglob("*") if path.is_file())
    assert kept and b"gehe" not in kept and b"ada" not in kept


def test_a_password_does_not_follow_a_redirect_to_another_host(server, surroundings, monkeypatch):
    monkeypatch.setattr(addresses, "refusal", lambda address, **how: "")  # there is no other public server in a test
    server.answers["/p/"], server.answers["/x.png"] = index("1.png"), picture()
    server.answers["/p/1.png"] = respond(b"", "302 Found", Location=server.url("/x.png", "localhost"))
    url = f"http://ada:geheim@127.0.0.1:{server.port}/p/"
    assert fetch_all(source_of(surroundings, url))["1.png"].data == PICTURE
    assert all("authorization" in request.headers for request in server.asked("/p/1.png"))
    assert server.asked("/x.png") and not any("authorization" in request.headers for request in server.asked("/x.png"))


def test_a_web_server_is_not_asked_for_its_whole_listing_each_minute(server, surroundings, monkeypatch):
    server.answers["/p/"], server.answers["/p/1.png"] = index("1.png", "1.txt"), picture(ETag="1")
    server.answers["/p/1.txt"] = picture(b"a cup")
    told = [states(source_of(surroundings, server.url("/p/"), listing_minutes=None)) for _ in range(3)]
    assert told[0] == told[1] == told[2]
    assert server.counts() == {"/p/": 1, "/p/1.png": 1, "/p/1.txt": 1}
    server.answers["/p/1.png"] = picture(ETag="2")
    later = time.time() + 15 * 60
    monkeypatch.setattr(time, "time", lambda: later)
    source = source_of(surroundings, server.url("/p/"), listing_minutes=None)
    assert states(source) != told[0]
    assert fetch_all(source)["1.png"].description.caption == "a cup"
    offline = Surroundings("house", "LicenseRef-own", surroundings.cache, offline=True)
    with pytest.raises(SourceUnreadable, match="the settings say offline"):
        list(source_of(offline, server.url("/p/"), listing_minutes=None).list())
    [listing] = surroundings.cache.iterdir()
    listing.write_text("{")
    assert states(source_of(surroundings, server.url("/p/"), listing_minutes=None)) == states(source)


# Places that are not there


def test_a_protocol_without_implementation_names_the_extra(surroundings, monkeypatch):
    def missing(*_args, **_kwargs):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(SourceUnreadable, match=r"s3:// cannot be read here: Install s3fs.*install genai_assets\[s3\]"):
        list(source_of(surroundings, "s3://bucket").list())


def test_a_protocol_that_nobody_knows_is_named(surroundings):
    with pytest.raises(SourceUnreadable, match="carrier://pigeon cannot be understood: Protocol not known: carrier"):
        list(source_of(surroundings, "carrier://pigeon").list())
    with pytest.raises(ValueError, match="url"):
        RemoteOptions(url="/just/a/path")


@pytest.mark.parametrize("url", ["s3://bucket", "http://a.example/pictures", "gs://bucket"])
def test_offline_nothing_is_asked(surroundings, url, monkeypatch):
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda *_, **__: pytest.fail("asked"))
    offline = Surroundings("house", "LicenseRef-own", surroundings.cache, offline=True)
    with pytest.raises(SourceUnreadable, match="the settings say offline"):
        list(source_of(offline, url).list())


def test_a_folder_on_this_machine_is_read_offline_too(tmp_path, surroundings):
    put_on_disk(tmp_path, "disk/1.png", PICTURE)
    offline = Surroundings("house", "LicenseRef-own", surroundings.cache, offline=True)
    assert len(fetch_all(source_of(offline, f"file://{tmp_path / 'disk'}"))) == 1


# Web servers


@pytest.fixture
def server():
    with odd_server() as running:
        yield running


def index(*links: str):
    page = "".join(f'<a href="{link}">{link}</a><br>' for link in links).encode()
    return respond(page, Content_Type="text/html")


def picture(body: bytes = PICTURE, **headers: str):
    """Answers HEAD and GET as a web server does."""

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(length=len(body), **headers) + (body if request.method == "GET" else b""))

    return answer


def test_links_out_of_the_folder_are_not_followed(server, surroundings):
    server.answers["/p/"] = index(
        *(
            "1.png",
            "?C=N;O=D",
            "../up.png",
            "../",
            "/other.png",
            "http://elsewhere.example/p/2.png",
            "//127.0.0.1:1/p/3.png",
        ),
        *("sub/../../up.png", "%2e%2e/up.png", "sub/", ".", "./", "#top", "1.png?x=1", "http://[bad"),
    )
    server.answers["/p/sub/"] = index("../", "../../", "4%20x%2Cy.png", "sub2/../../sub/")
    for path in ("/p/1.png", "/p/sub/4%20x%2Cy.png"):
        server.answers[path] = picture()
    fetched = fetch_all(source_of(surroundings, server.url("/p")))
    assert {key: one.data for key, one in fetched.items()} == {"1.png": PICTURE, "sub/4 x,y.png": PICTURE}
    assert set(server.counts()) <= {"/p/", "/p", "/p/sub/", "/p/1.png", "/p/sub/4%20x%2Cy.png"}


def test_a_server_that_is_out_of_order_for_a_moment_is_asked_again(server, surroundings):
    broken = respond(b"", "503 Service Unavailable")
    server.answers["/p/"] = in_turn(broken, index("1.png"))
    server.answers["/p/1.png"] = in_turn(picture(), broken, picture())
    fetched = fetch_all(source_of(surroundings, server.url("/p/"), attempts=2))
    assert fetched["1.png"].data == PICTURE


@pytest.mark.parametrize("where", ["/p/", "/p/sub/", "/p/1.png"])
def test_what_cannot_be_listed_is_never_taken_for_empty(server, surroundings, where):
    server.answers["/p/"] = index("1.png", "sub/")
    server.answers["/p/sub/"] = index("2.png")
    server.answers["/p/1.png"] = server.answers["/p/sub/2.png"] = picture()
    server.answers[where] = respond(b"", "500 Internal Server Error")
    with pytest.raises(SourceUnreadable, match="500"):
        list(source_of(surroundings, server.url("/p/"), attempts=2).list())


def test_an_index_page_without_end_is_given_up(server, surroundings, monkeypatch):
    sent = 0

    async def endless(_request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(head(Content_Type="text/html", Connection="close"))
        while True:
            writer.write(b'<a href="1.png">')
            await writer.drain()
            sent += 16

    monkeypatch.setattr(remote, "_LONGEST_INDEX", 100_000)
    server.answers["/p/"] = endless
    with pytest.raises(SourceUnreadable, match="more than an index page can be"):
        list(source_of(surroundings, server.url("/p/")).list())
    assert sent < 20_000_000


def test_a_server_without_head_is_asked_for_the_headers_of_a_get(server, surroundings):
    async def only_get(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == "HEAD":
            writer.write(head("405 Method Not Allowed", 0))
        else:
            writer.write(head(length=len(PICTURE), ETag='"1"') + PICTURE)

    server.answers["/p/"], server.answers["/p/1.png"] = index("1.png"), only_get
    assert fetch_all(source_of(surroundings, server.url("/p/")))["1.png"].data == PICTURE


def test_a_body_that_is_longer_than_it_was_listed_is_not_read_to_its_end(server, surroundings):
    sent = 0

    async def growing(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        if request.method == "HEAD":
            writer.write(head(length=10))
            return
        writer.write(head(Connection="close"))
        while True:
            writer.write(bytes(4096))
            await writer.drain()
            sent += 4096

    server.answers["/p/"], server.answers["/p/1.png"] = index("1.png"), growing
    fetched = fetch_all(source_of(surroundings, server.url("/p/")))["1.png"]
    assert fetched.refusal == "longer than it was listed: it changed meanwhile" and fetched.passing
    assert sent < 20_000_000


def test_a_body_of_unknown_length_is_read_up_to_the_limit(server, surroundings):
    def unannounced(body: bytes):
        async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(head(Connection="close", Transfer_Encoding="chunked"))
            if request.method == "GET":
                writer.write(f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n")

        return answer

    server.answers["/p/"] = index("1.png", "2.png")
    server.answers["/p/1.png"], server.answers["/p/2.png"] = unannounced(PICTURE), unannounced(bytes(10_001))
    fetched = fetch_all(source_of(surroundings, server.url("/p/")))
    assert fetched["1.png"].data == PICTURE
    assert fetched["2.png"].refusal == "larger than the limit of 10,000 bytes"


def test_a_reservation_in_the_answer_becomes_the_opt_out(server, surroundings):
    server.answers["/p/"] = index("1.png", "2.png")
    server.answers["/p/1.png"], server.answers["/p/2.png"] = picture(X_Robots_Tag="noai"), picture(tdm_reservation="1")
    fetched = fetch_all(source_of(surroundings, server.url("/p/")))
    assert all(one.data and one.description.opt_out for one in fetched.values())


@pytest.mark.parametrize(
    "target", ["http://127.0.0.2:{port}/x.png", "http://2130706434:{port}/x.png", "http://[::1]/x.png"]
)
def test_a_redirect_into_another_private_place_is_refused(server, surroundings, target):
    server.answers["/p/"] = index("1.png")
    moved = respond(b"", "302 Found", Location=target.format(port=server.port))
    server.answers["/p/1.png"] = in_turn(picture(), moved)
    server.answers["/x.png"] = picture()
    fetched = fetch_all(source_of(surroundings, server.url("/p/")))["1.png"]
    assert "only public addresses are asked" in fetched.refusal
    assert "/x.png" not in server.counts()


def test_a_redirect_within_the_same_host_is_followed(server, surroundings):
    server.answers["/p/"] = index("1.png")
    server.answers["/p/1.png"] = respond(b"", "302 Found", Location="/x.png")
    server.answers["/x.png"] = picture()
    assert fetch_all(source_of(surroundings, server.url("/p/")))["1.png"].data == PICTURE


def test_a_file_that_drips_ends_with_the_time_it_has(server, surroundings):
    async def drip(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(length=5_000))
        while request.method == "GET":
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    server.answers["/p/"], server.answers["/p/1.png"] = index("1.png"), drip
    fetched = fetch_all(source_of(surroundings, server.url("/p/"), timeout_seconds=0.5))["1.png"]
    assert fetched.passing and fetched.refusal.startswith("it cannot be read")


def test_when_not_one_of_many_can_be_read_the_source_is_unreadable(server, surroundings):
    server.answers["/p/"] = index(*(f"{n}.png" for n in range(30)))
    for n in range(30):
        server.answers[f"/p/{n}.png"] = in_turn(picture(), respond(b"", "503 Service Unavailable"))
    with pytest.raises(SourceUnreadable, match=r"none of 20 pictures can be read, the last: .*503"):
        fetch_all(source_of(surroundings, server.url("/p/")))
