"""The card says what is known, in the form Hugging Face reads, and nothing that is not."""

import pytest
import yaml
from huggingface_hub import ModelCard

from genai_assets.registry.model_card import CARD, CardError, model_card, write_model_card

FACTS = {
    "name": "icons: the model",
    "licence": "Apache-2.0",
    "summary": "Draws icons in the house style.",
    "base_model": "embedded",
    "tags": ["text-to-image", "yes", "style: fluent"],
    "model_version": "0123abcd",
    "data_version": "ffee",
    "figures": {"KID": 0.123456, "agreement": {"R@5": 0.25}},
    "figures_note": "166 held-out concepts.",
    "recipe": {"fine_tune": {"steps": 300, "prompt_template": "{caption} | {style}"}},
    "limits": ["64 pixels only."],
    "attribution": ["Fluent emoji, Microsoft, MIT."],
    "usage": 'DiffusionPipeline.from_pretrained("model")',
}


def test_hugging_face_reads_the_card(tmp_path):
    path = write_model_card(tmp_path, FACTS)
    assert path == tmp_path / CARD
    card = ModelCard.load(path)
    assert card.data.license == "apache-2.0"
    assert card.data.base_model == "embedded"
    assert card.data.tags == ["text-to-image", "yes", "style: fluent"], "words YAML would read otherwise stay words"


def test_the_card_holds_versions_figures_recipe_limits_and_credits():
    card = model_card(FACTS)
    for part in ("`0123abcd`", "`ffee`", "| KID | 0.1235 |", "| agreement.R@5 | 0.25 |", "166 held-out concepts."):
        assert part in card
    for part in ("| fine_tune.steps | 300 |", r"{caption} \| {style}", "- 64 pixels only.", "- Fluent emoji"):
        assert part in card


def test_what_is_not_known_has_no_section():
    card = model_card({name: FACTS[name] for name in ("name", "licence", "summary")})
    assert "##" not in card
    assert set(yaml.safe_load(card.split("---")[1])) == {"license", "library_name", "pipeline_tag"}


@pytest.mark.parametrize("left_out", ["name", "licence", "summary"])
def test_a_card_without_what_matters_is_refused_and_nothing_is_written(tmp_path, left_out):
    with pytest.raises(CardError, match=left_out):
        write_model_card(tmp_path, FACTS | {left_out: " "})
    assert not list(tmp_path.iterdir())


def test_an_unknown_fact_is_refused_so_that_a_typing_error_is_not_silent():
    with pytest.raises(CardError, match="license"):
        model_card(FACTS | {"license": "MIT"})


def test_a_model_without_a_folder_gets_no_card(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_model_card(tmp_path / "none", FACTS)
