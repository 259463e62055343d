#include "../cases.h"
#include "common.cuh"

namespace patch_features_kernel {
#include "patch_features.cu"
}

namespace patch_features_cases {

using namespace patch_features_kernel;
using cases::Buffer;

struct Side {
    int channels, height, width;
};

static void rows(int images, Side upper, Side deeper, bool with_codes) {
    const char* const what = "patch features";
    const auto count = [&](Side s) { return size_t(images) * s.channels * s.height * s.width; };
    const auto above = cases::noise(count(upper), 1), below = cases::noise(count(deeper), 2);
    const int dims = upper.channels + deeper.channels, places = upper.height * upper.width;
    const int wide = with_codes ? (dims + 31) / 32 * 32 : dims;
    // The average around place (y, x) of plane (picture, channel).
    const auto average = [](const std::vector<float>& map, Side s, size_t plane, int y, int x) {
        double sum = 0;
        for (int i = y - 1; i <= y + 1; i++) {
            for (int j = x - 1; j <= x + 1; j++) {
                if (i < 0 || i >= s.height || j < 0 || j >= s.width) continue;
                sum += map[(plane * s.height + i) * s.width + j];
            }
        }
        return sum / 9;
    };
    std::vector<double> want;
    for (int p = 0; p < images * places; p++) {
        const int picture = p / places, y = p % places / upper.width, x = p % upper.width;
        for (int c = 0; c < upper.channels; c++) {
            want.push_back(average(above, upper, size_t(picture) * upper.channels + c, y, x));
        }
        const auto look = [](int i, int from, int to) {
            return std::fmin(std::fmax((i + 0.5) * from / to - 0.5, 0), from - 1);
        };
        const double sy = look(y, deeper.height, upper.height);
        const double sx = look(x, deeper.width, upper.width);
        for (int c = 0; c < deeper.channels; c++) {
            double sum = 0;
            for (int i = 0; i < deeper.height; i++) {
                for (int j = 0; j < deeper.width; j++) {
                    const double weight =
                        std::fmax(1 - std::fabs(sy - i), 0) * std::fmax(1 - std::fabs(sx - j), 0);
                    if (weight == 0) continue;
                    const size_t plane = size_t(picture) * deeper.channels + c;
                    sum += weight * average(below, deeper, plane, i, j);
                }
            }
            want.push_back(sum);
        }
    }
    Buffer<float> from_above(above), from_below(below), to(want.size());
    Buffer<float> centre(cases::noise(dims, 3));
    Buffer<Bf16> codes(size_t(images) * places * wide);
    const dim3 grid(cases::ceil_div(places, TILE), cases::ceil_div(wide, TILE), images);
    cases::launch(what, patch_features, grid, dim3(THREADS), 0, from_above.at, from_below.at,
                  upper.channels, deeper.channels, upper.height, upper.width, deeper.height,
                  deeper.width, to.at, with_codes ? centre.at : nullptr,
                  with_codes ? codes.at : nullptr, wide);
    cases::expect_close(to, want, 1e-6, what);
    bool holds = true;
    for (size_t i = 0; with_codes && i < codes.count; i++) {
        const size_t d = i % wide;
        const float own = d < size_t(dims) ? to[i / wide * dims + d] - centre[d] : 0.0f;
        holds = holds && to_float(codes[i]) == cases::to_bf16_and_back(own);
    }
    cases::expect(holds, what, "codes");
}

void run() {
    rows(2, {5, 3, 7}, {3, 2, 4}, true);
    rows(1, {33, 5, 7}, {31, 3, 4}, false);
    rows(1, {1, 1, 33}, {1, 1, 1}, true);
}

}  // namespace patch_features_cases
