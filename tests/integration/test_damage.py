"""Random damage to files of every format that is read.

Bytes are flipped, overwritten, cut off, left out and repeated, files exchanged, and put in the
place of others. What reads them refuses them in one line, or reads what they now say; what carries
checksums is never read as anything but what was written. `--exhaustive` tries 2,016 cases.
"""

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from damage import encoded

from emojax import store
from emojax.data import concepts, fer2013, folder
from emojax.data.clip_folder import load_clip
from emojax.data.decode import read_image
from emojax.data.exclude import Excluded
from emojax.data.network_folder import load_network
from emojax.data.weights import read_arrays
from emojax.dissection import explanation_files
from emojax.editing.edit import read_gains
from emojax.errors import InputError, one_line
from emojax.probing import record as records
from emojax.report import results
from emojax.settings import read_settings

IMAGES = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
TEXTS = {
    "concepts.csv": 'concept,emotions\nSmile,happy\n"Frown, deep",sad;angry\nGlasses,none\n',
    "concepts.txt": "Smile\nFrown\nRaised brows\nM\u00fcde Augen\n",
    "answer.txt": "1. Smile: happy\n2. Frown: sad, angry\n- **Tears**: sad\n",
    "exclude.csv": 'file,reason\na.png,blank\n"b,c.png",leak\n',
    "settings.yaml": "probe: {batch: 32, layers: [lin1]}\nedit: {tau: [0.5, 1], factor: [2]}\n",
    "explanations.csv": "layer,unit,description\nlin2,0,Smile\nlin2,3,Frown\nlin2,7,Tears\n",
    "gains.txt": "\n".join(f"{1 + i / 8}" for i in range(20)),
}


KINDS = ("flip", "flip", "overwrite", "zero", "cut", "leave out", "repeat", "append", "empty")
KINDS += ("replace",)
OF_FOLDERS = ("exchange", "delete")


class Format(NamedTuple):
    """How a file or folder is read into something that can be compared."""

    read: Callable[[Path], Any]
    verified: bool = False  # by checksums


def image(path: Path) -> bytes:
    return read_image(path).tobytes()


def faces(path: Path) -> list[tuple[int, bytes]]:
    return [(face.label, bytes(face.pixels)) for face in fer2013.read_csv(path)]


def arrays(path: Path) -> str:
    return store.content_key(read_arrays(path))


def settings(path: Path) -> dict:
    return read_settings(path).model_dump(mode="json")


def record(path: Path) -> str:
    found = records.load(path)
    parts = [found.ids, found.embeddings, found.top.values, found.top.indices, found.labels]
    return store.content_key([*parts, *found.half_moments])


def cache_entry(path: Path) -> str:
    found = store.read_entry(path, "key")
    if found is None:
        raise InputError("made again")
    return store.content_key(found)


def network(path: Path) -> str:
    found = load_network(path)
    return store.content_key([found.state_dict(), repr(found.config)])


def prepared(path: Path) -> str:
    return fer2013.load(path, "training").key


def photos(path: Path) -> list[str]:
    return [folder.load(path, split).key for split in folder.splits_of(path)]


def answer(path: Path) -> tuple:
    found = concepts.parse_answer(concepts.read_text(path), fer2013.CLASSES)
    return found.concepts, found.emotions


def concept_set(path: Path) -> tuple:
    found = concepts.load_concepts(path)
    found.class_mask(fer2013.CLASSES)
    return found.concepts, found.emotions


def run(path: Path) -> str:
    return repr(results.read_run(path))


FORMATS = {
    **{f"image.{form.lower()}": Format(image) for form in IMAGES},
    "fer2013.csv": Format(faces),
    "vgg.safetensors": Format(arrays),
    "vgg.pt": Format(arrays),
    "concepts.csv": Format(concept_set),
    "concepts.txt": Format(concept_set),
    "answer.txt": Format(answer),
    "exclude.csv": Format(lambda path: sorted(Excluded.read(path).ids)),
    "settings.yaml": Format(settings),
    "explanations.csv": Format(
        lambda path: explanation_files.read(path, {"lin2": 20}).explanations
    ),
    "gains.txt": Format(lambda path: read_gains(path, 20).tobytes()),
    "gains.npy": Format(lambda path: read_gains(path, 20).tobytes()),
    "record": Format(record, verified=True),
    "cache": Format(cache_entry, verified=True),
    "clip": Format(lambda path: load_clip(path).key),
    "network": Format(network),
    "fer": Format(prepared),
    "photos": Format(photos),
    "run": Format(run),
}


