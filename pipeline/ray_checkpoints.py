"""What makes a resume from Ray Data's checkpoints lose nothing; nothing else of Foveate needs it.

For each file of its output Ray Data 2.60 writes the ids in it as ``X.pending.parquet``, then the file, then renames the
ids to ``X.parquet``. A resume deletes the output of all that is still pending and takes the ids of all else as done. It
does not notice where both names exist, and then rows count as done whose output it has deleted. Both exist after a kill
between the two halves of a rename in object storage (a copy, then a deletion), and after one during the second attempt
at a task that was done already, but whose worker died before it could say so.

Invariant: what a resume deletes, it does again.
"""

from __future__ import annotations

from typing import Any

from pyarrow.fs import FileSelector, FileSystem
from ray.data.checkpoint import IdColumnCheckpointManager
from ray.data.checkpoint.checkpoint_writer import PENDING_CHECKPOINT_SUFFIX

_DONE = ".parquet"
_PENDING = f"{PENDING_CHECKPOINT_SUFFIX}{_DONE}"


class WholeCheckpoints(IdColumnCheckpointManager):
    """For ``CheckpointConfig(..., checkpoint_manager_cls=WholeCheckpoints)``."""

    def load_checkpoint(
        self, data_file_dir: str | None = None, data_file_filesystem: FileSystem | None = None
    ) -> tuple[Any, int]:
        """As ``CheckpointManager.load_checkpoint``, after ids that are both pending and done became pending alone."""
        folder = FileSelector(self.checkpoint_path_unwrapped, allow_not_found=True)
        paths = {found.path for found in self.filesystem.get_file_info(folder)}
        for pending in sorted(path for path in paths if path.endswith(_PENDING)):
            done = pending.removesuffix(_PENDING) + _DONE
            if done in paths:
                self.filesystem.delete_file(done)
        loaded: tuple[Any, int] = super().load_checkpoint(data_file_dir, data_file_filesystem)
        return loaded
