#include "../cases.h"
#include "common.cuh"

namespace conv_kernel {
#include "conv.cu"
}

namespace conv_cases {

using namespace conv_kernel;
using cases::Buffer;

struct Sizes {
    int images, c_in, height, width, c_out, kernel, stride, padding, dilation, groups;
    int parts;
};

static void convolutions(const Sizes& s, bool point) {
    const char* const what = point ? "1 × 1 convolution" : "convolution";
    const int c_in = s.c_in / s.groups, c_out = s.c_out / s.groups, square = s.kernel * s.kernel;
    const int reach = s.dilation * (s.kernel - 1) + 1;
    const int height = (s.height + 2 * s.padding - reach) / s.stride + 1;
    const int width = (s.width + 2 * s.padding - reach) / s.stride + 1;
    const int places = height * width, depth = c_in * square, steps = ceil_div(depth, STEP);
    const int rows = steps * STEP, row = ceil_div(c_out, TILE) * TILE;
    const size_t count = size_t(s.images) * s.c_out * places;
    const auto values = cases::noise(size_t(s.images) * s.c_in * s.height * s.width, 1);
    const auto weights = cases::noise(size_t(s.c_out) * depth, 2);
    const auto biases = cases::noise(s.c_out, 3), others = cases::noise(count, 4);
    std::vector<float> packed(size_t(s.groups) * rows * row, 0.0f);
    for (int o = 0; o < s.c_out; o++) {
        for (int d = 0; d < depth; d++) {
            packed[(size_t(o / c_out) * rows + d) * row + o % c_out] =
                weights[size_t(o) * depth + d];
        }
    }
    std::vector<int> table(2 * size_t(rows), 0);
    for (int d = 0; d < rows; d++) {
        const int y = d % square / s.kernel * s.dilation, x = d % s.kernel * s.dilation;
        table[d] = d < depth ? (d / square * s.height + y) * s.width + x : 0;
        table[rows + d] = d < depth ? y << 16 | x : 1 << 30;
    }
    std::vector<double> want;
    for (size_t i = 0; i < count; i++) {
        const int place = int(i % places), o = int(i / places % s.c_out);
        const int image = int(i / places / s.c_out);
        double sum = biases[o] + others[i];
        for (int d = 0; d < depth; d++) {
            const int y = place / width * s.stride - s.padding + d % square / s.kernel * s.dilation;
            const int x = place % width * s.stride - s.padding + d % s.kernel * s.dilation;
            if (y < 0 || s.height <= y || x < 0 || s.width <= x) continue;
            const int channel = image * s.c_in + o / c_out * c_in + d / square;
            sum += double(weights[size_t(o) * depth + d]) *
                   values[(size_t(channel) * s.height + y) * s.width + x];
        }
        want.push_back(sum < 0 ? 0.125 * sum : sum);
    }
    Buffer<float> from(values), bias(biases), residual(others), to(count);
    Buffer<float> sums(s.parts > 1 ? s.parts * count : 0);
    Buffer<float> own(c_in == 1 && s.groups > 1 ? weights : packed);
    Buffer<int> taps(table);
    Conv conv{from.at, own.at,  taps.at, bias.at, residual.at, s.parts > 1 ? sums.at : to.at,
              s.images, s.c_in, s.height, s.width, s.c_out,    height,
              width,    s.groups, depth,  s.stride, s.padding, int(cases::ceil_div(steps, s.parts)),
              0.125f};
    if (c_in == 1 && s.groups > 1) {
        const dim3 grid(cases::ceil_div(places, PLACE_THREADS), s.c_out, s.images);
        cases::launch("depthwise", depthwise, grid, dim3(PLACE_THREADS), 0, conv, s.kernel,
                      s.dilation);
        cases::expect_close(to, want, 2e-5, "depthwise");
        return;
    }
    const unsigned columns = cases::ceil_div(size_t(s.images) * places, TILE);
    const dim3 grid(columns, s.groups * row / TILE, s.parts);
    cases::launch(what, point ? convolve_point : convolve_window, grid, dim3(THREADS), 0, conv);
    if (s.parts > 1) {
        const dim3 all(cases::ceil_div(count, PLACE_THREADS));
        cases::launch(what, finish_sums, all, dim3(PLACE_THREADS), 0, sums.at, bias.at, residual.at,
                      to.at, s.parts, int(count), s.c_out, places, 0.125f);
    }
    cases::expect_close(to, want, 2e-5, what);
}

void run() {
    convolutions({2, 3, 9, 7, 5, 7, 2, 3, 1, 1, 1}, false);
    convolutions({1, 9, 5, 6, 66, 3, 1, 2, 2, 1, 3}, false);
    convolutions({1, 6, 8, 9, 4, 3, 1, 1, 1, 2, 1}, false);
    convolutions({2, 33, 6, 6, 9, 1, 1, 0, 1, 1, 1}, true);
    convolutions({2, 40, 2, 2, 70, 1, 1, 0, 1, 1, 3}, true);
    convolutions({2, 5, 7, 31, 5, 5, 2, 2, 1, 5, 1}, false);
}

}  // namespace conv_cases
