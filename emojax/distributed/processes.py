"""Several processes that work as one: how they find each other, what the first tells the others,
how they end together.

Every process runs the same program on its own devices and its own share of the images. The first,
index 0, alone writes, prints and looks at the cache, so a disk that all of them share is not needed
beyond the inputs. Every other process holds a connection to the first: when one ends too early, the
rest hear of it at once and end as well, whatever they are doing.
"""

import contextlib
import json
import os
import secrets
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from emojax.errors import InputError

if TYPE_CHECKING:  # the command line reads its arguments before anything heavy is loaded
    import numpy as np

LOST = 3  # the exit code when another process was lost
_PIECE = 1 << 26  # bytes that travel at once
_DONE = 0xFFFFFFFF
_GRACE = 5.0  # seconds that a process has to tidy up after another was lost


class Job(NamedTuple):
    """Where the processes meet: `host:port` of the first, how many there are, and which one this
    is.

    `Job("auto")` leaves it to what jax finds out on TPU pods, under Slurm, Open MPI and Kubernetes.
    """

    coordinator: str
    processes: int | None = None
    index: int | None = None


class PeerLost(Exception):
    """Another process ended before the work was done."""


def is_main_process() -> bool:
    """Whether this process writes and prints: the first of a job, or the only one."""
    import jax

    return not jax.distributed.is_initialized() or jax.process_index() == 0


def count() -> int:
    """Processes in the job; devices are not started to find out that there is one."""
    import jax

    return jax.process_count() if jax.distributed.is_initialized() else 1


@contextlib.contextmanager
def joined(job: Job | None) -> Iterator[None]:
    """Runs a block as one of the job's processes; to be entered before the first use of JAX. None
    is no job.

    Raises:
      InputError: the processes did not find each other.
      PeerLost: a process ended before the block did. The caller should end with code `LOST`, by
        `leave`.
    """
    if job is None:
        yield
        return
    _start(job)
    watch = _Watch(job)
    try:
        yield
        watch.finish()
    except BaseException as error:
        lost = watch.left(wait=not isinstance(error, InputError | KeyboardInterrupt))
        if lost is None or isinstance(error, InputError):
            raise
        raise PeerLost(_lost_line(lost)) from None
    import jax

    jax.distributed.shutdown()


