"""``genai models``: base models that can be fine-tuned, what they need, and whether one can be trained here.

Belongs here: the commands and their words. What is known and how it is judged is ``diffusion/catalogue``. Nothing is
downloaded: `show` prints the command that does.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from genai_assets.console import make_console, read_settings, say, table_of

if TYPE_CHECKING:
    from pathlib import Path

    from genai_assets.diffusion.catalogue import CatalogueEntry, DeviceFacts, ModelFacts, Plan

UNFIT = 2
"""Exit status of `check` when something rules the training out."""

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}

models = typer.Typer(no_args_is_help=True, help="Base models that can be fine-tuned: licences, memory, what fits here.")


@models.command("list")
def list_models() -> None:
    """List the catalogue: sizes, licences, estimated memory, and which training fits this machine."""
    from genai_assets.diffusion.catalogue import GB, Plan, catalogue, licence_allows, look_at_device

    settings, console = read_settings(), make_console()
    device = look_at_device(settings.device, settings.home)
    allowed = Plan.from_settings(settings).allowed_licences
    table = table_of(
        *("name", "family", "parameters", "licence", "px", "download GB", "LoRA GB", "full GB", "fits here"),
        title=f"{device.name}: {device.memory_free / GB:.1f} of {device.memory / GB:.1f} GB free",
    )
    for column in (1, 3, 8):
        table.columns[column].justify = "left"
    for entry in catalogue():
        refused = "" if licence_allows(entry, allowed) else " (refused)"
        table.add_row(
            entry.name,
            entry.pipeline.removesuffix("Pipeline"),
            _billions(entry.denoiser_parameters) + ("~" if "denoiser_parameters" in entry.approximate else ""),
            f"{entry.licence}{refused}",
            str(entry.resolution),
            f"{entry.download_gb:.1f}",
            *(f"{_memory(entry, method, device):.1f}" for method in ("lora", "full")),
            _what_fits(entry, device),
        )
    console.print(table)
    say(console, "Memory is estimated for one picture at a time at the model's own resolution, without checkpointing.")
    say(console, "“saving”: with fine_tune.gradient_checkpointing. “refused”: not in fine_tune.allowed_base_licences.")


@models.command("show")
def show_model(name: Annotated[str, typer.Argument(help="A name of `genai models list`, or a hub id.")]) -> None:
    """Show everything known of a base model, its obligations, how to get it and what to set."""
    from genai_assets.diffusion.catalogue import Plan, licence_refusal, look_at_device

    settings, console = read_settings(), make_console()
    entry = _entry(name)
    device = look_at_device(settings.device, settings.home)
    rows = [
        ("hub id", entry.hub_id or "none: it ships with this project"),
        ("family", entry.pipeline),
        ("denoiser", f"{entry.denoiser_parameters:,} parameters"),
        ("in all", f"{entry.parameters:,} parameters"),
        ("resolution", f"{entry.resolution} px; sides are multiples of {entry.side_multiple}"),
        ("download", f"about {entry.download_gb:.1f} GB" if entry.download_gb else "none"),
        (
            "memory, LoRA",
            f"about {_memory(entry, 'lora', device):.1f} GB ({device.kind}, rank 16, one picture at a time)",
        ),
        ("memory, full", f"about {_memory(entry, 'full', device):.1f} GB"),
        ("prompts in", ", ".join(entry.languages)),
        ("licence", entry.licence),
        ("gated", "yes: it asks for an account and for consent" if entry.gated else "no"),
        ("facts from", entry.source),
    ]
    for label, value in rows:
        say(console, f"{label:<14}{value}")
    if entry.approximate:
        say(
            console, f"{'not confirmed':<14}{', '.join(fact.replace('_', ' ') for fact in entry.approximate)}", "yellow"
        )
    if entry.note:
        say(console, f"\n{entry.note}")
    say(console, f"\nWhat the licence asks, in short (its text counts): {entry.obligations}")
    allowed = Plan.from_settings(settings).allowed_licences
    if refusal := licence_refusal(entry, allowed):
        say(console, f"By your settings it is refused: {refusal}.", "yellow")
        say(console, f"If your use keeps to it: add {entry.licence!r} to fine_tune.allowed_base_licences.")
    command = entry.download_command(f"models/{entry.name}")
    say(console, "\nTo use it:")
    if command:
        say(console, f"{'hf auth login' + chr(10) if entry.gated else ''}{command}")
        say(console, f'\nand in genai.toml:\nbase_model = "models/{entry.name}"')
        say(console, f"Then: genai models check models/{entry.name}")
    else:
        say(console, f'base_model = "{entry.name}", which is the default')


@models.command("check")
def check_model_or_folder(
    model: Annotated[str | None, typer.Argument(help="A folder, or a name of `genai models list`.")] = None,
) -> None:
    """Check whether a base model may and can be trained here with the settings in force; else base_model is checked."""
    from rich.table import Table

    from genai_assets.console import styled
    from genai_assets.diffusion.catalogue import Plan, check_before_training, check_model, look_at_device

    settings, console = read_settings(), make_console()
    wanted = model or settings.base_model
    plan, device = Plan.from_settings(settings), look_at_device(settings.device, settings.home)
    folder = _folder(wanted)
    findings = check_before_training(folder, plan, device) if folder else check_model(_entry(wanted), plan, device)
    table = Table(header_style="bold")
    for column in ("", "what", "found", "to mend it"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        cells = (styled(cell) for cell in (finding.name, finding.detail, finding.mend))
        table.add_row(styled(finding.status, _COLOURS[finding.status]), *cells)
    console.print(table)
    if wrong := [finding.name for finding in findings if finding.status == "error"]:
        say(console, f"{wanted} cannot be trained here as the settings are: {', '.join(wrong)}.", "red")
        raise typer.Exit(UNFIT)
    say(console, f"{wanted} can be trained here.", "green")


def _folder(wanted: str) -> "Path | None":
    """The folder that is meant; None when a name of the catalogue is."""
    from pathlib import Path

    from genai_assets.diffusion.base_model import EMBEDDED, EMBEDDED_FOLDER
    from genai_assets.diffusion.catalogue import find_entry

    if wanted == EMBEDDED:
        return EMBEDDED_FOLDER
    folder = Path(wanted).expanduser()
    return None if find_entry(wanted) and not folder.is_dir() else folder


def _entry(name: str) -> "CatalogueEntry":
    """The entry of a name.

    Raises:
        ValueError: there is none.
    """
    from genai_assets.diffusion.catalogue import catalogue, find_entry

    if entry := find_entry(name):
        return entry
    known = ", ".join(entry.name for entry in catalogue())
    raise ValueError(f"there is no base model {name!r} in the catalogue; known are {known}")


def _memory(model: "ModelFacts", method: str, device: "DeviceFacts", *, saving: bool = False) -> float:
    return _plan(method, saving).memory(model, device.kind).gigabytes


def _plan(method: str, saving: bool) -> "Plan":
    from genai_assets.diffusion.catalogue import Plan

    return Plan(method="lora" if method == "lora" else "full", gradient_checkpointing=saving)


def _what_fits(model: "ModelFacts", device: "DeviceFacts") -> str:
    """The trainings for which the device's free memory is enough."""
    from genai_assets.diffusion.catalogue import GB

    fitting = []
    for method, told in (("full", "full"), ("lora", "LoRA")):
        for saving in (False, True):
            if _memory(model, method, device, saving=saving) * GB <= device.memory_free:
                fitting.append(f"{told}, saving" if saving else told)
                break
    return "; ".join(fitting) or "no"


def _billions(count: int) -> str:
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"
