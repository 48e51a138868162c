"""Bad input of every kind, through the command line: one line on stderr, exit code 2, nothing left
behind.

`CASES` is the table; docs/refusals.md tells it command by command. What other test files refuse
already is not repeated here.
"""

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from emojax import cli, store

GOOD_ROW = " ".join(["7"] * 2304)
HEADER = "emotion,pixels,Usage\n"


class World(NamedTuple):
    """Sound inputs, made once, and the folder that a case may fill with bad ones."""

    sound: Path  # vgg.safetensors, clip/, fer/, fer2013.csv, photos/, record/
    here: Path

    def put(self, name: str, content: bytes | str) -> str:
        path = self.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def copy(self, name: str, change: Callable[[Path], object]) -> str:
        """A copy of a sound input, changed."""
        source, path = self.sound / name, self.here / name
        shutil.copytree(source, path) if source.is_dir() else shutil.copy(source, path)
        change(path)
        return str(path)


class Case(NamedTuple):
    name: str
    args: Callable[[World], list[str]]
    message: str


CASES: list[Case] = []


def case(name: str, message: str, args: Callable[[World], list[str]]) -> None:
    CASES.append(Case(name, args, message))


def outcome(capsys, args: list[str]) -> tuple[int, str]:
    code = cli.main([str(arg) for arg in args])
    return code, capsys.readouterr().err


def assert_refused(code: int, err: str, message: str) -> None:
    assert code == 2, err
    assert message in err
    assert err.startswith("emojax: ")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    assert "Traceback" not in err
    assert len(err) < 1000


# The command line

for verb in (
    "demo",
    "prepare",
    "audit",
    "concepts",
    "train",
    "evaluate",
    "probe",
    "dissect",
    "explain",
    "sweep",
    "run",
):
    case(
        f"{verb}: a flag that does not exist",
        "nrecognized options: --nothing.here",
        lambda w, v=verb: [v, "--nothing.here", "3"],
    )
    case(
        f"{verb}: an argument without a flag",
        "nrecognized",
        lambda w, v=verb: [v, *(["paper25"] * (v == "concepts")), "stray"],
    )
for flag, value, message in (
    ("--data.kind", "hub", "invalid choice 'hub'"),
    ("--data.limit", "0", "greater than 0"),
    ("--data.limit", "1.5", "1.5"),
    ("--data.size", "-3", "greater than 0"),
    ("--data.size", "big", "big"),
    ("--probe.top-k", "0", "greater than 0"),
    ("--probe.tile", "0", "greater than 0"),
    ("--probe.save-every", "-1", "greater than or equal to 0"),
    ("--probe.save-every", "nan", "finite"),
    ("--probe.taps", "bn", "invalid choice 'bn'"),
    ("--clip.dtype", "float16", "invalid choice 'float16'"),
    ("--dissect.similarity", "wpm", "invalid choice 'wpm'"),
    ("--dissect.a", "inf", "finite"),
    ("--dissect.lam", "x", "x"),
    ("--dissect.tau", "nan", "finite"),
    ("--dissect.null-sets", "-1", "greater than or equal to 0"),
    ("--edit.scope", "bias", "invalid choice 'bias'"),
    ("--edit.factor", "0", "greater than 0"),
    ("--edit.factor", "-2", "greater than 0"),
    ("--edit.tau", "nan", "finite"),
    ("--edit.top-fraction", "1", "less than 1"),
    ("--edit.continuous", "0", "greater than 0"),
    ("--edit.choose-on", "test", "invalid choice 'test'"),
    ("--edit.alpha", "0", "greater than 0"),
    ("--edit.alpha", "1", "less than 1"),
    ("--edit.permutations", "-1", "greater than or equal to 0"),
    ("--edit.masks", "-1", "greater than or equal to 0"),
    ("--edit.learned", "maybe", "maybe"),
    ("--evaluate.protocol", "fivecrop", "invalid choice 'fivecrop'"),
    ("--evaluate.batch", "0", "greater than 0"),
):
    case(f"run {flag} {value}", message, lambda w, f=flag, v=value: ["run", f, v])
for flag, value, message in (
    ("--train.task", "gan", "invalid choice 'gan'"),
    ("--train.size", "huge", "invalid choice 'huge'"),
    ("--train.epochs", "0", "greater than 0"),
    ("--train.batch", "-8", "greater than 0"),
    ("--train.optimizer", "lion", "invalid choice 'lion'"),
    ("--train.learning-rate", "0", "greater than 0"),
    ("--train.learning-rate", "nan", "finite"),
    ("--train.warmup", "1", "less than 1"),
    ("--train.momentum", "1", "less than 1"),
    ("--train.label-smoothing", "-0.1", "greater than or equal to 0"),
    ("--train.average", "1", "less than 1"),
    ("--train.weight-decay", "-1", "greater than or equal to 0"),
    ("--train.seed", "-1", "greater than or equal to 0"),
    ("--train.seed", "5000000000", "less than"),
):
    case(f"train {flag} {value}", message, lambda w, f=flag, v=value: ["train", f, v])