def leave(code: int) -> None:
    """Ends a process of a job that cannot go on, at once: JAX's own way out waits for processes
    that may be gone.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _start(job: Job) -> None:
    import jax

    try:
        if job.coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(*job, cluster_detection_method="deactivate")
    except (RuntimeError, ValueError) as error:
        first_line = str(error).splitlines()[0]
        raise InputError(
            f"--coordinator {job.coordinator}: the processes did not find each other ({first_line})"
        ) from None
    if job.coordinator == "auto" and jax.process_count() == 1:
        raise InputError(
            "--coordinator auto found one process only; leave it out, or pass HOST:PORT, "
            "--processes, --index"
        )


def _lost_line(process: int) -> str:
    return (
        f"process {process} of {count()} ended before the work was done; the same command, with "
        "any number of processes, "
        "goes on from the last snapshot"
    )


class _Watch:
    """Connections that stay open as long as their processes work; a thread that notices when one
    closes.
    """

    def __init__(self, job: Job):
        import jax

        self._lost: int | None = None
        self._heard, self._leaving = threading.Event(), threading.Event()
        self._links: dict[int, socket.socket] = {}
        self._name = f"emojax: process {jax.process_index()}: "
        server = socket.create_server(("", 0)) if is_main_process() else None
        host = (
            socket.getfqdn()
            if job.coordinator == "auto"
            else job.coordinator.rpartition(":")[0].strip("[]")
        )
        try:
            mine = (
                None if server is None else [host, server.getsockname()[1], secrets.token_hex(16)]
            )
            host, port, secret = json.loads(_told_by_first(json.dumps(mine).encode()))
            hello = struct.Struct("!32sI")
            if server is None:
                link = socket.create_connection((host, port), timeout=60)
                link.sendall(hello.pack(secret.encode(), jax.process_index()))
                self._add(0, link)
            while server is not None and len(self._links) < jax.process_count() - 1:
                server.settimeout(60)
                link, _ = server.accept()
                link.settimeout(60)
                with contextlib.suppress(
                    OSError, struct.error
                ):  # a stranger, who says something else or nothing
                    said, index = hello.unpack(link.recv(hello.size, socket.MSG_WAITALL))
                    if said == secret.encode():
                        self._add(index, link)
        except OSError as error:
            raise InputError(
                f"--coordinator {job.coordinator}: no connection between the processes ({error})"
            ) from None
        finally:
            if server is not None:
                server.close()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _add(self, index: int, link: socket.socket) -> None:
        link.settimeout(None)
        link.setsockopt(
            socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
        )  # a machine that stops answering is lost in 20 s
        for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._links[index] = link

    def _listen(self) -> None:
        """Hears until every peer is done, or one is lost.

        A word is four bytes: `_DONE`, or who was lost.
        """
        with selectors.DefaultSelector() as waiting:
            for index, link in self._links.items():
                waiting.register(link, selectors.EVENT_READ, index)
            while waiting.get_map():
                for key, _ in waiting.select():
                    word = _word(key.fileobj)
                    if word is None:
                        return self._end(key.data, alone=key.data == 0)
                    if word != _DONE:
                        return self._end(word)
                    waiting.unregister(key.fileobj)
        return None

    def _end(self, lost: int, alone: bool = False) -> None:
        """Tells the others, lets the main thread end the work by itself if it can, else ends the
        process.

        Without the first process, there is no time for that: JAX would end this one its own, noisy
        way.
        """
        self._lost = lost
        self._heard.set()
        self._say(lost)
        if (
            is_main_process()
        ):  # it has files to tidy away; the others have nothing that is worth the wait
            if not self._leaving.wait(_GRACE / 2):
                import _thread

                _thread.interrupt_main()
            if self._leaving.wait(_GRACE):
                return
        elif not alone and self._leaving.wait(_GRACE / 5):
            return
        print(self._name + _lost_line(lost), file=sys.stderr)
        leave(LOST)

    def _say(self, word: int) -> None:
        for link in self._links.values():
            with contextlib.suppress(OSError):  # gone already
                link.sendall(struct.pack("!I", word))

    def finish(self) -> None:
        """Waits until every process has come this far."""
        self._say(_DONE)
        self._thread.join()
        if self._heard.is_set():
            raise PeerLost

    def left(self, wait: bool) -> int | None:
        """Called as the work breaks off: which process was lost, if that is why.

        The first process goes last. It keeps JAX's service, without which the others would end with
        noise.
        """
        if wait:
            self._heard.wait(_GRACE)
        self._leaving.set()
        if is_main_process():
            if self._lost is None:
                self._say(0)
            until = time.monotonic() + _GRACE
            for link in self._links.values():
                with contextlib.suppress(OSError):
                    link.settimeout(max(0.01, until - time.monotonic()))
                    while link.recv(4):
                        pass
        return self._lost


def _word(link: socket.socket) -> int | None:
    """The next word of a connection, None when it has closed."""
    try:
        data = link.recv(4, socket.MSG_WAITALL)
    except OSError:
        return None
    return struct.unpack("!I", data)[0] if len(data) == 4 else None


# What the first tells the others


def _told_by_first(data: bytes) -> bytes:
    """The first process's bytes, in every process."""
    import numpy as np
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    room = np.zeros(
        1 << (size - 1).bit_length() if size else 1, np.uint8
    )  # few shapes, few compilations
    if is_main_process():
        room[:size] = np.frombuffer(data, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(room))[:size].tobytes()


def broadcast_from_main(
    read: "Callable[[], Mapping[str, np.ndarray] | None]",
) -> "dict[str, np.ndarray] | None":
    """Named arrays that the first process alone reads or computes, in every process; None stays
    None.

    A process by itself gets its own back, memory maps as they are.
    """
    if count() == 1:
        found = read()
        return None if found is None else dict(found)
    import numpy as np

    found = read() if is_main_process() else None
    about = (
        None
        if found is None
        else [[name, array.dtype.str, array.shape] for name, array in found.items()]
    )
    about = json.loads(_told_by_first(json.dumps(about).encode()))
    if about is None:
        return None
    arrays = {}
    for name, kind, shape in about:
        array = (
            np.empty(shape, np.dtype(kind))
            if found is None
            else np.ascontiguousarray(found[name]).reshape(shape)
        )
        raw = array.reshape(-1).view(np.uint8)
        for at in range(0, raw.size, _PIECE):
            piece = _told_by_first(raw[at : at + _PIECE].tobytes())
            if found is None:
                raw[at : at + _PIECE] = np.frombuffer(piece, np.uint8)
        arrays[name] = array
    return arrays


def check_same_everywhere(value: Any, what: str) -> None:
    """Refuses to go on, in every process, where processes would do different work; `value` is JSON.

    Raises:
      InputError: a process has another value than the first.
    """
    from jax.experimental import multihost_utils

    if count() == 1:
        return
    mine = json.dumps(value, sort_keys=True).encode()
    same = multihost_utils.process_allgather(_told_by_first(mine) == mine)
    if not same.all():
        raise InputError(
            f"process {same.argmin()} has other {what} than process 0; give all processes the same"
        )


def map_in_shares(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """`[function(item) for item in items]`, each process doing its share; results are JSON and come
    to every process.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if count() == 1:
        return [function(item) for item in items]
    mine = json.dumps([function(item) for item in items[jax.process_index() :: count()]]).encode()
    sizes = multihost_utils.process_allgather(np.int32(len(mine)))
    room = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
    room[: len(mine)] = np.frombuffer(mine, np.uint8)
    rows = multihost_utils.process_allgather(room)
    parts = [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
    return [parts[at % len(parts)][at // len(parts)] for at in range(len(items))]
