"""`emojax audit`: what it refuses."""

import pytest
from damage import encoded


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--near", "60"], "less than or equal to 24"),
        (["--reasons", "ugly"], "ugly"),
        ([], "--data.path is needed"),
    ],
)
def test_refusals(inputs, args, message):
    inputs.refused(["audit", *args], message)


def test_a_name_that_is_not_utf8_is_refused(inputs):
    root = inputs.raw(encoded("PNG"))
    (root / "train" / "happy" / "Training_\udcff.jpg").write_bytes(encoded("PNG"))
    args = ["audit", "--data.kind", "folder", "--data.path", root]
    inputs.refused(args, "the name is not UTF-8")
