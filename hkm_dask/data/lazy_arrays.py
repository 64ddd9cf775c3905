"""Lazy xarray views of a store's arrays, with every chunk verified when it is read."""

from __future__ import annotations

import dask.array as da
import xarray as xr

from hkm_dask.data.chunks import open_array
from hkm_dask.data.objects import Location, each


def checked_arrays(group: xr.Dataset, folder: Location) -> xr.Dataset:
    """Replace the arrays of an opened group by Dask arrays whose chunks are verified when they are read.

    Reads fail once another store has taken this one's place. The arrays are named by their content, so that no cluster
    reuses cached results of another one.
    """
    names = list(map(str, group.data_vars))
    stored = each(open_array, [folder / name for name in names], folder)
    variables = [group.variables[name] for name in names]
    arrays = [
        da.from_array(one, chunks=old.encoding["chunks"], name=f"{name}-{one.fingerprint}", fancy=False)
        for name, one, old in zip(names, stored, variables, strict=True)
    ]
    return group.assign({name: old.copy(data=new) for name, old, new in zip(names, variables, arrays, strict=True)})
