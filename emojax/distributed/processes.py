"""Several processes that work as one job: how they meet, share data, and end together.

Every process runs the same program on its own devices and its own share of the images. The main
process, index 0, alone writes, prints and reads the cache, so no shared disk is needed beyond the
inputs. Every other process holds a connection to the main process: when one ends too early, the
rest hear of it at once and end as well, whatever they are doing.
"""

import contextlib
import hmac
import ipaddress
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
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from emojax.errors import InputError

if TYPE_CHECKING:  # the command line reads its arguments before anything heavy is loaded
    import numpy as np

LOST = 3  # the exit code when another process was lost
_PIECE = 1 << 26  # bytes that travel at once
_DONE = 0xFFFFFFFF  # the word of a process that has finished; any other is the index of a lost one
_HELLO = struct.Struct("!32sI")  # a process's first words: the job's secret and its own index
_CONNECT = 60  # seconds for the processes to connect
_PATIENCE = 5.0  # seconds for a connection to say that it comes from one of them
_BACKLOG = 128  # connections that wait to be accepted
_GRACE = 5.0  # seconds that a process has to tidy up after another was lost


class Job(NamedTuple):
    """Where the processes meet: `host:port` of the main one, how many there are, which this is.

    `Job("auto")` leaves it to what jax finds out on TPU pods, under Slurm, Open MPI and Kubernetes.
    """

    coordinator: str
    processes: int | None = None
    index: int | None = None  # pyright: ignore[reportIncompatibleMethodOverride] - not tuple's


class PeerLost(Exception):
    """Another process ended before the work was done."""


def is_main_process() -> bool:
    """Whether this process writes and prints: process 0 of a job, or the only one."""
    import jax

    return not jax.distributed.is_initialized() or jax.process_index() == 0


def count() -> int:
    """Processes in the job; finding out that there is one does not start the devices."""
    import jax

    return jax.process_count() if jax.distributed.is_initialized() else 1


@contextlib.contextmanager
def joined(job: Job | None) -> Iterator[None]:
    """Runs a block as one of the job's processes; None is no job.

    To be entered before the first use of JAX.

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
    """Ends a process of a job that cannot continue, at once.

    JAX's own way out waits for processes that may be gone.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _start(job: Job) -> None:
    import jax

    listens = None
    if job.index == 0:  # or JAX's service would listen on all addresses of its machine
        host, port = _address(job), job.coordinator.rpartition(":")[2]
        listens = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:  # JAX's service, which cannot listen there, would wait for the others all the same
            _listen_at(host, int(port)).close()
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise InputError(
                f"--coordinator {job.coordinator}: cannot listen there ({why}); "
                "give an address of process 0's own machine and a free port"
            ) from None
    try:
        if job.coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(
                *job, cluster_detection_method="deactivate", coordinator_bind_address=listens
            )
    except (RuntimeError, ValueError) as error:
        first_line = str(error).splitlines()[0]
        raise InputError(
            f"--coordinator {job.coordinator}: the processes did not find each other ({first_line})"
        ) from None
    if job.coordinator == "auto" and jax.process_count() == 1:
        raise InputError(
            "--coordinator auto found one process only; "
            "leave it out, or pass HOST:PORT, --processes, --index"
        )


def _lost_line(process: int) -> str:
    return (
        f"process {process} of {count()} ended before the work was done; "
        "the same command, with any number of processes, resumes from the last snapshot"
    )


class _Stranger:
    """A connection that has not said yet which process it comes from."""

    def __init__(self, link: socket.socket, since: float):
        link.setblocking(False)
        self.link = link
        self.until = since + _PATIENCE
        self.closed = False
        self._said = b""

    def index(self, secret: str, others: int) -> int | None:
        """Reads on; the index of the process once all of its hello is there.

        `closed` is set when the connection has ended or says anything but a hello.
        """
        try:
            data = self.link.recv(_HELLO.size - len(self._said))
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        self._said += data
        if data and len(self._said) < _HELLO.size:
            return None
        if data:
            received_secret, index = _HELLO.unpack(self._said)
            if hmac.compare_digest(received_secret, secret.encode()) and 0 < index <= others:
                return index
        self.closed = True
        return None