case("demo --images 10", "greater than or equal to 200", lambda w: ["demo", "--images", "10"])
case("audit --near 60", "less than or equal to 24", lambda w: ["audit", "--near", "60"])
case("audit --reasons ugly", "ugly", lambda w: ["audit", "--reasons", "ugly"])
case("audit without data", "--data.path is needed", lambda w: ["audit"])
case("a verb in capitals", "did you mean 'probe'", lambda w: ["Probe"])
case("a verb that is a path", "no command", lambda w: ["/etc/passwd"])
case("a command with control characters", "no command", lambda w: ["\x1b[2J\n"])
case("--config twice as a folder", "Is a directory", lambda w: ["run", "--config", str(w.here)])

# Settings files

for name, content, message in (
    ("a list", "[1, 2]", "must map section names"),
    ("a number", "7", "must map section names"),
    ("a word", "probe", "must map section names"),
    ("tabs", "probe:\n\tbatch: 3\n", "not YAML"),
    ("an open bracket", "probe: {batch: 3", "not YAML"),
    ("two documents", "probe: {}\n---\nedit: {}\n", "not YAML"),
    ("a Python object", "probe: !!python/object/apply:os.system ['true']\n", "not YAML"),
    ("a Python name", "probe: !!python/name:os.system\n", "not YAML"),
    ("an unknown tag", "probe: !secret 3\n", "not YAML"),
    ("an unknown anchor", "probe: *nothing\n", "not YAML"),
    ("not UTF-8", b"probe: {pool: \xff}\n", "not YAML"),
    ("UTF-16", "probe: {}\n".encode("utf-16"), "s.yaml"),
    ("zero bytes", b"probe: \0\n", "not YAML"),
    ("a section that is a number", "probe: 3\n", "probe is 3"),
    ("an empty section", "probe:\n", "probe is None"),
    ("a list for a number", "probe: {batch: [1, 2]}\n", "probe.batch is [1, 2]"),
    ("a word for a number", "probe: {batch: many}\n", "probe.batch is 'many'"),
    ("a fraction for a number", "probe: {batch: 2.5}\n", "probe.batch is 2.5"),
    ("not a number", "dissect: {tau: .nan}\n", "dissect.tau is nan"),
    ("infinity", "dissect: {a: .inf}\n", "dissect.a is inf"),
    ("an unknown choice", "probe: {pool: sum}\n", "probe.pool is 'sum'"),
    ("a date for a path", "data: {path: 2020-01-01}\n", "data.path is"),
    ("no layers' list", "probe: {layers: lin2}\n", "probe.layers is 'lin2'"),
    ("numbers for names", "data: {test_splits: [1]}\n", "data.test_splits.0 is 1"),
    ("no test splits", "data: {test_splits: []}\n", "data.test_splits is []"),
    ("a number for a name", "3: {}\n", "3"),
    ("nothing for a name", "~: {}\n", "s.yaml"),
    ("a list for a name", "[a, b]: 3\n", "s.yaml"),
    ("a verb's own setting", "images: 300\n", "images is not a setting"),
    ("nested deep", "probe: " + "[" * 2000, "not YAML"),
    (
        "aliases that multiply",
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n"
            for i in range(8)
        ),
        "a is not a setting",
    ),
):
    case(f"settings: {name}", message, lambda w, c=content: ["run", "--config", w.put("s.yaml", c)])

# fer2013.csv

