"""Stops a long computation from its `progress` callback, as a crash would."""


class Stopped(Exception):
    pass


def stop_after(batches):
    """A `progress` that raises `Stopped` when it is called for the given time."""

    def progress(done, total):
        nonlocal batches
        batches -= 1
        if batches == 0:
            raise Stopped

    return progress
