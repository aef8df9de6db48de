"""Polite downloads: many web addresses at once, few of one host, each kept on the disk as soon as it is whole.

Belongs here: how a web address becomes a file in a cache, and what is said when it does not. Nothing of lists,
captions or records: that is ``url_list``. Which addresses may be asked at all is ``addresses``.

What a server says is not believed: not the length, not the type, not that a redirect leads somewhere harmless. What a
server *asks* is followed: to come back later, to be asked no faster, and to leave a picture out of training.
"""

import asyncio
import contextlib
import email.utils
import hashlib
import itertools
import json
import os
import queue
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import aiohttp
import tenacity
from aiohttp.abc import AbstractResolver

from genai_assets import durable
from genai_assets.datasets import opt_out
from genai_assets.datasets.sources import addresses

_SMALL = 1 << 20  # bytes of a body that are held back before a file is begun
_LENGTH = 4
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_HOSTS_AT_ONCE = 256
_FAILURES_THAT_CLOSE_A_HOST = 5
_FAILURES_THAT_MEAN_NO_NETWORK = 20


@dataclass(frozen=True)
class Manners:
    """How servers are asked.

    Attributes:
        at_once: requests at a time, over all hosts.
        at_once_a_host: requests at a time to one host.
        delay_seconds: between the beginnings of two requests to one host.
        attempts: for each picture, the first among them; only failures that may pass are tried again.
        backoff_seconds: before the second attempt; each further one waits twice as long.
        longest_wait_seconds: a server that asks for a longer pause is not asked again in this run.
        connect_seconds, total_seconds: for a connection, and for one request to its last byte.
        max_redirects: that are followed for one picture.
        max_bytes: a longer body is refused as soon as it is longer.
        user_agent: what the requests call themselves.
        allow_private_addresses: ask servers in one's own network, too.
    """

    at_once: int = 32
    at_once_a_host: int = 4
    delay_seconds: float = 0.1
    attempts: int = 4
    backoff_seconds: float = 1.0
    longest_wait_seconds: float = 120.0
    connect_seconds: float = 10.0
    total_seconds: float = 120.0
    max_redirects: int = 5
    max_bytes: int = 256 * 1024**2
    user_agent: str = "genai_assets"
    allow_private_addresses: bool = False


@dataclass(frozen=True)
class Kept:
    """What is known of a body in the cache.

    Attributes:
        url: it came from, without secrets.
        digest: SHA-256 of the body.
        etag, last_modified: as the server gave them, for asking whether it changed; empty when it gave none.
        opt_out: the signal among the response's headers, empty when there was none.
        checked: when a server last said that this is its content, seconds since 1970.
    """

    url: str
    digest: str
    etag: str = ""
    last_modified: str = ""
    opt_out: str = ""
    checked: float = 0.0


@dataclass(frozen=True)
class Download:
    """What became of one address: the body is in the cache, or ``refusal`` says why not.

    Attributes:
        url: as it was asked for.
        refusal: empty when the body is in the cache.
        may_pass: whether another run may have more luck (a server that was busy or could not be reached).
    """

    url: str
    refusal: str = ""
    may_pass: bool = False


class NoNetwork(OSError):
    """Not one of many hosts could be reached: it is this machine's network that is missing, not the pictures."""


class DownloadCache:
    """Bodies on the disk, one file each; safe to delete, and safe to kill its writer at any moment.

    A file is the body, then its receipt as JSON, then the receipt's length in four bytes, and was renamed into place
    when it was whole; its time of change is when it was last checked. Nothing is flushed to the disk: what a power cut
    tears does not fit its digest, counts as nothing and is downloaded again.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._partial = folder / "partial"
        self._names = itertools.count()

    def find(self, url: str, *, verify: bool = True) -> tuple[Kept, bytes] | None:
        """The receipt and the body of ``url``; None when there is none or, if asked to ``verify``, it is torn."""
        try:
            with self._path(url).open("rb") as file:
                content = file.read()
                checked = os.fstat(file.fileno()).st_mtime
            length = int.from_bytes(content[-_LENGTH:], "big")
            body, receipt = content[: -_LENGTH - length], content[-_LENGTH - length : -_LENGTH]
            kept = Kept(**json.loads(receipt), checked=checked)
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return None if verify and durable.digest_bytes(body) != kept.digest else (kept, body)

    def writer(self) -> "_Writer":
        """Takes a body piece by piece."""
        return _Writer(self._partial / f"{os.getpid()}-{id(self):x}-{next(self._names)}")

    def keep(self, url: str, body: "_Writer", kept: Kept) -> None:
        """Put a whole body in the place of ``url``; one that was there before is gone."""
        receipt = json.dumps({name: said for name, said in asdict(kept).items() if name != "checked"}).encode()
        body.write(receipt + len(receipt).to_bytes(_LENGTH, "big"))
        body.move(self._path(url))

    def renew(self, url: str, kept: Kept, *, now: float) -> None:
        """Note that a body is still what its server has, and what else the server said of it."""
        found = self.find(url)
        if found is not None and replace(found[0], checked=kept.checked) != kept:
            body = self.writer()
            body.write(found[1])
            self.keep(url, body, kept)
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._path(url), (now, now))

    def sweep(self, older_than_seconds: float = 86_400.0) -> None:
        """Remove what killed runs left half-written. Younger files may be another process's, which still writes."""
        for path in self._partial.glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > older_than_seconds:
                    path.unlink()

    def _path(self, url: str) -> Path:
        name = durable.digest_bytes(addresses.unsigned(url).encode())
        return self._folder / name[:2] / name[2:40]


