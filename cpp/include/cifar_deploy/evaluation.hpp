// SPDX-License-Identifier: Apache-2.0
// Accuracy on images whose classes are known: is it here what it was where the file was judged?
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "classifier.hpp"
#include "resize.hpp"
#include "sha256.hpp"
#include "version.hpp"

namespace cifar_deploy {
inline namespace CIFAR_DEPLOY_NAMESPACE {

struct Evaluation {
    bool comparable = false;  // the images are those that `cifar-deploy validate` proved the file on
    bool passed = false;      // comparable, and as many are right as then, but for the margin
    std::size_t images = 0;
    std::size_t right = 0;  // the likeliest class is the image's own
    std::string text;       // "PASS: ...", "FAIL: ..." or the accuracy alone, for people
};

// Takes image after image, in any order, and classifies them in batches; of an image it keeps its
// sha256. The classifier has to live as long.
class Evaluator {
public:
    // Throws Error.
    explicit Evaluator(Classifier& classifier)
        : classifier_(&classifier),
          resizer_(classifier.manifest().width, classifier.manifest().height),
          size_(classifier.manifest().height * classifier.manifest().width * 3) {
        const std::size_t most = classifier.max_batch();
        batch_ = (std::max)(most == 0 ? usual_batch : (std::min)(most, usual_batch),
                            classifier.manifest().min_batch);
        detail::in_memory([&] {
            pixels_.resize(detail::product(batch_, size_));
            images_.resize(batch_);
            predictions_.resize(batch_);
        });
    }

    // An image of any size, and its class by its number in labels(). Throws Error: of this image, which
    // is then not added, or of the batch that it fills, whose images are then taken for wrong.
    void add(const Image& image, std::size_t label) {
        detail::in_memory([&] { keep(image, label); });
    }

    // Of all images that were added; ends this object's use. Throws Error.
    Evaluation result() {
        return detail::in_memory([&] { return judged(); });
    }

private:
    static constexpr std::size_t usual_batch = 64;

    struct Known {
        std::size_t label;
        std::string sum;  // of the image and its label
    };

    void keep(const Image& image, std::size_t label) {
        if (label >= classifier_->labels().size()) {
            detail::fail(ErrorCode::bad_argument,
                         "class " + std::to_string(label) + " is none of the " +
                             std::to_string(classifier_->labels().size()) + " that the model knows");
        }
        detail::check_image(image, known_.size());
        std::uint8_t* const to = pixels_.data() + waiting_ * size_;
        resizer_(image, to);
        unsigned char end[4];
        for (std::size_t i = 0; i < 4; ++i) end[i] = static_cast<unsigned char>(label >> 8 * i);
        detail::Sha256 sum;
        sum.update(to, size_);
        sum.update(end, sizeof end);
        known_.push_back({label, sum.hex()});
        if (++waiting_ == batch_) run();
    }

    Evaluation judged() {
        if (waiting_ != 0) run();
        const Manifest& manifest = classifier_->manifest();
        Evaluation found;
        found.images = known_.size();
        found.right = right_;
        if (found.images == 0) {
            detail::fail(ErrorCode::bad_argument, "there are no images to judge by; add some");
        }
        found.comparable = manifest.test_count == found.images && sha256() == manifest.test_sha256;
        found.passed = found.comparable && right_ + manifest.test_margin >= manifest.test_right;
        found.text = std::to_string(found.images) + " images, " + share(right_, found.images) +
                     " right (" + std::to_string(right_) + ")";
        if (found.comparable) {
            found.text = (found.passed ? "PASS: " : "FAIL: ") + found.text + "; " +
                         std::to_string(manifest.test_right) + " were by " + manifest.test_from +
                         ", and " + std::to_string(manifest.test_margin) + " fewer are allowed";
        } else if (manifest.test_count != 0) {
            found.text += "; they are not the " + std::to_string(manifest.test_count) +
                          " images that the file was proved on (" +
                          share(manifest.test_right, manifest.test_count) + " right)";
        } else {
            found.text += "; the package does not say what the file was proved on";
        }
        return found;
    }

    static std::string share(std::size_t part, std::size_t all) {
        char text[32];
        std::snprintf(text, sizeof text, "%.2f %%",
                      100 * static_cast<double>(part) / static_cast<double>(all));
        return text;
    }

    void run() {
        const Manifest& manifest = classifier_->manifest();
        const std::size_t count = waiting_;
        const std::size_t first = known_.size() - count;
        waiting_ = 0;  // whatever comes: who goes on after an Error has these for wrong
        for (std::size_t i = 0; i < count; ++i) {
            images_[i] = {pixels_.data() + i * size_, manifest.width, manifest.height};
        }
        try {
            classifier_->classify_batch({images_.data(), count}, {predictions_.data(), count});
        } catch (const Error& error) {
            throw Error(error.code(), "of the images from " + std::to_string(first) + " on, " +
                                          error.what());
        }
        for (std::size_t i = 0; i < count; ++i) {
            right_ += predictions_[i].index == known_[first + i].label ? 1U : 0U;
        }
    }

    // Of the images with their labels, in whatever order they came: cifar-deploy's Split.set_sha256.
    std::string sha256() {
        std::sort(known_.begin(), known_.end(),
                  [](const Known& a, const Known& b) { return a.sum < b.sum; });
        detail::Sha256 sum;
        for (const Known& one : known_) {
            sum.update(reinterpret_cast<const unsigned char*>(one.sum.data()), one.sum.size());
        }
        return sum.hex();
    }

    Classifier* classifier_;
    detail::Resizer resizer_;
    std::size_t size_;  // bytes of an image as the network takes it
    std::size_t batch_;  // images that there is room for
    std::size_t waiting_ = 0;
    std::size_t right_ = 0;
    std::vector<std::uint8_t> pixels_;
    std::vector<Known> known_;
    std::vector<Image> images_;
    std::vector<Prediction> predictions_;
};

}  // namespace CIFAR_DEPLOY_NAMESPACE
}  // namespace cifar_deploy
