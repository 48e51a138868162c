import re

import pytest

from emojax.distributed.devices import describe_devices, unused_accelerators


def machine(folder, *cards):
    for number, card in enumerate(cards):
        for name, value in zip(("vendor", "class", "device"), card, strict=True):
            path = folder / f"0000:00:0{number}.0" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(value + "\n")
    return folder


NETWORK = ("0x1ae0", "0x020000", "0x0042")
SOUND = ("0x10de", "0x040300", "0x0e1b")


def test_devices_are_counted_by_kind():
    assert describe_devices() == "8 × cpu"


@pytest.mark.parametrize(
    ("card", "cure"),
    [
        (("0x10de", "0x030200", "0x2330"), r"jax\[cuda12\]"),
        (("0x1ae0", "0x088000", "0x0063"), r"jax\[tpu\]"),
    ],
)
def test_an_accelerator_that_jax_does_not_use_is_named_with_the_cure(
    tmp_path, monkeypatch, card, cure
):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    folder = machine(tmp_path, NETWORK, card)
    (folder / "gone").mkdir()  # nothing can be read of it
    assert re.search(cure, unused_accelerators(folder) or "")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert unused_accelerators(folder) is None


def test_other_cards_are_no_accelerators(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert unused_accelerators(machine(tmp_path, NETWORK, SOUND)) is None
    assert unused_accelerators(tmp_path / "absent") is None
