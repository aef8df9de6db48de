"""Running the graph's jobs from a program: the demo, the command line and tests; told line by line on a console.

Belongs here: the instance in the home folder, running a job in this process, and the story of it. Scheduled and
interactive runs go through the Dagster UI and its daemon instead, on the same instance.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import dagster as dg
from rich.markup import escape

from genai_assets.defs.abandoned_runs import PROCESS_TAG, end_abandoned_runs, own_process
from genai_assets.settings import Settings
from genai_assets.up import copy_instance_settings

if TYPE_CHECKING:
    from rich.console import Console

_STORY = "genai_assets.story"


@dataclass(frozen=True)
class JobOutcome:
    """How a job went.

    Attributes:
        success: every step that was to run succeeded.
        seconds: by asset, of those that ran.
        reused: assets for which nothing had to be worked on.
        error: the first failure in words; empty when there is none.
    """

    success: bool
    seconds: dict[str, float] = field(default_factory=dict)
    reused: tuple[str, ...] = ()
    error: str = ""


class Orchestra:
    """Runs jobs on the instance of the home folder; a context manager.

    Args:
        settings: what the graph is built for.
        console: where the story is told; None for silence.
        instance: another instance, for tests.
    """

    def __init__(
        self, settings: Settings, console: "Console | None" = None, instance: dg.DagsterInstance | None = None
    ):
        self.settings = settings
        self._console = console
        self._given = instance
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        from genai_assets.definitions import build_definitions

        if self._given is None:
            home = copy_instance_settings(self.settings)
            os.environ.setdefault("DAGSTER_HOME", str(home))
            self._instance = self._stack.enter_context(dg.DagsterInstance.from_config(str(home)))
        else:
            self._instance = self._given
        end_abandoned_runs(self._instance)
        self._definitions = build_definitions(self.settings, loggers={"story": _story_logger})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, job_name: str) -> JobOutcome:
        """Run a job to its end in this process. A stage whose inputs did not change is not worked on again."""
        job = self._definitions.resolve_job_def(job_name)
        with _telling(self._console):
            result = job.execute_in_process(
                instance=self._instance,
                run_config={"loggers": {"story": {}}},
                raise_on_error=False,
                tags={PROCESS_TAG: own_process()},
            )
        events = [event for event in result.all_events if event.step_key]
        seconds = {
            str(event.step_key): event.step_success_data.duration_ms / 1000 for event in events if event.is_step_success
        }
        # Once each: raw_data tells of its batch, too, when a run has no partition key.
        reused = tuple(
            dict.fromkeys(
                str(event.step_key) for event in events if event.is_step_materialization and _was_reused(event)
            )
        )
        error = "" if result.success else _first_error(result.all_events, job_name)
        if error and self._console:
            self._console.print(f"[red]✗ {job_name} failed.[/] {escape(error)}", highlight=False, soft_wrap=True)
        return JobOutcome(result.success, seconds, reused, error)


@dg.logger({}, description="Hands what assets say to Python's logging, for a console.")
def _story_logger(context: dg.InitLoggerContext) -> logging.Logger:
    return logging.getLogger(_STORY)


class _Teller(logging.Handler):
    """Turns Dagster's log records into lines: who speaks, and what was done."""

    def __init__(self, console: "Console"):
        super().__init__(logging.DEBUG)  # Dagster's own events, such as a step's success, come at this level
        self._console = console
        self._reused: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        meta: dict[str, Any] = getattr(record, "dagster_meta", {})
        event = meta.get("dagster_event")
        step = meta.get("step_key") or (event.step_key if event else None)
        if event is None:
            if step and record.levelno >= logging.INFO:
                self._say(f"  [dim]{step:17} {escape(str(meta.get('orig_message', record.getMessage())))}[/]")
        elif event.is_step_materialization:
            if _was_reused(event):
                self._reused.add(str(step))
        elif event.is_step_success:
            took = "up to date" if step in self._reused else f"{event.step_success_data.duration_ms / 1000:.1f} s"
            self._say(f"[green]✓[/] {step:17} {took}")
        elif event.is_step_skipped:
            self._say(f"[yellow]–[/] {step:17} skipped: nothing was handed on to it")
        elif event.is_step_failure:
            self._say(f"[red]✗[/] {step:17} failed")

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)


def _first_error(events: Sequence[dg.DagsterEvent], job_name: str) -> str:
    """What went wrong first, in the words of the error that caused it."""
    for event in events:
        error = getattr(event.event_specific_data, "error", None)
        if error is not None:
            while error.cause is not None:
                error = error.cause
            return f"{event.step_key or job_name}: {error.message.strip()}"
    return f"{job_name}: its run in the Dagster UI says why"


def _was_reused(event: dg.DagsterEvent) -> bool:
    return event.step_materialization_data.materialization.metadata["reused"].value is True


@contextlib.contextmanager
def _telling(console: "Console | None") -> Iterator[None]:
    logger = logging.getLogger(_STORY)
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    handler = _Teller(console) if console else logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