COSTLY = ("run", "network", "vgg.pt")  # only with `--exhaustive`


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, sound) -> Path:
    """A sound file or folder of every format but a run."""
    root = Path(shutil.copytree(sound, tmp_path_factory.mktemp("damage") / "corpus"))
    for form in IMAGES:
        (root / f"image.{form.lower()}").write_bytes(encoded(form))
    for name, text in TEXTS.items():
        (root / name).write_text(text, "utf-8")
    np.save(root / "gains.npy", np.linspace(1, 2, 20))
    store.write_entry(root / "cache", "key", {"a": np.arange(300.0), "b": np.ones((3, 4))})
    shutil.copytree(root / "clip", root / "network")
    config = json.loads((root / "clip" / "config.json").read_text())["vision_config"]
    config |= {"architectures": ["CLIPVisionModel"]}
    (root / "network" / "config.json").write_text(json.dumps(config))
    tower = read_arrays(root / "clip" / "model.safetensors")
    tower = {name: tower[name] for name in tower if name.startswith("vision_model.")}
    store.save_arrays(tower, root / "network" / "model.safetensors")
    return root


def damage(files: list[Path], others: list[Path], chance: random.Random) -> str:
    """Damages one of the files, or two by exchanging them; what was done."""
    file = chance.choice(files)
    data = bytearray(file.read_bytes())
    place = chance.randrange(len(data) + 1)
    length = chance.choice((1, 2, 8, 64, 1000))
    kind = chance.choice(KINDS + OF_FOLDERS if len(files) > 1 else KINDS)
    if kind == "exchange":
        other = chance.choice(files)
        data[:], rest = other.read_bytes(), bytes(data)
        other.write_bytes(rest)
    if kind == "delete":
        file.unlink()
        return f"{kind} {file.name}"
    for at in chance.sample(range(len(data)), min(len(data), chance.randint(1, 8))):
        if kind == "flip":
            data[at] ^= 1 << chance.randrange(8)
    end = place + length
    match kind:
        case "overwrite" | "append":
            start = len(data) if kind == "append" else place
            data[start : start + length] = chance.randbytes(length)
        case "zero":
            data[place:end] = bytes(len(data[place:end]))
        case "cut":
            del data[place:]
        case "leave out":
            del data[place:end]
        case "repeat":
            data[place:place] = data[place:end]
        case "empty":
            data.clear()
        case "replace":
            data[:] = chance.choice(others).read_bytes()
    file.write_bytes(data)
    return f"{kind} {file.name} at {place}, {length} bytes"


def below(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(filter(Path.is_file, path.rglob("*")))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of odd metadata that it can read
@pytest.mark.parametrize("cases", [2, pytest.param(84, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.exhaustive) if n in COSTLY else n for n in FORMATS],
)
def test_random_damage(request, corpus, name, cases):
    if name == "run" and not (corpus / "run").exists():
        shutil.copytree(request.getfixturevalue("hostile")[0], corpus / "run")
    if name == "vgg.pt":
        torch = pytest.importorskip("torch", reason="the oracle extra (torch) is not installed")
        state = {n: torch.tensor(a) for n, a in read_arrays(corpus / "vgg.safetensors").items()}
        torch.save(state, corpus / "vgg.pt")
    read, verified = FORMATS[name]
    files, others = below(corpus / name), below(corpus)
    sound = {file: file.read_bytes() for file in files}
    before = read(corpus / name)
    count = {"refused": 0, "read as before": 0, "read as what they now say": 0}
    for case in range(cases):
        chance = random.Random(f"{name} {case}")
        what = damage(files, others, chance)
        began = time.process_time()
        try:
            same = read(corpus / name) == before
            assert same or not verified, what
            count["read as before" if same else "read as what they now say"] += 1
        except InputError as error:
            count["refused"] += one_line(error).isprintable()
        except Exception as error:
            raise AssertionError(f"case {case}: {what}") from error
        assert time.process_time() - began < 20, what
        for file, data in sound.items():
            file.write_bytes(data)
    assert sum(count.values()) == cases
    print(f"{name}: {cases} cases, {count}")
