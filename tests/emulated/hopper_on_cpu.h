// What Hopper added, for the kernels of search_hopper.cu: clusters, barriers of shared memory that count bytes (mbarrier),
// copies of tiles (TMA), products of four warps out of shared memory (wgmma). It follows cuda_on_cpu.h.
//
// Copies come one by one, late: when no thread can go on, or now and then by chance; from the moment they are asked for
// until then their target is poison. Products are computed when they are waited for, from what shared memory holds then;
// until then their registers are poison.
struct alignas(64) TensorMap {  // what kernels.encode_tiled writes
    unsigned long long magic, address, width, n_lines, stride;
    unsigned box_width, box_lines;
    unsigned long long left[10];
};

namespace hkm {

template <> struct Describe<TensorMap> { static constexpr const char* text = "map"; };

// Not a multiple of 1024, as shared memory need not begin at one.
constexpr unsigned kSharedBase = 1024 + 384, kBarrierBytes = 8;
constexpr unsigned long long kMapMagic = 0x70616d2d726f736e, kBarrierMagic = 0xBABABABABABABABAull;

struct Barrier {
    int block;
    unsigned address;
    int count, pending;
    long long bytes;
    unsigned phase;
    int maker;
    long long made;
    bool is_fenced;
};
struct Delivery {
    TensorMap map;
    int block, column, line;
    unsigned to, barrier;
};
struct Product {
    unsigned long long a, b;
    int add;
    long long group;
};
struct Registers {  // of one lane, while products are on their way to them
    float* target;
    float values[128];
};
static std::vector<Barrier> barriers;
static std::vector<Delivery> deliveries;
static std::vector<Product> products[kMaxThreads / 32];
static unsigned long long sequence[kMaxThreads / 32];
static bool is_fenced[kMaxThreads / 32];
static Registers registers[kMaxThreads];
static int n_registers[kMaxThreads];

static unsigned char* shared_at(int block, unsigned address, int n_bytes, const char* what) {
    if (address < kSharedBase || address - kSharedBase + n_bytes > (unsigned)shared_bytes)
        fail("%s: %u bytes at the shared address %#x lie outside the %d bytes of shared memory", what, n_bytes, address, shared_bytes);
    return shared_starts[block] + (address - kSharedBase);
}

static void begin_cluster() {
    barriers.clear();
    deliveries.clear();
    for (int warp = 0; warp < (n_threads + 31) / 32; ++warp) {
        products[warp].clear();
        sequence[warp] = n_groups[warp] = 0;
        is_fenced[warp] = false;
    }
    for (int i = 0; i < n_threads; ++i) {
        registers[i].target = nullptr;
        n_registers[i] = 65536 / block_threads / 8 * 8 < 255 ? 65536 / block_threads / 8 * 8 : 255;
    }
}

static bool has_returned(int block) {
    for (int i = 0; i < block_threads; ++i)
        if (lanes[block * block_threads + i].state != kReturned) return false;
    return true;
}

static void end_lane() {
    const int warp = current / 32;
    if (!products[warp].empty()) fail("a warp returned before it waited for its products");
    if (block_threads % 32 || !has_returned(current / block_threads)) return;
    for (const Delivery& one : deliveries)
        if (one.block == current / block_threads) fail("a block returned before a copy to its shared memory came");
    const int n_warps = block_threads / 32;
    for (int i = 1; i < n_warps; ++i) {
        const int other = warp / n_warps * n_warps + i;
        if (i % 4 && sequence[other] != sequence[other - 1]) fail("wgmma: warps of one group asked for different products");
    }
}

static Barrier& barrier_at(int block, unsigned address, const char* what) {
    if (address % kBarrierBytes) fail("%s: the barrier at %#x should lie at a multiple of 8", what, address);
    for (Barrier& one : barriers) {
        if (one.block != block || one.address != address) continue;
        unsigned long long kept;
        memcpy(&kept, shared_at(block, address, kBarrierBytes, what), kBarrierBytes);
        if (kept != kBarrierMagic) fail("%s: the barrier at %#x has been overwritten", what, address);
        if (one.maker != current && !(one.is_fenced && n_cluster_syncs > one.made))
            fail("%s: the barrier at %#x should be fenced, and blocks be synchronized, before others use it", what, address);
        return one;
    }
    fail("%s: there is no barrier at %#x", what, address);
}

static void end_phase(Barrier& barrier) {
    if (barrier.bytes >= 1 << 20 || barrier.bytes <= -(1 << 20)) fail("mbarrier: too many bytes are awaited");
    if (barrier.pending || barrier.bytes) return;
    ++barrier.phase;
    barrier.pending = barrier.count;
    for (int i = 0; i < block_threads; ++i) {
        Lane& lane = lanes[barrier.block * block_threads + i];
        if (lane.state == kWaits && lane.kind == kBarrierWait && lane.in == barrier.address) lane.state = kReady;
    }
}

static void arrive(Barrier& barrier) {
    if (has_returned(barrier.block)) fail("mbarrier.arrive: the block has returned whose barrier it is");
    if (!barrier.pending) fail("mbarrier.arrive: more arrivals than the %d of a phase", barrier.count);
    --barrier.pending;
    end_phase(barrier);
}

static unsigned swizzled(unsigned address) { return address ^ (address >> 7 & 7) << 4; }

// Brings one of the copies that are on their way; false if there are none.
static bool deliver_one(unsigned which) {
    if (deliveries.empty()) return false;
    const Delivery one = deliveries[which % deliveries.size()];
    deliveries.erase(deliveries.begin() + which % deliveries.size());
    for (unsigned line = 0; line < one.map.box_lines; ++line)
        for (unsigned column = 0; column < one.map.box_width; ++column) {
            const unsigned long long x = one.column + (long long)column, y = one.line + (long long)line;
            unsigned short value = 0;
            if (x < one.map.width && y < one.map.n_lines)
                value = ((const unsigned short*)(one.map.address + y * one.map.stride))[x];
            const unsigned at = swizzled(one.to + 2 * (line * one.map.box_width + column));
            memcpy(shared_at(one.block, at, 2, "TMA"), &value, 2);
        }
    Barrier& barrier = barrier_at(one.block, one.barrier, "TMA");
    barrier.bytes -= 2ll * one.map.box_width * one.map.box_lines;
    end_phase(barrier);
    return true;
}

static void load(unsigned to, const TensorMap* map, unsigned barrier, int column, int line, unsigned blocks) {
    if (map->magic != kMapMagic) fail("TMA: the tensor map should be what cuTensorMapEncodeTiled wrote");
    if ((uintptr_t)map % 64) fail("TMA: the tensor map should lie at a multiple of 64");
    if (to % 1024) fail("TMA: swizzled lines should begin at a multiple of 1024 bytes, not at %#x", to);
    for (int block = 0; block < cluster_size; ++block) {
        if (!(blocks >> block & 1)) continue;
        if (has_returned(block)) fail("TMA: the block has returned into whose shared memory it copies");
        memset(shared_at(block, to, 2 * map->box_width * map->box_lines, "TMA"), kPoison, 2 * map->box_width * map->box_lines);
        barrier_at(block, barrier, "TMA");
        deliveries.push_back({*map, block, column, line, to, barrier});
    }
}

// Reads line and coordinate of a matrix that a descriptor describes.
static float operand(int block, unsigned long long matrix, int line, int k) {
    const unsigned start = (matrix & 0x3fff) << 4, next = (matrix >> 32 & 0x3fff) << 4;
    const unsigned at = swizzled(start + line / 8 * next + line % 8 * 128 + 2 * k);
    unsigned short bits;
    memcpy(&bits, shared_at(block, at, 2, "wgmma"), 2);
    return half_to_float(bits);
}

static void check_descriptor(unsigned long long matrix) {
    if (matrix >> 62 != 1) fail("wgmma: the descriptor %#llx should be of 128-byte swizzle", matrix);
    if ((matrix >> 16 & 0x3fff) != 1) fail("wgmma: the leading offset of the descriptor %#llx should be 1", matrix);
    if (matrix & 0xc000c000 || matrix >> 46 & 0xffff) fail("wgmma: the descriptor %#llx has bits that should be 0", matrix);
    if ((matrix & 0x3fff) << 4 & 0x380) fail("wgmma: the matrix of the descriptor %#llx should begin in the first line of its swizzle", matrix);
}

// Computes what a warp has asked for, up to a group; gives it its registers back when nothing is left.
static void settle_products(int warp, long long n_done) {
    const int block = warp * 32 / block_threads, quarter = warp % 4;
    size_t n = 0;
    for (; n < products[warp].size() && products[warp][n].group < n_done; ++n) {
        const Product& product = products[warp][n];
        static float a[16][16], b[16][256];
        for (int k = 0; k < 16; ++k) {
            for (int line = 0; line < 16; ++line) a[line][k] = operand(block, product.a, quarter * 16 + line, k);
            for (int line = 0; line < 256; ++line) b[k][line] = operand(block, product.b, line, k);
        }
        for (int line = 0; line < 16; ++line) {
            double sum[256];
            for (int j = 0; j < 256; ++j)
                sum[j] = product.add ? registers[warp * 32 + line % 8 * 4 + j % 8 / 2].values[j / 8 * 4 + line / 8 * 2 + j % 2] : 0.0;
            for (int k = 0; k < 16; ++k)
                for (int j = 0; j < 256; ++j) sum[j] += (double)a[line][k] * b[k][j];
            for (int j = 0; j < 256; ++j)
                registers[warp * 32 + line % 8 * 4 + j % 8 / 2].values[j / 8 * 4 + line / 8 * 2 + j % 2] = __double2float_rz(sum[j]);
        }
    }
    products[warp].erase(products[warp].begin(), products[warp].begin() + n);
    if (!products[warp].empty()) return;
    for (int i = warp * 32; i < warp * 32 + 32; ++i) {
        if (registers[i].target) {
            memcpy(registers[i].target, registers[i].values, sizeof registers[i].values);
            is_fenced[warp] = false;
        }
        registers[i].target = nullptr;
    }
}

static void ask_for_product(Lane* lanes_of_warp) {
    const int warp = (lanes_of_warp - lanes) / 32;
    const Product product = {lanes_of_warp[0].in, lanes_of_warp[0].out, lanes_of_warp[0].from, n_groups[warp]};
    if (!is_fenced[warp]) fail("wgmma: registers were used since the last wgmma.fence");
    check_descriptor(product.a);
    check_descriptor(product.b);
    sequence[warp] = (sequence[warp] + product.a * 31 + product.b * 17 + product.add + 1) * 0x9E3779B97F4A7C15ull;
    for (int i = 0; i < 32; ++i) {
        const Lane& lane = lanes_of_warp[i];
        Registers& kept = registers[warp * 32 + i];
        if (lane.in != product.a || lane.out != product.b || lane.from != product.add) fail("wgmma: lanes of a warp differ");
        if (kept.target && kept.target != lane.d) fail("wgmma: the emulator knows one set of registers at a time");
        if (!kept.target) memcpy(kept.values, lane.d, sizeof kept.values);
        kept.target = lane.d;
        memset(lane.d, 0xFF, sizeof kept.values);
    }
    products[warp].push_back(product);
}

static void change_registers(int n, bool more) {
    if (n % 8 || n < 24 || n > 256) fail("setmaxnreg: %d registers should be a multiple of 8 from 24 to 256", n);
    if (more ? n < n_registers[current] : n > n_registers[current])
        fail("setmaxnreg: %d registers to %d is the other way", n_registers[current], n);
    const int first = current / block_threads * block_threads, pool = 65536 / block_threads / 8 * 8 * block_threads;
    for (;;) {
        int sum = n - n_registers[current];
        for (int i = 0; i < block_threads; ++i) sum += n_registers[first + i];
        if (sum <= pool) break;
        lanes[current].state = kWaits;
        lanes[current].kind = kRegisters;
        wait_for_others();
    }
    n_registers[current] = n;
    for (int i = 0; i < block_threads; ++i)
        if (lanes[first + i].state == kWaits && lanes[first + i].kind == kRegisters) lanes[first + i].state = kReady;
    meet(kSyncWarp, ~0u);
}

}  // namespace hkm

