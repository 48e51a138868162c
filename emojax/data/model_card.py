"""The card of an edited network in Hugging Face's layout, with which its folder can be pushed.

Nothing is guessed: a licence that the original's own card does not name is `unknown`.
"""

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

from emojax.data.provenance import Use

FILE = "README.md"
_LICENSE = re.compile(r"^license: *([\w.-]+) *$", re.MULTILINE)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_NAMED = 20  # parameters
_ROLES = {"trained": "trained on", "chosen": "epoch or edit chosen on"}


def card(
    like: str,
    source: Path,
    architecture: str,
    library: str,
    changed: Mapping[str, float],
    uses: Iterable[Use] | None,
    edit: str,
) -> str:
    """The card's text.

    Args:
      like: folder or hub name of the original.
      source: the folder of its files.
      architecture: its class in transformers, or function in timm.
      library: that loads it, transformers or timm.
      changed: share of changed values of each parameter that the edit changed.
      uses: image sets that shaped the network; None where they are not known.
      edit: what was done, in words.
    """
    from_hub = _HUB_NAME.fullmatch(like) and not Path(like).is_dir()
    name = like if from_hub else source.name
    license_name = _license(source)
    classifies = library == "timm" or "ForImageClassification" in architecture
    front = [
        f"library_name: {library}",
        f"pipeline_tag: {'image-classification' if classifies else 'image-feature-extraction'}",
        f"license: {license_name}",
        *([f"base_model: {like}"] if from_hub else []),
        "tags: [emojax, edited]",
    ]
    named = [f"- `{array}`: {share:.1%} of its values" for array, share in changed.items()]
    if len(named) > _NAMED:
        named[_NAMED:] = [f"- and {len(named) - _NAMED} more"]
    if uses is None:
        origin = ["- not known: whoever tests it cannot rule out that it saw the images"]
    else:
        origin = [f"- {use.name}: {_ROLES[use.role]} (`{use.key[:12]}`)" for use in uses]
    rights = "as the original's card says" if license_name != "unknown" else "not known to emojax"
    parts = [
        ["---", *front, "---"],
        [f"# {name}, edited"],
        [
            f"A {architecture} of which emojax {version('emojax')} scaled hidden units' outgoing "
            f"weights. {library} loads it as it loads the original."
        ],
        ["## The edit"],
        [" ".join(edit.split()) or "Not described."],
        ["Parameters that differ from the original's:"],
        named or ["- none"],
        ["## Provenance"],
        ["Image sets that shaped it, the original's included:"],
        origin or ["- none"],
        ["## Licence"],
        [f"{license_name}: {rights}. The original's terms hold for this copy too."],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _license(source: Path) -> str:
    """The licence that the front matter of the original's card names."""
    file = source / FILE
    text = file.read_text("utf-8", errors="replace") if file.is_file() else ""
    front = text.split("---", 2)[1] if text.startswith("---") and text.count("---") > 1 else ""
    match = _LICENSE.search(front)
    return match[1] if match else "unknown"
