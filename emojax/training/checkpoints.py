"""Training states on disk, by Orbax: written in the background, whole or not at all, the newest kept."""

from pathlib import Path
from typing import Any

import jax

from emojax.errors import InputError


class Checkpoints:
    """The checkpoints of one training in a folder; without a folder nothing is kept. A context: leaving it waits for disk.

    Each holds a pytree of arrays (the last state and the best variables) and a JSON value. Arrays come back with the
    shardings of the pytree that they are restored into, so the number of devices may change.
    """

    def __init__(self, folder: Path | None):
        self._manager = None
        if folder is not None:
            import orbax.checkpoint as ocp

            self._orbax, self._folder = ocp, Path(folder)
            try:
                self._manager = ocp.CheckpointManager(
                    self._folder.absolute(),
                    options=ocp.CheckpointManagerOptions(max_to_keep=1, cleanup_tmp_directories=True),
                )
            except OSError as error:
                raise InputError(f"cannot write checkpoints to {folder}: {error.strerror}; choose another --cache") from None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        if self._manager is not None:
            self._manager.wait_until_finished()
            self._manager.close()

    def restore(self, like: Any) -> tuple[Any, Any] | None:
        """The newest checkpoint's arrays, shaped and placed as `like`, and its JSON value; None where there is none.

        Raises:
          InputError: it is damaged, or holds another network.
        """
        if self._manager is None or (step := self._manager.latest_step()) is None:
            return None
        ocp = self._orbax
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        wanted = ocp.args.Composite(state=ocp.args.StandardRestore(shapes), notes=ocp.args.JsonRestore())
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
            self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes))
            )
