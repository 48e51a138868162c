"""Training states on disk, by Orbax: written in the background, whole or not at all, the last two kept.

Each carries checksums, written before Orbax renames it into place. One that fails verification is
deleted, and the training resumes from the one before it, or starts.
"""

import shutil
from pathlib import Path
from typing import Any

import jax

from emojax.distributed.processes import broadcast_from_main, is_main_process
from emojax.errors import InputError
from emojax.store import CHECKSUMS, fault, report_damage, write_checksums, write_text

# Orbax adds the time of the commit to the first of these after the checksums are written, so it cannot
# be verified. The second is a copy of it from before, which takes its place when it is read.
_UNVERIFIED, _VERIFIED = "_CHECKPOINT_METADATA", "metadata.json"


class Checkpoints:
    """The checkpoints of one training in a folder; without a folder nothing is kept. A context: leaving it waits for disk.

    Each holds a pytree of arrays (the last state and the best variables) and a JSON value. Arrays come back with the
    shardings of the pytree that they are restored into, so the number of devices may change. The
    folder's name is the key of the training: a checkpoint copied from another folder is not used.
    """

    def __init__(self, folder: Path | None):
        self._manager = None
        if folder is not None:
            import orbax.checkpoint as ocp

            self._orbax, self._folder = ocp, Path(folder)
            self._saving = 0
            broadcast_from_main(self._drop_damaged)
            try:
                self._manager = ocp.CheckpointManager(
                    self._folder.absolute(),
                    options=ocp.CheckpointManagerOptions(
                        max_to_keep=2,
                        cleanup_tmp_directories=True,
                        async_options=ocp.AsyncOptions(
                            post_finalization_callback=self._add_checksums
                        ),
                    ),
                )
            except OSError as error:
                raise InputError(
                    f"cannot write checkpoints to {folder}: {error.strerror}; choose another --cache"
                ) from None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        if self._manager is not None:
            self._manager.wait_until_finished()
            self._manager.close()

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
        names = [name for name in names if name not in (_UNVERIFIED, CHECKSUMS)]
        write_checksums(folder, self._key(final.name), names)

    def _key(self, step: str) -> str:
        return f"{self._folder.name}/{step}"

    def restore(self, like: Any) -> tuple[Any, Any] | None:
        """The newest checkpoint's arrays, shaped and placed as `like`, and its JSON value; None where there is none.

        Raises:
          InputError: it holds another network.
        """
        if self._manager is None or (step := self._manager.latest_step()) is None:
            return None
        ocp = self._orbax
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        wanted = ocp.args.Composite(
            state=ocp.args.StandardRestore(shapes), notes=ocp.args.JsonRestore()
        )
        try:
            found = self._manager.restore(step, args=wanted)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise InputError(
                f"{self._folder}: checkpoint {step} cannot be read ({' '.join(str(error).split())[:200]}); delete the folder"
            ) from None
        return found.state, found.notes

    def save(self, step: int, state: Any, notes: Any) -> None:
        """Starts to write a checkpoint; the arrays are copied first, so training may go on at once."""
        if self._manager is not None:
            ocp = self._orbax
            self._manager.wait_until_finished()
            self._saving = step
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes)
                ),
            )
