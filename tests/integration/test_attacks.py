"""Bad input that could be read as something else, or end in a traceback, class by class.

A row is a way to make the bad input, as arguments of the command, and a part of the line that the
command ends with. What is clear in spite of its form is read rightly; that is tested beside.
Places, sizes and special files are in other files.
"""

import io
import json
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from damage import edited, encoded, replaced, rewritten
from refusals import Inputs, table
from safetensors.numpy import load_file, save_file

from emojax.commands import predict
from emojax.data import classes as class_names
from emojax.data.concepts import load_concepts, parse_answer, parse_concepts
from emojax.data.decode import read_image
from emojax.data.provenance import read_provenance
from emojax.data.sources import Read
from emojax.data.weights import load_vgg, read_arrays
from emojax.dissection import dissect
from emojax.editing.edit import edit
from emojax.errors import InputError, one_line
from emojax.settings import read_settings
from emojax.training.predict import Prediction

Make = Callable[[Inputs], list]


def configured(text: str | bytes) -> Make:
    return lambda inputs: ["run", "--config", inputs.put("s.yaml", text)]


def reviewed(text: str | bytes) -> Make:
    return lambda inputs: ["concepts", inputs.put("c.txt", text)]


def labelled(text: str) -> Make:
    return lambda inputs: ["dissect", "--concepts.path", inputs.put("c.txt", text)]


def answered(text: str) -> Make:
    return lambda inputs: ["concepts", "--answer", inputs.put("a.txt", text)]


def excluded(text: str) -> Make:
    return lambda inputs: [
        *evaluating(inputs, "vgg.safetensors"),
        *("--data.exclude", inputs.put("x.csv", text)),
    ]


def evaluating(inputs: Inputs, weights: str | Path) -> list:
    data = ["--data.path", inputs.sound / "fer"]
    return ["evaluate", *data, "--target.weights", inputs.sound / weights]


def shown(name: str, content: bytes) -> Make:
    """An image folder with this image."""

    def make(inputs: Inputs) -> list:
        inputs.put(f"photos/joy/{name}", content)
        inputs.put("photos/calm/good.png", encoded("PNG"))
        data = ["--data.path", inputs.here / "photos", "--data.test-splits", "all"]
        return ["evaluate", "--target.weights", inputs.sound / "vgg.safetensors", *data]

    return make


def alphabets(inputs: Inputs) -> list:
    """An image folder with two classes of one look."""
    for name in ("joy", "j\u043ey"):
        inputs.put(f"photos/{name}/a.png", encoded("PNG"))
    data = ["--data.path", inputs.here / "photos", "--data.test-splits", "all"]
    return ["evaluate", "--target.weights", inputs.sound / "vgg.safetensors", *data]


def clip(change: Callable[[Path], object]) -> Make:
    return lambda inputs: ["concepts", "paper25", "--clip.path", inputs.copy("clip", change)]


def steps(**values) -> Make:
    """The CLIP's folder with these settings of its preprocessing."""
    return clip(edited("preprocessor_config.json", **values))


def target(change: Callable[[Path], object]) -> Make:
    """The sound CLIP's folder as that of an image tower under study."""

    def make(inputs: Inputs) -> list:
        def as_target(folder: Path) -> None:
            config = json.loads((folder / "config.json").read_text())
            tower = config["vision_config"] | {"architectures": ["CLIPVisionModel"]}
            (folder / "config.json").write_text(json.dumps(tower))
            change(folder)

        data = ["--data.path", inputs.sound / "fer"]
        return ["evaluate", "--target.path", inputs.copy("clip", as_target), *data]

    return make


def in_json(name: str, old: str, new: str) -> Callable[[Path], object]:
    """A JSON file with the first `old` replaced, which must be there."""

    def write(folder: Path) -> None:
        text = json.dumps(json.loads((folder / name).read_text()))
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return write


def vision(**values) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["vision_config"] |= values
        (folder / "config.json").write_text(json.dumps(config))

    return write


