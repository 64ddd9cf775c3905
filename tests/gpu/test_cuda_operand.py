"""Rows and centroids converted for tensor cores: the loss is bounded."""

from typing import Any

import numpy as np
import pytest

from hkm_dask.search.cuda.index import CudaIndex
from hkm_dask.search.cuda.operand import FORMS, FUSED, Form, kind_of, make_cuda_operand, multiply
from tests.gpu.inputs import geometry_of


@pytest.mark.parametrize("form", [form for form in FORMS if form not in FUSED])
def test_a_score_misses_by_no_more_than_the_bound(cuda: Any, form: Form) -> None:
    rng = np.random.default_rng(3)
    for dtype, center in [(np.float16, 0.2), (np.float32, 0.2), (np.float16, 40.0), (np.float32, 4000.0)]:
        rows = rng.normal(center, 1, (50, 64)).astype(dtype)
        centroids = rng.normal(center, 1, (30, 64)).astype(np.float32)
        geometry = geometry_of(rows)
        search = CudaIndex(centroids, geometry, form)
        operand = make_cuda_operand(cuda.asarray(rows), geometry, kind_of(form))
        scales = operand.scale * search._operand.scale
        on_gpu = cuda.empty((50, 30), cuda.float32)
        multiply(operand.matrix, search._operand.matrix, on_gpu, form)
        products = on_gpu.get()
        scores = products * np.float32(-2.0 / scales) + search._biases[operand.as_stored].get()[:30]
        squared = ((rows.astype(np.float64)[:, None] - centroids.astype(np.float64)) ** 2).sum(axis=2)
        missed = np.abs(scores - (squared - operand.norms.get()[:, None]))
        per_size, per_error, constant = search._bounds
        allowed = operand.sizes.get() * per_size + operand.errors.get() * per_error + constant
        assert (missed <= allowed[:, None]).all()
        assert operand.as_stored == (dtype == np.float16 and center < 1 and form == "half")
