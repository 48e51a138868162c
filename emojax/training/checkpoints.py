"""Where a training resumes: checkpoints on disk, by Orbax.

They are written in the background, and the last two are kept. Each carries checksums, written
before Orbax renames it into place. One that fails verification is deleted, and the training resumes
from the one before it, or starts.
"""

import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jaxtyping import PyTree

from emojax.distributed.processes import broadcast_from_main, is_main_process
from emojax.errors import InputError
from emojax.store import CHECKSUMS, fault, report_damage, write_checksums, write_text
from emojax.training.training_log import TrainingLog

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

# Orbax adds the time of the commit to the first of these after the checksums are written, so it
# cannot be verified. The second is a copy of it from before, which takes its place when it is read.
_UNVERIFIED = "_CHECKPOINT_METADATA"
_VERIFIED = "metadata.json"


class Checkpoints:
    """The checkpoints of one training in a folder; without a folder, nothing is saved.

    Each holds a pytree of arrays (the states and the best variables) and the training log. Arrays
    come back with the shardings of the pytree that they are restored into, so the number of devices
    may change. The folder's name is the key of the training: a checkpoint copied from another
    folder is not used. Leaving the context waits for the disk.

    Args:
      folder: where they lie.
      save_every: seconds after which one is `due` within an epoch.

    Raises:
      InputError: the folder cannot be written.
    """

    def __init__(self, folder: Path | None, save_every: float = 300.0):
        self._save_every = save_every
        self._saved_at = time.monotonic()
        self._manager: ocp.CheckpointManager | None = None
        self._failed = False  # the disk is full, or refuses
        self._saving = 0  # the step of the checkpoint that is being written
        if folder is not None:
            self._folder = Path(folder)
            broadcast_from_main(self._drop_damaged)
            self._manager = self._open_manager()

    def _open_manager(self) -> "ocp.CheckpointManager":
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(
            max_to_keep=2,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._add_checksums),
        )
        try:
            return ocp.CheckpointManager(self._folder.absolute(), options=options)
        except OSError as error:
            raise InputError(
                f"cannot write checkpoints to {self._folder}: {error.strerror}; "
                "choose another --cache"
            ) from None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        if self._manager is not None and not self._failed:
            self._write(self._manager.wait_until_finished)
            self._manager.close()

    def _write(self, write: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Calls what writes, or waits for it.

        Raises:
          OSError: the disk is full, or refuses; nothing half-written is left.
        """
        log = logging.getLogger("absl")  # where Orbax's threads put tracebacks of their own
        before, log.disabled = log.disabled, True
        try:
            write(*args, **options)
        except Exception as error:  # TensorStore's has the system's number in its text
            told = re.search(r"os_error_code='(\d+)'", str(error))
            number = error.errno if isinstance(error, OSError) else told and int(told[1])
            if number is None:
                raise
            self._failed = True
            if is_main_process():
                for unfinished in self._folder.glob(f"{self._saving}.*"):
                    shutil.rmtree(unfinished, ignore_errors=True)
            stopped = OSError(number, os.strerror(number), str(self._folder))
            stopped.add_note("the same command resumes from the last whole checkpoint")
            raise stopped from None
        finally:
            log.disabled = before

    def restore(self, start: PyTree, log: TrainingLog) -> PyTree:
        """Restores the newest checkpoint: its arrays, and its log into `log`; else gives `start`.

        Args:
          start: arrays of the same shapes; the restored ones take over their shardings.
          log: a new one.

        Raises:
          InputError: the checkpoint holds another network, or another kind of training.
        """
        if self._manager is None or (step := self._manager.latest_step()) is None:
            return start
        import orbax.checkpoint as ocp

        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), start
        )
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(shapes), log=ocp.args.JsonRestore()
        )
        try:
            checkpoint = self._manager.restore(step, args=items)
        except (ValueError, KeyError, TypeError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{self._folder}: checkpoint {step} cannot be read ({reason}); delete the folder"
            ) from None
        log.restore(checkpoint["log"])
        return checkpoint["state"]

    def due(self) -> bool:
        """Whether a checkpoint should be saved within an epoch.

        Never where there are several processes: all must save together, and they would not agree on
        the time.
        """
        if self._manager is None or jax.process_count() > 1:
            return False
        return time.monotonic() - self._saved_at > self._save_every

    def save(self, state: PyTree, log: TrainingLog) -> None:
        """Starts to write a checkpoint; the arrays are copied first, and training may continue.

        Raises:
          OSError: this one or the one before could not be written.
        """
        if self._manager is None:
            return
        import orbax.checkpoint as ocp

        self._write(self._manager.wait_until_finished)
        if jax.process_count() == 1:
            # Of an array that devices replicate, Orbax would write a part per device, and compile a
            # program for each array to cut it.
            state = jax.device_get(state)
        self._saving = log.steps
        self._write(
            self._manager.save,
            log.steps,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), log=ocp.args.JsonSave(log.to_json())
            ),
        )
        self._saved_at = time.monotonic()

    def _drop_damaged(self) -> None:
        """Deletes the newest checkpoints up to the first that passes verification."""
        if not self._folder.is_dir():
            return
        steps = [path for path in self._folder.iterdir() if path.name.isdecimal()]
        for step in sorted(steps, key=lambda path: int(path.name), reverse=True):
            reason = fault(step, self._key(step.name))
            if reason is None:
                write_text(step / _UNVERIFIED, (step / _VERIFIED).read_text("utf-8"))
                return
            report_damage(step, reason)
            if step.is_dir() and not step.is_symlink():
                shutil.rmtree(step)
            else:
                step.unlink()

    def _add_checksums(self) -> None:
        """Called by Orbax when all of a checkpoint is written, before it has its final name."""
        if not is_main_process():
            return
        final = self._folder / str(self._saving)
        folder = next(self._folder.glob(f"{self._saving}.*"), final)
        shutil.copyfile(folder / _UNVERIFIED, folder / _VERIFIED)
        files = (path for path in folder.rglob("*") if path.is_file())
        names = (path.relative_to(folder).as_posix() for path in files)
        verified = [name for name in names if name not in (_UNVERIFIED, CHECKSUMS)]
        write_checksums(folder, self._key(final.name), verified)

    def _key(self, step: str) -> str:
        return f"{self._folder.name}/{step}"
