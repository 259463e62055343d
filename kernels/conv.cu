// Convolutions in f32 (src/ops/conv.rs, direct_conv.rs, depthwise.rs): any kernel, stride, padding,
// dilation and groups, with bias, a sum and a ReLU behind. Letters: B pictures, C channels, O
// channels out, G groups, P = H'·W' places out, D = C/G · kernel² depth of a sum.
//
// convolve_window, convolve_point: the matrix product weights [O/G, D] · values [D, B·P] whose
//   second factor is read from the map where it lies. Grid (⌈B·P/64⌉, G·⌈(O/G)/64⌉, S), block 128:
//   a block makes 64 × 64 numbers, a thread 8 × 4 of them in registers, with three 16-byte loads of
//   shared memory for 64 FLOP, and 8 KiB from a cache for 131 kFLOP of the block. Two tiles: one is
//   computed while the next is on its way. `point` is the 1 × 1 of stride 1 whose places come in
//   fours: its values travel as the weights do, 16 bytes at a time, past the registers.
//   A map with too few places to fill a card has its depth cut into S parts, each in memory of its
//   own, added up in their order by finish_sums.
// depthwise: grid (⌈P/256⌉, O, B), block 256: a thread makes one place; a warp's reads overlap but
//   for their first row and lie in L1.
//
// ResNet-18 up to layer 3 at 256 × 256, one picture: 3.7 GFLOP, 55 µs at 67 TFLOP/s; weights 11 MB,
// 4 µs at 3.0 TB/s. The largest layer, 64 → 64 on 64 × 64: 302 MFLOP, 4.5 µs, 2.2 MB.
// A depthwise 7 × 7 on 128 · 32²: 12.8 MFLOP and 1.1 MB: 0.4 µs.
#include "common.cuh"

constexpr int TILE = 64;
constexpr int STEP = 16;  // of the depth
constexpr int THREADS = 128;
constexpr int ACROSS = 16;  // threads side by side along the places, 4 of them each
constexpr int PLACE_THREADS = 256;

struct Conv {
    const float* from;      // [B, C, H, W]
    const float* weights;   // [G, D', O'], D' and O' = D and O/G up to multiples of STEP and TILE
    const int* taps;        // [2, D']: offset in the map; row above, column below 2¹⁶
    const float* bias;      // [O]
    const float* residual;  // [B, O, P] or null
    float* to;              // [B, O, P], or [S, B, O, P] where S > 1
    int images;
    int c_in;
    int height;
    int width;
    int c_out;
    int out_height;
    int out_width;
    int groups;
    int depth;
    int stride;
    int padding;
    int steps_each;  // of a part of the depth
    float slope;     // of what is negative in the end: 1 none, 0 ReLU
};

__device__ __forceinline__ float activate(float x, float slope) {
    if (x < 0.0f) return slope == 0.0f ? 0.0f : slope * x;
    return x;
}

// What of the map a thread brings to a tile: one place, every second step of the depth.
struct Window {
    static constexpr int COUNT = STEP * TILE / THREADS;
    const float* corner;  // of the place's window; not always in the map
    int row;
    int column;
    float values[COUNT];

    __device__ __forceinline__ Window(const Conv& conv, int group, int first_place) {
        const int places = conv.out_height * conv.out_width;
        const int at = first_place + static_cast<int>(threadIdx.x) % TILE;
        const int image = at / places, place = at % places;
        const bool there = image < conv.images;
        // A place that does not exist has its window below the map.
        row = there ? place / conv.out_width * conv.stride - conv.padding : 1 << 20;
        column = place % conv.out_width * conv.stride - conv.padding;
        const size_t plane = static_cast<size_t>(there ? image : 0) * conv.c_in +
                             static_cast<size_t>(group) * (conv.c_in / conv.groups);
        corner = conv.from + plane * conv.height * conv.width +
                 (static_cast<ptrdiff_t>(there ? row : 0) * conv.width + column);
    }

    __device__ __forceinline__ void fetch(const Conv& conv, int step) {
        const int depth = ceil_div(conv.depth, STEP) * STEP;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const int d = step * STEP + static_cast<int>(threadIdx.x) / TILE + i * (THREADS / TILE);
            const int offset = __ldg(conv.taps + d);
            const int tap = __ldg(conv.taps + depth + d);
            const int y = row + (tap >> 16), x = column + (tap & 0xffff);
            const bool inside = 0 <= y && y < conv.height && 0 <= x && x < conv.width;
            values[i] = inside ? __ldg(corner + offset) : 0.0f;
        }
    }

    __device__ __forceinline__ void store(float (&tile)[STEP][TILE]) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const int d = static_cast<int>(threadIdx.x) / TILE + i * (THREADS / TILE);
            tile[d][threadIdx.x % TILE] = values[i];
        }
    }
};

