// SPDX-License-Identifier: Apache-2.0
// What goes in and what comes out.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "version.hpp"

namespace cifar_deploy {
inline namespace CIFAR_DEPLOY_NAMESPACE {

// The bytes of a pixel, in their order. OpenCV's images are bgr.
enum class Pixels { rgb, bgr, rgba, bgra, gray };

// 8 bits a colour, row by row from the top; the bytes stay the caller's.
struct Image {
    const std::uint8_t* data = nullptr;
    std::size_t width = 0;   // pixels, 1 to 65,535
    std::size_t height = 0;  // pixels, 1 to 65,535
    Pixels pixels = Pixels::rgb;
    std::size_t stride = 0;  // bytes from a row's begin to the next one's below; 0: rows without gaps
};

namespace detail {

// exp(logit - largest): a class's share of `exp_sum`. At most 1, so that neither overflows.
inline double exp_share(float logit, float largest) {
    return std::exp(static_cast<double>(logit) - static_cast<double>(largest));
}

inline double exp_sum(const float* logits, std::size_t classes, float largest) {
    double sum = 0;  // from 1 to the number of classes
    for (std::size_t i = 0; i < classes; ++i) sum += exp_share(logits[i], largest);
    return sum;
}

}  // namespace detail

struct Prediction {
    std::string label;          // the class name
    std::size_t index = 0;      // its number
    float probability = 0;      // softmax of its logit
    std::vector<float> logits;  // of all classes, as the model gives them

    // Softmax of the logits: of all classes, in their order. Takes memory for them.
    std::vector<float> probabilities() const {
        std::vector<float> result(logits.size());
        if (result.empty()) return result;
        const float largest = *std::max_element(logits.begin(), logits.end());
        const double sum = detail::exp_sum(logits.data(), logits.size(), largest);
        for (std::size_t i = 0; i < result.size(); ++i) {
            result[i] = static_cast<float>(detail::exp_share(logits[i], largest) / sum);
        }
        return result;
    }
};

// The numbers of the `n` likeliest classes (all where there are fewer), the likeliest first, of equals
// the lower number first. Takes memory for the numbers of all classes.
inline std::vector<std::size_t> top(const Prediction& prediction, std::size_t n) {
    const std::vector<float>& logits = prediction.logits;
    std::vector<std::size_t> order(logits.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    n = (std::min)(n, order.size());
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(n), order.end(),
                      [&](std::size_t a, std::size_t b) {
                          return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
                      });
    order.resize(n);
    return order;
}

// A pointer and a count, as std::span of C++20; made from whatever has data() and size().
template <class T>
class Span {
public:
    constexpr Span() noexcept = default;
    constexpr Span(T* data, std::size_t size) noexcept : data_(data), size_(size) {}

    template <std::size_t N>
    constexpr Span(T (&array)[N]) noexcept : data_(array), size_(N) {}

    template <class Container,
              class = std::enable_if_t<std::is_convertible_v<
                  std::remove_pointer_t<decltype(std::declval<Container&>().data())> (*)[],
                  T (*)[]>>,
              class = decltype(std::declval<Container&>().size())>
    constexpr Span(Container&& container) noexcept
        : data_(container.data()), size_(container.size()) {}

    constexpr T* data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr T& operator[](std::size_t i) const noexcept { return data_[i]; }
    constexpr T* begin() const noexcept { return data_; }
    constexpr T* end() const noexcept { return data_ + size_; }

private:
    T* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace CIFAR_DEPLOY_NAMESPACE
}  // namespace cifar_deploy
