"""Files that a refusal is shown: images that are none, and changes to sound files."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file


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


def edited(name: str, **values) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return write


def replaced(name: str, content: bytes | str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