__device__ __forceinline__ void copy_weights(const float* __restrict__ own, int stride, int step,
                                             float (&tile)[STEP][TILE]) {
#pragma unroll
    for (int i = 0; i < STEP * TILE / 4 / THREADS; i++) {
        const int d = static_cast<int>(threadIdx.x) / ACROSS + i * (THREADS / ACROSS);
        const int o = static_cast<int>(threadIdx.x) % ACROSS * 4;
        copy_async_16(&tile[d][o], own + static_cast<size_t>(step * STEP + d) * stride + o, true);
    }
}

__device__ __forceinline__ void copy_values(const Conv& conv, int group, int first_place, int step,
                                            float (&tile)[STEP][TILE]) {
    const int places = conv.out_height * conv.out_width;
    const int column = static_cast<int>(threadIdx.x) % ACROSS * 4;
    const int image = (first_place + column) / places, place = (first_place + column) % places;
#pragma unroll
    for (int i = 0; i < STEP * TILE / 4 / THREADS; i++) {
        const int d = static_cast<int>(threadIdx.x) / ACROSS + i * (THREADS / ACROSS);
        const int channel = step * STEP + d;
        const bool there = image < conv.images && channel < conv.depth;
        const size_t plane =
            static_cast<size_t>(image) * conv.c_in + group * (conv.c_in / conv.groups) + channel;
        const size_t offset = there ? plane * places + place : 0;
        copy_async_16(&tile[d][column], conv.from + offset, there);
    }
}