def deep_png(kind: int, *, bits: int = 16, size: int = 48) -> bytes:
    """A PNG of more than 8 bits: kind 0 gray, 2 RGB, 4 gray with alpha, 6 RGBA."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    row = b"\0" + b"\1\2" * channels * size
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, bits, kind, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(row * size))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def tiff(samples: int, bits: int, form: int = 1, planar: int = 1) -> bytes:
    """An uncompressed TIFF of 48×48; form 1 counts from 0, 2 has signs, 3 is floating point."""
    size = 48
    pixels = b"\1\2" * (size * size * samples * bits // 16)
    tags = {
        256: (3, [size]), 257: (3, [size]), 258: (3, [bits] * samples), 259: (3, [1]),
        262: (3, [2 if samples == 3 else 1]), 273: (4, [0]), 277: (3, [samples]),
        278: (3, [size]), 279: (4, [len(pixels)]), 284: (3, [planar]), 339: (3, [form] * samples),
    }  # fmt: skip
    if planar == 2:
        part = len(pixels) // samples
        tags |= {273: (4, [0] * samples), 279: (4, [part] * samples)}
    start = 8 + 2 + 12 * len(tags) + 4
    extra, entries = b"", b""
    where = start + sum(
        len(v) * (2 if k == 3 else 4) for k, v in tags.values() if len(v) * (2 if k == 3 else 4) > 4
    )
    step = len(pixels) // samples if planar == 2 else 0
    tags[273] = (4, [where + step * i for i in range(len(tags[273][1]))])
    for tag, (kind, values) in sorted(tags.items()):
        data = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(data) > 4:
            data, extra = struct.pack("<I", start + len(extra)), extra + data
        entries += struct.pack("<HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags))
    return head + entries + struct.pack("<I", 0) + extra + pixels


# Files that say something and are read as something else

MISREAD = table(
    ("YAML: true for a number", configured("probe: {batch: true}"), "probe.batch is True"),
    ("YAML: false for a number", configured("dissect: {tau: false}"), "dissect.tau is False"),
    ("YAML: true in a list", configured("edit: {tau: [true]}"), "edit.tau.0 is True"),
    ("YAML: a leading zero", configured("probe: {batch: 010}"), "'010'"),
    ("YAML: a negative leading zero", configured("edit: {tau: [-017]}"), "'-017'"),
    ("YAML: a base of sixty", configured("probe: {batch: 1:30}"), "probe.batch is '1:30'"),
    ("YAML: sixty and a fraction", configured("dissect: {tau: 1:30.5}"), "tau is '1:30.5'"),
    ("YAML: an underscore", configured("probe: {batch: 1_0}"), "probe.batch is '1_0'"),
    ("YAML: binary", configured("probe: {batch: 0b11}"), "probe.batch is '0b11'"),
    ("YAML: a number in quotes", configured("probe: {batch: '32'}"), "probe.batch is '32'"),
    ("YAML: a truth in quotes", configured("dissect: {abstain: 'no'}"), "abstain is 'no'"),
    ("YAML: no for false", configured("dissect: {abstain: no}"), "write true or false"),
    ("YAML: off for false", configured("dissect: {abstain: off}"), "write true or false"),
    ("YAML: y for true", configured("dissect: {abstain: y}"), "write true or false"),
    ("YAML: 1 for true", configured("dissect: {abstain: 1}"), "abstain is 1"),
    ("YAML: a number for a text", configured("clip: {path: 12}"), "clip.path is 12"),
    ("YAML: a fraction for a count", configured("probe: {batch: 32.0}"), "batch is 32.0"),
    ("YAML: a fullwidth digit", configured("probe: {batch: '３'}"), "batch is '３'"),
    ("YAML: an infinity by overflow", configured("dissect: {tau: 1e999}"), "tau is inf"),
    ("YAML: a key twice", configured("data: {limit: 9, limit: 8}"), "'limit' stands twice"),
    (
        "YAML: a section twice",
        configured("evaluate: {protocol: tencrop}\nprobe: {}\nevaluate: {batch: 8}\n"),
        "line 3: 'evaluate' stands twice",
    ),
    ("YAML: a key twice, once quoted", configured('cache: a\n"cache": b\n'), "stands twice"),
    ("YAML: a merge", configured("a: &a {batch: 3}\nprobe: {<<: *a}\n"), "aliases"),
    ("YAML: an alias", configured("labels: {a: &t [1], lam: *t}\n"), "aliases"),
    ("YAML: an alias of itself", configured("probe: &p {layers: *p}\n"), "aliases"),
    ("YAML: a tag that reads bytes", configured("clip: {path: !!binary YQ==}"), "tag"),
    ("YAML: a tag that reads truth", configured("dissect: {abstain: !!bool yes}"), "abstain"),
    ("YAML: a set for a list", configured("probe: {layers: !!set {a, b}}"), "tag"),
    ("YAML: a line separator", configured("probe: {} # \u2028cache: a\n"), "U+2028"),
    ("YAML: a next line", configured("probe: {} # \x85cache: a\n"), "U+0085"),
    ("YAML: half a character", configured('cache: "\\ud800"'), "U+D800"),
    ("two settings files", lambda i: ["run", "--config", "a", "--config", "b"], "given twice"),
    ("PNG: 16-bit gray", shown("bad.png", deep_png(0)), "bad.png: "),
    ("PNG: 16-bit RGB", shown("bad.png", deep_png(2)), "16 bits"),
    ("PNG: 16-bit gray with alpha", shown("bad.png", deep_png(4)), "16 bits"),
    ("PNG: 16-bit RGBA", shown("bad.png", deep_png(6)), "16 bits"),
    ("PNG: by another name", shown("bad.jpg", deep_png(2)), "16 bits"),
    ("TIFF: 16-bit RGB", shown("bad.tif", tiff(3, 16)), "16 bits"),
    ("TIFF: 16-bit RGB by planes", shown("bad.tif", tiff(3, 16, planar=2)), "bad.tif: "),
    ("TIFF: signed bytes", shown("bad.tif", tiff(1, 8, form=2)), "bad.tif: "),
    ("TIFF: floating point", shown("bad.tif", tiff(1, 32, form=3)), "bad.tif: "),
    ("raw faces of 16 bits", lambda i: ["prepare", "--source", i.raw(deep_png(2))], "16 bits"),
    (
        "concepts: a line separator",
        reviewed("Smile\u2028Frown\n"),
        "line 1: the control character U+2028",
    ),
    ("concepts: a next line", reviewed("Smile\x85Frown\n"), "line 1: the control character U+0085"),
    (
        "concepts: a vertical tab",
        reviewed("Smile\x0bFrown\n"),
        "line 1: the control character U+000B",
    ),
    ("concepts: a form feed", reviewed("Smile\x0cFrown\n"), "line 1: the control character U+000C"),
    ("concepts: a unit separator", reviewed("Smile\x1fFrown\n"), "U+001F"),
    (
        "concepts: a blank of no width",
        reviewed("Smile\nSmile\u200b\n"),
        "line 2: the control character U+200B",
    ),
    ("concepts: turned direction", reviewed("Smi\u202ele\n"), "U+202E"),
    (
        "concepts: an accent in two forms",
        labelled("M\u00fcde\nMu\u0308de\n"),
        "stands on lines 1 and 2",
    ),
    (
        "concepts: full-width letters",
        labelled("Smile\n\uff33\uff4d\uff49\uff4c\uff45\n"),
        "look alike, on lines 1 and 2",
    ),
    (
        "concepts: a letter of another alphabet",
        labelled("Smile\nFrown\nSm\u0456le\n"),
        r"'Smile' and 'Sm\u0456le' look alike, on lines 1 and 3",
    ),
    ("concepts: Greek for Latin", labelled("NOSE\n\u039d\u039f\u03a3E\nNO\u03a3E\n"), "look alike"),
    ("concepts: a joiner", labelled("Smile\nSmi\u200dle\n"), r"'Smi\u200dle' look alike"),
    ("concepts: a variation", labelled("Smile\nSmile\ufe0f\n"), r"'Smile\ufe0f' look alike"),
    ("concepts: two blanks", labelled("Raised Brows\nRaised  Brows\n"), "look alike"),
    ("concepts: a blank of another width", labelled("A B\nA\u2003B\n"), "stands on lines 1 and 2"),
    ("concepts: a filler", reviewed("Smile\u3164\n"), "line 1: U+3164 is not seen; remove it"),
    ("concepts: a blank of braille", reviewed("\u2800\n"), "line 1: U+2800 is not seen"),
    ("concepts: a joiner of graphemes", reviewed("Smi\u034fle\n"), "U+034F is not seen"),
    ("concepts: nothing that is seen", labelled("\u200d\ufe0f\n"), "concept 1 is blank"),
    ("concepts: an isolate", reviewed("\u2067Smile\u2069\n"), "U+2067"),
    ("concepts: a mark of direction", reviewed("Smile\u200f\n"), "U+200F"),
    ("concepts: a soft hyphen", reviewed("Smi\u00adle\n"), "U+00AD"),
    ("concepts: a byte order mark inside", reviewed("Smile\n\ufeffSmile\n"), "line 2: the control"),
    ("answer: an accent in two forms", answered("M\u00fc: sad\nMu\u0308: happy\n"), "comes twice"),
    ("answer: look alike", answered("Smile: sad\nSm\u0456le: sad\n"), "as concepts 1 and 2"),
    ("classes that look alike", alphabets, "mean the same"),
    ("concepts: a tab", reviewed("Smile\tFrown\n"), "line 1: a tab"),
    ("concepts: semicolons", reviewed("Frown\nSmile;happy\n"), "line 2: a ';'"),
    (
        "concepts: emotions without a header",
        reviewed("Smile,happy\nFrown,sad\n"),
        "concept,emotions",
    ),
    ("concepts: a header alone", reviewed("concept\nSmile\n"), "line 1: 'concept' is no header"),
    (
        "concepts: a header of one emotion",
        reviewed("concept,emotion\nSmile,happy\n"),
        "is no header",
    ),
    (
        "concepts: a header turned round",
        reviewed("emotions,concept\nhappy,Smile\n"),
        "is no header",
    ),
    ("concepts: an index", reviewed(",concept,emotions\n0,Smile,happy\n"), "is no header"),
    ("concepts: a column more", reviewed("concept,emotions,note\nSmile,happy,x\n"), "is no header"),
    ("concepts: bars", reviewed("concept|emotions\nSmile|happy\n"), "is no header"),
    ("concepts: a comment", reviewed("# mine\nSmile\n"), "line 1: begins with '#'"),
    ("concepts: quotes", reviewed('"Smile"\n"Frown"\n'), "line 1: begins with '\"'"),
    ("concepts: JSON", reviewed('["Smile", "Frown"]\n'), "line 1: begins with '['"),
    ("concepts: a line in quotes", reviewed('concept,emotions\n"Smi\nle",happy\n'), "U+000A"),
    ("concepts: text after quotes", reviewed('concept,emotions\n"Smile"x,happy\n'), "csv"),
    (
        "concepts: semicolons between all",
        reviewed("concept;emotions\nSmile;happy;sad\n"),
        "3 columns",
    ),
    ("answer: a line separator", answered("Smile: happy\u2028Frown: sad\n"), "U+2028"),
    ("answer: a vertical tab", answered("Smile\x0bbroad: happy\n"), "U+000B"),
    ("exclude: a column twice", excluded("file,file\na,b\n"), "'file' stands twice"),
    ("exclude: a comma without quotes", excluded("file,reason\na,b,blank\n"), "entry 1 has 3"),
    ("config: NaN for epsilon", clip(vision(layer_norm_eps=float("nan"))), "NaN is not JSON"),
    ("config: a number too large", clip(in_json("config.json", "1e-05", "1e999")), "1e999"),
    ("config: epsilon below zero", clip(vision(layer_norm_eps=-1e-5)), "epsilon"),
    ("config: epsilon of zero", clip(vision(layer_norm_eps=0.0)), "epsilon"),
    ("config: a truth for epsilon", clip(vision(layer_norm_eps=True)), "config.json"),
    ("config: a word for epsilon", clip(vision(layer_norm_eps="1e-5")), "config.json"),
    ("config: a truth for a size", clip(vision(num_attention_heads=True)), "config.json"),
    (
        "config: a key twice",
        clip(replaced("config.json", '{"model_type": "clip", "model_type": "clip"}')),
        "twice",
    ),
    ("tower: NaN for epsilon", target(edited("config.json", layer_norm_eps=float("nan"))), "NaN"),
    (
        "tower: a truth for a size",
        target(edited("config.json", num_attention_heads=True)),
        "config.json",
    ),
    ("steps: NaN", steps(rescale_factor=float("nan")), "NaN"),
    (
        "steps: a key twice",
        clip(replaced("preprocessor_config.json", '{"size": 1, "size": 2}')),
        "twice",
    ),
    ("steps: a word for a truth", steps(do_normalize="false"), "do_normalize"),
    ("steps: a truth for a factor", steps(rescale_factor=True), "rescale_factor"),
    ("steps: a fraction for a kernel", steps(resample=3.9), "resample"),
    ("steps: a truth for a kernel", steps(resample=True), "resample"),
    ("steps: a truth for a side", steps(size={"shortest_edge": True}), "preprocessor"),
    ("steps: truths for a mean", steps(image_mean=[True, False, True]), "image_mean"),
)


@pytest.mark.parametrize(("make", "message"), MISREAD)
def test_what_could_be_misread_is_refused(inputs, make, message):
    inputs.refused(make(inputs), message)


def test_settings_that_are_clear_are_read(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(
        "probe: {batch: 0x10, top_k: 0o17, layers: [on, 'no', \"010\", 1e3x]}\n"
        "train: {learning_rate: 1e-3, weight_decay: 1}\n"
        "data: {path: 2020-01-01, limit: null, size: ~}\ndissect: {abstain: False}\n"
    )
    read = read_settings(path)
    assert (read.probe.batch, read.probe.top_k) == (16, 15)
    assert read.probe.layers == ("on", "no", "010", "1e3x")
    assert (read.train.learning_rate, read.train.weight_decay) == (0.001, 1.0)
    assert (read.data.path, read.data.limit, read.data.size) == (Path("2020-01-01"), None, None)
    assert read.dissect.abstain is False


@pytest.mark.parametrize(
    "text",
    [
        'concept,emotions\n"Smile, broad",happy;surprise\nGlasses,none\n',
        '"concept","emotions"\r\n"Smile, broad","happy;surprise"\r\n"Glasses","none"\r\n',
        'Concept, Emotions\n"Smile, broad", happy; surprise\nGlasses, none\n',
        'concept;emotions\nSmile, broad;"happy;surprise"\nGlasses;none\n',
        "concept;emotions\nSmile, broad;happy,surprise\nGlasses;none\n",
        "concept\temotions\nSmile, broad\thappy;surprise\nGlasses\tnone\n",
        '\ufeff\n"concept"\t"emotions"\nSmile,\u00a0broad\thappy;surprise\n\nGlasses\tnone\n',
    ],
)
def test_tables_of_concepts_that_are_clear_are_read(tmp_path, text):
    (tmp_path / "c.txt").write_text(text, "utf-8", newline="")
    read = load_concepts(tmp_path / "c.txt")
    assert read.concepts == ("Smile, broad", "Glasses")
    assert read.emotions == (("happy", "surprise"), ())


def test_lists_of_concepts_that_are_clear_are_read():
    text = "Wide\u00a0Eyes\r\nSmile, broad\rFamily \U0001f468\u200d\U0001f469\nemotion: joy"
    read = parse_concepts(text, "file").concepts
    assert read == (
        "Wide Eyes",
        "Smile, broad",
        "Family \U0001f468\u200d\U0001f469",
        "emotion: joy",
    )
    answer = parse_answer("1. Smile:\thappy\r\n", ["happy"])
    assert (answer.concepts, answer.emotions) == (("Smile",), (("happy",),))


def test_images_of_8_bits_are_read(tmp_path):
    for name, content in (("a.png", deep_png(2, bits=8)), ("a.tif", tiff(3, 8))):
        (tmp_path / name).write_bytes(content)
    assert read_image(tmp_path / "a.tif").getpixel((0, 0)) == (1, 2, 1)
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (1, 2, 1)


# Weights


def torch_file(make: Callable) -> Make:
    """A PyTorch file of what `make` makes with torch."""

    def write(inputs: Inputs) -> list:
        torch = pytest.importorskip("torch", reason="the oracle extra (torch) is not installed")
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some kinds of tensors are still in development
            torch.save(make(torch), file)
        return evaluating(inputs, inputs.put("best.pt", file.getvalue()))

    return write


def one(make: Callable) -> Make:
    """A PyTorch file of one tensor `a`."""
    return torch_file(lambda torch: {"a": make(torch)})


def script(torch) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises against scripts
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    return file.getvalue()


def raw_safetensors(dtype: str, size: int, name: str = "a") -> Make:
    header = json.dumps({name: {"dtype": dtype, "shape": [2], "data_offsets": [0, size]}}).encode()
    content = struct.pack("<Q", len(header)) + header + b"\0" * size
    return lambda inputs: evaluating(inputs, inputs.put("w.safetensors", content))


def with_arrays(change: Callable[[dict], object]) -> Make:
    return lambda i: evaluating(i, i.copy("vgg.safetensors", rewritten(change)))


def with_metadata(**entries: str) -> Make:
    """The sound weights with entries `emojax.…` of metadata."""

    def write(path: Path) -> None:
        named = {f"emojax.{name}": text for name, text in entries.items()}
        save_file(load_file(path), path, metadata=named)

    return lambda inputs: evaluating(inputs, inputs.copy("vgg.safetensors", write))


def pytorch(inputs: Inputs, content: bytes) -> str:
    """A PyTorch file, which only torch reads."""
    pytest.importorskip("torch", reason="needs the oracle extra")
    return inputs.put("best.pt", content)


def pytorch_bin(content: bytes) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        pytest.importorskip("torch", reason="needs the oracle extra")
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(content)

    return write


def as_double(value: float) -> Callable[[dict], object]:
    return lambda arrays: arrays.update({"lin2.bias": np.full(20, value)})


WEIGHTS = table(
    ("torch: float8", one(lambda t: t.ones(2).to(t.float8_e4m3fn)), "a holds float8_e4m3fn"),
    ("torch: float8 of more range", one(lambda t: t.ones(2).to(t.float8_e5m2)), "float8_e5m2"),
    ("torch: float4", one(lambda t: t.zeros(2, dtype=t.uint8).view(t.float4_e2m1fn_x2)), "float4"),
    ("torch: complex", one(lambda t: t.ones(2, dtype=t.complex64)), "a holds complex64"),
    ("torch: a conjugate view", one(lambda t: t.ones(2, dtype=t.complex64).conj()), "complex64"),
    ("torch: sparse", one(lambda t: t.eye(3).to_sparse()), "a is sparse"),
    ("torch: sparse by rows", one(lambda t: t.eye(3).to_sparse_csr()), "a is sparse"),
    (
        "torch: quantized",
        one(lambda t: t.quantize_per_tensor(t.ones(2), 0.1, 0, t.qint8)),
        "a is quantized",
    ),
    ("torch: meta", one(lambda t: t.empty(2, device="meta")), "a is without values"),
    (
        "torch: nested",
        one(lambda t: t.nested.nested_tensor([t.ones(2), t.ones(3)])),
        "a is nested",
    ),
    ("torch: a petabyte of ones", one(lambda t: t.ones(1).expand(10**15)), "a repeats its values"),
    ("torch: numbers for names", torch_file(lambda t: {0: t.ones(2)}), "the name 0 is no text"),
    ("torch: a tuple for a name", torch_file(lambda t: {("a",): t.ones(2)}), "is no text"),
    ("torch: one tensor", torch_file(lambda t: t.ones(2)), "no state dict"),
    ("torch: a dict in a dict", torch_file(lambda t: {"net": {"a": t.ones(2)}}), "no state dict"),
    ("torch: words", torch_file(lambda t: {"a": "b"}), "no state dict"),
    (
        "torch: two networks",
        torch_file(lambda t: {"model": {"a": t.ones(2)}, "state_dict": {"a": t.zeros(2)}}),
        "several networks, under state_dict and model",
    ),
    ("torch: a module", torch_file(lambda t: t.nn.Linear(2, 2)), "holds a torch.nn.modules.linear"),
    ("torch: a function", torch_file(lambda t: {"a": np.random.default_rng}), "default_rng; save"),
    ("torch: arrays of NumPy", torch_file(lambda t: {"a": np.ones(2)}), "save model.state_dict()"),
    (
        "torch: a script",
        lambda i: evaluating(i, i.put("best.pt", script(pytest.importorskip("torch")))),
        "TorchScript",
    ),
    ("torch: NaN", one(lambda t: t.full((2,), t.nan)), "not a VGGNet state dict"),
    *(
        (f"torch: {name}", lambda i, data=data: evaluating(i, pytorch(i, data)), "damaged")
        for name, data in (
            ("a look-up of nothing", b"\x80\x02h\x09."),
            ("a stack that is empty", b"\x80\x020."),
            ("a text of 2 GB that is not there", b"\x80\x02\x8b\xff\xff\xff\x7f"),
            ("a name that is not UTF-8", b"\x80\x02X\x02\0\0\0\xff\xff."),
            ("lists in lists", b"\x80\x02" + b"(" * 50_000 + b"l" * 50_000 + b"."),
            ("a foreign id", b"\x80\x02X\x01\0\0\0aQ."),
        )
    ),
    ("a pickle in a CLIP's folder", clip(pytorch_bin(b"\x80\x020.")), "damaged, or no PyTorch"),
    ("safetensors: float8", raw_safetensors("F8_E4M3", 2), "a holds F8_E4M3"),
    ("safetensors: float8 of more range", raw_safetensors("F8_E5M2", 2), "a holds F8_E5M2"),
    ("safetensors: scales", raw_safetensors("F8_E8M0", 2), "a holds F8_E8M0"),
    ("safetensors: float4", raw_safetensors("F4", 1), "a holds F4"),
    ("safetensors: complex", raw_safetensors("C64", 16), "a holds C64"),
    ("safetensors: truths", raw_safetensors("BOOL", 2), "not a VGGNet state dict"),
    ("safetensors: a name of 1 MB", raw_safetensors("F32", 8, "x" * 10**6), "not a VGGNet state"),
    ("beyond float32", with_arrays(as_double(1e300)), "lin2.bias holds 1e+300, which is beyond"),
    ("far below zero", with_arrays(as_double(-1e39)), "lin2.bias holds -1e+39"),
    (
        "NaN in float64",
        with_arrays(as_double(np.nan)),
        "lin2.bias holds values that are not finite",
    ),
    (
        "infinity in bfloat16",
        with_arrays(lambda a: a.update({"lin2.bias": np.full(20, np.inf, ml_dtypes.bfloat16)})),
        "lin2.bias holds values that are not finite",
    ),
    (
        "truths for numbers",
        with_arrays(lambda a: a.update({"lin2.bias": np.ones(20, bool)})),
        "lin2.bias holds bool",
    ),
    ("damaged provenance", with_metadata(seen="seen"), "provenance is damaged"),
    ("damaged class names", with_metadata(classes="angry"), "class names is damaged"),
)


@pytest.mark.parametrize(("make", "message"), WEIGHTS)
def test_weights_that_cannot_be_read_are_refused(inputs, make, message, recwarn):
    inputs.refused(make(inputs), message)
    assert not recwarn.list  # a warning would be a second line


def seven_classes(path: Path) -> object:
    return class_names.read(path, 7)


# Read as the command does, which would make a network of every file first.
METADATA = table(
    ("provenance: a map", read_provenance, "seen", "{}", "provenance is damaged"),
    ("provenance: a number", read_provenance, "seen", "3", "provenance is damaged"),
    ("provenance: nothing", read_provenance, "seen", "null", "provenance is damaged"),
    ("provenance: texts", read_provenance, "seen", '["abc"]', "provenance is damaged"),
    ("provenance: two parts", read_provenance, "seen", '[["a", "b"]]', "provenance is damaged"),
    (
        "provenance: numbers",
        read_provenance,
        "seen",
        '[[1, 2, "trained"]]',
        "provenance is damaged",
    ),
    (
        "provenance: a role",
        read_provenance,
        "seen",
        '[["a", "b", "Trained"]]',
        "provenance is damaged",
    ),
    (
        "provenance: roles",
        read_provenance,
        "seen",
        '[["a", "b", ["trained"]]]',
        "provenance is damaged",
    ),
    (
        "provenance: an escape sequence",
        read_provenance,
        "seen",
        '[["\\u001b[2J", "b", "trained"]]',
        "provenance is damaged",
    ),
    ("provenance: nested deep", read_provenance, "seen", "[" * 100_000, "provenance is damaged"),
    ("classes: a map", seven_classes, "classes", '{"a": 0}', "class names is damaged"),
    ("classes: numbers", seven_classes, "classes", "[1,2,3,4,5,6,7]", "class names is damaged"),
    ("classes: NaN", seven_classes, "classes", '["a","b",NaN]', "class names is damaged"),
    (
        "classes: one too few",
        seven_classes,
        "classes",
        '["a","b","c","d","e","f"]',
        "names 6 classes and has 7 outputs",
    ),
    (
        "classes: two of one meaning",
        seven_classes,
        "classes",
        '["a","b","c","d","e","joy","Happy"]',
        "mean the same",
    ),
)


@pytest.mark.parametrize(("read", "entry", "text", "message"), METADATA)
def test_damaged_metadata_of_weights_is_refused(tmp_path, read, entry, text, message):
    path = tmp_path / "a.safetensors"
    save_file({"a": np.zeros(1, np.float32)}, path, metadata={f"emojax.{entry}": text})
    with pytest.raises(InputError, match=message) as refused:
        read(path)
    assert one_line(refused.value).isprintable()


@pytest.mark.slow
def test_weights_of_clear_kinds_are_read(tmp_path, sound):
    torch = pytest.importorskip("torch", reason="the oracle extra (torch) is not installed")
    arrays = load_file(sound / "vgg.safetensors")
    floats = {name: torch.tensor(a) for name, a in arrays.items() if a.dtype == np.float32}
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in floats.items()}
    parameters["lin2.bias"] = torch._neg_view(-parameters["lin2.bias"].detach())
    torch.save({"params": parameters, "model": {"name": "vgg"}}, tmp_path / "best.pt")
    read = read_arrays(tmp_path / "best.pt")
    for name in floats:
        np.testing.assert_array_equal(read[name], arrays[name])
    kept = load_vgg(sound / "vgg.safetensors").lin2.bias[...]
    save_file({n: a.astype(np.float64) for n, a in arrays.items()}, tmp_path / "d.safetensors")
    np.testing.assert_array_equal(load_vgg(tmp_path / "d.safetensors").lin2.bias[...], kept)
    halved = {n: a.astype(ml_dtypes.bfloat16) for n, a in arrays.items()}
    save_file(halved, tmp_path / "b.safetensors")
    torch.save({n: torch.tensor(a).bfloat16() for n, a in arrays.items()}, tmp_path / "b.pt")
    for file in ("b.safetensors", "b.pt"):
        read = read_arrays(tmp_path / file)
        assert all((read[n] == halved[n].astype(np.float32)).all() for n in arrays)


# Numbers


def given(*flags: str) -> Make:
    return lambda inputs: ["run", *flags]


def gains(content: str | np.ndarray) -> Make:
    def make(inputs: Inputs) -> list:
        file = inputs.put("gains.txt", content if isinstance(content, str) else "")
        if not isinstance(content, str):
            file = inputs.here / "gains.npy"
            np.save(file, content)
        data = ["--data.path", inputs.sound / "fer", "--clip.path", inputs.sound / "clip"]
        network = ["--target.weights", inputs.sound / "vgg.safetensors", "--probe.layers", "lin2"]
        few = ["--dissect.top-k", "5", "--edit.layers", "lin2"]
        return ["sweep", *data, *network, *few, "--edit.gains", file]

    return make


def damaged_run(manifest: str) -> Make:
    def make(inputs: Inputs) -> list:
        inputs.put("run/manifest.json", manifest)
        return ["compare", inputs.here / "run", inputs.here / "run"]

    return make


NUMBERS = table(
    ("a huge factor", given("--edit.factor", "1e38"), "less than or equal to 1000000"),
    (
        "a factor of nearly nothing",
        given("--edit.factor", "1e-45"),
        "greater than or equal to 0.000001",
    ),
    ("a factor that is no float32", given("--edit.factor", "1", "1e300"), "less than or equal"),
    ("a huge continuous factor", given("--edit.continuous", "1e38"), "less than or equal"),
    ("a huge threshold", given("--edit.tau", "1e39"), "less than or equal"),
    ("a huge threshold below zero", given("--edit.tau=-1e39"), "greater than or equal"),
    ("a huge level of labels", given("--dissect.tau", "1e38"), "less than or equal"),
    ("a huge temperature", given("--dissect.a", "1e38"), "less than or equal"),
    ("a temperature of zero", given("--dissect.a", "0"), "greater than or equal"),
    ("a temperature below zero", given("--dissect.a=-2"), "greater than or equal"),
    ("a huge prior", given("--dissect.lam", "1e38"), "less than or equal"),
    ("a prior below zero", given("--dissect.lam=-1"), "greater than or equal to 0"),
    ("an alpha of nearly nothing", given("--edit.alpha", "5e-324"), "greater than or equal"),
    ("endless minutes", given("--edit.minutes", "1e300"), "less than or equal"),
    ("endless memory", given("--probe.memory", "1e300"), "less than or equal"),
    ("endless waiting", given("--probe.save-every", "1e300"), "less than or equal"),
    ("a batch beyond int32", given("--probe.batch", str(10**30)), "less than 2147483648"),
    ("a list beyond int64", given("--probe.top-k", str(2**63)), "less than 2147483648"),
    ("a limit beyond int32", given("--data.limit", str(2**31)), "less than 2147483648"),
    ("a seed beyond 32 bits", given("--data.draw-seed", str(2**32)), "less than 4294967296"),
    ("draws by the billion", given("--dissect.null-sets", "1000000000"), "less than or equal"),
    (
        "permutations by the billion",
        given("--edit.permutations", "1000000000"),
        "less than or equal",
    ),
    ("masks by the billion", given("--edit.masks", "1000000000"), "less than or equal"),
    ("images of a kilometre", given("--data.size", "100000"), "less than or equal to 4096"),
    ("a page of endless size", given("--report.size", "1e300"), "less than or equal"),
    ("a number of 5,000 digits", given("--probe.batch", "9" * 5000), "4300 digits"),
    ("a file's huge factor", configured("edit: {factor: [1.0e+38]}"), "edit.factor.0 is 1e+38"),
    ("a file's huge number", configured(f"probe: {{batch: {'9' * 5000}}}"), "s.yaml: "),
    ("a file's number beyond int64", configured(f"probe: {{batch: {10**30}}}"), "batch is 1000000"),
    ("a file's huge temperature", configured("labels: {a: [1e38]}"), "labels.a.0 is 1e+38"),
    ("a file's huge prior", configured("labels: {lam: [1e38]}"), "labels.lam.0 is 1e+38"),
    (
        "a huge learning rate",
        lambda i: ["train", "--train.learning-rate", "1e38"],
        "less than or equal to 1000",
    ),
    ("rates of nearly nothing", lambda i: ["train", "--train.learning-rates", "1e-45"], "greater"),
    ("a huge decay", lambda i: ["train", "--train.weight-decay", "1e38"], "less than or equal"),
    (
        "a huge slope",
        lambda i: ["explain", "--calibration.a", "1e38", "--calibration.b", "0"],
        "less",
    ),
    (
        "a huge offset",
        lambda i: ["explain", "--calibration.a", "1", "--calibration.b", "1e38"],
        "less",
    ),
    (
        "a huge tolerance",
        lambda i: ["explain", "--explain.tolerance", "1e38"],
        "less than or equal",
    ),
    (
        "a cosine of 5",
        lambda i: ["concepts", "paper25", "--synonym", "5"],
        "less than or equal to 1",
    ),
    ("resamples by the billion", lambda i: ["judge", "--judge.resamples", "1000000000"], "less"),
    ("a gain beyond float32", gains("1e39 " * 20), "number 1 is 1e+39; write a number from"),
    ("a gain far below zero", gains("-1e38 " * 20), "number 1 is -1e+38; write a number from"),
    ("gains of complex numbers", gains(np.ones(20, complex)), "complex128 of shape (20,)"),
    ("gains in a table", gains(np.ones((4, 5))), "float64 of shape (4, 5)"),
    ("gains that are dates", gains(np.zeros(20, "datetime64[s]")), "datetime64[s]"),
    ("a mean beyond float32", steps(image_mean=[1e39] * 3), "image_mean"),
    ("a deviation of nearly nothing", steps(image_std=[1e-45] * 3), "image_std"),
    ("a huge factor of pixels", steps(rescale_factor=1e38), "rescale_factor"),
    (
        "a run with NaN",
        damaged_run('{"verb": "sweep", "timings": {"probe": NaN}}'),
        "manifest.json: not JSON",
    ),
    ("a run with infinity", damaged_run('{"verb": -Infinity}'), "manifest.json: not JSON"),
    (
        "a run that says it twice",
        damaged_run('{"verb": "run", "verb": "sweep"}'),
        "manifest.json: not JSON",
    ),
)


@pytest.mark.parametrize(("make", "message"), NUMBERS)
def test_numbers_that_cannot_be_computed_with_are_refused(inputs, make, message):
    inputs.refused(make(inputs), message)


def test_an_edit_that_makes_infinite_weights_is_refused(sound):
    model = load_vgg(sound / "vgg.safetensors")
    model.lin2.kernel[...] = np.full(model.lin2.kernel.shape, 1e35, np.float32)
    with pytest.raises(InputError, match="lin2 make weights larger than float32 holds"):
        edit(model, "lin2", np.full(20, 1e6))


def test_scores_beyond_float32_are_said_as_that():
    scores = np.array([[0.5, np.nan], [np.inf, np.nan]])
    with pytest.raises(InputError, match="1 units, first unit 1: its scores are beyond float32"):
        dissect._undefined_marked(scores, "wpmi")


def test_predictions_without_probabilities_say_so():
    read = Read(("a.png", "b.png"), np.zeros((2, 48, 48, 1), np.uint8), ("", ""))
    known = Prediction(np.float32([[0.25, 0.75], [np.nan, np.nan]]), None)
    first, second = predict._rows(predict.PredictSettings(), ("sad", "happy"), None, read, known)
    assert first[:2] == ["a.png", "happy"]
    assert second[:4] == ["b.png", "", "", ""]
    assert "beyond float32" in second[-1]
