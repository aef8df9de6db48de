"""Programs we start: with exactly our settings, and never left behind.

Belongs here: the environment of a child, its command and its start. What is started, waited for and stopped is the
business of ``up`` and of ``serving.packaging``.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from genai_assets import privacy
from genai_assets.settings import Settings

# Runs `python -m MODULE ARGUMENTS` and ends its whole group when its standard input is closed: that is when we end, in
# whatever way. Without this, a killed `genai up` would leave a daemon behind that goes on starting runs. A server that
# is just starting may lose the polite signal between setting its handler and its loop, so it is not the only one.
_GRACE_SECONDS = 10
_UNTIL_ABANDONED = f"""
import os, runpy, signal, sys, threading, time

def watch():
    os.read(0, 1)
    os.killpg(0, signal.SIGTERM)
    time.sleep({_GRACE_SECONDS})
    os.killpg(0, signal.SIGKILL)

threading.Thread(target=watch, daemon=True).start()
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def environment_of(settings: Settings, **more: str) -> dict[str, str]:
    """Variables with which a process reads exactly these settings, wherever they came from, and phones nobody."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GENAI_")}
    told = {
        f"GENAI_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in settings.model_dump(mode="json").items()
    }
    return {**privacy.TELEMETRY_OFF, **inherited, **told, "PYTHONUNBUFFERED": "1", **more}


def start_module(
    module: str, arguments: Sequence[str], *, folder: Path, environment: Mapping[str, str], output: IO[bytes]
) -> "subprocess.Popen[bytes]":
    """Start ``python -m MODULE ARGUMENTS`` in a session of its own; it ends when this process does, even by SIGKILL.

    Args:
        module: a module that can be run.
        arguments: its command line.
        folder: working folder.
        environment: all of its variables.
        output: gets what it prints.

    Returns:
        Popen: close its ``stdin`` once it is stopped.
    """
    return subprocess.Popen(
        [sys.executable, "-c", _UNTIL_ABANDONED, module, *arguments],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.PIPE,  # never written to; open as long as we live
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for us; we stop it and all that it started
    )