class _Writer:
    """A file on its way into the cache: in memory while it is small, then in a file of its own."""

    def __init__(self, path: Path):
        self._path = path
        self._pieces: list[bytes] = []
        self._waiting = 0
        self._file: BinaryIO | None = None

    def write(self, piece: bytes) -> None:
        """Add to the end."""
        self._pieces.append(piece)
        self._waiting += len(piece)
        if self._waiting > _SMALL:
            self._flush()

    def move(self, target: Path) -> None:
        """Put what was written in ``target``'s place, all or nothing."""
        self._flush().close()
        try:
            os.replace(self._path, target)
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._path, target)
        self._file = None

    def discard(self) -> None:
        """Leave nothing behind; after a move, there is nothing."""
        self._pieces = []
        if self._file is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)

    def _flush(self) -> BinaryIO:
        if self._file is None:
            try:
                self._file = self._path.open("xb", buffering=0)
            except FileNotFoundError:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("xb", buffering=0)
        data, self._pieces, self._waiting = memoryview(b"".join(self._pieces)), [], 0
        while data:
            data = data[self._file.write(data) :]
        return self._file


class _Refused(Exception):
    """This picture is not asked for again; ``may_pass`` says that it may be in another run."""

    def __init__(self, message: str, *, may_pass: bool = False):
        super().__init__(message)
        self.may_pass = may_pass


class _Passing(Exception):
    """A failure that may be over in a moment; ``answered`` says whether there was a server at all."""

    def __init__(self, message: str, *, answered: bool):
        super().__init__(message)
        self.answered = answered


class _Gate:
    """The door to one host: so many at once, so long apart, and shut when the host asks for it."""

    def __init__(self, manners: Manners, slots: asyncio.Semaphore):
        """``slots`` are those of all hosts together."""
        self._manners = manners
        self._slots = slots
        self._places = asyncio.Semaphore(manners.at_once_a_host)
        self._turn = asyncio.Lock()
        self._open_at = 0.0
        self._failures = 0
        self._shut = ""

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """One's turn to ask the host.

        Raises:
            _Refused: the host is not asked any more.
        """
        clock = asyncio.get_running_loop().time
        async with self._places:
            async with self._turn:
                while not self._shut and (wait := self._open_at - clock()) > 0:
                    await asyncio.sleep(wait)
                if self._shut:
                    raise _Refused(self._shut, may_pass=True)
                await self._slots.acquire()  # still in one's turn, so that the delay counts from the very beginning
                self._open_at = max(self._open_at, clock() + self._manners.delay_seconds)
            try:
                yield
            finally:
                self._slots.release()

    def pause(self, seconds: float) -> None:
        """Ask nothing for so long; nothing more at all when that is longer than one waits."""
        if seconds > self._manners.longest_wait_seconds:
            self._shut = f"the server asks to wait {seconds:.0f} s; run again later"
        else:
            self._open_at = max(self._open_at, asyncio.get_running_loop().time() + seconds)

    def answered(self) -> None:
        """The host gave an answer, whatever it was."""
        self._failures = 0

    def failed(self, reason: str) -> None:
        """One picture's attempts all ended without an answer; so many in a row, and the host is left alone."""
        self._failures += 1
        if self._failures >= _FAILURES_THAT_CLOSE_A_HOST:
            self._shut = f"the host failed {self._failures} times in a row, the last time: {reason}"


@dataclass
class _Tally:
    """How the whole run goes."""

    answered: bool = False
    unreached: int = 0
    gates: dict[str, _Gate] = field(default_factory=dict)


