// SPDX-License-Identifier: Apache-2.0
// Resizing as Pillow does it (Image.resize with Resampling.BILINEAR, one side after the other), which
// `cifar-deploy predict` uses: a triangle filter, widened to the scale when an image shrinks, first
// along the rows and then along the columns, in fixed point with 8 bits between the two.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "types.hpp"
#include "version.hpp"

namespace cifar_deploy {
inline namespace CIFAR_DEPLOY_NAMESPACE {
namespace detail {

// The bytes of a pixel, and where among them the colours are.
struct Layout {
    std::size_t bytes;
    std::size_t red;
    std::size_t green;
    std::size_t blue;
};

inline Layout layout(Pixels pixels) {
    switch (pixels) {
        case Pixels::bgr: return {3, 2, 1, 0};
        case Pixels::rgba: return {4, 0, 1, 2};
        case Pixels::bgra: return {4, 2, 1, 0};
        case Pixels::gray: return {1, 0, 0, 0};
        case Pixels::rgb: break;
    }
    return {3, 0, 1, 2};
}

// Resizes to one size; keeps its memory, so that equal or smaller images need no more.
class Resizer {
public:
    Resizer(std::size_t width, std::size_t height) : across_(width), down_(height) {}

    // `from`: sides 1 to 65,535. `to`: RGB of the size given above.
    void operator()(const Image& from, std::uint8_t* to) {
        const bool lower = from.height != down_.out;
        if (lower) between_.resize(from.height * across_.out * 3);
        std::uint8_t* const narrow = lower ? between_.data() : to;
        if (from.width != across_.out) {
            rows(from, narrow);
        } else {
            copy(from, narrow);
        }
        if (lower) columns(narrow, from.height, to);
    }

private:
    static constexpr int bits = 22;  // of a weight; with 8 of a pixel and a sign they fill 32

    // The weights of one direction, kept while the input's length stays.
    struct Axis {
        explicit Axis(std::size_t length) : out(length) {}

        void prepare(std::size_t in) {
            if (in == prepared_for) return;
            const double scale = static_cast<double>(in) / static_cast<double>(out);
            const double widened = (std::max)(scale, 1.0);
            prepared_for = 0;  // should something below throw
            stride = static_cast<std::size_t>(std::ceil(widened)) * 2 + 1;
            weights.resize(out * stride);
            first.resize(out);
            count.resize(out);
            exact.resize(stride);
            for (std::size_t x = 0; x < out; ++x) {
                const double center = (static_cast<double>(x) + 0.5) * scale;
                const double from = (std::max)(center - widened + 0.5, 0.0);
                const double to = (std::min)(center + widened + 0.5, static_cast<double>(in));
                first[x] = static_cast<std::size_t>(from);
                count[x] = static_cast<std::size_t>(to) - first[x];
                double sum = 0;
                for (std::size_t i = 0; i < count[x]; ++i) {
                    const double off = static_cast<double>(i + first[x]) - center + 0.5;
                    exact[i] = (std::max)(1.0 - std::abs(off * (1.0 / widened)), 0.0);
                    sum += exact[i];
                }
                for (std::size_t i = 0; i < count[x]; ++i) {
                    const double share = sum != 0 ? exact[i] / sum : 0;
                    weights[x * stride + i] = static_cast<std::int32_t>(0.5 + share * (1 << bits));
                }
            }
            prepared_for = in;
        }

        std::size_t out;
        std::size_t prepared_for = 0;
        std::size_t stride = 0;
        std::vector<std::int32_t> weights;  // [out, stride]
        std::vector<std::size_t> first;     // the first pixel that counts, and how many do
        std::vector<std::size_t> count;
        std::vector<double> exact;
    };

    static std::uint8_t rounded(std::int32_t sum) {
        return static_cast<std::uint8_t>(std::clamp(sum >> bits, 0, 255));
    }

    static std::size_t stride(const Image& image) {
        return image.stride != 0 ? image.stride : image.width * layout(image.pixels).bytes;
    }

    static void copy(const Image& from, std::uint8_t* to) {
        const Layout pixel = layout(from.pixels);
        const std::uint8_t* row = from.data;
        for (std::size_t y = 0; y < from.height; ++y, row += stride(from)) {
            if (from.pixels == Pixels::rgb) {
                std::memcpy(to, row, from.width * 3);
                to += from.width * 3;
                continue;
            }
            for (std::size_t x = 0; x < from.width; ++x, to += 3) {
                const std::uint8_t* const at = row + x * pixel.bytes;
                to[0] = at[pixel.red];
                to[1] = at[pixel.green];
                to[2] = at[pixel.blue];
            }
        }
    }

    void rows(const Image& from, std::uint8_t* to) {
        across_.prepare(from.width);
        const Layout pixel = layout(from.pixels);
        const std::uint8_t* row = from.data;
        for (std::size_t y = 0; y < from.height; ++y, row += stride(from)) {
            for (std::size_t x = 0; x < across_.out; ++x, to += 3) {
                weighted(row + across_.first[x] * pixel.bytes, pixel.bytes, pixel, across_, x, to);
            }
        }
    }

    void columns(const std::uint8_t* from, std::size_t height, std::uint8_t* to) {
        down_.prepare(height);
        const std::size_t row = across_.out * 3;
        const Layout rgb = layout(Pixels::rgb);
        for (std::size_t y = 0; y < down_.out; ++y) {
            const std::uint8_t* top = from + down_.first[y] * row;
            for (std::size_t x = 0; x < row; x += 3, to += 3) weighted(top + x, row, rgb, down_, y, to);
        }
    }

    static void weighted(const std::uint8_t* pixel, std::size_t step, const Layout& colours,
                         const Axis& axis, std::size_t at, std::uint8_t* to) {
        std::int32_t red = 1 << (bits - 1);
        std::int32_t green = red;
        std::int32_t blue = red;
        const std::int32_t* weight = axis.weights.data() + at * axis.stride;
        for (std::size_t i = 0; i < axis.count[at]; ++i, pixel += step) {
            red += weight[i] * pixel[colours.red];
            green += weight[i] * pixel[colours.green];
            blue += weight[i] * pixel[colours.blue];
        }
        to[0] = rounded(red);
        to[1] = rounded(green);
        to[2] = rounded(blue);
    }

    Axis across_;
    Axis down_;
    std::vector<std::uint8_t> between_;
};

}  // namespace detail
}  // namespace CIFAR_DEPLOY_NAMESPACE
}  // namespace cifar_deploy
