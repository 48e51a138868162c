"""Partial records."""

import pytest

from emojax.errors import InputError
from emojax.probing import partial


def test_two_processes_on_one_record(tmp_path):
    first = partial.Partial(tmp_path / "key.partial", 4, {"embeddings": 3})
    with pytest.raises(
        InputError,
        match=r"another process is making .*key\.partial; wait for it, or choose another --cache",
    ):
        partial.Partial(tmp_path / "key.partial", 4, {"embeddings": 3})
    first.rows.close()
    partial.Partial(tmp_path / "key.partial", 4, {"embeddings": 3}).rows.close()