class _Watch:
    """Connections that stay open as long as their processes work; a thread notices when one closes.

    They form a star: every process is connected to the main process, which passes a loss on. A
    message is one word of four bytes: `_DONE`, or the index of the process that was lost.
    """

    def __init__(self, job: Job):
        import jax

        self._lost: int | None = None
        self._heard_of_loss = threading.Event()
        self._leaving = threading.Event()
        self._links: dict[int, socket.socket] = {}
        self._name = f"emojax: process {jax.process_index()}: "
        try:
            self._connect(job)
        except OSError as error:
            raise InputError(
                f"--coordinator {job.coordinator}: no connection between the processes ({error})"
            ) from None
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _connect(self, job: Job) -> None:
        """Connects every process to the main process, whose port and secret JAX's service tells."""
        import jax

        if is_main_process():
            host = "" if job.coordinator == "auto" else _address(job)
            with _listen_at(host, 0) as server:
                secret = secrets.token_hex(16)
                _from_main(json.dumps([_host(job), server.getsockname()[1], secret]).encode())
                self._accept(server, secret, jax.process_count() - 1)
        else:
            host, port, secret = json.loads(_from_main(b""))
            link = socket.create_connection((host, port), timeout=_CONNECT)
            link.sendall(_HELLO.pack(secret.encode(), jax.process_index()))
            self._add(0, link)

    def _accept(self, server: socket.socket, secret: str, others: int) -> None:
        """Takes the connections of the other processes.

        A stranger on the network says something else, or nothing: all strangers are listened to at
        once, each for `_PATIENCE` seconds, and dropped.

        Raises:
          TimeoutError: not all others have come after `_CONNECT` seconds.
        """
        server.setblocking(False)
        deadline = time.monotonic() + _CONNECT
        with selectors.DefaultSelector() as waiting, contextlib.ExitStack() as strangers:
            waiting.register(server, selectors.EVENT_READ)
            while len(self._links) < others:
                now = time.monotonic()
                if now > deadline:
                    raise TimeoutError("timed out")
                for key, _ in waiting.select(0.2):
                    stranger: _Stranger | None = key.data
                    if stranger is None:
                        with contextlib.suppress(OSError):  # gone already, or too many at once
                            link = strangers.enter_context(server.accept()[0])
                            waiting.register(link, selectors.EVENT_READ, _Stranger(link, now))
                    elif (index := stranger.index(secret, others)) is not None:
                        waiting.unregister(stranger.link)
                        if index not in self._links:
                            self._add(index, stranger.link.dup())
                for stranger in [key.data for key in waiting.get_map().values()]:
                    if stranger is not None and (stranger.closed or now > stranger.until):
                        waiting.unregister(stranger.link)
                        stranger.link.close()

    def _add(self, index: int, link: socket.socket) -> None:
        link.settimeout(None)
        # A machine that loses power closes nothing: with these it counts as lost after 20 s.
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._links[index] = link

    def _listen(self) -> None:
        """The thread: reads until every peer is done, or one is lost."""
        with selectors.DefaultSelector() as waiting:
            for index, link in self._links.items():
                waiting.register(link, selectors.EVENT_READ, index)
            while waiting.get_map():
                for key, _ in waiting.select():
                    word = _word(cast(socket.socket, key.fileobj))
                    if word is None:
                        return self._end(key.data, main_is_lost=key.data == 0)
                    if word != _DONE:
                        return self._end(word)
                    waiting.unregister(key.fileobj)
        return None

    def _end(self, lost: int, main_is_lost: bool = False) -> None:
        """Passes a loss on; lets the main thread end the work if it can, else ends the process."""
        self._lost = lost
        self._heard_of_loss.set()
        self._say(lost)
        if is_main_process():
            # It has files to tidy away. Its main thread first gets the chance to fail by itself
            # (a collective that misses a process), then an interrupt.
            if not self._leaving.wait(_GRACE / 2):
                import _thread

                _thread.interrupt_main()
            if self._leaving.wait(_GRACE):
                return
        # The others have nothing that is worth a long wait. Without the main process there is no
        # time at all: JAX's own service notices, too, and would end this process noisily.
        elif not main_is_lost and self._leaving.wait(_GRACE / 5):
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
        if self._heard_of_loss.is_set():
            raise PeerLost

    def left(self, wait: bool) -> int | None:
        """Called as the work breaks off: which process was lost, if that is why.

        The main process goes last: it keeps JAX's service, without which the others would end
        noisily.

        Args:
          wait: whether a loss that explains the break may still be about to be heard of.
        """
        if wait:
            self._heard_of_loss.wait(_GRACE)
        self._leaving.set()
        if is_main_process():
            if self._lost is None:
                self._say(0)
            deadline = time.monotonic() + _GRACE
            for link in self._links.values():
                with contextlib.suppress(OSError):
                    link.settimeout(max(0.01, deadline - time.monotonic()))
                    while link.recv(4):
                        pass
        return self._lost


