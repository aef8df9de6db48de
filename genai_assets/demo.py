"""The demo: the whole graph once, on real pictures, with traffic and ratings, ending with what to look at.

Belongs here: the order of the show and what is told on the way. All work is the graph's: assets are materialized by
Dagster, pictures are asked of the real service over HTTP.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from genai_assets import stages
from genai_assets.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

    from genai_assets.registry.champion import Champion

PROMPTS = 100
RATINGS = 24


@dataclass
class Timings:
    """Seconds that each part of the show took, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Time a part."""
        started = time.monotonic()
        yield
        self.seconds[part] = self.seconds.get(part, 0) + time.monotonic() - started


def run_demo(settings: Settings, console: "Console") -> int:
    """Run the demo; what is up to date is not worked on again.

    Returns:
        int: 0 when everything was materialized, 1 when a run failed.
    """
    from genai_assets.defs.orchestra import Orchestra

    console.print(
        "[bold]genai_assets demo[/]: real icon pictures in, a model fine-tuned on them, measured, promoted, served "
        f"over HTTP, watched and rated.\nEverything it makes lies in {escape(str(settings.home))}."
    )
    timings = Timings()
    with Orchestra(settings, console) as orchestra:
        with timings.of("graph up to the service"):
            trained = orchestra.run("retrain")
        if not trained.success:
            return 1
        try:
            champion = stages.current_champion(settings)
        except stages.NoChampion:
            report = stages.artifact_store(settings).newest("eval_report")
            console.print(
                "[yellow]Nothing was promoted, so there is nothing to serve.[/] The line of champion_model above"
            )
            console.print(
                f"says why; the pictures are in {escape(str(report.path if report else settings.home))}.",
                soft_wrap=True,
            )
            return 1
        with timings.of("traffic and ratings"):
            _send_traffic(settings, champion, console)
        with timings.of("monitoring"):
            monitored = orchestra.run("monitor")
        if not monitored.success:
            return 1
        _print_ending(settings, console, timings, trained.seconds | monitored.seconds)
    return 0


def _send_traffic(settings: Settings, champion: "Champion", console: "Console") -> None:
    """Ask the service for pictures as people would, and rate some.

    Sent once for each champion: with enough requests in its log nothing is sent.
    """
    from rich.progress import track

    from genai_assets.serving.client import ServiceClient
    from genai_assets.serving.packaging import running_service
    from genai_assets.serving.request_log import RequestLog

    with RequestLog(settings.database_url) as log:
        there = len(log.requests(model_version=champion.model_version))
    prompts = _traffic(settings)[there:]
    if not prompts:
        console.print(f"[green]✓[/] the service's log has {there} requests of champion {champion.model_version}")
        return
    student = stages.few_step_student(champion)
    with running_service(champion.model_path, settings, few_steps=student) as url, ServiceClient(url) as client:
        console.print(f"The service runs at {url}; {len(prompts)} prompts go through it, {RATINGS} answers are rated.")
        for number, prompt in enumerate(track(prompts, "asking the service", console=console), start=there):
            answer = client.generate(prompt, seed=number)
            if number < RATINGS:
                client.rate(answer.request_id, 0, "up" if number % 3 else "down", comment="rated by the demo")


def _traffic(settings: Settings) -> list[str]:
    """Captions of the kind that the champion was evaluated with, each once, in a fixed order."""
    from genai_assets.datasets.splits import concept_position

    split = stages.artifact_store(settings).newest("splits")
    assert split is not None  # the graph was just brought up to date
    table = stages.read_splits(split)
    house = table[
        (table["style"] == settings.dataset.house_style) & ~table["split"].isin(["later", "test", "set_aside"])
    ]
    captions = sorted(house.drop_duplicates("concept")["caption"], key=lambda text: concept_position(text, "demo"))
    return captions[:PROMPTS]


def _print_ending(settings: Settings, console: "Console", timings: Timings, by_asset: dict[str, float]) -> None:
    """The table of figures, what took how long, and what to open."""
    from rich.table import Table

    store = stages.artifact_store(settings)
    champion = stages.current_champion(settings)
    report = Path(champion.metrics["eval_report"])
    metrics = stages.read_metrics(report)
    figures = metrics["models"]
    table = Table(title=f"On {metrics['pictures']} held-out concepts", title_justify="left")
    for column in ("", "KID to real", "R@1", "R@5", "style", "near-copies"):
        table.add_column(column, justify="left" if not column else "right")
    students = settings.distillation.drawing_steps
    for name, label in (
        ("base", "base model"),
        ("fine_tuned", "fine-tuned"),
        (stages.FEW_STEPS, f"its student in {students} step{'s' * (students > 1)}"),
        ("real", "real pictures (the floor)"),
    ):
        if name not in figures:
            continue
        of = figures[name]
        style = "–" if of["style_score"] is None else f"{of['style_score']:.0%}"
        table.add_row(
            label,
            f"{of['kid']:.3f}",
            f"{of['recall_at_1']:.2f}",
            f"{of['recall_at_5']:.2f}",
            style,
            f"{of['copied_share']:.0%}",
        )
    console.print(table)
    drift, feedback = store.newest("drift_report"), store.newest("feedback_dataset")
    validated, model = store.newest("validated_data"), store.newest("fine_tuned_model")
    readiness = store.newest("data_readiness_report")
    assert drift and feedback and validated and model and readiness
    console.print(f"Champion: {champion.model_version} — {escape(champion.reason)}")
    console.print(f"Drift: [bold]{drift.summary['verdict']}[/] — {escape(drift.summary['reason'])}")
    console.print(
        f"Feedback: {feedback.summary['liked']} liked, {feedback.summary['disliked']} disliked; "
        f"{feedback.summary['waiting']} of {feedback.summary['batch_size']} for the next batch"
    )
    spent = {**{name: seconds for name, seconds in by_asset.items() if seconds >= 1}, **timings.seconds}
    if spent:
        console.print("Seconds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in spent.items()))
    console.print("\n[bold]Look at[/]")
    for what, path in (
        ("the evaluation report", report / "report.html"),
        ("pictures: base, fine-tuned, real", report / "grid.png"),
        ("sample sheet of the training", model.path / "samples.png"),
        ("is the data fit to train on?", readiness.file("readiness.html")),
        ("every claim about the data (Data Docs)", Path(validated.summary["data_docs"])),
        ("the drift report", drift.path / "drift.html"),
    ):
        console.print(f"  {what:34} {escape(str(path))}", soft_wrap=True, highlight=False)
    console.print("\nNext: [bold]make up[/] runs the Dagster UI, the service with its page, these reports, and MLflow.")
