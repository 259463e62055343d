#include "../cases.h"
#include "common.cuh"

namespace smooth_upsample {
#include "smooth_upsample.cu"
}

namespace smooth_upsample_cases {

using namespace smooth_upsample;
using cases::Buffer;

// A matrix [to, from] that is not 0 at `taps` places of a row.
struct Band {
    int taps;
    std::vector<int> starts;
    std::vector<float> weights;  // [to, taps]

    Band(int from, int to, int taps, unsigned seed) : taps(std::min(taps, from)) {
        weights = cases::noise(size_t(to) * this->taps, seed);
        for (int i = 0; i < to; i++) {
            const int centre = static_cast<int>(int64_t(i) * from / to) - this->taps / 2;
            starts.push_back(std::max(0, std::min(centre, from - this->taps)));
        }
    }
};

struct Size {
    int height, width, taps;
};

static void fused(int images, int height, int width, const std::vector<Size>& sizes) {
    const char* const what = "levels fused";
    std::vector<Buffer<float>*> floats;
    std::vector<Buffer<int>*> whole;
    const auto kept = [&](const std::vector<float>& values) {
        floats.push_back(new Buffer<float>(values));
        return floats.back()->at;
    };
    const auto kept_whole = [&](const std::vector<int>& values) {
        whole.push_back(new Buffer<int>(values));
        return whole.back()->at;
    };
    Levels levels = {};
    std::vector<double> wants[2];
    for (int multiplied = 0; multiplied < 2; multiplied++) {
        wants[multiplied].resize(size_t(images) * height * width, multiplied);
    }
    int span = 0;
    for (size_t l = 0; l < sizes.size(); l++) {
        const auto [h, w, taps] = sizes[l];
        const Band rows(h, height, taps, 10), columns(w, width, taps, 11);
        const auto values = cases::noise(size_t(images) * h * w, static_cast<unsigned>(l));
        std::vector<float> turned;
        for (int k = 0; k < columns.taps; k++) {
            for (int x = 0; x < width; x++) turned.push_back(columns.weights[x * columns.taps + k]);
        }
        levels.levels[l] = Level{kept(values),
                                 kept_whole(rows.starts),
                                 kept(rows.weights),
                                 kept_whole(columns.starts),
                                 kept(turned),
                                 h,
                                 w,
                                 rows.taps,
                                 columns.taps};
        for (int left = 0; left < width; left += COLUMNS) {
            const int right = std::min(left + COLUMNS, width) - 1;
            span = std::max(span, columns.starts[right] + columns.taps - columns.starts[left]);
        }
        for (int i = 0; i < images * height * width; i++) {
            const int b = i / (height * width), y = i / width % height, x = i % width;
            double sum = 0;
            for (int j = 0; j < rows.taps; j++) {
                for (int k = 0; k < columns.taps; k++) {
                    const size_t at =
                        (size_t(b) * h + rows.starts[y] + j) * w + columns.starts[x] + k;
                    sum += double(rows.weights[y * rows.taps + j]) *
                           columns.weights[x * columns.taps + k] * values[at];
                }
            }
            wants[0][i] += sum;
            wants[1][i] *= sum;
        }
    }
    for (int multiplied = 0; multiplied < 2; multiplied++) {
        Buffer<float> map(wants[0].size());
        const dim3 grid(cases::ceil_div(width, COLUMNS), cases::ceil_div(height, ROWS), images);
        cases::launch(what, fuse_levels, grid, dim3(COLUMNS), size_t(span) * ROWS * 4, levels,
                      static_cast<int>(sizes.size()), multiplied, map.at, height, width);
        cases::expect_close(map, wants[multiplied], 1e-4, what);
    }
    for (auto* buffer : floats) delete buffer;
    for (auto* buffer : whole) delete buffer;
}

void run() {
    fused(1, 33, 131, {{5, 17, 4}, {33, 131, 9}, {1, 1, 1}});
    fused(2, 5, 1, {{3, 7, 2}, {2, 1, 1}});
}

}  // namespace smooth_upsample_cases
