"""Runs whose process is gone: they are marked as failed, and their places in pools are given back.

Dagster keeps a run that was killed as started, and with it its place in a pool: the next training would wait for ever.

Belongs here: which process a run is in, and what is done when that is gone. Run as a module, it is done for the
instance of ``DAGSTER_HOME``.
"""

import socket

import dagster as dg
import psutil

PROCESS_TAG = "genai/process"
_UNDER_WAY = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)


def own_process() -> str:
    """This process, told from a later one of its number: host, number, and when it began."""
    return _told(psutil.Process())


def end_abandoned_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs as failed whose process, on this host, is gone; runs that do not say where they are stay.

    Returns:
        list: ids of the runs that were ended.
    """
    ended = []
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=list(_UNDER_WAY))):
        process = run.tags.get(PROCESS_TAG)
        if process is not None and _is_gone(process):
            instance.report_run_failed(run, "The process of this run is gone: it was killed, or the machine went down.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            ended.append(run.run_id)
    return ended


def _is_gone(process: str) -> bool:
    host, number, _ = process.rsplit(" ", 2)
    if host != socket.gethostname():
        return False  # whether it lives cannot be known here
    try:
        there = psutil.Process(int(number))
        return there.status() == psutil.STATUS_ZOMBIE or _told(there) != process
    except psutil.NoSuchProcess:
        return True


def _told(process: psutil.Process) -> str:
    return f"{socket.gethostname()} {process.pid} {process.create_time():.2f}"


if __name__ == "__main__":
    with dg.DagsterInstance.get() as found:
        end_abandoned_runs(found)