def download(
    urls: Sequence[str],
    cache: DownloadCache,
    manners: Manners,
    *,
    known: Callable[[str], Kept | None] = lambda url: None,
    resolver: Callable[[], AbstractResolver] | None = None,
) -> Iterator[Download]:
    """Download addresses into ``cache``, in whatever order they arrive; each is there before it is given here.

    It goes on in a thread of its own while the caller works on what was given. Closing the generator stops it; what
    was whole is kept.

    Args:
        urls: each once.
        cache: where the bodies go.
        manners: how servers are asked.
        known: receipt of a body that is in the cache but may have changed; the server is asked whether it did.
        resolver: makes what looks names up; the system's by default.

    Raises:
        NoNetwork: no host gave any answer, and many were tried.
    """
    arrived: queue.SimpleQueue[Download | BaseException | None] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    work = loop.create_task(_Run(cache, manners, known, arrived.put).of(urls, resolver))

    def run() -> None:
        try:
            loop.run_until_complete(work)
            arrived.put(None)
        except BaseException as error:
            arrived.put(innermost(error))
        finally:
            loop.close()

    thread = threading.Thread(target=run, name="downloads", daemon=True)
    thread.start()
    try:
        while (came := arrived.get()) is not None:
            if isinstance(came, BaseException):
                raise came
            yield came
    finally:
        with contextlib.suppress(RuntimeError):  # the loop is closed when all is done
            loop.call_soon_threadsafe(work.cancel)
        thread.join()


class _Run:
    """One run over many addresses."""

    def __init__(
        self,
        cache: DownloadCache,
        manners: Manners,
        known: Callable[[str], Kept | None],
        give: Callable[[Download], None],
    ):
        self._cache = cache
        self._manners = manners
        self._known = known
        self._give = give
        self._tally = _Tally()
        self._slots = asyncio.Semaphore(manners.at_once)

    async def of(self, urls: Iterable[str], resolver: Callable[[], AbstractResolver] | None) -> None:
        """Download all of them, host by host, many hosts side by side."""
        hosts: dict[str, list[str]] = defaultdict(list)
        for url in urls:
            hosts[_host(url)].append(url)
        limits = aiohttp.ClientTimeout(total=self._manners.total_seconds, sock_connect=self._manners.connect_seconds)
        async with aiohttp.ClientSession(
            connector=addresses.connector(
                allow_private=self._manners.allow_private_addresses,
                connections=self._manners.at_once,
                resolver=resolver,
            ),
            timeout=limits,
            headers={
                "User-Agent": self._manners.user_agent,
                "Accept": "image/*,*/*;q=0.5",
                "Accept-Encoding": "identity",  # pictures are compressed already
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # a proxy would look names up by itself, where nothing is checked
        ) as session:
            await self._all_hosts(hosts.values(), session)

    async def _all_hosts(self, lists: Iterable[list[str]], session: aiohttp.ClientSession) -> None:
        doors = asyncio.Semaphore(_HOSTS_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for urls in lists:
                await doors.acquire()
                tasks.create_task(self._one_host(iter(urls), session)).add_done_callback(lambda _: doors.release())

    async def _one_host(self, waiting: Iterator[str], session: aiohttp.ClientSession) -> None:
        async def worker() -> None:
            for url in waiting:  # the workers share one iterator
                self._give(await self._one(url, session))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._manners.at_once_a_host):
                tasks.create_task(worker())

    async def _one(self, url: str, session: aiohttp.ClientSession) -> Download:
        asking = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Passing),
            stop=tenacity.stop_after_attempt(self._manners.attempts),
            wait=lambda state: jittered(self._manners.backoff_seconds, state.attempt_number, url),
            reraise=True,
        )
        try:
            await asking(self._attempt, url, session)
        except _Refused as error:
            return Download(url, str(error), error.may_pass)
        except _Passing as error:
            tries = f" ({self._manners.attempts} attempts)" if self._manners.attempts > 1 else ""
            if not error.answered:
                self._note_unreached(url, str(error))
            return Download(url, f"{error}{tries}", may_pass=True)
        return Download(url)

    def _note_unreached(self, url: str, reason: str) -> None:
        self._gate(_host(url)).failed(reason)
        self._tally.unreached += 1
        if not self._tally.answered and self._tally.unreached >= _FAILURES_THAT_MEAN_NO_NETWORK:
            raise NoNetwork(f"none of {self._tally.unreached} pictures' hosts could be reached, the last one: {reason}")

    def _gate(self, host: str) -> _Gate:
        return self._tally.gates.setdefault(host, _Gate(self._manners, self._slots))

    async def _attempt(self, url: str, session: aiohttp.ClientSession) -> None:
        try:
            await self._follow(url, session)
        except (addresses.AddressRefused, aiohttp.InvalidURL) as error:
            raise _Refused(str(error)) from None
        except aiohttp.ClientConnectorCertificateError as error:
            reason = f"its certificate is not valid: {in_short(error.certificate_error)}"
            raise _Refused(reason, may_pass=True) from None
        except aiohttp.ClientConnectorError as error:
            refused = addresses.refusal_within(error)
            if refused is not None:
                raise _Refused(str(refused)) from None
            raise _Passing(f"no connection to {error.host}: {error.os_error}", answered=False) from None
        except TimeoutError as error:
            connecting = isinstance(error, aiohttp.ConnectionTimeoutError)
            limit = self._manners.connect_seconds if connecting else self._manners.total_seconds
            what = "no connection" if connecting else "not all of the answer"
            raise _Passing(f"{what} within {limit:g} s", answered=False) from None
        except aiohttp.ClientError as error:
            raise _Passing(f"the answer broke off: {in_short(error)}", answered=True) from None

    async def _follow(self, start: str, session: aiohttp.ClientSession) -> None:
        known = self._known(start)
        asked_if_changed = _conditions(known)
        url, signal = addresses.web_address(start), ""
        for hop in itertools.count():
            addresses.check_url(url, allow_private=self._manners.allow_private_addresses)
            # A host's place is given back before the next hop takes another: no two hosts can wait for each other.
            async with (
                self._gate(url.host or "").place(),
                session.get(url, headers=asked_if_changed, allow_redirects=False) as response,
            ):
                self._tally.answered = True
                self._gate(url.host or "").answered()
                signal = signal or opt_out.signal_in_fields(response.headers)
                if response.status == 304 and known is not None:
                    self._cache.renew(start, replace(known, opt_out=signal or known.opt_out), now=time.time())
                    return
                if response.status == 200:
                    await self._receive(start, response, signal)
                    return
                if response.status not in _REDIRECTS or "Location" not in response.headers:
                    self._turn_away(response)
                target = response.headers["Location"]
            if hop >= self._manners.max_redirects:
                raise _Refused(f"more than {self._manners.max_redirects} redirects")
            url = url.join(addresses.web_address(target))

    def _turn_away(self, response: aiohttp.ClientResponse) -> None:
        reason = f"HTTP {response.status} {response.reason or ''}".rstrip()
        if response.status not in TRANSIENT_STATUSES:
            raise _Refused(reason)
        if (seconds := retry_after(response.headers.get("Retry-After", ""), time.time())) is not None:
            self._gate(response.url.host or "").pause(seconds)
        raise _Passing(reason, answered=True)

    async def _receive(self, url: str, response: aiohttp.ClientResponse, signal: str) -> None:
        limit = self._manners.max_bytes
        too_large = f"larger than the limit of {limit:,} bytes"
        if (response.content_length or 0) > limit:
            raise _Refused(too_large)
        body = self._cache.writer()
        try:
            digest, size = hashlib.sha256(), 0
            async for chunk in response.content.iter_any():
                size += len(chunk)
                if size > limit:
                    raise _Refused(too_large)
                digest.update(chunk)
                body.write(chunk)
            if not size:
                raise _Refused("the answer is empty")
            kept = Kept(
                url=addresses.recordable(url),
                digest=digest.hexdigest(),
                etag=response.headers.get("ETag", ""),
                last_modified=response.headers.get("Last-Modified", ""),
                opt_out=signal,
            )
            self._cache.keep(url, body, kept)
        finally:
            body.discard()