def _host(job: Job) -> str:
    """The main process's host, as the others can reach it."""
    if job.coordinator == "auto":
        return socket.getfqdn()
    return job.coordinator.rpartition(":")[0].strip("[]")


def _address(job: Job) -> str:
    """The address of the main process's machine on which it listens, and on no other.

    Raises:
      InputError: the host has no address, or one that is of no use to other machines.
    """
    host = _host(job)
    try:
        address = str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--coordinator {job.coordinator}: {reason}") from None
    # Debian's /etc/hosts gives a machine's own name an address that only the machine itself has.
    if ipaddress.ip_address(address).is_loopback and host not in (address, "localhost"):
        raise InputError(
            f"--coordinator {job.coordinator}: {host} is {address} here, which no other machine "
            "reaches; give the machine's address, or localhost"
        )
    return address


def _listen_at(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


def _word(link: socket.socket) -> int | None:
    """The next word of a connection, None when it has closed."""
    try:
        data = link.recv(4, socket.MSG_WAITALL)
    except OSError:
        return None
    return struct.unpack("!I", data)[0] if len(data) == 4 else None


# Data between processes


def _from_main(data: bytes) -> bytes:
    """The main process's bytes, in every process."""
    import numpy as np
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    buffer = np.zeros(_buffer_size(size), np.uint8)
    if is_main_process():
        buffer[:size] = np.frombuffer(data, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(buffer))[:size].tobytes()


def _buffer_size(size: int) -> int:
    """The next power of two: few shapes of buffers, so few compiled collectives."""
    return 1 << (size - 1).bit_length() if size else 1


def broadcast_from_main(
    read: "Callable[[], Mapping[str, np.ndarray] | None]",
) -> "dict[str, np.ndarray] | None":
    """Named arrays that the main process alone reads or computes, in every process.

    None stays None. A process by itself gets its own back, memory maps as they are.
    """
    if count() == 1:
        own = read()
        return None if own is None else dict(own)
    import numpy as np

    own = read() if is_main_process() else None
    header = None
    if own is not None:
        header = [[name, array.dtype.str, array.shape] for name, array in own.items()]
    header = json.loads(_from_main(json.dumps(header).encode()))
    if header is None:
        return None
    arrays = {}
    for name, dtype, shape in header:
        if own is None:
            array = np.empty(shape, np.dtype(dtype))
        else:
            array = np.ascontiguousarray(own[name]).reshape(shape)
        raw = array.reshape(-1).view(np.uint8)
        for start in range(0, raw.size, _PIECE):
            piece = _from_main(raw[start : start + _PIECE].tobytes())
            if own is None:
                raw[start : start + _PIECE] = np.frombuffer(piece, np.uint8)
        arrays[name] = array
    return arrays


def check_same_everywhere(value: Any, what: str) -> None:
    """Refuses, in every process, work that differs between the processes.

    Args:
      value: JSON that states the work.
      what: its name, for the message.

    Raises:
      InputError: a process has another value than the main process.
    """
    from jax.experimental import multihost_utils

    if count() == 1:
        return
    own = json.dumps(value, sort_keys=True).encode()
    same = multihost_utils.process_allgather(_from_main(own) == own)
    if not same.all():
        raise InputError(
            f"process {same.argmin()} has other {what} than process 0; give all processes the same"
        )


def map_in_shares(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """`[function(item) for item in items]`, each process doing its share.

    Results are JSON and come to every process.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if count() == 1:
        return [function(item) for item in items]
    share = items[jax.process_index() :: count()]
    own = json.dumps([function(item) for item in share]).encode()
    sizes = multihost_utils.process_allgather(np.int32(len(own)))
    # All processes gather buffers of one length, that of the longest.
    buffer = np.zeros(_buffer_size(int(sizes.max())), np.uint8)
    buffer[: len(own)] = np.frombuffer(own, np.uint8)
    rows = multihost_utils.process_allgather(buffer)
    shares = [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
    # Item n is the result n // count of process n % count.
    return [shares[n % len(shares)][n // len(shares)] for n in range(len(items))]
