"""The catalogue: its facts hold together and agree with the stock classes; memory by hand; what stops a run."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel

from genai_assets.diffusion.base_model import EMBEDDED_FOLDER, BaseModelError, load_pipeline
from genai_assets.diffusion.catalogue import (
    ALLOWED_BASE_LICENCES,
    CATALOGUE_FILE,
    CatalogueEntry,
    DeviceFacts,
    Finding,
    Plan,
    UnfitForTraining,
    catalogue,
    check_before_training,
    check_model,
    check_settings,
    find_entry,
    licence_allows,
    look_at_device,
    measure_tflops,
    read_catalogue,
    read_folder,
    refuse_unfit,
    stated_licence,
    training_disk,
    training_memory,
)
from genai_assets.diffusion.families import PIPELINE_CLASSES, family_class, family_of
from genai_assets.settings import Settings

LARGE = DeviceFacts("cuda", "a large card", 10**13, 10**13, 10**14, 10**13)
ROUND = CatalogueEntry(
    name="round",
    pipeline="FluxPipeline",
    denoiser_parameters=1_000_000_000,
    parameters=1_500_000_000,
    adapter_parameters=1_000_000,
    resolution=1000,
    side_multiple=8,
    activation_gb_a_picture=0.5,
    activation_gb_a_megapixel=2.0,
    forward_tflop=1.0,
    download_gb=3.0,
    licence="apache-2.0",
    obligations="Keep the notices.",
    gated=False,
    source="made up for tests",
)


def entry(name: str) -> CatalogueEntry:
    found = find_entry(name)
    assert found is not None
    return found


def finding(findings: list[Finding], name: str) -> Finding:
    return next(each for each in findings if each.name == name)


# The file


def test_every_entry_says_what_people_must_know():
    assert len(catalogue()) >= 12
    for each in catalogue():
        assert each.pipeline in PIPELINE_CLASSES
        assert each.licences == (each.licence,) and len(each.obligations) > 20
        assert each.name == "embedded" or re.fullmatch(r"https://huggingface\.co/[\w.-]+/[\w.-]+", each.source)
        assert each.hub_id is None or each.source.endswith(each.hub_id)


def test_an_entry_is_found_by_name_by_hub_id_and_by_where_it_used_to_be():
    assert find_entry(" FLUX.1-dev ") is find_entry("black-forest-labs/flux.1-DEV") is not None
    assert find_entry("runwayml/stable-diffusion-v1-5") is find_entry("stable-diffusion-1.5") is not None
    assert find_entry("no-such-model") is None


def test_two_entries_of_one_name_are_refused(tmp_path):
    twice = tmp_path / "models.toml"
    first = CATALOGUE_FILE.read_text().split("[[model]]")[1]
    twice.write_text(f"[[model]]{first}[[model]]{first}")
    with pytest.raises(ValueError, match="more than one entry for embedded"):
        read_catalogue(twice)


@pytest.mark.parametrize(
    "wrong", [{"resolution": 1001}, {"denoiser_parameters": 2_000_000_000}, {"approximate": ("colour",)}]
)
def test_an_entry_that_contradicts_itself_is_refused(wrong):
    with pytest.raises(ValueError, match="round"):
        CatalogueEntry.model_validate(ROUND.model_dump() | wrong)


# Configs as published, for the stock classes; the meta device holds shapes and no numbers.
_PUBLISHED = {
    "stable-diffusion-1.5": (UNet2DConditionModel, {"sample_size": 64, "cross_attention_dim": 768}),
    "stable-diffusion-3-medium": (
        SD3Transformer2DModel,
        {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192},
    ),
    "flux.1-dev": (FluxTransformer2DModel, {"guidance_embeds": True}),
}


@pytest.mark.parametrize("name", _PUBLISHED)
def test_parameters_are_those_of_the_stock_class_and_adapters_those_of_our_layers(name):
    model_class, config = _PUBLISHED[name]
    with torch.device("meta"):
        model = model_class(**config)
    assert sum(weight.numel() for weight in model.parameters()) == entry(name).denoiser_parameters
    targets = family_class(entry(name).pipeline).lora_targets
    adapted = [
        module.weight
        for path, module in model.named_modules()
        if any(path == target or path.endswith(f".{target}") for target in targets)
    ]
    assert adapted
    assert sum(weight.shape[0] + weight[0].numel() for weight in adapted) == entry(name).adapter_parameters


def test_the_download_command_takes_the_parts_and_leaves_other_precisions():
    told = entry("flux.1-dev").download_command("models/flux")
    assert told is not None and told.startswith("hf download black-forest-labs/FLUX.1-dev --local-dir models/flux")
    for part in ("transformer", "vae", "text_encoder_2", "tokenizer_2", "scheduler"):
        assert f'--include "{part}/*"' in told
    assert '"unet/*"' not in told and '--exclude "*.fp16*"' in told and '"README.md"' in told
    assert entry("embedded").download_command("x") is None


# Licences


def test_a_licence_is_allowed_whatever_its_case_and_an_unknown_one_never():
    assert licence_allows(ROUND, ["Apache-2.0"])
    assert not licence_allows(ROUND, ["MIT"])
    assert not licence_allows(ROUND.model_copy(update={"licences": ()}), ["MIT", "Apache-2.0"])
    assert not licence_allows(ROUND.model_copy(update={"licences": ("apache-2.0", "gpl-3.0")}), ["Apache-2.0"])


def test_by_default_only_licences_without_strings_are_allowed():
    assert licence_allows(entry("embedded"), ALLOWED_BASE_LICENCES)
    for bound in ("flux.1-dev", "stable-diffusion-xl", "stable-diffusion-3.5-large", "sana-1.6b"):
        assert not licence_allows(entry(bound), ALLOWED_BASE_LICENCES)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n# A model", "mit"),
        ("---\ntags:\n- a\nlicense: other\nlicense_name: 'my-licence' # mine\n---", "my-licence"),
        ("---\nlicense: other\n---", "other"),
        ("---\ntags:\n- license: mit\n---", None),
        ("# A model\nlicense: mit", None),
        ("", None),
    ],
)
def test_the_licence_of_a_card_is_what_its_front_matter_states(card, licence):
    assert stated_licence(card) == licence


# Memory, by hand


def test_full_training_needs_six_times_its_weights_and_the_activations():
    # 4 weights + 4 gradients + 8 moments + 4 average + 4 copy = 24 bytes for each of 1e9 parameters;
    # a picture of 1 megapixel keeps 0.5 + 2.0 GB; libraries 1 GB.
    estimate = training_memory(ROUND, method="full", pictures=2)
    assert estimate.gigabytes == pytest.approx(24 + 2 * 2.5 + 1)
    assert estimate.host == 4 * 1_500_000_000 + 10**9
    assert training_memory(ROUND, method="full", pictures=2, keep_best=True).gigabytes == pytest.approx(34)


def test_a_lora_needs_the_frozen_weights_once_and_little_else():
    # 16 ranks of 1e6 learn, 24 bytes each: 0.384 GB; frozen: 2 bytes on a GPU, 4 + 2 on a CPU, where the other
    # 0.5e9 parameters lie too, in fp32.
    on_gpu = training_memory(ROUND, method="lora", lora_rank=16)
    on_cpu = training_memory(ROUND, method="lora", lora_rank=16, device="cpu")
    assert on_gpu.gigabytes == pytest.approx(0.384 + 2 + 2.5 + 1)
    assert on_cpu.gigabytes == pytest.approx(0.384 + 6 + 2.5 + 2 + 1)
    assert on_cpu.host == 0


def test_drawing_decides_on_a_gpu_when_encoders_are_larger_than_the_training():
    # The whole pipeline of 1e10 parameters draws there in bf16: 20 GB and the libraries; a LoRA trains in far less.
    large = ROUND.model_copy(update={"parameters": 10_000_000_000})
    assert training_memory(large, method="lora").gigabytes == pytest.approx(21)
    assert training_memory(large, method="full").gigabytes == pytest.approx(24 + 2.5 + 1)


def test_resolution_counts_by_its_area_and_checkpointing_keeps_a_fifth():
    assert training_memory(ROUND, method="full", resolution=2000).parts["activations"] == 8_500_000_000
    saved = training_memory(ROUND, method="full", resolution=2000, gradient_checkpointing=True)
    assert saved.parts["activations"] == 1_700_000_000


def test_a_text_encoder_that_learns_costs_like_the_denoiser():
    alone = training_memory(ROUND, method="full", device="cpu")
    along = training_memory(ROUND, method="full", device="cpu", train_text_encoder=True)
    assert along.total - alone.total == (24 - 4) * 500_000_000


def test_checkpoints_on_disk_are_three_of_four_tensors_each_and_the_result_in_bf16():
    assert training_disk(ROUND, method="full") == 3 * 16 * 10**9 + 2 * 10**9
    assert training_disk(ROUND, method="lora", lora_rank=10) == 3 * 16 * 10**7 + 2 * 10**9


# What activations a real step keeps


def test_the_embedded_bases_activations_are_what_autograd_keeps():
    denoiser = load_pipeline_part()
    per_picture = kept_by_autograd(denoiser, 9) - kept_by_autograd(denoiser, 8)
    told = entry("embedded")
    estimate = 1e9 * (told.activation_gb_a_picture + told.activation_gb_a_megapixel * 64 * 64 / 1e6)
    assert per_picture == pytest.approx(estimate, rel=0.1)


def load_pipeline_part() -> Any:
    from diffusers import PRXTransformer2DModel

    return PRXTransformer2DModel.from_pretrained(EMBEDDED_FOLDER / "transformer", dtype=torch.float32)


def kept_by_autograd(denoiser: Any, pictures: int) -> int:
    """Bytes of the tensors that a forward pass saves, the weights apart."""
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        told = torch.randn(pictures, 20, 384), torch.ones(pictures, 20, dtype=torch.bool)
        drawn = denoiser(
            hidden_states=torch.randn(pictures, 3, 64, 64),
            timestep=torch.rand(pictures),
            encoder_hidden_states=told[0],
            attention_mask=told[1],
        )
    weights = {weight.untyped_storage().data_ptr() for weight in denoiser.parameters()}
    bytes_kept = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)
    assert drawn.sample.requires_grad
    return bytes_kept


# Folders


@pytest.fixture(scope="session")
def tiny_unet_folder(tmp_path_factory) -> Path:
    """The parts of a Stable Diffusion folder that facts are read from, in the stock layout."""
    folder = tmp_path_factory.mktemp("unet") / "model"
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).save_pretrained(folder / "unet")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, **blocks).save_pretrained(folder / "vae")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


def test_a_folder_is_read_as_the_loaded_model_is(tiny_base):
    facts, family = read_folder(tiny_base), family_of(load_pipeline(tiny_base))
    assert facts.pipeline == "PRXPixelPipeline"
    assert facts.denoiser_parameters == sum(weight.numel() for weight in family.denoiser.parameters())
    assert (facts.resolution, facts.side_multiple) == (family.resolution, family.side_multiple)
    assert facts.parameters > facts.denoiser_parameters
    assert (facts.licences, facts.entry, facts.likeness) == ((), None, "embedded")
    assert facts.activation_gb_a_megapixel < entry("embedded").activation_gb_a_megapixel


def test_a_unets_folder_needs_sides_that_every_level_can_halve(tiny_unet_folder):
    facts = read_folder(tiny_unet_folder)
    assert (facts.resolution, facts.side_multiple) == (16, 4)  # an autoencoder of two levels, a UNet of two
    unet = UNet2DConditionModel.from_pretrained(tiny_unet_folder / "unet")
    assert facts.denoiser_parameters == sum(weight.numel() for weight in unet.parameters())
    targets = family_class("StableDiffusionPipeline").lora_targets
    adapted = [module.weight for path, module in unet.named_modules() if path.endswith(tuple(f".{t}" for t in targets))]
    assert facts.adapter_parameters == sum(weight.shape[0] + weight[0].numel() for weight in adapted) > 0


def test_weights_in_another_precision_are_not_counted_twice(tiny_unet_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_unet_folder, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert read_folder(folder).denoiser_parameters == read_folder(tiny_unet_folder).denoiser_parameters


def test_the_embedded_base_is_the_catalogues():
    facts, told = read_folder(EMBEDDED_FOLDER), entry("embedded")
    for fact in ("denoiser_parameters", "parameters", "adapter_parameters", "resolution", "side_multiple", "licences"):
        assert getattr(facts, fact) == getattr(told, fact)


def test_the_card_and_where_a_folder_is_from_both_bind(tiny_unet_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_unet_folder, folder)
    (folder / "README.md").write_text("---\nlicense: MIT\n---\n")
    assert read_folder(folder).licences == ("mit",)
    index = {"_class_name": "StableDiffusionPipeline", "_name_or_path": "runwayml/stable-diffusion-v1-5"}
    (folder / "model_index.json").write_text(json.dumps(index))
    facts = read_folder(folder)
    assert facts.licences == ("mit", "creativeml-openrail-m") and facts.entry == "stable-diffusion-1.5"
    licence = finding(check_before_training(folder, Plan(), LARGE), "licence")
    assert licence.status == "error" and "creativeml-openrail-m" in licence.detail
    assert "use restrictions" in licence.mend and "fine_tune.allowed_base_licences" in licence.mend


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "model_index.json"),
        (lambda folder: (folder / "model_index.json").write_text('{"_class_name": "NoPipeline"}'), "no known family"),
        (lambda folder: next(folder.glob("unet/*.safetensors")).unlink(), "no safetensors weights"),
        (lambda folder: next(folder.glob("unet/*.safetensors")).write_bytes(b"x" * 100), "no safetensors file"),
    ],
)
def test_a_folder_that_is_no_model_is_an_error_that_says_why(tiny_unet_folder, tmp_path, spoil, told):
    folder = tmp_path / "model"
    shutil.copytree(tiny_unet_folder, folder)
    spoil(folder)
    with pytest.raises(BaseModelError, match=told):
        read_folder(folder)
    (only,) = check_before_training(folder, Plan(), LARGE)
    assert only.status == "error" and told in only.detail and only.mend


# The check


def test_the_default_settings_may_train_the_embedded_base_here(monkeypatch, tmp_path):
    findings = check_settings(Settings(device="cpu", home=tmp_path))
    assert [each.status for each in findings if each.name in ("model", "family", "licence", "resolution")] == ["ok"] * 4
    assert finding(findings, "memory").detail and finding(findings, "disk").detail


def test_an_unknown_licence_warns_and_a_refused_one_stops(tiny_unet_folder):
    unknown = finding(check_before_training(tiny_unet_folder, Plan(), LARGE), "licence")
    assert unknown.status == "warning" and "license: ID" in unknown.mend
    refused = check_model(entry("flux.1-dev"), Plan(method="lora"), LARGE)
    assert finding(refused, "licence").status == "error"
    permitted = Plan(method="lora", allowed_licences=("flux-1-dev-non-commercial-license",))
    assert all(each.status == "ok" for each in check_model(entry("flux.1-dev"), permitted, LARGE))


def test_a_resolution_that_does_not_suit_names_the_nearest_that_do():
    model = entry("stable-diffusion-xl")
    wrong = finding(check_model(model, Plan(resolution=1000), LARGE), "resolution")
    assert wrong.status == "error" and "992 or 1024" in wrong.mend
    assert finding(check_model(model, Plan(resolution=256), LARGE), "resolution").status == "warning"
    assert finding(check_model(model, Plan(resolution=16), LARGE), "resolution").mend.endswith("to 32")


def test_too_little_memory_says_which_settings_would_fit():
    card = dataclasses.replace(LARGE, memory=24 * 10**9, memory_free=23 * 10**9)
    batch = finding(check_model(entry("ssd-1b"), Plan(method="lora", batch_size=64), card), "memory")
    assert batch.status == "error"
    pictures = re.search(r"micro_batch_size to (\d+)", batch.mend)
    assert pictures
    mended = Plan(method="lora", batch_size=64, micro_batch_size=int(pictures[1]))
    assert finding(check_model(entry("ssd-1b"), mended, card), "memory").status == "ok"
    full = finding(check_model(entry("ssd-1b"), Plan(), card), "memory")
    assert full.status == "error" and 'fine_tune.method to "lora"' in full.mend
    assert "smaller base model" in finding(check_model(entry("qwen-image"), Plan(), card), "memory").mend


def test_memory_that_others_hold_is_a_warning_and_what_there_is_not_an_error():
    needed = training_memory(ROUND, method="full").total
    busy = dataclasses.replace(LARGE, memory=2 * needed, memory_free=needed // 2)
    assert finding(check_model(ROUND, Plan(), busy), "memory").status == "warning"
    small = dataclasses.replace(LARGE, memory=needed // 2, memory_free=needed // 2)
    assert finding(check_model(ROUND, Plan(), small), "memory").status == "error"


def test_processes_share_a_cpu_and_have_a_gpu_each():
    alone, together = Plan(batch_size=8), Plan(batch_size=8, processes=4)
    assert (alone.pictures, together.pictures) == (8, 2)
    needed = together.memory(ROUND, "cpu").total
    cpu = dataclasses.replace(LARGE, kind="cpu", memory=2 * needed, memory_free=2 * needed)
    assert finding(check_model(ROUND, together, cpu), "memory").status == "error"
    gpu = dataclasses.replace(cpu, kind="cuda")
    assert finding(check_model(ROUND, together, gpu), "memory").status == "ok"


def test_a_disk_without_room_for_the_checkpoints_stops_the_run():
    full = dataclasses.replace(LARGE, disk_free=10**9)
    disk = finding(check_model(ROUND, Plan(), full), "disk")
    assert disk.status == "error" and "GENAI_HOME" in disk.mend


def test_refusing_names_every_error_and_returns_the_warnings():
    fine, odd = Finding("disk", "ok", "plenty"), Finding("licence", "warning", "not known", "find out")
    assert refuse_unfit([fine, odd]) == ["licence: not known. find out"]
    wrong = [Finding("memory", "error", "too little", "buy some"), Finding("disk", "error", "full", "make room")]
    with pytest.raises(UnfitForTraining, match=r"(?s)too little.*buy some.*full.*make room"):
        refuse_unfit([fine, odd, *wrong])


def test_the_device_is_looked_at_even_where_the_home_is_yet_to_be_made(tmp_path):
    device = look_at_device("cpu", tmp_path / "not" / "yet")
    assert device.kind == "cpu" and 0 < device.memory_free <= device.memory
    assert device.disk_free > 0 and math.isfinite(device.host_free)


def test_the_speed_that_is_told_is_less_than_what_large_products_reach():
    with torch.inference_mode():
        speed = measure_tflops("cpu")
    assert 0 < speed < 100
