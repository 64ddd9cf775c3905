"""Work of a step by resource, and the rates of a machine."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Work:
    """Work of a step by resource; supports addition and multiplication by a number.

    >>> (Work(products=2.0) + 3 * Work(products=1.0, launches=1)).launches
    3.0
    """

    products: float = 0.0  # operations of 16-bit products on the device: two per coordinate of a pair
    measured: float = 0.0  # float64 operations on the device: three per coordinate of a measured distance
    device_bytes: float = 0.0  # read from and written to device memory
    link_bytes: float = 0.0  # between host and device
    #: Sequential transfers between workers: the reduction of the results of all to one, and the broadcast of one
    #: result to all.
    network_bytes: float = 0.0
    #: Kernel launches, and times that the host waits for the device.
    launches: float = 0.0
    synchronizations: float = 0.0
    rounds: float = 0.0  # rounds of tasks handed out and results collected
    store_bytes: float = 0.0  # read from and written to stores by one thread, including checksums
    #: Of one thread: product operations, bytes processed, and items sorted or selected from.
    thread_products: float = 0.0
    thread_bytes: float = 0.0
    thread_items: float = 0.0
    #: The same, of all processors in total.
    shared_products: float = 0.0
    shared_bytes: float = 0.0
    shared_items: float = 0.0
    longest_bytes: float = 0.0  # those of `shared_bytes` that a single thread processes while others wait
    seconds: float = 0.0  # fixed time: processes, contexts, compilers
    pinned_bytes: float = 0.0  # host memory pinned by one thread, concurrently with the rest of the step
    beside: float = 0.0  # seconds of another process, concurrent with the rest of the step

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def __rmul__(self, times: float) -> Work:
        return Work(*(times * getattr(self, one.name) for one in fields(self)))


@dataclass(frozen=True)
class Rates:
    """Amount of work that a machine does per second, and its latencies."""

    product: float  # 16-bit operations of a large matrix product
    #: Share of that rate reached by the search, by the number of features, ascending.
    search_share: tuple[tuple[int, float], ...]
    #: Per second: float64 operations, bytes of device memory, bytes from pinned host memory.
    measured: float
    memory: float
    link: float
    #: Seconds of the host for each.
    launch: float
    synchronization: float
    round: float
    #: Per second and thread.
    store: float
    thread_product: float
    thread_bytes: float
    thread_items: float
    n_processors: int
    network: float = 12.5e9  # bytes per second that a worker sends or receives
    pin: float = 2e9  # bytes of host memory pinned per second

    def seconds(self, work: Work, n_features: int) -> float:
        """Return the duration of some work; only the link is used concurrently with the device.

        >>> H200.seconds(Work(seconds=2.0, rounds=200), n_features=384)
        3.0
        """
        numbers, shares = zip(*self.search_share, strict=True)
        search = self.product * float(np.interp(n_features, numbers, shares))
        device = work.products / search + work.measured / self.measured + work.device_bytes / self.memory
        starting = work.launches * self.launch + work.synchronizations * self.synchronization
        thread = work.thread_products / self.thread_product + work.thread_bytes / self.thread_bytes
        thread += work.thread_items / self.thread_items + work.store_bytes / self.store
        shared = work.shared_products / self.thread_product + work.shared_items / self.thread_items
        shared += max(work.shared_bytes, self.n_processors * work.longest_bytes) / self.thread_bytes
        spent = max(device, work.link_bytes / self.link) + starting + work.rounds * self.round + thread
        spent += work.network_bytes / self.network
        return max(spent + shared / self.n_processors + work.seconds, work.pinned_bytes / self.pin, work.beside)


#: An H200 with 16 processors. Predictions of a model (± 25 %), not measurements.
H200 = Rates(
    product=790e12, search_share=((128, 0.57), (384, 0.66), (1024, 0.76)), measured=10e12, memory=4.8e12, link=55e9,
    launch=10e-6, synchronization=50e-6, round=5e-3, store=1.15e9, thread_product=1e11, thread_bytes=5e9,
    thread_items=2e7, n_processors=16,
)  # fmt: skip
