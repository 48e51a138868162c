"""Shared fixtures: small networks, a small Hugging Face CLIP folder, small data, and the golden
outputs where they are.
"""

import csv
import gc
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import Inputs

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Most of the suite's time is compilation of small programs, so they are compiled with little
# optimization. Set XLA_FLAGS to nothing to compile as users do.
FAST_COMPILATION = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
os.environ.setdefault("XLA_FLAGS", " ".join(FAST_COMPILATION))

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)

# Shapes and types in annotations are checked at every call, so this comes before any import.
CHECKED = ("ops", "models", "probing", "dissection", "training")
install_import_hook([f"emojax.{package}" for package in CHECKED], "beartype.beartype")


def _compilations() -> Path:
    """A folder for this session, the same for all its worker processes."""
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if session is None:
        return Path(tempfile.mkdtemp(prefix="emojax-test-compilations-"))
    return Path(tempfile.gettempdir()) / f"emojax-test-compilations-{session}"


# Many tests build the same program anew; a cache for this session compiles each once.
jax.config.update("jax_compilation_cache_dir", str(_compilations()))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

from flax import nnx

from emojax.data import fer2013
from emojax.data.clip_folder import load_clip, save_clip
from emojax.data.image_set import ImageSet
from emojax.data.weights import save_vgg
from emojax.distributed.mesh import make_mesh
from emojax.models.clip import Clip, ClipConfig
from emojax.models.vgg import VggConfig, VggNet
from emojax.ops.moments import Moments
from emojax.ops.topk import TopK
from emojax.probing import record as records
from emojax.probing.probe import probe
from emojax.probing.record import ProbeRecord

# The garbage collector need not look again and again at what the imports left, and JAX makes so
# many objects that it would run at every other trace.
gc.collect()
gc.freeze()
gc.set_threshold(20_000, 50, 100)

# What these fixtures make takes seconds before a test begins, so whatever needs them is slow.
SLOW_FIXTURES = {
    *("small_run", "dissected", "forms", "hostile", "paged", "planted", "sources", "spoilt"),
    *("parts", "warm"),
}
# A ViT's sizes under transformers' names.
TINY_VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 4,
}
TINY = VggConfig(widths=(4, 4, 6, 6, 8, 8, 10, 10), hidden=(24, 20))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="run long tests and sweeps, too")


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("long") or not SLOW_FIXTURES.isdisjoint(
            getattr(item, "fixturenames", ())
        ):
            item.add_marker(pytest.mark.slow)
    if config.getoption("--exhaustive") or any("::" in argument for argument in config.args):
        return
    expression = config.getoption("markexpr")
    unasked = [mark for mark in ("long", "exhaustive") if mark not in expression]
    left_out = {item for item in items if any(map(item.get_closest_marker, unasked))}
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def golden() -> Path:
    folder = Path(__file__).parents[2] / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip("the golden outputs of the reference implementations are not on this machine")
    return folder


@pytest.fixture(scope="session")
def tiny_vgg() -> VggNet:
    """A random VGGNet whose BatchNorm statistics and biases are not trivial."""
    model = nnx.jit(lambda: VggNet(TINY, rngs=nnx.Rngs(0)))()
    rng = np.random.default_rng(5)
    graphdef, state = nnx.split(model)

    def shaken(path, leaf):
        noise = rng.normal(0, 0.1, leaf.shape).astype(np.float32)
        return leaf.replace(leaf[...] + (abs(noise) if path[-1] == "var" else noise))

    model = nnx.merge(
        graphdef, nnx.from_flat_state([(p, shaken(p, v)) for p, v in nnx.to_flat_state(state)])
    )
    model.eval()
    return model


