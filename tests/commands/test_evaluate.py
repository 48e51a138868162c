"""`emojax evaluate`, and the images, lists and weights that it refuses."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from commands_in_process import run
from conftest import TINY
from damage import (
    BAD_IMAGES,
    cut,
    encoded,
    rewritten,
    with_value,
)
from refusals import Inputs, table
from safetensors.numpy import save_file

import emojax
from emojax import cli
from emojax.data.weights import save_vgg
from emojax.models.vgg import VggNet


def test_probe_and_evaluate(capsys, tmp_path, sources):
    network, probing = sources
    code, _, _ = run(
        capsys, "probe", *network, *probing, "--probe.layers", "lin*", "--out", tmp_path / "probe"
    )
    assert code == 0
    assert emojax.ProbeRecord is not None
    assert (tmp_path / "probe" / "record" / "record.json").is_file()
    code, _out, _ = run(
        capsys,
        "evaluate",
        *network,
        "--evaluate.protocol",
        "tencrop",
        "--out",
        tmp_path / "evaluate",
    )
    assert code == 0
    summary = json.loads((tmp_path / "evaluate" / "summary.json").read_text())
    assert summary["splits"]["all"]["images"] == 14
    assert sum(map(sum, summary["splits"]["all"]["confusion"])) == 14


@pytest.mark.long
def test_infinite_losses_do_not_cost_the_run(capsys, tmp_path, fer_folder):
    """Finite weights whose logits overflow give losses that are no numbers; the rest of the result
    is written.
    """
    from flax import nnx

    model = VggNet(TINY, rngs=nnx.Rngs(0))
    # Every unit of lin2 is near 10, and every class weighs all of them by the same sign: sums of
    # 20 terms of 10³⁹ overflow in whatever order they are added.
    model.lin2.bias[...] = np.full(20, 10, np.float32)
    signs = np.float32([1, -1, 1, -1, 1, -1, 1])
    model.lin3.kernel[...] = np.ones((20, 1), np.float32) * signs * np.float32(1e38)
    save_vgg(model, tmp_path / "vgg.safetensors")
    assert cli.main(["prepare", "--source", str(fer_folder), "--out", str(tmp_path / "fer")]) == 0
    args = [
        "evaluate",
        "--data.path",
        tmp_path / "fer",
        "--target.weights",
        tmp_path / "vgg.safetensors",
    ]
    code = cli.main([str(arg) for arg in [*args, "--out", tmp_path / "run"]])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "logits of vgg.safetensors are beyond float32 on" in " ".join(err.split())
    summary = json.loads(
        (tmp_path / "run" / "summary.json").read_text(), parse_constant=pytest.fail
    )
    assert summary["splits"]["all"]["nll"] is None
    assert "/splits/all/nll" in summary["not_finite"]
    assert summary["splits"]["all"]["correct"] >= 0
    assert "nan" in out


def evaluate(inputs: Inputs, *args: object) -> list[object]:
    return ["evaluate", "--target.weights", inputs.sound / "vgg.safetensors", *args]


@pytest.mark.parametrize("content", table(*BAD_IMAGES.items()))
def test_images_in_folders_are_refused(inputs, content):
    inputs.put("photos/joy/bad.png", content)
    inputs.put("photos/calm/good.png", encoded("PNG"))
    args = ["--data.path", inputs.here / "photos", "--data.test-splits", "all"]
    inputs.refused(evaluate(inputs, *args), "bad.png: ")


def truncated_records(path: Path) -> None:
    for file in path.glob("fer2013/1.0.0/*array_record*"):
        file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize(
    ("data", "message"),
    table(
        (
            "a prepared set without its files",
            lambda i: i.copy("fer", lambda p: [f.unlink() for f in p.rglob("*array_record*")]),
            "fer",
        ),
        ("a prepared set cut short", lambda i: i.copy("fer", truncated_records), "fer"),
        (
            "a prepared set with a damaged description",
            lambda i: i.copy(
                "fer", lambda p: (p / "fer2013/1.0.0/dataset_info.json").write_text("{")
            ),
            "fer",
        ),
        ("a text file", lambda i: i.put("notes.txt", "x"), "is a file"),
        ("a csv", lambda i: i.sound / "fer2013.csv", "is raw FER2013"),
        (
            "files without class folders",
            lambda i: str(Path(i.put("flat/a.png", encoded("PNG"))).parent),
            "its images lie in no class folder",
        ),
        ("class folders without splits", lambda i: str(i.sound / "photos"), "pass the split 'all'"),
    ),
)
def test_image_sets_are_refused(inputs, data, message):
    inputs.refused(evaluate(inputs, "--data.path", data(inputs)), message)


@pytest.mark.parametrize(
    ("args", "message"),
    table(
        (
            "prepared asked of a folder",
            ["--data.kind", "fer2013", "--data.path", "photos"],
            "not a prepared FER2013",
        ),
        (
            "other classes than the network's",
            ["--data.path", "photos", "--data.test-splits", "all"],
            "has 2 classes, the network 7",
        ),
        (
            "an unknown split of rendered faces",
            ["--data.kind", "faces", "--data.test-splits", "test"],
            "no split 'test'",
        ),
    ),
)
def test_image_sets_that_do_not_fit_are_refused(inputs, args, message):
    given = [inputs.sound / arg if arg == "photos" else arg for arg in args]
    inputs.refused(evaluate(inputs, *given), message)


@pytest.mark.parametrize(
    ("content", "message"),
    table(
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
    ),
)
def test_lists_to_exclude_are_refused(inputs, content, message):
    path = inputs.here / "x.csv" if content is None else inputs.put("x.csv", content)
    args = ["--data.path", inputs.sound / "fer", "--data.exclude", path]
    inputs.refused(evaluate(inputs, *args), message)


def header_of(text: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    ("change", "message"),
    table(
        ("empty", cut(0), "not a readable safetensors"),
        ("7 bytes", cut(7), "not a readable safetensors"),
        ("only the header's length", cut(8), "not a readable safetensors"),
        ("half a header", cut(400), "not a readable safetensors"),
        (
            "one byte short",
            lambda p: p.write_bytes(p.read_bytes()[:-1]),
            "not a readable safetensors",
        ),
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
        (
            "a pickle",
            lambda p: p.write_bytes(b"\x80\x04cos\nsystem\n."),
            "not a readable safetensors",
        ),
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
        (
            "a variance below zero",
            rewritten(with_value("bn2a.running_var", -1)),
            "bn2a.running_var",
        ),
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
    ),
)
def test_weights_are_refused(inputs, change, message):
    weights = inputs.copy("vgg.safetensors", change)
    args = ["evaluate", "--data.path", inputs.sound / "fer", "--target.weights", weights]
    inputs.refused(args, message)


def test_a_folder_is_no_weights_file(inputs):
    inputs.refused(["evaluate", "--target.weights", inputs.here], "no weights file")


@pytest.mark.parametrize(
    "content",
    table(
        ("empty", b""),
        ("a text", b"hello"),
        ("a zip", b"PK\x03\x04" + b"\0" * 30),
        ("noise", b"\xfe\xed" * 99),
        ("a pickle that would run something", b"cos\nsystem\n(S'touch pwned'\ntR."),
    ),
)
def test_pytorch_weights_are_refused(inputs, content):
    pytest.importorskip("torch", reason="needs the oracle extra")
    weights = inputs.put("best.pt", content)
    inputs.refused(["evaluate", "--target.weights", weights], "best.pt: torch refuses it")
