"""Choosing a base model: a pure function of facts, a comparison that survives a failure, a report that stands alone."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_assets.diffusion.base_model import EMBEDDED_FOLDER
from genai_assets.diffusion.catalogue import DeviceFacts, FolderFacts, Plan, catalogue, licence_allows, read_folder
from genai_assets.diffusion.selection import (
    DataFacts,
    Measured,
    Verdict,
    compare_base_models,
    select_base_models,
    write_selection_report,
)

DATA = DataFacts(pictures=1_000, concepts=500, median_side=512, language="en")
CARD = DeviceFacts("cuda", "a card of 24 GB", 24 * 10**9, 23 * 10**9, 10**12, 64 * 10**9, tflops=60.0)
PLAN = Plan(method="lora")
LICENCES = sorted({entry.licence for entry in catalogue()})


def verdict_of(name: str, verdicts: tuple[Verdict, ...]) -> Verdict:
    return next(verdict for verdict in verdicts if verdict.model == name)


def judge(**changed: object) -> tuple[Verdict, ...]:
    asked = {"data": DATA, "device": CARD, "plan": PLAN, "minutes": 60.0} | changed
    return select_base_models(catalogue(), **asked)


@st.composite
def situations(draw: st.DrawFn) -> dict[str, object]:
    memory = draw(st.integers(10**9, 2 * 10**12))
    device = DeviceFacts(
        draw(st.sampled_from(["cpu", "cuda"])),
        "a device",
        memory,
        draw(st.integers(0, memory)),
        draw(st.integers(0, 10**13)),
        draw(st.integers(0, 10**12)),
        draw(st.none() | st.floats(0.1, 1_000)),
    )
    plan = Plan(
        method=draw(st.sampled_from(["full", "lora"])),
        resolution=draw(st.none() | st.sampled_from([64, 512, 1000, 1024])),
        batch_size=draw(st.integers(1, 64)),
        allowed_licences=tuple(draw(st.sets(st.sampled_from(LICENCES)))),
    )
    data = DataFacts(
        draw(st.integers(1, 10**6)), 1, draw(st.integers(16, 4096)), draw(st.sampled_from([None, "en", "fr"]))
    )
    return {"data": data, "device": device, "plan": plan, "minutes": draw(st.floats(0.1, 10_000))}


@settings(max_examples=60, deadline=None)
@given(situations())
def test_every_model_gets_one_verdict_and_a_no_has_its_reasons(situation):
    verdicts = select_base_models(catalogue(), **situation)
    assert sorted(verdict.model for verdict in verdicts) == sorted(entry.name for entry in catalogue())
    assert all(verdict.fits != bool(verdict.against) for verdict in verdicts)
    fitting = [verdict.fits for verdict in verdicts]
    assert fitting == sorted(fitting, reverse=True)
    assert verdicts == select_base_models(catalogue(), **situation)


@settings(max_examples=60, deadline=None)
@given(situations())
def test_what_fits_is_allowed_and_speaks_the_captions_language(situation):
    plan, data = situation["plan"], situation["data"]
    assert isinstance(plan, Plan) and isinstance(data, DataFacts)
    fits = {verdict.model for verdict in select_base_models(catalogue(), **situation) if verdict.fits}
    for entry in catalogue():
        if entry.name in fits:
            assert licence_allows(entry, plan.allowed_licences)
            assert data.language in (None, *entry.languages)
            assert (plan.resolution or entry.resolution) % entry.side_multiple == 0


@settings(max_examples=60, deadline=None)
@given(situations(), st.integers(2, 10))
def test_a_larger_machine_and_more_time_rule_out_no_more(situation, times):
    device = situation["device"]
    assert isinstance(device, DeviceFacts)
    larger = dataclasses.replace(
        device,
        memory=device.memory * times,
        memory_free=device.memory_free * times,
        disk_free=device.disk_free * times,
        host_free=device.host_free * times,
    )
    minutes = situation["minutes"]
    assert isinstance(minutes, float)
    before = select_base_models(catalogue(), **situation)
    after = select_base_models(catalogue(), **situation | {"device": larger, "minutes": minutes * times})
    assert {verdict.model for verdict in before if verdict.fits} <= {each.model for each in after if each.fits}


def test_every_reason_is_given_not_the_first_alone():
    small = dataclasses.replace(CARD, memory=10**9, memory_free=10**9, disk_free=10**9)
    verdict = verdict_of("flux.1-dev", judge(device=small, data=dataclasses.replace(DATA, language="fr"), minutes=0.1))
    reasons = {reason.partition(":")[0] for reason in verdict.against}
    assert reasons == {"licence", "memory", "disk", "language", "budget"}


def test_a_batch_too_large_at_once_is_to_be_known_and_rules_nothing_out():
    verdict = verdict_of("ssd-1b", judge(plan=Plan(method="lora", batch_size=64)))
    assert verdict.fits and any("micro_batch_size" in told for told in verdict.mind)


def test_a_model_that_fits_in_no_way_is_told_with_what_it_needs_at_the_least():
    verdict = verdict_of("z-image", judge(plan=Plan(method="lora", batch_size=64)))
    least = Plan(method="lora", gradient_checkpointing=True)
    needed = least.memory(next(entry for entry in catalogue() if entry.name == "z-image"), "cuda").gigabytes
    assert not verdict.fits and f"about {needed:.1f} GB" in verdict.against[0]


def test_pictures_that_would_be_enlarged_are_told():
    icons = verdict_of("ssd-1b", judge(data=dataclasses.replace(DATA, median_side=128)))
    assert icons.fits and any("enlarge" in told for told in icons.mind)
    assert not any("enlarge" in told for told in verdict_of("ssd-1b", judge()).mind)


def test_the_budget_counts_passes_by_hand():
    # SSD-1B: 4.15 TFLOP forward, three times that with the backward pass: 12.45 a picture.
    # 60 TFLOP/s for 60 minutes: 216,000 / 12.45 = 17,349 pictures: 17.349 passes over 1,000.
    assert verdict_of("ssd-1b", judge()).passes == pytest.approx(17.349, abs=1e-3)
    saving = verdict_of("ssd-1b", judge(plan=dataclasses.replace(PLAN, gradient_checkpointing=True)))
    assert saving.passes == pytest.approx(17.349 * 3 / 4, abs=1e-3)
    assert verdict_of("ssd-1b", judge(device=dataclasses.replace(CARD, tflops=None))).passes is None
    late = verdict_of("ssd-1b", judge(minutes=1.0))
    assert not late.fits and "289 of 1,000 pictures" in late.against[0]


def at_hand(**changed: object) -> FolderFacts:
    return read_folder(EMBEDDED_FOLDER).model_copy(update=changed)


def test_a_folder_of_unknown_licence_is_not_chosen():
    (verdict,) = select_base_models([at_hand(licences=())], data=DATA, device=CARD, plan=PLAN, minutes=60)
    assert verdict.against == ("licence: not known",) and not verdict.mind[1:]


def test_only_what_fits_and_is_at_hand_is_measured_and_a_failure_ends_nothing():
    models = [
        *catalogue(),
        at_hand(name="ours"),
        at_hand(name="broken"),
        at_hand(name="refused", licences=("gpl-3.0",)),
    ]
    verdicts = select_base_models(models, data=DATA, device=CARD, plan=PLAN, minutes=60)
    asked: list[Path] = []

    def measure(folder: Path) -> Measured:
        asked.append(folder)
        if len(asked) == 2:
            raise RuntimeError("out of memory")
        return Measured(steps=20, steps_per_second=2.0, pictures_per_second=16.0)

    figures = compare_base_models(verdicts, measure)
    assert asked == [EMBEDDED_FOLDER] * 2
    assert isinstance(figures["ours"], Measured) and figures["broken"] == "RuntimeError: out of memory"
    assert set(figures) == {"ours", "broken"}


def test_the_report_stands_alone_and_says_what_the_json_says(tmp_path):
    models = [*catalogue(), at_hand(name="<ours>")]
    verdicts = select_base_models(models, data=DATA, device=CARD, plan=PLAN, minutes=60)
    figures = {
        "<ours>": Measured(20, 2.0, 16.0, validation_loss_before=0.5, validation_loss_after=0.25),
        "other": "ValueError: no",
    }
    summary = write_selection_report(tmp_path, verdicts, figures, data=DATA, device=CARD, plan=PLAN, minutes=60)
    told = json.loads((tmp_path / "selection.json").read_text())
    html = (tmp_path / "selection.html").read_text()
    assert summary["models"] == len(models) == len(told["verdicts"])
    assert (summary["at_hand"], summary["measured"]) == (1, 1)
    assert summary["fits"] == [verdict["model"] for verdict in told["verdicts"] if verdict["fits"]]
    assert told["measured"]["<ours>"]["validation_loss_after"] == 0.25
    assert not re.search(r"(src|href)=|https?://|<ours>|@import", html)
    assert "&lt;ours&gt;" in html and "0.2500" in html and "ValueError: no" in html
    for verdict in verdicts:
        assert verdict.model == "<ours>" or verdict.model in html


def test_a_report_without_a_comparison_says_what_to_do(tmp_path):
    write_selection_report(tmp_path, judge(), {}, data=DATA, device=CARD, plan=PLAN, minutes=60)
    assert "None was measured" in (tmp_path / "selection.html").read_text()
