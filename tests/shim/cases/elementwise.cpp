#include "../cases.h"
#include "common.cuh"

namespace elementwise_kernel {
#include "elementwise.cu"
}

namespace elementwise_cases {

using namespace elementwise_kernel;
using cases::Buffer;

constexpr int BLOCK = 4 * THREADS;
// Stands where nothing is to be written.
constexpr float MARGIN = 7.0f;

// How many numbers behind an aligned address a map begins: not 0 where a thread cannot take four
// of them at once.
struct Shifts {
    int from, to;
};

// With what has to come through as it is.
static std::vector<float> numbers(size_t count, unsigned seed) {
    auto values = cases::noise(count, seed);
    if (count > 2) {
        values[0] = INFINITY;
        values[count / 2] = NAN;
        values[count - 1] = -INFINITY;
    }
    return values;
}

static std::vector<float> shifted(std::vector<float> values, int shift) {
    values.insert(values.begin(), shift, MARGIN);
    return values;
}

static void expect_made(Buffer<float>& to, std::vector<double> want, const char* what) {
    want.insert(want.begin(), to.count - want.size(), MARGIN);
    cases::expect_close_or_nan(to, want, 1e-6, what);
}

static double activated(double x, double slope) { return x < 0 ? slope == 0 ? 0 : slope * x : x; }

static void place_by_place(int count, Shifts shifts) {
    const auto first = numbers(count, 1), second = cases::noise(count, 2);
    Buffer<float> a(shifted(first, shifts.from)), b(shifted(second, shifts.from));
    const float *const x = a.at + shifts.from, *const y = b.at + shifts.from;
    const dim3 grid(cases::ceil_div(count, BLOCK)), block(THREADS);
    // Made new for each kernel, so that none finds what another made.
    const auto blank = shifted(std::vector<float>(count, MARGIN), shifts.to);
    for (const float slope : {1.0f, 0.0f, 0.125f}) {
        std::vector<double> sums, leaky;
        for (int i = 0; i < count; i++) {
            sums.push_back(activated(double(first[i]) + second[i], slope));
            leaky.push_back(activated(first[i], slope));
        }
        Buffer<float> sum(blank), one(blank);
        cases::launch("sum", add, grid, block, 0, x, y, sum.at + shifts.to, count, slope);
        expect_made(sum, sums, "sum");
        cases::launch("leaky ReLU", leaky_relu, grid, block, 0, x, one.at + shifts.to, count,
                      slope);
        expect_made(one, leaky, "leaky ReLU");
    }
    std::vector<double> products, sigmoids;
    for (int i = 0; i < count; i++) {
        products.push_back(double(first[i]) * second[i]);
        sigmoids.push_back(1 / (1 + std::exp(-double(first[i]))));
    }
    Buffer<float> product(blank), bent(blank);
    cases::launch("product", multiply, grid, block, 0, x, y, product.at + shifts.to, count);
    expect_made(product, products, "product");
    cases::launch("sigmoid", sigmoid, grid, block, 0, x, bent.at + shifts.to, count);
    expect_made(bent, sigmoids, "sigmoid");
}

static void scaled(int images, int channels, int places, Shifts shifts) {
    const int count = images * channels * places;
    const auto values = numbers(count, 3);
    const auto scales = cases::noise(channels, 4), offsets = cases::noise(channels, 5);
    for (const float slope : {1.0f, 0.0f}) {
        std::vector<double> want;
        for (int i = 0; i < count; i++) {
            const int c = i / places % channels;
            want.push_back(activated(double(scales[c]) * values[i] + offsets[c], slope));
        }
        Buffer<float> from(shifted(values, shifts.from)), scale(scales), offset(offsets);
        Buffer<float> to(shifted(std::vector<float>(count, MARGIN), shifts.to));
        cases::launch("affine", affine, dim3(cases::ceil_div(count, BLOCK)), dim3(THREADS), 0,
                      from.at + shifts.from, scale.at, offset.at, to.at + shifts.to, count,
                      channels, places, slope);
        expect_made(to, want, "affine");
    }
}

// Channels from `first` on, of `all`; the others keep what they had.
static void copied(int images, int places, int channels, int first, int all) {
    const int length = channels * places, stride = all * places;
    const auto values = numbers(size_t(images) * length, 6);
    std::vector<double> want(size_t(images) * stride, MARGIN);
    for (int i = 0; i < images * length; i++) {
        want[size_t(i / length) * stride + first * places + i % length] = values[i];
    }
    Buffer<float> from(values), to(std::vector<float>(want.size(), MARGIN));
    cases::launch("copy", copy_rows, dim3(cases::ceil_div(length, BLOCK), images), dim3(THREADS), 0,
                  from.at, to.at + first * places, length, stride);
    expect_made(to, want, "copy");
}

static void repeated(int runs, int length, int times, Shifts shifts) {
    const auto values = numbers(size_t(runs) * length, 7);
    std::vector<double> want;
    for (int run = 0; run < runs; run++) {
        for (int i = 0; i < times * length; i++) want.push_back(values[run * length + i % length]);
    }
    const int count = static_cast<int>(want.size());
    Buffer<float> from(shifted(values, shifts.from));
    Buffer<float> to(shifted(std::vector<float>(count, MARGIN), shifts.to));
    cases::launch("repeat", repeat, dim3(cases::ceil_div(count, BLOCK)), dim3(THREADS), 0,
                  from.at + shifts.from, to.at + shifts.to, count, length, times);
    expect_made(to, want, "repeat");
}

void run() {
    for (const int count : {1, 31, 1025}) place_by_place(count, {0, 0});
    for (const Shifts shifts : {Shifts{1, 0}, Shifts{0, 3}}) {
        place_by_place(33, shifts);
        scaled(2, 3, 43, shifts);
        repeated(3, 7, 13, shifts);
    }
    scaled(1, 1, 1, {0, 0});
    scaled(1, 257, 1, {0, 0});
    scaled(1, 33, 32, {0, 0});
    repeated(1, 1, 1, {0, 0});
    repeated(33, 1, 5, {0, 0});
    repeated(3, 31, 13, {0, 0});
    copied(1, 1, 1, 0, 1);
    copied(2, 31, 3, 1, 5);
    copied(2, 4, 33, 2, 35);
    copied(1, 257, 5, 1, 6);
}

}  // namespace elementwise_cases