// -- what search_hopper.cu writes as PTX on a GPU --------------------------------------------------------------------

inline unsigned shared_address(const void* shared) {
    if (!hkm::is_shared(shared, 1)) hkm::fail("shared_address: the address is not in shared memory");
    return hkm::kSharedBase + (unsigned)((const unsigned char*)shared - hkm::shared_start);
}
inline void barrier_init(unsigned barrier, int n_arrivals) {
    const int block = hkm::current / hkm::block_threads;
    unsigned char* at = hkm::shared_at(block, barrier, hkm::kBarrierBytes, "mbarrier.init");
    if (n_arrivals < 1) hkm::fail("mbarrier.init: %d arrivals should be positive", n_arrivals);
    if (barrier % hkm::kBarrierBytes) hkm::fail("mbarrier.init: the barrier at %#x should lie at a multiple of 8", barrier);
    memcpy(at, &hkm::kBarrierMagic, hkm::kBarrierBytes);
    for (const hkm::Barrier& one : hkm::barriers)
        if (one.block == block && one.address == barrier) hkm::fail("mbarrier.init: there is a barrier at %#x", barrier);
    hkm::barriers.push_back({block, barrier, n_arrivals, n_arrivals, 0, 0, hkm::current, hkm::n_cluster_syncs, false});
}
inline void barrier_init_fence() {
    for (hkm::Barrier& one : hkm::barriers)
        if (one.maker == hkm::current) one.is_fenced = true;
}
inline void barrier_wait(unsigned barrier, unsigned parity) {
    if (parity > 1) hkm::fail("mbarrier.try_wait: the parity %u should be 0 or 1", parity);
    hkm::Lane& me = hkm::lanes[hkm::current];
    while ((hkm::barrier_at(hkm::current / hkm::block_threads, barrier, "mbarrier.try_wait").phase & 1) == parity) {
        me.state = hkm::kWaits;
        me.kind = hkm::kBarrierWait;
        me.in = barrier;
        hkm::wait_for_others();
    }
}
inline void barrier_expect(unsigned barrier, unsigned n_bytes) {
    hkm::Barrier& own = hkm::barrier_at(hkm::current / hkm::block_threads, barrier, "mbarrier.arrive.expect_tx");
    own.bytes += n_bytes;
    hkm::arrive(own);
}
inline void barrier_arrive(unsigned barrier, unsigned block) {
    if (block >= (unsigned)hkm::cluster_size) hkm::fail("mapa: the cluster has no block %u", block);
    hkm::arrive(hkm::barrier_at(block, barrier, "mbarrier.arrive"));
}
inline void cluster_sync() { hkm::meet_cluster(); }
inline void load_tile(unsigned to, const TensorMap* matrix, unsigned barrier, int column, int line) {
    hkm::load(to, matrix, barrier, column, line, 1u << hkm::current / hkm::block_threads);
}
inline void load_tile_for_both(unsigned to, const TensorMap* matrix, unsigned barrier, int column, int line) {
    if (hkm::cluster_size != 2) hkm::fail("load_tile_for_both: the cluster should have two blocks");
    hkm::load(to, matrix, barrier, column, line, 3);
}
template <int N> void decrease_registers() { hkm::change_registers(N, false); }
template <int N> void increase_registers() { hkm::change_registers(N, true); }
inline void products_begin() {
    hkm::meet(hkm::kSyncWarp, ~0u);
    hkm::is_fenced[hkm::current / 32] = true;
}
inline void multiply_64x256x16(float (&d)[32][4], unsigned long long a, unsigned long long b, int add) {
    hkm::Lane& me = hkm::lanes[hkm::current];
    me.d = &d[0][0];
    me.in = a;
    me.out = b;
    me.from = add != 0;
    hkm::meet(hkm::kGroupProduct, ~0u);
}
inline void products_commit() {
    hkm::lanes[hkm::current].from = 0;
    hkm::meet(hkm::kGroupCommit, ~0u);
}
template <int N> void products_wait() {
    hkm::lanes[hkm::current].from = N;
    hkm::meet(hkm::kGroupWait, ~0u);
}
inline void products_finish(float (&d)[32][4]) { products_wait<0>(); }
#line 1 "kernels.cu"
