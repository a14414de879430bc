// SPDX-License-Identifier: Apache-2.0
// The test vectors of a package: does this machine give the answers of the validated runtime?
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "classifier.hpp"
#include "version.hpp"

namespace cifar_deploy {
inline namespace CIFAR_DEPLOY_NAMESPACE {

struct SelfTest {
    bool passed = false;
    std::size_t images = 0;
    double largest_difference = 0;  // of a logit, over all images
    std::string text;               // "PASS ..." or "FAIL: image 7 ...", for people
};

namespace detail {

// `home`: the folder that holds the vectors.
inline SelfTest run_vectors(Classifier& classifier, const std::filesystem::path& home) {
    const Manifest& manifest = classifier.manifest();
    const std::size_t count = manifest.vectors_count;
    if (count == 0) {
        fail(ErrorCode::not_found,
             classifier.folder() +
                 " holds no test vectors (vectors_count); package the model again");
    }
    const std::size_t pixels = manifest.height * manifest.width * 3;
    const std::size_t images_size = product(count, pixels);
    const std::size_t logits_size = product(count * manifest.classes, sizeof(float));
    const std::string images =
        read_checked(home / "images.rgb", images_size, manifest.vectors_images_sha256);
    const std::string logits =
        read_checked(home / "logits.f32", logits_size, manifest.vectors_logits_sha256);
    if (images.size() != images_size || logits.size() != logits_size) {
        fail(ErrorCode::bad_package,
             text_of(home) +
                 " has not the sizes that manifest.txt speaks of; package the model again");
    }
    std::vector<float> wanted(count * manifest.classes);
    for (std::size_t i = 0; i < wanted.size(); ++i) {  // little-endian, on any machine
        std::uint32_t bits = 0;
        for (std::size_t byte = 0; byte < 4; ++byte) {
            bits |= std::uint32_t{static_cast<unsigned char>(logits[4 * i + byte])} << (8 * byte);
        }
        std::memcpy(&wanted[i], &bits, sizeof bits);
    }

    SelfTest result;
    const auto tolerance = [&](float logit) {
        if (manifest.precision == "fp32") return 1e-3;
        if (manifest.precision == "int8") return 0.5;
        return 0.05 * (std::max)(1.0, std::abs(static_cast<double>(logit)));
    };
    const std::size_t most = manifest.max_batch == 0 ? 32 : std::min<std::size_t>(
                                                                manifest.max_batch, 32);
    std::vector<Image> batch;
    std::vector<Prediction> predictions;
    for (std::size_t start = 0; start < count; start += batch.size()) {
        batch.resize((std::min)(most, count - start));
        predictions.resize(batch.size());
        for (std::size_t i = 0; i < batch.size(); ++i) {
            const char* image = images.data() + (start + i) * pixels;
            batch[i] = {reinterpret_cast<const std::uint8_t*>(image), manifest.width,
                        manifest.height};
        }
        classifier.classify_batch(batch, predictions);
        for (std::size_t i = 0; i < batch.size(); ++i) {
            const float* reference = wanted.data() + (start + i) * manifest.classes;
            const float* top = std::max_element(reference, reference + manifest.classes);
            std::string why;
            for (std::size_t c = 0; c < manifest.classes; ++c) {
                const double off = std::abs(static_cast<double>(predictions[i].logits[c]) -
                                            static_cast<double>(reference[c]));
                result.largest_difference = (std::max)(result.largest_difference, off);
                // Also false for what is no number.
                if (!(off <= tolerance(reference[c])) && why.empty()) {
                    why = "the logit of " + classifier.labels()[c] + " is " +
                          std::to_string(predictions[i].logits[c]) + ", not " +
                          std::to_string(reference[c]);
                }
            }
            const double lead =
                static_cast<double>(*top) - static_cast<double>(reference[predictions[i].index]);
            if (!(lead < tolerance(*top)) && why.empty()) {
                why = "it is taken for " + predictions[i].label + ", not for " +
                      classifier.labels()[static_cast<std::size_t>(top - reference)];
            }
            ++result.images;
            if (!why.empty() && result.text.empty()) {
                result.text = "FAIL: image " + std::to_string(start + i) + " differs: " + why;
            }
        }
    }
    result.passed = result.text.empty();
    if (result.passed) {
        result.text = "PASS: " + std::to_string(count) + " images, logits within " +
                      std::to_string(result.largest_difference) + " of those of " +
                      (manifest.vectors_from.empty() ? "the validated runtime"
                                                     : manifest.vectors_from);
    }
    return result;
}

}  // namespace detail

// Runs the vectors in batches. An image passes with the same top class (or a tie: two logits
// nearer to each other than the tolerance) and every logit within 1e-3 (fp32), 0.5 (int8, which
// runtimes round at different places) or 0.05 times the larger of 1 and its size. Throws Error where
// the package has no vectors, or changed ones.
inline SelfTest self_test(Classifier& classifier) {
    return detail::in_memory(
        [&] { return detail::run_vectors(classifier, classifier.valid().home / "vectors"); });
}

}  // namespace CIFAR_DEPLOY_NAMESPACE
}  // namespace cifar_deploy
