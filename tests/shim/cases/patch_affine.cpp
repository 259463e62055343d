#include "../cases.h"
#include "common.cuh"

namespace patch_affine_kernel {
#include "patch_affine.cu"
}

namespace patch_affine_cases {

using namespace patch_affine_kernel;
using cases::Buffer;

static void scaled(int images, int channels, int height, int width, int patch) {
    const char* const what = "patch affine";
    const int places = height * width;
    auto values = cases::noise(size_t(images) * channels * places, 1);
    values[values.size() / 2] = NAN;
    const auto scales = cases::noise(size_t(channels) * patch * patch, 2);
    const auto shifts = cases::noise(size_t(channels) * patch * patch, 3);
    std::vector<double> want;
    for (size_t i = 0; i < values.size(); i++) {
        const int c = static_cast<int>(i / places % channels);
        const int y = static_cast<int>(i % places) / width, x = static_cast<int>(i % width);
        const int own = c * patch * patch + y % patch * patch + x % patch;
        want.push_back(double(scales[own]) * values[i] + shifts[own]);
    }
    Buffer<float> from(values), scale(scales), shift(shifts), to(want.size());
    cases::launch(what, patch_affine, dim3(cases::ceil_div(places, THREADS), channels, images),
                  dim3(THREADS), 0, from.at, scale.at, shift.at, to.at, height, width, patch);
    cases::expect_close_or_nan(to, want, 1e-6, what);
}

void run() {
    scaled(1, 1, 1, 1, 1);
    scaled(2, 3, 6, 9, 3);
    scaled(1, 1, 31, 33, 1);
    scaled(2, 2, 4, 68, 4);
    scaled(1, 1, 257, 1, 1);
    scaled(1, 2, 15, 15, 15);
}

}  // namespace patch_affine_cases
