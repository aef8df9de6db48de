"""Work for guarded workers that crashes, hangs, eats memory or reaches out: each when it is told to.

A worker imports what it is to do by name, so these are functions of a module of their own.
"""

import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable


def prepare() -> Callable[[bytes], bytes]:
    """Work that does what its bytes say."""
    return obey


def prepare_nothing() -> Callable[[bytes], bytes]:
    """A preparation that fails."""
    raise RuntimeError("there is no decoder on this machine")


def obey(data: bytes) -> bytes:
    """Do what the first word says; anything unknown is given back."""
    word, _, rest = data.partition(b" ")
    deed = _DEEDS.get(word)
    return deed(rest) if deed else data


def _crash(_: bytes) -> bytes:
    ctypes.string_at(0)
    return b"not reached"


def _end(_: bytes) -> bytes:
    os._exit(3)


def _kill_me(_: bytes) -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    return b"not reached"


def _hang(_: bytes) -> bytes:
    time.sleep(600)
    return b"not reached"


def _hang_without_an_alarm(_: bytes) -> bytes:
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    time.sleep(600)
    return b"not reached"


def _eat(size: bytes) -> bytes:
    return str(len(bytearray(int(size)))).encode()


def _raise(_: bytes) -> bytes:
    raise ValueError("a decoder's own complaint")


def _open_a_file(_: bytes) -> bytes:
    with open("/etc/hostname", "rb") as file:
        return file.read()


def _open_a_socket(_: bytes) -> bytes:
    with socket.socket() as found:
        return str(found).encode()


def _chatter(_: bytes) -> bytes:
    os.write(1, b"a library in C complains" * 1000)
    os.write(2, b"a library in C complains" * 1000)
    return b"quiet"


def _tell_the_environment(_: bytes) -> bytes:
    return " ".join(sorted(os.environ)).encode()


def _tell_the_process(_: bytes) -> bytes:
    return str(os.getpid()).encode()


_DEEDS = {
    b"crash": _crash,
    b"end": _end,
    b"kill": _kill_me,
    b"hang": _hang,
    b"deaf": _hang_without_an_alarm,
    b"eat": _eat,
    b"raise": _raise,
    b"open": _open_a_file,
    b"connect": _open_a_socket,
    b"chatter": _chatter,
    b"environment": _tell_the_environment,
    b"process": _tell_the_process,
}
