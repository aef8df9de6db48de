"""Captions by a model: tiny random models of stock classes are asked for real, once a picture."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genai_assets.datasets.auto_captions import AutoCaptionStore, Captioner, ModelUnfit, caption_pictures, find_model

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "cat", "dog", "house", "on", "the", "grass"]
LAYER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
EYES = {**LAYER, "image_size": 32, "patch_size": 16}
TONGUE = {**LAYER, "vocab_size": len(WORDS), "max_position_embeddings": 64}


def save_tiny(kind: str, folder: Path) -> Path:
    """A random model of a stock class, with its image processor and tokenizer, as save_pretrained writes them."""
    import torch
    import transformers

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    torch.manual_seed(0)
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    square = {"height": 32, "width": 32}
    if kind == "blip":
        text = {**TONGUE, **ends, "sep_token_id": 3, "encoder_hidden_size": 16, "projection_dim": 16}
        config = transformers.BlipConfig(text_config=text, vision_config=EYES, projection_dim=16)
        model, eyes = transformers.BlipForConditionalGeneration(config), transformers.BlipImageProcessorPil(size=square)
    elif kind == "git":
        config = transformers.GitConfig(vision_config=EYES, **TONGUE, **ends)
        model = transformers.GitForCausalLM(config)
        eyes = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square)
    else:
        decoder = transformers.BertConfig(**TONGUE, is_decoder=True, add_cross_attention=True)
        config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
            transformers.ViTConfig(**EYES), decoder
        )
        model, eyes = transformers.VisionEncoderDecoderModel(config), transformers.ViTImageProcessorPil(size=square)
        model.generation_config.update(decoder_start_token_id=2, eos_token_id=3, pad_token_id=0)
    for part in (model, tokenizer, eyes):
        part.save_pretrained(folder)
    return folder


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("git", tmp_path_factory.mktemp("models") / "git")


@pytest.mark.parametrize("kind", ["blip", "git", "vision-encoder-decoder"])
def test_models_of_each_type_describe_pictures_in_words_and_always_the_same(kind, tmp_path):
    captioner = Captioner(save_tiny(kind, tmp_path / kind), max_new_tokens=6)
    pictures = [picture(number) for number in range(3)]
    told = captioner.describe(pictures)
    assert len(told) == 3
    assert all(set(text.split()) <= set(WORDS) and not text.startswith("[") for text in told)
    assert any(told), "a model that says nothing would not be asked for real"
    assert captioner.describe(pictures) == told
    assert captioner.name.startswith(f"{kind}@")


class Counting(Captioner):
    """Counts the pictures it is really asked about."""

    asked = 0

    def describe(self, pictures):
        self.asked += len(pictures)
        return super().describe(pictures)


def test_every_picture_is_looked_at_once_and_another_model_looks_again(git, tmp_path):
    ids = [f"{number:x}" * 64 for number in range(5)]
    with AutoCaptionStore(f"sqlite:///{tmp_path / 'auto.sqlite'}") as store:

        def ask(captioner: Counting, wanted: list[str]) -> dict:
            return caption_pictures(wanted, lambda id_: picture(int(id_[0], 16)), captioner, store, batch_size=2)

        first = Counting(git, max_new_tokens=4)
        told = ask(first, [*ids[:3], ids[0]])
        assert (first.asked, set(told)) == (3, set(ids[:3]))
        again = Counting(git, max_new_tokens=4)
        assert ask(again, ids[:3]) == told
        assert again.asked == 0 and again._loaded is None, "nothing is loaded when nothing is new"
        assert ask(again, ids).keys() >= told.keys()
        assert again.asked == 2
        longer = Counting(git, max_new_tokens=5)
        ask(longer, ids)
        assert longer.asked == 5, "asked in another way, it is another model"


def test_what_was_said_is_kept_batch_by_batch_when_the_rest_fails(git, tmp_path):
    ids = [f"{number:x}" * 64 for number in range(4)]

    def read(id_: str) -> Image.Image:
        if id_ == ids[3]:
            raise OSError("the disk is gone")
        return picture(int(id_[0], 16))

    captioner = Counting(git, max_new_tokens=4)
    with AutoCaptionStore(f"sqlite:///{tmp_path / 'auto.sqlite'}") as store:
        with pytest.raises(OSError, match="disk is gone"):
            caption_pictures(ids, read, captioner, store, batch_size=2)
        assert set(store.known(ids, captioner.version)) == set(ids[:2])


def test_what_the_model_says_nothing_about_is_not_captioned_and_not_asked_again(git, tmp_path):
    class Silent(Counting):
        def describe(self, pictures):
            self.asked += len(pictures)
            return [""] * len(pictures)

    silent = Silent(git)
    with AutoCaptionStore(f"sqlite:///{tmp_path / 'auto.sqlite'}") as store:
        for _ in range(2):
            assert caption_pictures(["a" * 64], lambda _: picture(1), silent, store) == {}
    assert silent.asked == 1


def test_the_digest_of_the_weights_is_in_name_and_version(git, tmp_path):
    import shutil

    other = tmp_path / "git"
    shutil.copytree(git, other)
    assert Captioner(other).version == Captioner(git).version
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert Captioner(other).version != Captioner(git).version
    assert Captioner(other).name != Captioner(git).name


def test_a_model_that_is_not_here_is_told_with_the_mend_and_without_the_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelUnfit, match=r"hf download acme/nothing.*captions\.download"):
        find_model("acme/nothing", download=False)
    with pytest.raises(ModelUnfit, match="no folder"):
        find_model(str(tmp_path / "nothing"), download=False)
    assert find_model(str(tmp_path), download=False) == tmp_path


def test_what_is_no_model_that_describes_pictures_is_refused(git, tmp_path):
    with pytest.raises(ModelUnfit, match=r"no config\.json"):
        Captioner(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(ModelUnfit, match=r"'llava'.*blip"):
        Captioner(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "git"}))
    with pytest.raises(ModelUnfit, match="no safetensors"):
        Captioner(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelUnfit, match="cannot be loaded"):
        Captioner(tmp_path).describe([picture(0)])