def jittered(first_seconds: float, attempt: int, key: str) -> float:
    """Seconds to wait after a failed ``attempt`` (1, 2, …): doubling, between half and all of it, by a hash of ``key``.

    Different keys wait differently, so that what failed together does not come back together; the same key always
    waits the same.
    """
    share = int.from_bytes(hashlib.sha256(f"{attempt} {key}".encode()).digest()[:8], "big") / 2**64
    return first_seconds * 2 ** (attempt - 1) * (0.5 + share / 2)


def retry_after(value: str, now: float) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (RFC 9110, section 10.2.3); None when it says nothing.

    ``now`` is in seconds since 1970, for the form with a date.
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None


def _conditions(known: Kept | None) -> dict[str, str]:
    if known is None:
        return {}
    asked = {"If-None-Match": known.etag, "If-Modified-Since": known.last_modified}
    return {name: value for name, value in asked.items() if value}


def _host(url: str) -> str:
    try:
        return addresses.web_address(url).host or ""
    except addresses.AddressRefused:
        return ""  # refused again, with its reason, when it is its turn


def innermost(error: BaseException) -> BaseException:
    """The first error of a group of errors, of the first group within, and so on; any other error as it is."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def in_short(error: BaseException) -> str:
    """What an error says, on one line and not endless."""
    return " ".join(str(error).split())[:200] or type(error).__name__
