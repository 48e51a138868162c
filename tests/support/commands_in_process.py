"""Commands in this process, and what they write."""

import csv

from emojax import cli

# What the line says of weights files without provenance.
UNKNOWN = "does not say what it was trained on, so it counts as having seen"


def run(capsys, *args):
    """Exit code, stdout, stderr."""
    code = cli.main([str(arg) for arg in args])
    return code, *capsys.readouterr()


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
