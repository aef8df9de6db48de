"""The model card: a README that says what a model is, what it was made from, how good it is, and whom to credit.

Belongs here: the card's form (the one Hugging Face reads: a YAML header, then Markdown). The facts come from whoever
made the model; a figure that was not measured is left out, never guessed.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from genai_assets import durable

CARD = "README.md"

_NEEDED = ("name", "licence", "summary")
_KNOWN = frozenset(
    {*_NEEDED, "base_model", "tags", "model_version", "data_version", "recipe", "figures", "figures_note", "limits"}
    | {"attribution", "usage"}
)
_PLAIN = re.compile(r"[A-Za-z][\w./-]*")  # YAML reads this as it stands
_YAML_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})


class CardError(ValueError):
    """The facts do not make a card; the message says which one."""


def write_model_card(folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write ``README.md`` into a model's folder, all or nothing; return its path.

    Args:
        folder: the model's folder.
        facts: by name. Needed: ``name``; ``licence`` (SPDX); ``summary`` (a sentence or two). Optional: ``base_model``
            (what it was fine-tuned from); ``tags``; ``model_version``; ``data_version``; ``recipe`` (settings of the
            training, nested as they are); ``figures`` (name to number) with ``figures_note`` (how they were measured);
            ``limits`` (sentences); ``usage`` (Python code); ``attribution`` (whom the data and weights are by: a
            sentence each).

    Raises:
        CardError: a needed fact is missing or empty, or a name is unknown.
        FileNotFoundError: the folder is not there.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no model folder {folder} to write a card for")
    path = folder / CARD
    durable.write_text(path, model_card(facts))
    return path


def model_card(facts: Mapping[str, Any]) -> str:
    """The card's text. Same arguments and errors as :func:`write_model_card`."""
    if missing := [name for name in _NEEDED if not str(facts.get(name) or "").strip()]:
        raise CardError(f"a model card needs {', '.join(missing)}")
    if unknown := sorted(facts.keys() - _KNOWN):
        raise CardError(f"a model card knows no {', '.join(unknown)}; it knows {', '.join(sorted(_KNOWN))}")
    parts = [_header(facts), f"# {facts['name']}", str(facts["summary"]).strip()]
    parts += _section("Use", [f"```python\n{str(facts['usage']).strip()}\n```"] if facts.get("usage") else [])
    parts += _section("Versions", _versions(facts))
    parts += _section("Figures", _figures(facts.get("figures") or {}, facts.get("figures_note", "")))
    parts += _section("Recipe", _recipe(facts.get("recipe") or {}))
    parts += _section("Limits", _list(facts.get("limits", ())))
    parts += _section("Attribution", _list(facts.get("attribution", ())))
    return "\n\n".join(parts) + "\n"


def _header(facts: Mapping[str, Any]) -> str:
    lines = ["---", f"license: {_scalar(str(facts['licence']).lower())}"]  # Hugging Face writes licences in lower case
    if facts.get("base_model"):
        lines.append(f"base_model: {_scalar(facts['base_model'])}")
    lines += ["library_name: diffusers", "pipeline_tag: text-to-image"]
    if tags := list(facts.get("tags", ())):
        lines += ["tags:", *(f"- {_scalar(tag)}" for tag in tags)]
    return "\n".join([*lines, "---"])


def _versions(facts: Mapping[str, Any]) -> list[str]:
    known = (("Model", "model_version"), ("Data", "data_version"), ("Base model", "base_model"))
    rows = [f"- {label}: `{facts[name]}`" for label, name in known if facts.get(name)]
    return ["\n".join(rows)] if rows else []


def _figures(figures: Mapping[str, Any], note: str) -> list[str]:
    if not figures:
        return []
    rows = ["| figure | value |", "|---|---|"]
    rows += [f"| {_cell(name)} | {_cell(_number(value))} |" for name, value in _flatten(figures)]
    return ["\n".join(rows), *([note.strip()] if note.strip() else [])]


def _recipe(recipe: Mapping[str, Any]) -> list[str]:
    rows = [f"| {_cell(name)} | {_cell(_number(value))} |" for name, value in _flatten(recipe)]
    return ["\n".join(["| setting | value |", "|---|---|", *rows])] if rows else []


def _list(sentences: Iterable[str] | str) -> list[str]:
    sentences = [sentences] if isinstance(sentences, str) else list(sentences)
    return ["\n".join(f"- {' '.join(sentence.split())}" for sentence in sentences)] if sentences else []


def _section(title: str, body: list[str]) -> list[str]:
    return [f"## {title}", *body] if body else []


def _scalar(value: Any) -> str:
    """A YAML scalar. JSON strings are YAML strings, so anything unusual is quoted as JSON."""
    text = str(value)
    plain = _PLAIN.fullmatch(text) and text.lower() not in _YAML_WORDS
    return text if plain else json.dumps(text, ensure_ascii=False)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in values.items():
        flat += _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return flat
