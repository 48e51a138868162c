"""A run written from Python."""

import pytest
from signalled import notes

from emojax.data.concepts import load_concepts
from emojax.dissection.dissect import dissect
from emojax.probing.probe import probe
from emojax.report import page, write


@pytest.mark.long
def test_page_failures_from_python(monkeypatch, tmp_path, tiny_vgg, tiny_clip, blobs):
    record = probe(tiny_vgg, blobs, tiny_clip, layers=("lin2",))
    found = dissect(record, load_concepts("paper25"), clip=tiny_clip, null_sets=0)
    monkeypatch.setattr(page, "build", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError) as failed:
        write.write_report(found, tmp_path / "run")
    assert failed.value.__notes__ == [notes(tmp_path / "run")[2:-1]]
    assert (tmp_path / "run" / "manifest.json").is_file()
