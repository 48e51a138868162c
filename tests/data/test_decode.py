"""Images are read upright, whatever says how they lie."""

import numpy as np
import pytest
from PIL import Image

from emojax.data.decode import read_header, read_image

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize(
    ("kind", "said_by"),
    [("jpg", "exif"), ("jpg", "xmp"), ("jpg", None), ("png", "exif"), ("png", None)],
)
def test_an_image_is_read_upright(tmp_path, kind, said_by):
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:8, :8] = 255  # the upper left corner
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn clockwise
    extra = {"exif": {"exif": exif}, "xmp": {"xmp": XMP}, None: {}}[said_by]
    file = tmp_path / f"a.{kind}"
    Image.fromarray(pixels).save(file, **extra)
    got = np.asarray(read_image(file))
    if said_by is None:
        assert got.shape == (16, 32)
        assert got[:6, :6].min() > 200
        return
    assert read_header(file, file.read_bytes()) == ((16, 32), 1)
    assert got.shape == (32, 16)
    assert got[:6, 10:].min() > 200  # the corner is now the upper right one
