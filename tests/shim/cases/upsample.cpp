#include <algorithm>

#include "../cases.h"
#include "common.cuh"

namespace upsample_kernel {
#include "upsample.cu"
}

namespace upsample_cases {

using namespace upsample_kernel;
using cases::Buffer;

struct Neighbours {
    int low, high;
    double weight;

    // As torch.nn.functional.interpolate has it.
    Neighbours(int i, int from, int to, bool corners) {
        const int last = from - 1;
        double at = 0;
        if (!corners) {
            at = std::fmax((i + 0.5) * from / to - 0.5, 0);
        } else if (to > 1) {
            at = double(i) * last / (to - 1);
        }
        low = std::min(static_cast<int>(at), last);
        high = std::min(low + 1, last);
        weight = at - low;
    }
};

static void resized(int planes, int height, int width, int to_height, int to_width) {
    const int places = to_height * to_width;
    auto values = cases::noise(size_t(planes) * height * width, 1);
    if (planes > 1) values[values.size() - 1] = NAN;
    const auto at = [&](int plane, int y, int x) -> double {
        return values[(size_t(plane) * height + y) * width + x];
    };
    std::vector<double> nearest_ones;
    for (int i = 0; i < planes * places; i++) {
        const int y = i % places / to_width, x = i % to_width;
        nearest_ones.push_back(at(i / places, y * height / to_height, x * width / to_width));
    }
    Buffer<float> from(values), near(nearest_ones.size());
    const dim3 grid(cases::ceil_div(places, THREADS), planes);
    cases::launch("nearest", nearest, grid, dim3(THREADS), 0, from.at, near.at, height, width,
                  to_height, to_width);
    cases::expect_close_or_nan(near, nearest_ones, 0, "nearest");
    for (const bool corners : {false, true}) {
        const char* const what = corners ? "bilinear, corners" : "bilinear";
        std::vector<double> want;
        for (int i = 0; i < planes * places; i++) {
            const int plane = i / places;
            const Neighbours row(i % places / to_width, height, to_height, corners);
            const Neighbours column(i % to_width, width, to_width, corners);
            // A neighbour of weight 0 counts all the same where it is NaN.
            const double left = at(plane, row.low, column.low) * (1 - row.weight) +
                                at(plane, row.high, column.low) * row.weight;
            const double right = at(plane, row.low, column.high) * (1 - row.weight) +
                                 at(plane, row.high, column.high) * row.weight;
            want.push_back(left * (1 - column.weight) + right * column.weight);
        }
        Buffer<float> to(want.size());
        cases::launch(what, bilinear, grid, dim3(THREADS), 0, from.at, to.at, height, width,
                      to_height, to_width, corners ? 1 : 0);
        cases::expect_close_or_nan(to, want, 1e-6, what);
    }
}

void run() {
    resized(1, 1, 1, 1, 1);
    resized(1, 1, 5, 31, 33);
    resized(2, 8, 8, 16, 16);
    resized(2, 31, 33, 7, 1);
    resized(2, 3, 257, 1, 259);
    resized(1, 33, 2, 129, 3);
}

}  // namespace upsample_cases
