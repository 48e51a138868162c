"""Cached files: each carries its key and checksums, and what fails verification is made again.

`EMOJAX_FLIPS=500 pytest tests/test_store.py -k random` damages that many files instead of a few.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from interruptions import Stopped, stop_after
from safetensors import safe_open
from small_training import fit

from emojax import cli, store
from emojax.commands import train as train_command
from emojax.data.clip_folder import load_clip
from emojax.data.concepts import ConceptSet
from emojax.data.weights import save_vgg
from emojax.dissection import dissect
from emojax.distributed.mesh import make_mesh
from emojax.editing import activations, edit, sweep
from emojax.editing.edit import read_gains
from emojax.errors import InputError
from emojax.probing import partial, probe, record
from emojax.synthetic import faces

CONCEPTS = ConceptSet(("Smile", "Frown", "Raised Brows", "Closed Eyes", "Jaw"))
PARTS = ("texts", "record", "partial", "inputs", "sweep", "training")
FLIPS = int(os.environ.get("EMOJAX_FLIPS", "12"))
Part = Callable[[Path], object]


@pytest.fixture(scope="module")
def parts(tiny_vgg, tiny_clip, blobs) -> dict[str, Part]:
    """What a part of a run makes with the cache in a folder."""
    few, options = blobs.first(48), {"layers": ("lin2",), "batch": 16, "tile": 8, "top_k": 10}
    training = faces.random_faces(64, 3).image_set("faces")
    read = activations.pre_bias_activations(tiny_vgg, few, "lin2", tile=4)
    masks = np.random.default_rng(0).random((9, 20)) < 0.4

    def probed(cache: Path, **stop) -> list[object]:
        made = probe.probe(
            tiny_vgg,
            few,
            tiny_clip,
            mesh=make_mesh(1),
            keep_activations=True,
            cache=cache,
            save_every=0,
            **options,
            **stop,
        )
        ids = [np.array(list(made.ids)), np.array(made.classes), made.labels]
        return [*made.top, *made.half_moments, made.embeddings, made.activations, *ids]

    def resumed(cache: Path) -> list[object]:
        if not cache.exists():  # makes the cache that is damaged: stopped after two batches
            with pytest.raises(Stopped):
                probed(cache, progress=stop_after(3))
        return probed(cache)

    def trained(cache: Path) -> object:
        (result,) = fit(tiny_vgg, training, checkpoints=cache / "key")
        losses = [row["loss"] for row in result.history]
        return result.params, result.rest, result.last, losses, result.best_epoch

    return {
        "texts": lambda cache: dissect.embed_concepts(tiny_clip, CONCEPTS, cache),
        "record": probed,
        "partial": resumed,
        "inputs": lambda cache: (
            activations.pre_bias_activations(tiny_vgg, few, "lin2", tile=4, cache=cache).values
        ),
        "sweep": lambda cache: vars(sweep.Sweep(read, cache=cache).masks(masks, 2.0)),
        "training": trained,
    }


@pytest.fixture(scope="module")
def warm(parts, tmp_path_factory) -> tuple[Path, dict[str, list[np.ndarray]]]:
    """A folder with the cache of every part, and what each part makes."""
    folder = tmp_path_factory.mktemp("warm")
    made = {name: leaves(part(folder / name)) for name, part in parts.items()}
    # The partial record was finished; another one is stopped and left.
    shutil.rmtree(folder / "partial")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial.Partial, "finish", stopped)
        with pytest.raises(Stopped):
            parts["partial"](folder / "partial")
    assert [path.suffix for path in (folder / "partial").iterdir()] == [".partial"]
    assert len(list((folder / "partial").rglob("snapshot-*"))) == 2
    return folder, made


def stopped(*_: object) -> None:
    raise Stopped


def leaves(tree: object) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_same(got: object, want: list[np.ndarray]) -> None:
    for a, b in zip(leaves(got), want, strict=True):
        np.testing.assert_array_equal(a, b)


def damage(file: Path, chance: random.Random) -> str:
    """Damages a file in one of the ways that disks, copies and crashes do."""
    data = bytearray(file.read_bytes())
    how = chance.choice(("flip", "flip", "flip", "zero", "cut", "empty", "delete"))
    start = chance.randrange(max(1, len(data)))
    if how == "flip" and data:
        data[start] ^= 1 << chance.randrange(8)
    elif how == "zero":
        data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    elif how == "cut":
        del data[start:]
    elif how == "empty":
        data.clear()
    file.write_bytes(data)
    if how == "delete":
        file.unlink()
    return f"{how} at {start} of {file.name}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FLIPS))
def test_random_damage_gives_the_same_result(parts, warm, tmp_path, seed):
    folder, made = warm
    chance = random.Random(seed)
    name = PARTS[seed % len(PARTS)]
    shutil.copytree(folder / name, tmp_path / name)
    what = damage(chance.choice(files_of(tmp_path / name)), chance)
    print(name, what)
    assert_same(parts[name](tmp_path / name), made[name])
    assert_same(parts[name](tmp_path / name), made[name])  # and what was made again is sound


@pytest.mark.parametrize("name", PARTS)
def test_empty_files_are_made_again(parts, warm, tmp_path, caplog, name):
    folder, made = warm
    shutil.copytree(folder / name, tmp_path / name)
    for file in files_of(tmp_path / name):
        file.write_bytes(b"")
    assert_same(parts[name](tmp_path / name), made[name])
    assert "is not used and is made again" in caplog.text
    caplog.clear()
    assert_same(parts[name](tmp_path / name), made[name])
    assert caplog.text == ""


@pytest.mark.slow
def test_a_changed_tokenizer_is_another_key(clip_folder, tiny_clip, tmp_path):
    """Other ids for two letters, then a merge: fresh embeddings of either, and other keys."""

    def swapped(rules: dict) -> None:
        other = {"e": "i", "i": "e"}
        vocabulary = rules["model"]["vocab"].items()
        rules["model"]["vocab"] = {other.get(piece, piece): at for piece, at in vocabulary}

    def merged(rules: dict) -> None:
        rules["model"]["vocab"]["mi"] = rules["model"]["vocab"].pop("!</w>")
        rules["model"]["merges"] = [["m", "i"]]

    changes = {"vocabulary": swapped, "merges": merged}
    keys = {tiny_clip.key}
    dissect.embed_concepts(tiny_clip, CONCEPTS, tmp_path / "cache")
    for name, change in changes.items():
        folder = tmp_path / name
        shutil.copytree(clip_folder, folder)
        rules = json.loads((folder / "tokenizer.json").read_text())
        change(rules)
        (folder / "tokenizer.json").write_text(json.dumps(rules))
        clip = load_clip(folder)
        keys.add(clip.key)
        want = clip.embed_texts(CONCEPTS.concepts)
        assert not np.array_equal(want, tiny_clip.embed_texts(CONCEPTS.concepts))
        np.testing.assert_array_equal(
            dissect.embed_concepts(clip, CONCEPTS, tmp_path / "cache"), want
        )
    assert len(keys) == 3
    assert load_clip(clip_folder).key == tiny_clip.key


@pytest.mark.slow
def test_the_record_of_another_key_is_not_used(tiny_vgg, tiny_clip, blobs, tmp_path, caplog):
    """Another network's record under this key: whole, with its own key or with this one in
    record.json.
    """
    options = {"layers": ("lin2",), "tile": 8, "top_k": 10, "cache": tmp_path}
    few, other = blobs.first(48), edit.edit(tiny_vgg, "lin1", np.r_[1.5, np.ones(23)])
    want = probe.probe(tiny_vgg, few, tiny_clip, **options)
    foreign = probe.probe(other, few, tiny_clip, **options)
    for field in (None, "key"):
        shutil.rmtree(tmp_path / want.key)
        shutil.copytree(tmp_path / foreign.key, tmp_path / want.key)
        if field is not None:
            about = json.loads((tmp_path / want.key / "record.json").read_text())
            (tmp_path / want.key / "record.json").write_text(json.dumps(about | {field: want.key}))
        with pytest.raises(InputError, match="not a readable probe record"):
            record.load(tmp_path / want.key, want.key)
        caplog.clear()
        got = probe.probe(tiny_vgg, few, tiny_clip, **options)
        assert "is not used and is made again" in caplog.text
        np.testing.assert_array_equal(got.top.values, want.top.values)
        assert (got.top.values != foreign.top.values).any()


def test_a_linked_entry_is_replaced_and_its_target_stays(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_text("mine")
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "key").symlink_to(photos)
    for _ in range(2):  # computed, then read from the cache
        arrays = store.cached(cache, "key", lambda: {"x": np.arange(3)})
        np.testing.assert_array_equal(arrays["x"], np.arange(3))
    assert [path.name for path in photos.iterdir()] == ["a.jpg"]
    assert store.fault(cache / "key", "key") is None
    assert not (cache / "key").is_symlink()
    assert [path.name for path in cache.iterdir()] == ["key"]


def test_entries_of_another_key_or_format_are_not_used(tmp_path, caplog):
    def compute() -> dict[str, np.ndarray]:
        return {"x": np.arange(3)}

    def cached_with(**changed) -> bool:
        """Whether the entry is used once its description says something else."""
        store.cached(tmp_path, "a", compute)
        path = tmp_path / "a" / store.CHECKSUMS
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
        caplog.clear()
        np.testing.assert_array_equal(store.cached(tmp_path, "a", compute)["x"], np.arange(3))
        return caplog.text == ""

    assert cached_with()
    assert not cached_with(key="b")
    assert not cached_with(format=99)
    assert not cached_with(files=[])
    (tmp_path / "b").write_text("a file where a folder belongs")
    np.testing.assert_array_equal(store.cached(tmp_path, "b", compute)["x"], np.arange(3))
    assert store.fault(tmp_path / "b", "b") is None


def test_every_piece_of_a_large_file_is_verified(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_PIECE", 1000)
    (tmp_path / "x").write_bytes(bytes(10_500))
    store.write_checksums(tmp_path, "key")
    assert store.fault(tmp_path, "key") is None
    for position in (0, 999, 1000, 5500, 10_499):
        data = bytearray(10_500)
        data[position] = 1
        (tmp_path / "x").write_bytes(data)
        assert store.fault(tmp_path, "key") == "x is not as it was written"


@pytest.mark.exhaustive
@pytest.mark.slow
def test_two_trainings_on_one_cache(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_command, "_key", lambda *_: "key")
    args = [
        "train",
        "--data.kind",
        "faces",
        "--data.limit",
        "64",
        "--train.epochs",
        "1",
        "--train.batch",
        "32",
    ]
    args += ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    with store.locked(tmp_path / "cache" / "training" / "key"):
        assert cli.main(args) == 2
        refused = capsys.readouterr().err
    assert "another process is making" in refused
    assert refused.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert cli.main(args) == 0
    assert list((tmp_path / "cache" / "training").iterdir()) == []


@pytest.mark.long
def test_the_command_says_what_it_makes_again(sound, tiny_vgg, tmp_path, capsys):
    save_vgg(tiny_vgg, tmp_path / "vgg.safetensors")
    flags = [
        "--data.path",
        sound / "fer",
        "--target.weights",
        tmp_path / "vgg.safetensors",
        "--clip.path",
        sound / "clip",
    ]
    flags += ["--probe.layers", "lin2", "--dissect.top-k", "5", "--cache", tmp_path / "cache"]

    def dissection(out: str) -> tuple[str, str]:
        assert cli.main([str(arg) for arg in ["dissect", *flags, "--out", tmp_path / out]]) == 0
        return (tmp_path / out / "dissection.csv").read_text(), capsys.readouterr().err

    want, err = dissection("first")
    assert err == ""
    for kind in ("texts/*/texts.npy", "probes/*/embeddings.npy", "probes/*/statistics.safetensors"):
        (file,) = (tmp_path / "cache").glob(kind)
        data = bytearray(file.read_bytes())
        data[-9:] = bytes(9)
        file.write_bytes(data)
        got, err = dissection(kind.replace("/", "_").replace("*", "x"))
        assert got == want
        assert err.startswith("warning: ")
        assert "is made again" in err
        assert err.count("\n") == 1


def test_content_keys():
    base = {"a": np.arange(3), "b": [1, None, "x"]}
    assert store.content_key(base) == store.content_key({"b": [1, None, "x"], "a": np.arange(3)})
    others = [
        {"a": np.arange(3.0), "b": [1, None, "x"]},
        {"a": np.arange(3)[None], "b": [1, None, "x"]},
        {"a": np.arange(3), "b": [1, None, "y"]},
        {"a": np.arange(3), "b": ["1", None, "x"]},
    ]
    assert len({store.content_key(x) for x in [base, *others]}) == 5
    with pytest.raises(TypeError, match="no content key for object"):
        store.content_key(object())


def test_run_folder_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out"

    def fail_half_way():
        with store.run_folder(out, "x", {}) as half:
            (half.folder / "a").write_text("1")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []
    for text in ("1", "2"):  # a second run replaces the first when it is told to
        with store.run_folder(out, "x", {"s": 1}, overwrite=text == "2") as whole:
            (whole.folder / "a").write_text(text)
            with whole.timed("part"):
                pass
    assert (out / "a").read_text() == "2"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"] == {"s": 1}
    assert {"versions", "devices", "inputs", "timings", "verb", "started"} <= set(manifest)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_numbers_that_json_lacks(tmp_path):
    numbers = {
        "nll": np.inf,
        "split/a~b": [1.0, float("nan"), np.float32(-np.inf)],
        "fine": {"x": 0.5, "none": None},
    }
    store.write_json(tmp_path / "a.json", numbers)
    text = (tmp_path / "a.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["nll"] is None
    assert found["split/a~b"] == [1.0, None, None]
    assert found["not_finite"] == {"/nll": "inf", "/split~1a~0b/1": "nan", "/split~1a~0b/2": "-inf"}
    np.testing.assert_equal(
        store.restore_numbers(found), {**numbers, "split/a~b": [1.0, np.nan, -np.inf]}
    )
    assert store.json_line({"loss": 1.5}) == '{"loss": 1.5}\n'
    assert json.loads(store.json_line({"loss": np.nan}), parse_constant=pytest.fail)[
        "not_finite"
    ] == {"/loss": "nan"}
    for wrong in (
        {"/other": "nan"},
        {"/fine/x": "nan"},
        {"/nll": "none"},
        {"/split~1a~0b/7": "nan"},
        ["nll"],
        {"": "nan"},
    ):
        with pytest.raises(ValueError, match=r"."):
            store.restore_numbers({**found, "not_finite": wrong})


def test_arrays_are_never_unpickled(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        store.read_npy(tmp_path / "objects.npy")
    with open(tmp_path / "archive.npy", "wb") as file:
        np.savez(file, a=np.ones(3))
    with pytest.raises(InputError, match=r"archive\.npy is an archive"):
        read_gains(tmp_path / "archive.npy", 3)


def test_equal_arrays_and_metadata_are_equal_bytes(tmp_path):
    """The order of the metadata is not left to chance, as safetensors leaves it."""
    arrays = {"b": np.arange(6.0).reshape(2, 3), "a": np.ones(3, np.float16)}
    metadata = {f"name {number} \u00fc": f'"{number}"' for number in range(9)}
    written = set()
    for order in (metadata, dict(reversed(metadata.items()))):
        store.save_arrays(arrays, tmp_path / "a.safetensors", metadata=order)
        written.add((tmp_path / "a.safetensors").read_bytes())
    assert len(written) == 1
    with safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata() == metadata
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)
    store.save_arrays(arrays, tmp_path / "plain.safetensors")
    with safe_open(tmp_path / "plain.safetensors", "np") as file:
        assert file.metadata() is None