for name, content, message in (
    ("an empty row", HEADER + "\n", "row 1: 0 columns"),
    ("four columns", HEADER + f"1,{GOOD_ROW},Training,x\n", "row 1: 4 columns"),
    ("columns in another order", "pixels,emotion,Usage\n", "columns are"),
    ("semicolons", HEADER.replace(",", ";") + f"1;{GOOD_ROW};Training\n", "columns are"),
    ("no header", f"1,{GOOD_ROW},Training\n", "columns are"),
    ("a fraction", HEADER + f"1,7.5 {GOOD_ROW[2:]},Training\n", "pixel value '7.5'"),
    ("an underscore", HEADER + f"1,1_0 {GOOD_ROW[2:]},Training\n", "pixel value '1_0'"),
    ("a plus sign", HEADER + f"1,+7 {GOOD_ROW[2:]},Training\n", "pixel value '+7'"),
    ("other digits", HEADER + f"1,\u0667 {GOOD_ROW[2:]},Training\n", "pixel value"),
    ("a raised digit", HEADER + f"1,\u00b2 {GOOD_ROW[2:]},Training\n", "pixel value"),
    (
        "a number of 5,000 digits",
        HEADER + f"1,{'9' * 5000} {GOOD_ROW[2:]},Training\n",
        "pixel value '999",
    ),
    (
        "commas between pixels",
        HEADER + f'1,"{GOOD_ROW.replace(" ", ",")}",Training\n',
        "pixel value",
    ),
    ("no pixels", HEADER + "1,,Training\n", "row 1: 0 pixel values"),
    ("one pixel short", HEADER + f"1,{GOOD_ROW[2:]},Training\n", "row 1: 2303 pixel values"),
    ("an empty label", HEADER + f",{GOOD_ROW},Training\n", "row 1: emotion ''"),
    ("a word for a label", HEADER + f"happy,{GOOD_ROW},Training\n", "row 1: emotion 'happy'"),
    ("a label of two digits", HEADER + f"12,{GOOD_ROW},Training\n", "row 1: emotion '12'"),
    ("a label below zero", HEADER + f"-1,{GOOD_ROW},Training\n", "row 1: emotion '-1'"),
    ("small letters in Usage", HEADER + f"1,{GOOD_ROW},training\n", "row 1: Usage 'training'"),
    ("an open quote", HEADER + f'1,"{GOOD_ROW}', "row 1"),
    ("a cell of 2 MB", HEADER + f"1,{'7 ' * 1_000_000},Training\n", "not a readable csv"),
    ("zero bytes", (HEADER + f"1,{GOOD_ROW}\0,Training\n").encode(), "row 1"),
    ("not UTF-8", HEADER.encode() + b"1,\xff\xfe,Training\n", "is not UTF-8"),
    ("UTF-16", (HEADER + f"1,{GOOD_ROW},Training\n").encode("utf-16"), "is not UTF-8"),
    ("a gzip file", b"\x1f\x8b\x08\0\0\0\0\0\0\0", "is not UTF-8"),
    ("an image", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not UTF-8"),
    ("control characters in a cell", HEADER + f"\x1b[31m,{GOOD_ROW},Training\n", "emotion"),
    (
        "a bad row after good ones",
        HEADER + f"1,{GOOD_ROW},Training\n" * 20 + "8,7,Training\n",
        "row 21: emotion '8'",
    ),
):
    case(
        f"csv: {name}",
        message,
        lambda w, c=content: ["prepare", "--source", w.put("fer2013.csv", c)],
    )

# Image files: in a raw FER2013 folder, and in an image folder


def encoded(form: str, size=(48, 48), mode="L", **options) -> bytes:
    data = io.BytesIO()
    pixels = np.random.default_rng(3).integers(
        0, 256, (size[1], size[0], len(Image.new(mode, (1, 1)).getbands()))
    )
    Image.fromarray(
        pixels.astype(np.uint8).squeeze(2) if pixels.shape[2] == 1 else pixels.astype(np.uint8)
    ).save(data, form, **options)
    return data.getvalue()


def png(width: int, height: int, body: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def deep(mode: str) -> bytes:
    data = io.BytesIO()
    Image.new(mode, (48, 48)).save(data, "TIFF")
    return data.getvalue()


BAD_IMAGES = {
    "empty": b"",
    "a text": b"hello",
    "a web page": b"<!DOCTYPE html><title>404</title>",
    "an SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "a PostScript file": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 48\n"
    b"%%EndComments\nshowpage\n",
    "a PDF": b"%PDF-1.4\n",
    "the start of a PNG": encoded("PNG")[:30],
    "the start of a JPEG": encoded("JPEG")[:50],
    "the start of a GIF": encoded("GIF")[:20],
    "a JPEG without pixels": encoded("JPEG")[:2] + b"\xff\xd9",
    "a PNG of no width": png(0, 48),
    "a PNG of 10^10 pixels": png(100_000, 100_000),
    "a PNG with a broken header": encoded("PNG")[:16] + b"\xff" * 13 + encoded("PNG")[29:],
    "a TIFF of 32-bit numbers": deep("F"),
    "a TIFF of 16 bits": deep("I;16"),
    "zeros": b"\0" * 3000,
    "noise": np.random.default_rng(0).bytes(3000),
}
CUT_IMAGES = {
    "half a PNG": encoded("PNG")[: len(encoded("PNG")) // 2],
    "half a JPEG": encoded("JPEG")[: len(encoded("JPEG")) // 2],
    "half a BMP": encoded("BMP")[:1200],
    "a PNG without its pixels": png(48, 48),
    "a PNG with damaged pixels": encoded("PNG")[:100] + b"\xff" * 50 + encoded("PNG")[150:],
    "half a WebP": encoded("WEBP", lossless=True)[:900],
}


def raw_with(w: World, content: bytes) -> str:
    for part, name in (("train", "Training_1.jpg"), ("test", "PublicTest_1.jpg")):
        w.put(f"raw/{part}/happy/{name}", content)
    return str(w.here / "raw")


def photos_with(w: World, content: bytes) -> list[str]:
    w.put("photos/joy/bad.png", content)
    w.put("photos/calm/good.png", encoded("PNG"))
    weights = ["--target.weights", str(w.sound / "vgg.safetensors")]
    return [
        "evaluate",
        *weights,
        "--data.path",
        str(w.here / "photos"),
        "--data.test-splits",
        "all",
    ]


for name, content in (BAD_IMAGES | CUT_IMAGES).items():
    case(
        f"raw image: {name}",
        "Training_1.jpg: ",
        lambda w, c=content: ["prepare", "--source", raw_with(w, c)],
    )
for name, content in BAD_IMAGES.items():
    case(f"folder image: {name}", "bad.png: ", lambda w, c=content: photos_with(w, c))
case("raw image: a folder", "cannot read", lambda w: ["prepare", "--source", raw_folder(w)])
case(
    "raw image: a link to nothing",
    "cannot read",
    lambda w: ["prepare", "--source", raw_link(w, "nowhere")],
)
case(
    "raw image: a link to itself",
    "cannot read",
    lambda w: ["prepare", "--source", raw_link(w, "Training_2.jpg")],
)


def raw_folder(w: World) -> str:
    root = raw_with(w, encoded("PNG"))
    (Path(root) / "train" / "happy" / "Training_0.jpg").mkdir()
    return root


def raw_link(w: World, target: str) -> str:
    root = raw_with(w, encoded("PNG"))
    (Path(root) / "train" / "happy" / "Training_2.jpg").symlink_to(target)
    return root


def named(w: World, root: str) -> str:
    (Path(root) / "train" / "happy" / "Training_\udcff.jpg").write_bytes(encoded("PNG"))
    return root


case(
    "raw image: a name that is not UTF-8",
    "the name is not UTF-8",
    lambda w: ["prepare", "--source", named(w, raw_with(w, encoded("PNG")))],
)
case(
    "folder image: a name that is not UTF-8",
    "the name is not UTF-8",
    lambda w: [
        "audit",
        "--data.kind",
        "folder",
        "--data.path",
        named(w, raw_with(w, encoded("PNG"))),
    ],
)


# Image sets


def evaluate(w: World, *args: str) -> list[str]:
    return ["evaluate", "--target.weights", str(w.sound / "vgg.safetensors"), *args]


def truncated_records(path: Path) -> None:
    for file in path.glob("fer2013/1.0.0/*array_record*"):
        file.write_bytes(file.read_bytes()[:100])


for name, message, args in (
    (
        "a prepared set without its files",
        "fer",
        lambda w: w.copy("fer", lambda p: [f.unlink() for f in p.rglob("*array_record*")]),
    ),
    ("a prepared set cut short", "fer", lambda w: w.copy("fer", truncated_records)),
    (
        "a prepared set with a damaged description",
        "fer",
        lambda w: w.copy("fer", lambda p: (p / "fer2013/1.0.0/dataset_info.json").write_text("{")),
    ),
    ("a text file", "is a file", lambda w: w.put("notes.txt", "x")),
    ("a csv", "is raw FER2013", lambda w: str(w.sound / "fer2013.csv")),
    (
        "files without class folders",
        "no images in it",
        lambda w: str(Path(w.put("flat/a.png", encoded("PNG"))).parent),
    ),
    ("class folders without splits", "pass the split 'all'", lambda w: str(w.sound / "photos")),
):
    case(f"data: {name}", message, lambda w, a=args: evaluate(w, "--data.path", a(w)))
case(
    "data: prepared asked of a folder",
    "not a prepared FER2013",
    lambda w: evaluate(w, "--data.kind", "fer2013", "--data.path", str(w.sound / "photos")),
)
case(
    "data: other classes than the network's",
    "has 2 classes, the network 7",
    lambda w: evaluate(w, "--data.path", str(w.sound / "photos"), "--data.test-splits", "all"),
)
case(
    "data: an unknown split of rendered faces",
    "no split 'test'",
    lambda w: evaluate(w, "--data.kind", "faces", "--data.test-splits", "test"),
)
case(
    "train: a CLIP on photographs",
    "pass --data.kind faces",
    lambda w: ["train", "--train.task", "clip", "--data.path", str(w.sound / "fer")],
)
case(
    "train: a CLIP without some faces",
    "--data.exclude is for images",
    lambda w: [
        "train",
        "--train.task",
        "clip",
        "--data.kind",
        "faces",
        "--data.exclude",
        w.put("x.csv", "file\na\n"),
    ],
)
for name, content, message in (
    ("missing", None, "cannot read"),
    ("empty", "", "no column 'file'"),
    ("without the column", "name\na\n", "no column 'file'"),
    ("an unknown image", "file,reason\nnothing,blank\n", "no image 'nothing'"),
    ("a row without a name", "file,reason\n,blank\n", "entry 1 names no file"),
    ("a path outside", "file\n../../etc/passwd\n", "no image '../../etc/passwd'"),
    ("not UTF-8", b"file\n\xff\n", "is not UTF-8"),
    ("an open quote", 'file\n"a', "not a readable csv"),
    ("an image", encoded("PNG"), "is not UTF-8"),
    ("a cell of 2 MB", "file\n" + "a" * 2_000_000, "not a readable csv"),
):
    case(
        f"exclude: {name}",
        message,
        lambda w, c=content: evaluate(
            w,
            "--data.path",
            str(w.sound / "fer"),
            "--data.exclude",
            str(w.here / "x.csv") if c is None else w.put("x.csv", c),
        ),
    )

# Concept files


def dissect(w: World, **changed: str) -> list[str]:
    args = {
        "--record": str(w.sound / "record"),
        "--clip.path": str(w.sound / "clip"),
        "--concepts.path": "paper25",
    }
    args |= {"--dissect.top-k": "20"} | {
        f"--{name.replace('__', '.')}": value for name, value in changed.items()
    }
    return ["dissect", *(part for pair in args.items() for part in pair)]


for name, content, message in (
    ("only blanks", " \n\t\n", "no concept in it"),
    ("only a header", "concept,emotions\n", "no concept in it"),
    ("a byte order mark alone", b"\xef\xbb\xbf", "no concept in it"),
    ("Latin-1", "Lächeln\n".encode("latin-1"), "is not UTF-8"),
    ("UTF-16", "Smile\n".encode("utf-16"), "is not UTF-8"),
    ("an image", encoded("PNG"), "is not UTF-8"),
    ("zero bytes", b"Smile\0\n", "control character"),
    ("an escape sequence", b"\x1b[31mSmile\n", "control character"),
    ("one line of 10 MB", b"x" * 10_000_000, "10000000 characters long"),
    ("10 MB of blank lines", b"\n" * 10_000_000, "10000000 lines"),
    ("10 MB of the same line", b"Smile\n" * 1_700_000, "1700000 lines"),
    ("a text too long for the tokenizer", "x" * 60, "tokens long"),
    ("a repeated concept", "Smile\nSmile\n", "stands on lines 1 and 2"),
    ("repeated but for blanks", "Smile\n  Smile \n", "stands on lines 1 and 2"),
    ("an emotion that is no class", "concept,emotions\nSmile,curious\n", "no class of the data"),
    ("three columns", "concept,emotions\nSmile,happy,sad\n", "3 columns"),
    ("a comma without quotes", "concept,emotions\nSmile, broad,happy\n", "3 columns"),
    (
        "an entry without a concept",
        "concept,emotions\n,happy\n",
        "a concept and at least one emotion",
    ),
    (
        "emotions that are only semicolons",
        "concept,emotions\nSmile,;;\n",
        "a concept and at least one emotion",
    ),
    ("an open quote", 'concept,emotions\n"Smile,happy\n', "columns"),
):
    case(
        f"concepts: {name}",
        message,
        lambda w, c=content: dissect(w, concepts__path=w.put("c.txt", c)),
    )
case("concepts: a folder", "no concept file", lambda w: dissect(w, concepts__path=str(w.here)))
case("concepts review: a folder", "cannot read", lambda w: ["concepts", str(w.here)])
case(
    "concepts review: nothing in it",
    "no concept in it",
    lambda w: ["concepts", w.put("c.txt", "\n")],
)
case(
    "concepts review: a bad line",
    "1 columns",
    lambda w: ["concepts", w.put("c.txt", "concept,emotions\nSmile\n")],
)
for name, content, message in (
    ("no emotions", "Wide Open Eyes\n", "is not of the form"),
    ("an emotion not asked for", "Smile: joy\n", "no emotion 'joy'"),
    ("a phrase twice", "Smile: happy\nSmile: sad\n", "comes twice"),
    ("no phrase", ": happy\n", "is not of the form"),
    ("nothing", "", "no concept in it"),
):
    case(
        f"answer: {name}", message, lambda w, c=content: ["concepts", "--answer", w.put("a.txt", c)]
    )

# Weights


def header_of(text: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + body


def rewritten(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        arrays = load_file(path)
        change(arrays)
        save_file(arrays, path)

    return write


def cut(length: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:length])


def with_value(name: str, value: float) -> Callable[[dict], object]:
    return lambda arrays: arrays[name].reshape(-1).__setitem__(0, value)


for name, change, message in (
    ("empty", cut(0), "not a readable safetensors"),
    ("7 bytes", cut(7), "not a readable safetensors"),
    ("only the header's length", cut(8), "not a readable safetensors"),
    ("half a header", cut(400), "not a readable safetensors"),
    ("one byte short", lambda p: p.write_bytes(p.read_bytes()[:-1]), "not a readable safetensors"),
    (
        "one byte more",
        lambda p: p.write_bytes(p.read_bytes() + b"\0"),
        "not a readable safetensors",
    ),
    (
        "a header of 10^18 bytes",
        lambda p: p.write_bytes(struct.pack("<Q", 10**18) + b"{}"),
        "not a readable safetensors",
    ),
    (
        "a header that is no JSON",
        lambda p: p.write_bytes(header_of(b"hello")),
        "not a readable safetensors",
    ),
    (
        "a header that is a list",
        lambda p: p.write_bytes(header_of(b"[]")),
        "not a readable safetensors",
    ),
    (
        "offsets outside the file",
        lambda p: p.write_bytes(
            header_of(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}')
        ),
        "not a readable safetensors",
    ),
    (
        "offsets that disagree with the shape",
        lambda p: p.write_bytes(
            header_of(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,16]}}', b"\0" * 16)
        ),
        "not a readable safetensors",
    ),
    (
        "a type that does not exist",
        lambda p: p.write_bytes(
            header_of(b'{"a":{"dtype":"F7","shape":[4],"data_offsets":[0,16]}}', b"\0" * 16)
        ),
        "not a readable safetensors",
    ),
    ("a pickle", lambda p: p.write_bytes(b"\x80\x04cos\nsystem\n."), "not a readable safetensors"),
    ("no arrays", lambda p: save_file({}, p), "not a VGGNet state dict"),
    ("one array missing", rewritten(lambda a: a.pop("lin2.bias")), "missing: lin2.bias"),
    ("a layer missing", rewritten(lambda a: a.pop("conv3a.weight")), "conv3a.weight"),
    (
        "an array too many",
        rewritten(lambda a: a.update(extra=np.ones(3, np.float32))),
        "not of this network: extra",
    ),
    (
        "a wrong width",
        rewritten(lambda a: a.update({"lin2.bias": np.ones(3, np.float32)})),
        "lin2.bias has shape (3,)",
    ),
    (
        "too few axes",
        rewritten(lambda a: a.update({"conv1a.weight": np.ones(4, np.float32)})),
        "conv1a.weight has shape",
    ),
    (
        "a scalar",
        rewritten(lambda a: a.update({"lin1.weight": np.float32(1)[...]})),
        "too few axes",
    ),
    (
        "no units",
        rewritten(lambda a: a.update({"lin2.weight": np.ones((0, 24), np.float32)})),
        "no units",
    ),
    (
        "no last convolution",
        rewritten(lambda a: a.update({"conv4b.weight": np.ones((0, 10, 3, 3), np.float32)})),
        "no units",
    ),
    (
        "NaN",
        rewritten(with_value("conv1a.weight", np.nan)),
        "conv1a.weight holds values that are not finite",
    ),
    (
        "infinity",
        rewritten(with_value("bn2a.running_var", np.inf)),
        "bn2a.running_var holds values that are not finite",
    ),
    ("a variance below zero", rewritten(with_value("bn2a.running_var", -1)), "bn2a.running_var"),
    (
        "whole numbers",
        rewritten(lambda a: a.update({"lin2.bias": a["lin2.bias"].astype(np.int32)})),
        "lin2.bias",
    ),
    (
        "another network",
        lambda p: save_file({"fc.weight": np.ones((7, 3), np.float32)}, p),
        "not a VGGNet state dict",
    ),
):
    case(
        f"weights: {name}",
        message,
        lambda w, c=change: [
            "evaluate",
            "--data.path",
            str(w.sound / "fer"),
            "--target.weights",
            w.copy("vgg.safetensors", c),
        ],
    )
case(
    "weights: a folder", "no weights file", lambda w: ["evaluate", "--target.weights", str(w.here)]
)
for name, content in (
    ("empty", b""),
    ("a text", b"hello"),
    ("a zip", b"PK\x03\x04" + b"\0" * 30),
    ("noise", b"\xfe\xed" * 99),
    ("a pickle that would run something", b"cos\nsystem\n(S'touch pwned'\ntR."),
):
    case(
        f"PyTorch weights: {name}",
        "best.pt: torch refuses it",
        lambda w, c=content: ["evaluate", "--target.weights", w.put("best.pt", c)],
    )

# Hugging Face folders


def edited(name: str, **values) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return write


def inner(part: str, **values) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config[part] |= values
        path.write_text(json.dumps(config))

    return write


def replaced(name: str, content: bytes | str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def sharded(weight_map: object) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return write


def clip_arrays(change: Callable[[dict], object]) -> Callable[[Path], object]:
    return lambda folder: rewritten(change)(folder / "model.safetensors")


for name, change, message in (
    ("an empty folder", lambda f: [p.unlink() for p in f.iterdir()], "no config.json"),
    ("settings that are a list", replaced("config.json", "[]"), "model_type is None"),
    ("settings that are a number", replaced("config.json", "3"), "model_type is None"),
    ("settings that are empty", replaced("config.json", "{}"), "model_type is None"),
    (
        "settings that are not UTF-8",
        replaced("config.json", b"\xff\xfe"),
        "config.json: not readable",
    ),
    ("settings nested deep", replaced("config.json", "[" * 100_000), "config.json"),
    ("another model", edited("config.json", model_type="siglip"), "model_type is 'siglip'"),
    (
        "no towers",
        replaced("config.json", '{"model_type": "clip", "vision_config": 3}'),
        "config.json",
    ),
    ("a width that is a word", inner("vision_config", hidden_size="wide"), "config.json"),
    ("a width of zero", inner("vision_config", hidden_size=0), "config.json"),
    ("a width below zero", inner("text_config", hidden_size=-32), "config.json"),
    ("no heads", inner("vision_config", num_attention_heads=0), "config.json"),
    (
        "heads that do not divide the width",
        inner("vision_config", num_attention_heads=5),
        "config.json",
    ),
    ("a patch of zero", inner("vision_config", patch_size=0), "config.json"),
    (
        "a patch larger than the image",
        inner("vision_config", patch_size=64),
        "do not fit into images of 32",
    ),
    ("an unknown activation", inner("text_config", hidden_act="swish"), "swish"),
    (
        "more layers than weights",
        inner("vision_config", num_hidden_layers=3),
        "parameters are missing",
    ),
    (
        "fewer layers than weights",
        inner("vision_config", num_hidden_layers=1),
        "not of this network",
    ),
    ("no layers", inner("text_config", num_hidden_layers=0), "clip"),
    ("a smaller vocabulary", inner("text_config", vocab_size=100), "outside the vocabulary"),
    ("a context of zero", inner("text_config", max_position_embeddings=0), "clip"),
    (
        "an end token outside the vocabulary",
        inner("text_config", eos_token_id=9999),
        "eos_token_id",
    ),
    ("an embedding of zero", edited("config.json", projection_dim=0), "config.json"),
    (
        "preprocessing that is no JSON",
        replaced("preprocessor_config.json", "{"),
        "preprocessor_config.json",
    ),
    (
        "preprocessing that is a list",
        replaced("preprocessor_config.json", "[]"),
        "preprocessor_config.json",
    ),
    ("no normalisation", edited("preprocessor_config.json", do_normalize=False), "only bicubic"),
    (
        "a mean of two numbers",
        edited("preprocessor_config.json", image_mean=[0.5, 0.5]),
        "preprocessor_config.json",
    ),
    (
        "a deviation of zero",
        edited("preprocessor_config.json", image_std=[0.0, 0.5, 0.5]),
        "preprocessor_config.json",
    ),
    (
        "a mean that is a word",
        edited("preprocessor_config.json", image_mean="gray"),
        "preprocessor_config.json",
    ),
    (
        "a size by height and width",
        edited("preprocessor_config.json", size={"height": 32, "width": 32}),
        "not a shortest_edge",
    ),
    ("an empty tokenizer", replaced("tokenizer.json", ""), "tokenizer cannot be read"),
    ("a tokenizer that is a list", replaced("tokenizer.json", "[]"), "tokenizer cannot be read"),
    (
        "a tokenizer that is not UTF-8",
        replaced("tokenizer.json", b"\xff"),
        "tokenizer cannot be read",
    ),
    ("weights that are empty", replaced("model.safetensors", b""), "not a readable safetensors"),
    (
        "NaN in the weights",
        clip_arrays(with_value("logit_scale", np.nan)),
        "logit_scale holds values that are not finite",
    ),
    (
        "a wrong shape",
        clip_arrays(lambda a: a.update({"text_projection.weight": np.ones((2, 2), np.float32)})),
        "has shape",
    ),
    (
        "a name too many",
        clip_arrays(lambda a: a.update(extra=np.ones(2, np.float32))),
        "not of this network: extra",
    ),
    (
        "an index that is a list",
        lambda f: [
            (f / "model.safetensors").unlink(),
            replaced("model.safetensors.index.json", "[]")(f),
        ],
        "not a readable index",
    ),
    ("an index without shards", sharded({}), "parameters are missing"),
    ("a shard that is not there", sharded({"a": "model-1.safetensors"}), "no weights file"),
    ("a shard outside the folder", sharded({"a": "../vgg.safetensors"}), "lies outside the folder"),
    ("a shard by its full path", sharded({"a": "/etc/passwd"}), "lies outside the folder"),
    ("a shard that is a number", sharded({"a": 3}), "not a readable index"),
    ("a shard that is a list", sharded({"a": ["x"]}), "not a readable index"),
    ("a shard that is the folder", sharded({"a": ".."}), "lies outside the folder"),
    (
        "a pickle for weights",
        lambda f: [
            (f / "model.safetensors").unlink(),
            replaced("pytorch_model.bin", b"cos\nsystem\n(S'touch pwned'\ntR.")(f),
        ],
        "torch refuses it",
    ),
):
    case(
        f"CLIP: {name}",
        message,
        lambda w, c=change: ["concepts", "paper25", "--clip.path", w.copy("clip", c)],
    )
for name in (
    "..",
    "/",
    "a b/c",
    "https://example.org/x",
    "owner/name/more",
    "../../etc",
    "owner/na\nme",
):
    case(
        f"CLIP: the name {name!r}",
        "CLIP folder" if name not in ("..", "/") else "no config.json",
        lambda w, n=name: ["concepts", "paper25", "--clip.path", n],
    )

# Records and run folders


def resaved(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    return lambda folder: np.save(folder / name, change(np.load(folder / name)))


def flipped(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-5] ^= 16
        (folder / name).write_bytes(data)

    return change


def with_sums(change: Callable[[Path], object]) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        change(folder)
        (folder / "checksums.json").unlink(missing_ok=True)
        store.write_checksums(folder, "0")

    return changed


def statistics(change: Callable[[dict], object]) -> Callable[[Path], object]:
    return lambda folder: rewritten(change)(folder / "statistics.safetensors")


for name, change, message in (
    ("empty", lambda f: [p.unlink() for p in f.iterdir()], "not a readable probe record"),
    ("half written", lambda f: (f / "record.json").unlink(), "not a readable probe record"),
    ("of another version", edited("record.json", format=99), "probe record of format 99"),
    (
        "of a version that is a word",
        edited("record.json", format="new"),
        "probe record of format new",
    ),
    ("a description that is no JSON", replaced("record.json", "{"), "not a readable probe record"),
    ("a description that is a list", replaced("record.json", "[]"), "not a readable probe record"),
    ("no layers", edited("record.json", layers=[]), "not a readable probe record"),
    (
        "a layer of other size",
        edited("record.json", layers=[["lin2", 19]]),
        "not a readable probe record",
    ),
    (
        "a layer of negative size",
        edited("record.json", layers=[["a", 30], ["b", -10]]),
        "not a readable probe record",
    ),
    (
        "a layer of a word",
        edited("record.json", layers=[["lin2", "many"]]),
        "not a readable probe record",
    ),
    ("without classes", edited("record.json", classes=[]), "not a readable probe record"),
    (
        "statistics missing",
        lambda f: (f / "statistics.safetensors").unlink(),
        "not a readable probe record",
    ),
    (
        "statistics cut short",
        lambda f: cut(200)(f / "statistics.safetensors"),
        "not a readable probe record",
    ),
    ("one statistic missing", statistics(lambda a: a.pop("cross")), "not a readable probe record"),
    (
        "top images outside the set",
        statistics(lambda a: a["top_indices"].__setitem__((0, 0, 0), 4000)),
        "not a readable probe record",
    ),
    (
        "labels outside the classes",
        statistics(lambda a: a["labels"].__setitem__(0, 7)),
        "not a readable probe record",
    ),
    (
        "labels of other images",
        statistics(lambda a: a.update(labels=a["labels"][:-1])),
        "not a readable probe record",
    ),
    (
        "sums of other units",
        statistics(lambda a: a.update(total=a["total"][:-1])),
        "not a readable probe record",
    ),
    (
        "embeddings missing",
        lambda f: (f / "embeddings.npy").unlink(),
        "not a readable probe record",
    ),
    (
        "embeddings cut short",
        lambda f: cut(300)(f / "embeddings.npy"),
        "not a readable probe record",
    ),
    (
        "embeddings pickled",
        lambda f: np.save(f / "embeddings.npy", np.array([{}]), allow_pickle=True),
        "not a readable probe record",
    ),
    (
        "embeddings of other images",
        resaved("embeddings.npy", lambda e: e[:-1]),
        "not a readable probe record",
    ),
    (
        "embeddings of other width",
        resaved("embeddings.npy", lambda e: e[:, :-1]),
        "not a readable probe record",
    ),
    (
        "embeddings that are numbers in a row",
        resaved("embeddings.npy", lambda e: e.ravel()),
        "not a readable probe record",
    ),
    ("names missing", lambda f: (f / "ids.jsonl").unlink(), "not a readable probe record"),
    ("names cut short", lambda f: cut(30)(f / "ids.jsonl"), "not a readable probe record"),
    ("names that are no JSON", replaced("ids.jsonl", "a\nb\n"), "not a readable probe record"),
):
    case(f"record: {name}", message, lambda w, c=change: dissect(w, record=w.copy("record", c)))
    # With checksums of what lies there now, the parts themselves must be refused.
    case(
        f"record: {name}, checksums too",
        message,
        lambda w, c=change: dissect(w, record=w.copy("record", with_sums(c))),
    )
case("record: a file", "not a readable probe record", lambda w: dissect(w, record=w.put("x", "x")))
case(
    "record: nothing there",
    "not a readable probe record",
    lambda w: dissect(w, record=str(w.here / "none")),
)
for name, change, message in (
    (
        "without checksums",
        lambda f: (f / "checksums.json").unlink(),
        "checksums.json: FileNotFoundError",
    ),
    (
        "one byte of the embeddings",
        flipped("embeddings.npy"),
        "embeddings.npy is not as it was written",
    ),
    (
        "one byte of the statistics",
        flipped("statistics.safetensors"),
        "statistics.safetensors is not as it was",
    ),
    ("of another CLIP", with_sums(edited("record.json", clip_key="0")), "made with another CLIP"),
):
    case(f"record: {name}", message, lambda w, c=change: dissect(w, record=w.copy("record", c)))
case(
    "record: too few top images", "use --probe.top-k 35", lambda w: dissect(w, dissect__top_k="35")
)
case("--out: a file", "is a file", lambda w: [*dissect(w), "--out", w.put("x", "x")])
case("--out: inside a file", "cannot", lambda w: [*dissect(w), "--out", w.put("x", "x") + "/run"])
case(
    "--out: somebody's folder",
    "not an emojax run",
    lambda w: [*dissect(w), "--out", str(Path(w.put("y/thesis.tex", "x")).parent)],
)
case(
    "--out: a name too long",
    "File name too long",
    lambda w: [*dissect(w), "--out", str(w.here / ("x" * 300))],
)
case("--cache: a file", "Not a directory", lambda w: [*dissect(w), "--cache", w.put("x", "x")])


@pytest.mark.parametrize("one", CASES, ids=[one.name for one in CASES])
def test_refused(capsys, monkeypatch, tmp_path, sound, one):
    world = World(sound, tmp_path / "bad")
    world.here.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    args = [str(arg) for arg in one.args(world)]
    before = everything(tmp_path)
    own = ["--out", "runs/out"] if "--out" not in args and args[0] in cli.COMMANDS else []
    code, err = outcome(capsys, [*args, *own])
    assert_refused(code, err, one.message)
    assert everything(tmp_path) == before


def everything(root: Path) -> list[str]:
    """Files and links below a folder; the cache, which keeps whole things only, apart."""
    found = [p for p in root.rglob("*") if p.is_symlink() or not p.is_dir()]
    return sorted(str(p.relative_to(root)) for p in found if "home" not in p.parts)


def test_the_table_is_long():
    assert len({one.name for one in CASES}) == len(CASES) >= 200
