"""Arrays that many tasks need: passed by reference inside a process, by file name between processes.

Centroids may take hundreds of megabytes. They are neither copied into every task's arguments nor scattered, because
killing the only holder of a scattered array fails the run; a file that the task which made it has renamed into place
can be read by any worker and written again, with the same bytes, by a repeated task.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hkm_dask.data.files import careful
from hkm_dask.errors import StoreError

_KEPT = 6
_loaded: OrderedDict[str, np.ndarray] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True)
class SharedArray:
    """A handle on an array: the array itself, or the file that holds it.

    Attributes
    ----------
    path : str or None
        An `.npy` file that every worker sees.
    array : ndarray or None
        The array, where there is but one process.
    """

    path: str | None = None
    array: np.ndarray | None = field(default=None, repr=False)

    @property
    def name(self) -> object:
        """Tells this array from others that are alive."""
        return self.path or id(self.array)

    def get(self) -> np.ndarray:
        """Return the array, read at most once per process while it is in use.

        Returns
        -------
        ndarray
            Not to be written to.

        Raises
        ------
        StoreError
            The file cannot be read from this process.
        """
        if self.array is not None:
            return self.array
        path = str(self.path)
        with _lock:
            if path in _loaded:
                _loaded.move_to_end(path)
                return _loaded[path]
        try:
            array = np.load(path, allow_pickle=False)
        except OSError as error:
            raise StoreError(
                f"work file {path} should be readable by every worker; put the output on a shared file system"
            ) from error
        with _lock:
            _loaded[path] = array
            while len(_loaded) > _KEPT:
                _loaded.popitem(last=False)
        return array

    def delete(self) -> None:
        """Remove the file, if there is one."""
        if self.path is not None:
            Path(self.path).unlink(missing_ok=True)
            with _lock:
                _loaded.pop(self.path, None)


@dataclass(frozen=True)
class SharedArrayStore:
    """Where shared arrays are put: a folder all workers see, or nowhere when there is but one process.

    Attributes
    ----------
    folder : str or None
        A folder every worker sees; None keeps arrays where they are.
    """

    folder: str | None = None

    def put(self, name: str, array: np.ndarray) -> SharedArray:
        """Share an array under a name; the same name is only ever given the same contents.

        Parameters
        ----------
        name : str
            Of the file, without its suffix.
        array : ndarray

        Returns
        -------
        SharedArray

        Examples
        --------
        >>> SharedArrayStore().put("zeros", np.zeros(2)).get()
        array([0., 0.])
        """
        if self.folder is None:
            return SharedArray(array=array)
        path = Path(self.folder) / f"{name}.npy"
        partial = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.partial")

        def write() -> None:
            with partial.open("wb") as file:
                np.save(file, array, allow_pickle=False)
            partial.replace(path)

        careful(write, f"writing {path}")
        return SharedArray(path=str(path))
