"""The arrays of a store as xarray has them: read when they are asked for, every chunk of them checked."""

from __future__ import annotations

import dask.array as da
import xarray as xr

from hkm_dask.data.chunks import open_array
from hkm_dask.data.objects import Location, each


def checked_arrays(group: xr.Dataset, folder: Location) -> xr.Dataset:
    """A group that xarray opened, with Dask arrays whose every chunk is checked when it is read.

    Those of a store that took its place fail. They are named by what they hold, so that no cluster takes one that it
    remembers for another.
    """
    names = list(map(str, group.data_vars))
    stored = each(open_array, [folder / name for name in names], folder)
    variables = [group.variables[name] for name in names]
    arrays = [
        da.from_array(one, chunks=old.encoding["chunks"], name=f"{name}-{one.fingerprint}", fancy=False)
        for name, one, old in zip(names, stored, variables, strict=True)
    ]
    return group.assign({name: old.copy(data=new) for name, old, new in zip(names, variables, arrays, strict=True)})
