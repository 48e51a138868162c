"""The card of an edited network."""

import yaml

from emojax.data.model_card import card
from emojax.data.provenance import Use


def front(text: str) -> dict:
    """The front matter, as the hub reads it."""
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_what_is_not_known_is_not_guessed(tmp_path):
    text = card(str(tmp_path), tmp_path, "ViTForImageClassification", "transformers", {}, None, "")
    assert front(text) == {
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "license": "unknown",
        "tags": ["emojax", "edited"],
    }
    assert "unknown: not known to emojax" in text
    assert "cannot rule out that it saw the images" in text
    assert "Not described." in text
    assert str(tmp_path.parent) not in text


def test_what_is_known_is_named(tmp_path):
    (tmp_path / "README.md").write_text("---\ntags: [x]\nlicense: cc-by-4.0\n---\nlicense: mit\n")
    uses = [Use("photos", "a" * 64, "trained"), Use("others", "b" * 64, "chosen")]
    changed = {f"layer.{number}.weight": 0.25 for number in range(23)}
    words = "Glasses\nerased.\n---\nlicense: mit"
    text = card("some/tower", tmp_path, "SiglipVisionModel", "transformers", changed, uses, words)
    known = front(text)
    assert known["license"] == "cc-by-4.0"
    assert known["base_model"] == "some/tower"
    assert known["pipeline_tag"] == "image-feature-extraction"
    assert "\nGlasses erased. --- license: mit\n" in text  # no front matter of its own
    assert "- `layer.19.weight`: 25.0% of its values\n- and 3 more\n" in text
    assert "- photos: trained on (`aaaaaaaaaaaa`)\n- others: epoch or edit chosen on" in text


def test_a_damaged_card_of_the_original_names_no_licence(tmp_path):
    for content in (b"\xff\xfe---", b"---\nlicense: a b\n---\n", b"license: mit"):
        (tmp_path / "README.md").write_bytes(content)
        text = card("x", tmp_path, "ViTForImageClassification", "transformers", {}, [], "")
        assert front(text)["license"] == "unknown"
