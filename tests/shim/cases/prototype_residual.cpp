#include "../cases.h"
#include "common.cuh"

namespace prototype_residual {
#include "prototype_residual.cu"
}

namespace prototype_residual_cases {

using namespace prototype_residual;
using cases::Buffer;

static void residual(int images, int count, int length) {
    const char* const what = "prototype residual";
    const auto x = cases::noise(size_t(images) * length, 6);
    const auto p = cases::noise(size_t(count) * length, 7);
    std::vector<double> want;
    for (int b = 0; b < images; b++) {
        double least = INFINITY;
        int nearest = 0;
        for (int k = 0; k < count; k++) {
            double sum = 0;
            for (int i = 0; i < length; i++) {
                const double apart = double(x[size_t(b) * length + i]) - p[size_t(k) * length + i];
                sum += apart * apart;
            }
            if (sum < least) {
                least = sum;
                nearest = k;
            }
        }
        for (int i = 0; i < length; i++) {
            const float apart = x[size_t(b) * length + i] - p[size_t(nearest) * length + i];
            want.push_back(std::fabs(apart));
        }
    }
    const unsigned part_count = cases::ceil_div(length, PART);
    Buffer<float> maps(x), prototypes(p), parts(size_t(images) * count * part_count), to(x.size());
    cases::launch(what, map_distances, dim3(part_count, cases::ceil_div(images, MAPS)),
                  dim3(THREADS), 0, maps.at, prototypes.at, parts.at, images, count, length);
    cases::launch(what, map_residuals, dim3(2, images), dim3(THREADS), 0, maps.at, prototypes.at,
                  parts.at, static_cast<int>(part_count), count, length, to.at);
    cases::expect_close(to, want, 0, what);
}

void run() {
    residual(5, 3, 2052);
    residual(1, 34, 2049);
    residual(4, 1, 31);
    residual(1, 9, 1);
}

}  // namespace prototype_residual_cases