// 8 channels by 4 places, their channels 4 and 4 in the tile's halves.
__device__ __forceinline__ void multiply(const float (&weights)[STEP][TILE],
                                         const float (&values)[STEP][TILE], float (&sums)[8][4]) {
    const int across = static_cast<int>(threadIdx.x) % ACROSS * 4;
    const int down = static_cast<int>(threadIdx.x) / ACROSS * 4;
#pragma unroll
    for (int d = 0; d < STEP; d++) {
        const float4 upper = *reinterpret_cast<const float4*>(&weights[d][down]);
        const float4 lower = *reinterpret_cast<const float4*>(&weights[d][TILE / 2 + down]);
        const float4 value = *reinterpret_cast<const float4*>(&values[d][across]);
        const float w[8] = {upper.x, upper.y, upper.z, upper.w, lower.x, lower.y, lower.z, lower.w};
        const float v[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
        for (int o = 0; o < 8; o++) {
#pragma unroll
            for (int p = 0; p < 4; p++) sums[o][p] = fmaf(w[o], v[p], sums[o][p]);
        }
    }
}

// Writes a thread's sums: finished, or as they are where they are a part.
__device__ __forceinline__ void store_sums(const Conv& conv, int group, int first_channel,
                                           int first_place, const float (&sums)[8][4]) {
    const int places = conv.out_height * conv.out_width;
    const int c_out = conv.c_out / conv.groups;
    const int at = first_place + static_cast<int>(threadIdx.x) % ACROSS * 4;
    const int down = static_cast<int>(threadIdx.x) / ACROSS * 4;
    const bool part = gridDim.z > 1;
    const size_t all = static_cast<size_t>(conv.images) * conv.c_out * places;
    float* const to = conv.to + (part ? blockIdx.z * all : 0);
    // Of four places that begin at a multiple of four either all are there, or none.
    const bool whole = places % 4 == 0 && is_aligned_16(conv.to) && is_aligned_16(conv.residual);
#pragma unroll
    for (int o = 0; o < 8; o++) {
        const int own = first_channel + (o < 4 ? down + o : TILE / 2 + down + o - 4);
        if (own >= c_out) continue;
        const int channel = group * c_out + own;
        const float bias = part ? 0.0f : __ldg(conv.bias + channel);
        float finished[4];
        size_t index[4];
        bool there[4];
#pragma unroll
        for (int p = 0; p < 4; p++) {
            const int image = (at + p) / places, place = (at + p) % places;
            there[p] = image < conv.images;
            index[p] = (static_cast<size_t>(image) * conv.c_out + channel) * places + place;
            finished[p] = sums[o][p];
        }
        if (whole) {
            if (!there[0]) continue;
            if (!part) {
                float other[4] = {};
                if (conv.residual != nullptr) unpack(load_16(conv.residual + index[0]), other);
#pragma unroll
                for (int p = 0; p < 4; p++) {
                    finished[p] = activate(finished[p] + bias + other[p], conv.slope);
                }
            }
            *reinterpret_cast<float4*>(to + index[0]) =
                make_float4(finished[0], finished[1], finished[2], finished[3]);
            continue;
        }
#pragma unroll
        for (int p = 0; p < 4; p++) {
            if (!there[p]) continue;
            if (!part) {
                const float other =
                    conv.residual != nullptr ? __ldg(conv.residual + index[p]) : 0.0f;
                finished[p] = activate(finished[p] + bias + other, conv.slope);
            }
            to[index[p]] = finished[p];
        }
    }
}

template <bool POINT>
__device__ __forceinline__ void convolve(const Conv& conv) {
    SHARED(float, weights, [2][STEP][TILE]);
    SHARED(float, values, [2][STEP][TILE]);
    const int tiles = ceil_div(conv.c_out / conv.groups, TILE);
    const int group = static_cast<int>(blockIdx.y) / tiles;
    const int first_channel = static_cast<int>(blockIdx.y) % tiles * TILE;
    const int first_place = static_cast<int>(blockIdx.x) * TILE;
    const int steps = ceil_div(conv.depth, STEP), stride = tiles * TILE;
    const float* const own =
        conv.weights + static_cast<size_t>(group) * steps * STEP * stride + first_channel;
    const int first = static_cast<int>(blockIdx.z) * conv.steps_each;
    const int end = first + conv.steps_each < steps ? first + conv.steps_each : steps;
    Window window(conv, group, first_place);
    float sums[8][4] = {};

    copy_weights(own, stride, first, weights[0]);
    if constexpr (POINT) {
        copy_values(conv, group, first_place, first, values[0]);
    } else {
        window.fetch(conv, first);
        window.store(values[0]);
    }
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    for (int step = first; step < end; step++) {
        const int now = (step - first) % 2;
        const bool more = step + 1 < end;
        if (more) {
            // That tile was read before the last barrier.
            copy_weights(own, stride, step + 1, weights[1 - now]);
            if constexpr (POINT) {
                copy_values(conv, group, first_place, step + 1, values[1 - now]);
            } else {
                window.fetch(conv, step + 1);
            }
            copy_async_commit();
        }
        multiply(weights[now], values[now], sums);
        if (more) {
            if constexpr (!POINT) window.store(values[1 - now]);
            copy_async_wait<0>();
            __syncthreads();
        }
    }
    store_sums(conv, group, first_channel, first_place, sums);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    convolve_window(const __grid_constant__ Conv conv) {
    convolve<false>(conv);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    convolve_point(const __grid_constant__ Conv conv) {
    convolve<true>(conv);
}

// Grid (⌈B·O·P/256⌉), block 256: one number a thread.
extern "C" __global__ void __launch_bounds__(PLACE_THREADS)
    finish_sums(const float* __restrict__ parts /* [S, B, O, P] */,
                const float* __restrict__ bias /* [O] */,
                const float* __restrict__ residual /* [B, O, P] or null */,
                float* __restrict__ to /* [B, O, P] */, int part_count, int count, int c_out,
                int places, float slope) {
    const int i = static_cast<int>(blockIdx.x) * PLACE_THREADS + static_cast<int>(threadIdx.x);
    if (i >= count) return;
    float sum = 0.0f;
    for (int s = 0; s < part_count; s++) sum += __ldg(parts + static_cast<size_t>(s) * count + i);
    sum += __ldg(bias + i / places % c_out);
    if (residual != nullptr) sum += __ldg(residual + i);
    to[i] = activate(sum, slope);
}

// One channel in for each group; O/G channels out read it.
extern "C" __global__ void __launch_bounds__(PLACE_THREADS)
    depthwise(const __grid_constant__ Conv conv, int kernel, int dilation) {
    const int i = static_cast<int>(blockIdx.x) * PLACE_THREADS + static_cast<int>(threadIdx.x);
    const int places = conv.out_height * conv.out_width;
    if (i >= places) return;
    const int channel = static_cast<int>(blockIdx.y);
    const size_t image = blockIdx.z;
    const int c_in = channel / (conv.c_out / conv.groups);
    const float* const from =
        conv.from + (image * conv.c_in + c_in) * conv.height * conv.width;
    const float* const weights = conv.weights + static_cast<size_t>(channel) * kernel * kernel;
    const int row = i / conv.out_width * conv.stride - conv.padding;
    const int column = i % conv.out_width * conv.stride - conv.padding;
    float sum = 0.0f;
    for (int dy = 0; dy < kernel; dy++) {
        const int y = row + dy * dilation;
        if (y < 0 || conv.height <= y) continue;
        for (int dx = 0; dx < kernel; dx++) {
            const int x = column + dx * dilation;
            if (x < 0 || conv.width <= x) continue;
            sum = fmaf(__ldg(weights + dy * kernel + dx), __ldg(from + y * conv.width + x), sum);
        }
    }
    const size_t at = (image * conv.c_out + channel) * places + i;
    sum += __ldg(conv.bias + channel);
    if (conv.residual != nullptr) sum += __ldg(conv.residual + at);
    conv.to[at] = activate(sum, conv.slope);
}
