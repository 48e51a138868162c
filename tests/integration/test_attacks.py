"""Bad input that could be read as something else, or end in a traceback, class by class.

A row is a way to make the bad input, as arguments of the command, and a part of the line that the
command ends with. What is clear in spite of its form is read rightly; that is tested beside.
Places, sizes and special files are in other files.
"""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from damage import edited, encoded, replaced
from refusals import Inputs, table

from emojax.data.concepts import load_concepts, parse_answer, parse_concepts
from emojax.data.decode import read_image
from emojax.settings import read_settings

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
