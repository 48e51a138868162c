"""A CLIP's folder is read without the network; the hub is asked only for a name."""

import socket

import pytest

from emojax.data.clip_folder import load_clip
from emojax.errors import InputError


@pytest.mark.slow
def test_a_folder_is_read_without_the_network(monkeypatch, clip_folder):
    def no_network(*args):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    assert load_clip(clip_folder).model.config.embedding == 24
    with pytest.raises(InputError, match="or a hub name"):
        load_clip(clip_folder / "none")


def test_the_hub_is_asked_for_a_name_and_only_for_harmless_files(monkeypatch, clip_folder):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(clip_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_clip("owner/name").name == "owner/name"
    assert asked == [
        ("owner/name", ["*.json", "*.safetensors", "*.txt", "*.model", "pytorch_model.bin"])
    ]