def generated_images(count: int, seed: int, name: str) -> ImageSet:
    """Blurred blobs whose number and place depend on the class: uint8 [count, 48, 48, 1] with seven
    classes.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 7, count)
    y, x = np.mgrid[0:48, 0:48]
    images = rng.normal(96, 12, (count, 48, 48))
    for blob in range(7):
        shown = blob <= labels
        centre = 24 + 14 * np.array([np.sin(blob), np.cos(blob)]) + rng.normal(0, 2, (count, 2))
        distance = (y - centre[:, 0, None, None]) ** 2 + (x - centre[:, 1, None, None]) ** 2
        images += shown[:, None, None] * 110 * np.exp(-distance / 18)
    return ImageSet.from_arrays(
        np.clip(images, 0, 255).astype(np.uint8), labels, fer2013.CLASSES, name=name
    )


def hf_tokenizer(words: int = 0):
    """A byte-level CLIP tokenizer without merges: 512 pieces and the two special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    pieces = [
        *letters,
        *(letter + "</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])


def hf_config(**vision):
    from transformers import CLIPConfig

    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    special = {
        "vocab_size": 514,
        "max_position_embeddings": 40,
        "bos_token_id": 512,
        "eos_token_id": 513,
        "pad_token_id": 513,
    }
    image = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    return CLIPConfig(
        text_config=text | special,
        vision_config=image | {"image_size": 32, "patch_size": 8} | vision,
        projection_dim=24,
    )


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "clip"
    config = hf_config()
    model = nnx.jit(lambda: Clip(ClipConfig.from_hf(config.to_dict()), rngs=nnx.Rngs(3)))()
    save_clip(folder, model, config, hf_tokenizer())
    return folder


@pytest.fixture(scope="session")
def tiny_clip(clip_folder):
    return load_clip(clip_folder)


@pytest.fixture(scope="session")
def blobs():
    """300 generated images with seven classes."""
    return generated_images(300, 2, "blobs")


@pytest.fixture(scope="session")
def found(tiny_vgg, blobs, tiny_clip) -> ProbeRecord:
    """A record of the generated images with activations: all layers, one device, a tile of 8."""
    return probe(
        tiny_vgg,
        blobs,
        tiny_clip,
        layers=("conv*", "lin1", "lin2"),
        batch=64,
        tile=8,
        keep_activations=True,
        mesh=make_mesh(1),
    )


@pytest.fixture
def one_device():
    return make_mesh(1)


def write_fer_csv(path: Path, rows) -> Path:
    """Rows of (label, pixels uint8 [2304], usage)."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["emotion", "pixels", "Usage"])
        writer.writerows(
            [label, " ".join(map(str, pixels)), usage] for label, pixels, usage in rows
        )
    return path


@pytest.fixture
def fer_rows():
    """14 Training rows, 7 of each test split; the last Training row repeats the first."""
    rng = np.random.default_rng(0)
    rows = [(i % 7, rng.integers(0, 256, 2304), "Training") for i in range(13)]
    rows.append(rows[0])
    rows += [
        (i, rng.integers(0, 256, 2304), usage)
        for usage in ("PublicTest", "PrivateTest")
        for i in range(7)
    ]
    return rows


@pytest.fixture
def fer_folder(tmp_path, fer_rows) -> Path:
    """The image-folder form of `fer_rows`, in files that lose nothing (PNG data under the usual
    names).
    """
    root = tmp_path / "raw"
    for number, (label, pixels, usage) in enumerate(fer_rows):
        folder = root / ("train" if usage == "Training" else "test") / fer2013.CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8).reshape(48, 48)).save(
            folder / f"{usage}_{number}.jpg", format="PNG"
        )
    return root


@pytest.fixture(scope="session")
def sound(tmp_path_factory, tiny_vgg, tiny_clip, clip_folder) -> Path:
    """Small inputs of every kind of the command line: fer2013.csv, fer/, photos/, vgg.safetensors,
    clip/, record/.
    """
    root = tmp_path_factory.mktemp("sound")
    rng = np.random.default_rng(0)
    rows = [
        (i % 7, rng.integers(0, 256, 2304), usage)
        for usage in ("Training", "PublicTest", "PrivateTest")
        for i in range(7)
    ]
    write_fer_csv(root / "fer2013.csv", rows)
    fer2013.prepare(fer2013.read(root / "fer2013.csv"), root / "fer")
    save_vgg(tiny_vgg, root / "vgg.safetensors")
    shutil.copytree(clip_folder, root / "clip")
    for number in range(4):
        folder = root / "photos" / ("calm", "joy")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (48, 48), dtype=np.uint8)).save(
            folder / f"{number}.png"
        )
    records.save(some_record(tiny_clip.key), root / "record")
    return root


@pytest.fixture
def inputs(capsys, monkeypatch, tmp_path, sound) -> Inputs:
    """Sound inputs and a place for bad ones, in a working folder and a home of their own."""
    (tmp_path / "bad").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return Inputs(sound, tmp_path / "bad", capsys)


def half_moments(activations: np.ndarray, embeddings: np.ndarray) -> Moments:
    """Sums over even and over odd images, plainly, in float64."""
    halves = []
    for half in (0, 1):
        a, e = np.float64(activations[half::2]), np.float64(embeddings[half::2])
        halves.append((a.sum(0), (a**2).sum(0), a.T @ e, e.T @ e, e.sum(0)))
    return Moments(*map(np.stack, zip(*halves, strict=True)))


def some_record(clip_key: str) -> ProbeRecord:
    """A record of 40 images and 20 units without the probe."""
    rng = np.random.default_rng(1)
    indices = np.stack(
        [[rng.permutation(20)[:30] * 2 + half for _ in range(20)] for half in (0, 1)]
    ).astype(np.int32)
    values = np.sort(rng.normal(size=indices.shape).astype(np.float32))[..., ::-1]
    embeddings = rng.normal(size=(40, 24)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    activations = rng.normal(size=(40, 20))
    return ProbeRecord(
        layers={"lin2": 20},
        top=TopK(values, indices),
        half_moments=half_moments(activations, embeddings),
        embeddings=embeddings,
        labels=rng.integers(0, 7, 40).astype(np.int32),
        classes=fer2013.CLASSES,
        ids=[str(i) for i in range(40)],
        key="0",
        clip_key=clip_key,
    )


def twice(images: ImageSet, first: int) -> ImageSet:
    """The first images and then the same again."""
    pixels = np.concatenate([images.images[:first]] * 2)
    return ImageSet.from_arrays(
        pixels, np.tile(images.labels[:first], 2), images.classes, name="blobs"
    )


@pytest.fixture(scope="session")
def hostile(tmp_path_factory, tiny_vgg, tiny_clip) -> tuple[Path, ImageSet]:
    """A run whose concepts, file names and settings try to break out, with its images, half of
    which are repeats.
    """
    from hostile_run import HOSTILE, PLAIN

    from emojax import settings as config
    from emojax import store
    from emojax.commands import report as reporting
    from emojax.commands import steps
    from emojax.commands.base import Studying
    from emojax.commands.opening import StudyInputs
    from emojax.commands.study import begin_study, finish_study
    from emojax.data.concepts import ConceptSet
    from emojax.editing.study import run_study

    images = twice(generated_images(120, 2, "<b>blobs</b>"), 120)
    tests = [
        generated_images(40, seed, name) for seed, name in ((3, "public_test"), (4, "private_test"))
    ]
    emotions = [(name,) for name in images.classes]
    concepts = ConceptSet((*HOSTILE, *PLAIN), tuple(emotions), name="hostile")
    options = {
        "tau": (-0.5, 0.0),
        "factor": (1.0, 2.0),
        "permutations": 19,
        "masks": 50,
        "layers": ("lin2",),
    }
    settings = Studying(
        cache=tmp_path_factory.mktemp("cache"),
        dissect=config.Dissect(prior="units"),  # thresholds are on the scale of its scores
        edit=config.Edit(**options),
        target=config.Target(weights=Path("</td><i>vgg")),
        probe=config.Probe(layers=("conv1a", "lin1", "lin2")),
    )
    out = tmp_path_factory.mktemp("runs") / "a <b> & run"
    with store.run_folder(out, "run", settings.model_dump(mode="json")) as run:
        inputs = StudyInputs(tiny_vgg, tiny_clip, concepts, images, tests, None)
        model = steps.check_study_inputs(settings, inputs)
        record = steps.probe(settings, run, model, images, tiny_clip)
        dissection, table1, summary = steps.label(
            settings, run, record, concepts, tiny_clip, model, images
        )
        options = begin_study(settings, run, dissection, tests)
        study = run_study(model, dissection, table1, images, tests, **options)
        summary["edit"] = finish_study(run, study)
        store.write_json(run.folder / "summary.json", summary)
    reporting.add(out, config.Report(images="thumbnails"), images)
    return out, images
