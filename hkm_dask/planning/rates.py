"""What a step keeps busy, and what a machine does of it in a second."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Work:
    """What a step keeps busy; works add, and come so many times.

    >>> (Work(products=2.0) + 3 * Work(products=1.0, launches=1)).launches
    3.0
    """

    products: float = 0.0  # operations of 16-bit products on the device: two for every coordinate of a pair
    measured: float = 0.0  # operations in float64 on the device: three for every coordinate of a measured distance
    device_bytes: float = 0.0  # read and written in its memory
    link_bytes: float = 0.0  # between host and device
    #: Between workers, one after the other: what results of all go through until one has their sum, and what one has
    #: until all do.
    network_bytes: float = 0.0
    #: Kernels started, and times that the host waits for the device.
    launches: float = 0.0
    synchronizations: float = 0.0
    rounds: float = 0.0  # times that tasks are handed out and their results taken
    store_bytes: float = 0.0  # read from and written to stores by one thread, with checksums
    #: Of one thread: operations of products, bytes it passes over, and items it sorts or chooses among.
    thread_products: float = 0.0
    thread_bytes: float = 0.0
    thread_items: float = 0.0
    #: The same, of all processors together.
    shared_products: float = 0.0
    shared_bytes: float = 0.0
    shared_items: float = 0.0
    longest_bytes: float = 0.0  # of shared ones, those of a single thread, which the others wait for
    seconds: float = 0.0  # what nothing shortens: processes, contexts, compilers
    pinned_bytes: float = 0.0  # host memory that is pinned, by one thread at a time, while the others of the step go on
    beside: float = 0.0  # seconds of another process, which the work of the step overlaps

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def __rmul__(self, times: float) -> Work:
        return Work(*(times * getattr(self, one.name) for one in fields(self)))


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second, and how long it takes to begin."""

    product: float  # 16-bit operations of a large matrix product
    #: The share of it that the search reaches, by the number of features, rising.
    search_share: tuple[tuple[int, float], ...]
    #: Operations in float64, bytes of device memory, bytes from pinned host memory.
    measured: float
    memory: float
    link: float
    #: Seconds that the host spends on each.
    launch: float
    synchronization: float
    round: float
    #: Of one thread.
    store: float
    thread_product: float
    thread_bytes: float
    thread_items: float
    n_processors: int
    network: float = 12.5e9  # bytes that one worker sends or receives
    pin: float = 2e9  # bytes of host memory that are pinned

    def seconds(self, work: Work, n_features: int) -> float:
        """Seconds of some work; only the link works beside the device.

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


#: An H200 beside 16 processors. Predictions of a model (± 25 %), not measurements.
H200 = Rates(
    product=790e12, search_share=((128, 0.57), (384, 0.66), (1024, 0.76)), measured=10e12, memory=4.8e12, link=55e9,
    launch=10e-6, synchronization=50e-6, round=5e-3, store=1.15e9, thread_product=1e11, thread_bytes=5e9,
    thread_items=2e7, n_processors=16,
)  # fmt: skip
