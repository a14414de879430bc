// SPDX-License-Identifier: Apache-2.0
// A classifier from a folder that `cifar-deploy package MODEL --target cpp` wrote.
//
//     auto classifier = cifar_deploy::Classifier::load("resnet18-package");
//     auto prediction = classifier.classify(rgb_pixels, width, height);
//
// Everything that can go wrong is a cifar_deploy::Error whose text says what to do; the functions
// that begin with `try_` throw nothing and return a Status.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backend.hpp"
#include "error.hpp"
#include "files.hpp"
#include "manifest.hpp"
#include "resize.hpp"
#include "types.hpp"
#include "version.hpp"

#ifdef CIFAR_DEPLOY_HAS_ONNXRUNTIME
#include "backends/onnxruntime.hpp"
#endif
#ifdef CIFAR_DEPLOY_HAS_OPENVINO
#include "backends/openvino.hpp"
#endif
#if defined(CIFAR_DEPLOY_HAS_TENSORRT) && defined(CIFAR_DEPLOY_HAS_TENSORRT_RTX)
#error "a program holds TensorRT or TensorRT for RTX, not both: their names are the same"
#endif
#if defined(CIFAR_DEPLOY_HAS_TENSORRT) || defined(CIFAR_DEPLOY_HAS_TENSORRT_RTX)
#include "backends/tensorrt.hpp"
#endif

namespace cifar_deploy {
inline namespace CIFAR_DEPLOY_NAMESPACE {

namespace detail {

constexpr std::size_t largest_image_side = 65'535;  // pixels; JPEG's limit

// By its bits: under -ffast-math a compiler takes std::isfinite to be true.
inline bool finite(float value) {
    static_assert(sizeof(float) == sizeof(std::uint32_t), "float is IEEE 754's");
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7F800000U) != 0x7F800000U;
}

// a * b; throws Error where it overflows.
inline std::size_t product(std::size_t a, std::size_t b) {
    if (b != 0 && a > (std::numeric_limits<std::size_t>::max)() / b) {
        fail(ErrorCode::bad_argument,
             "sizes of " + std::to_string(a) + " times " + std::to_string(b) +
                 " overflow; give the image's width and height in pixels");
    }
    return a * b;
}

// Throws Error unless the image, which messages call by its number, can be resized.
inline void check_image(const Image& image, std::size_t number) {
    const auto refuse = [&](const std::string& why) {
        fail(ErrorCode::bad_argument, "image " + std::to_string(number) + ": " + why);
    };
    if (image.data == nullptr) refuse("its pixels are a null pointer; give 8 bits a colour");
    if (image.width == 0 || image.height == 0) {
        refuse("its size is " + std::to_string(image.width) + " x " +
               std::to_string(image.height) + "; give width and height in pixels");
    }
    static_cast<void>(product(product(image.width, image.height), 4));
    if (image.width > largest_image_side || image.height > largest_image_side) {
        refuse("its size is " + std::to_string(image.width) + " x " +
               std::to_string(image.height) + ", and a side can have " +
               std::to_string(largest_image_side) + " pixels; make it smaller");
    }
    const std::size_t row = image.width * layout(image.pixels).bytes;
    if (image.stride > (std::numeric_limits<std::size_t>::max)() / 2) {
        refuse("its stride is negative, and its rows go downwards; give bytes from row to row, or 0");
    }
    if (image.stride != 0 && image.stride < row) {
        refuse("its rows have " + std::to_string(row) + " bytes, and its stride is " +
               std::to_string(image.stride) + "; give bytes from row to row, or 0");
    }
    static_cast<void>(product(image.stride, image.height));
}

inline std::unique_ptr<Runtime> make_runtime(const Manifest& manifest, const std::string& model,
                                             const LoadOptions& options);

// `path` from the root; as it is where the working directory is not known.
inline std::filesystem::path absolute(const std::filesystem::path& path) {
    std::error_code failure;
    auto whole = std::filesystem::absolute(path, failure);
    return failure ? path : whole;
}

}  // namespace detail

class Classifier;
struct SelfTest;
inline SelfTest self_test(Classifier& classifier);  // self_test.hpp

// Calls from several threads run one after another; for work side by side, load one a thread, each
// with LoadOptions::threads the cores divided by the classifiers.
class Classifier {
public:
    // Loads the package in `folder`, after checking that each file is the one its manifest speaks
    // of. Throws Error.
    static Classifier load(const std::string& folder, const LoadOptions& options = {}) {
        return detail::in_memory([&] { return open(folder, options); });
    }

    // From parts: for tests, and for a runtime of one's own. Throws Error where they do not fit.
    Classifier(std::string folder, Manifest manifest, std::vector<std::string> labels,
               std::unique_ptr<detail::Runtime> runtime) {
        if (!runtime || manifest.classes == 0 || labels.size() != manifest.classes ||
            manifest.height == 0 || manifest.height > detail::largest_side ||
            manifest.width == 0 || manifest.width > detail::largest_side) {
            detail::fail(ErrorCode::bad_argument,
                         "a classifier needs a runtime, a label for each class, and sides from 1 "
                         "to " + std::to_string(detail::largest_side) + " pixels");
        }
        state_ = std::make_unique<State>(std::move(folder), std::move(manifest),
                                         std::move(labels), std::move(runtime));
    }

    // One image of any size: 8-bit RGB, height x width x 3 bytes. Throws Error.
    Prediction classify(const std::uint8_t* rgb, std::size_t width, std::size_t height) {
        return classify(Image{rgb, width, height});
    }

    // The same of an image with another order of bytes, or gaps between its rows.
    Prediction classify(const Image& image) {
        Prediction prediction;
        classify(image, prediction);
        return prediction;
    }

    // The same into a prediction that is there already, whose memory is used again.
    void classify(const std::uint8_t* rgb, std::size_t width, std::size_t height,
                  Prediction& prediction) {
        classify(Image{rgb, width, height}, prediction);
    }
    void classify(const Image& image, Prediction& prediction) {
        classify_batch(Span<const Image>(&image, 1), Span<Prediction>(&prediction, 1));
    }

    // Images of any sizes, up to max_batch(); `predictions` has as many places. Once each batch size
    // in use was run, the largest first, and with the widest and the tallest images, it takes no memory
    // from the heap; only the runtime may, and OpenVINO keeps some megabytes for each batch size, of which it
    // is given few (detail::rounded_batch). The predictions are unchanged where it throws Error.
    void classify_batch(Span<const Image> images, Span<Prediction> predictions) {
        detail::in_memory([&] { run(images, predictions); });
    }
    // The same into new predictions, one an image.
    std::vector<Prediction> classify_batch(Span<const Image> images) {
        return detail::in_memory([&] {
            std::vector<Prediction> predictions(images.size());
            run(images, predictions);
            return predictions;
        });
    }

    // The same without exceptions.
    static Status try_load(const std::string& folder, std::optional<Classifier>& classifier,
                           const LoadOptions& options = {}) noexcept {
        return detail::guarded([&] { classifier.emplace(load(folder, options)); });
    }
    Status try_classify(const std::uint8_t* rgb, std::size_t width, std::size_t height,
                        Prediction& prediction) noexcept {
        return try_classify(Image{rgb, width, height}, prediction);
    }
    Status try_classify(const Image& image, Prediction& prediction) noexcept {
        return detail::guarded([&] { classify(image, prediction); });
    }
    Status try_classify_batch(Span<const Image> images, Span<Prediction> predictions) noexcept {
        return detail::guarded([&] { classify_batch(images, predictions); });
    }

    const Manifest& manifest() const { return valid().manifest; }
    const std::vector<std::string>& labels() const { return valid().labels; }
    const std::string& folder() const { return valid().folder; }
    std::size_t max_batch() const { return valid().manifest.max_batch; }  // 0: no limit
    // The runtime, its version and the device, for people.
    std::string runtime() const { return valid().runtime->describe(); }

private:
    friend SelfTest self_test(Classifier& classifier);

    struct State {
        State(std::string home_folder, Manifest facts, std::vector<std::string> names,
              std::unique_ptr<detail::Runtime> engine)
            : folder(std::move(home_folder)),
              home(detail::absolute(detail::path_of(folder))),
              manifest(std::move(facts)),
              labels(std::move(names)),
              runtime(std::move(engine)),
              resizer(manifest.width, manifest.height) {
            for (const std::string& label : labels) {
                if (label.size() > longest) longest = label.size();
            }
        }

        // Takes what memory a prediction needs, so that filling it cannot fail.
        void prepare(Prediction& prediction) const {
            // In C++17 a smaller reserve may give memory back.
            if (prediction.label.capacity() < longest) prediction.label.reserve(longest);
            prediction.logits.reserve(manifest.classes);
        }

        void fill(Prediction& prediction, const float* logits) const {
            prediction.logits.assign(logits, logits + manifest.classes);
            std::size_t top = 0;
            for (std::size_t i = 1; i < manifest.classes; ++i) {
                if (logits[i] > logits[top]) top = i;
            }
            const double sum = detail::exp_sum(logits, manifest.classes, logits[top]);
            prediction.index = top;
            prediction.probability = static_cast<float>(1.0 / sum);
            prediction.label.assign(labels[top]);
        }

        std::string folder;          // as it was given
        std::filesystem::path home;  // the same, wherever the program goes
        Manifest manifest;
        std::vector<std::string> labels;
        std::unique_ptr<detail::Runtime> runtime;
        detail::Resizer resizer;
        std::size_t longest = 0;  // characters of a label
        std::mutex busy;
    };

    static Classifier open(const std::string& folder, const LoadOptions& options) {
        namespace fs = std::filesystem;
        const fs::path home = detail::path_of(folder);
        std::error_code ignored;
        if (!fs::is_directory(home, ignored)) {
            detail::fail(ErrorCode::not_found,
                         folder + " is no folder; name one that `cifar-deploy package MODEL "
                                  "--target cpp` wrote");
        }
        if (!fs::exists(home / "manifest.txt", ignored)) {
            detail::fail(ErrorCode::not_found,
                         folder + " has no manifest.txt, so it is no package; write one with "
                                  "`cifar-deploy package MODEL --target cpp`");
        }
        const std::string name = detail::text_of(home / "manifest.txt");
        Manifest manifest = parse_manifest(
            detail::read_file(home / "manifest.txt", detail::largest_manifest), name);
        std::vector<std::string> labels = detail::parse_labels(
            detail::read_checked(home / manifest.labels, std::uintmax_t{1} << 24,
                                 manifest.labels_sha256),
            manifest.classes, detail::text_of(home / manifest.labels));
        const std::string model =
            detail::read_checked(home / manifest.file, manifest.bytes, manifest.sha256);
        auto runtime = detail::make_runtime(manifest, model, options);
        return Classifier(folder, std::move(manifest), std::move(labels), std::move(runtime));
    }

    void run(Span<const Image> images, Span<Prediction> predictions) {
        State& state = valid();
        if (images.size() != predictions.size()) {
            detail::fail(ErrorCode::bad_argument,
                         "there are " + std::to_string(images.size()) + " images and " +
                             std::to_string(predictions.size()) +
                             " predictions; give as many of both");
        }
        if (images.size() == 0) return;
        if (images.data() == nullptr || predictions.data() == nullptr) {
            detail::fail(ErrorCode::bad_argument,
                         "the images or the predictions are a null pointer; give arrays");
        }
        const Manifest& manifest = state.manifest;
        if (manifest.max_batch != 0 && images.size() > manifest.max_batch) {
            too_many(images.size(), manifest.max_batch);
        }
        for (std::size_t i = 0; i < images.size(); ++i) detail::check_image(images[i], i);

        const std::lock_guard<std::mutex> lock(state.busy);
        const std::size_t least =
            images.size() < manifest.min_batch ? manifest.min_batch : images.size();
        const std::size_t batch = state.runtime->batch_for(least);
        if (batch < images.size()) too_many(images.size(), manifest.max_batch);
        const std::size_t pixels = manifest.height * manifest.width * 3;
        static_cast<void>(detail::product(batch, pixels));
        std::uint8_t* input = state.runtime->input(batch);
        for (std::size_t i = 0; i < images.size(); ++i) {
            state.resizer(images[i], input + i * pixels);
        }
        const float* logits = state.runtime->run(batch);
        for (std::size_t i = 0; i < images.size() * manifest.classes; ++i) {
            if (!detail::finite(logits[i])) {
                detail::fail(ErrorCode::runtime,
                             "image " + std::to_string(i / manifest.classes) + ": " +
                                 manifest.file + " gave a logit that is no finite number; " +
                                 "use a package of another precision");
            }
        }
        for (Prediction& prediction : predictions) state.prepare(prediction);
        for (Prediction& prediction : predictions) {
            state.fill(prediction, logits);
            logits += manifest.classes;
        }
    }

    State& valid() const {
        if (!state_) {
            detail::fail(ErrorCode::bad_argument,
                         "this classifier was moved from; use the one it was moved to");
        }
        return *state_;
    }

    [[noreturn]] static void too_many(std::size_t given, std::size_t most) {
        detail::fail(ErrorCode::bad_argument,
                     std::to_string(given) + " images are more than the file takes at once (" +
                         std::to_string(most) + "); give them in smaller batches");
    }

    std::unique_ptr<State> state_;
};

namespace detail {

[[noreturn]] inline void fail_backend(const std::string& file, const std::string& name,
                                      const std::string& option) {
    fail(ErrorCode::backend_missing,
         file + " needs " + name +
             ", which this program was built without; configure with -D" + option +
             "=ON and build again (without CMake: docs/embedding.md has the macros)");
}

// The runtime that the manifest or the options name. Throws Error where it is not compiled in.
inline std::unique_ptr<Runtime> make_runtime(const Manifest& manifest, const std::string& model,
                                             const LoadOptions& options) {
    static_cast<void>(model);  // unused without backends
    if (options.threads > most_threads) {
        fail(ErrorCode::bad_argument, "threads " + std::to_string(options.threads) +
                                          ": give a number from 1 to " +
                                          std::to_string(most_threads) +
                                          ", or 0 for as many as the runtime thinks right");
    }
    Backend backend = options.backend;
    if (manifest.backend == "tensorrt" || manifest.backend == "tensorrt-rtx") {
        const Backend own =
            manifest.backend == "tensorrt" ? Backend::tensorrt : Backend::tensorrt_rtx;
        if (backend != Backend::automatic && backend != own) {
            fail(ErrorCode::bad_argument, manifest.file + " is an engine of " + manifest.backend +
                                              " and runs in no other backend; leave it automatic");
        }
        backend = own;
    } else if (backend == Backend::tensorrt || backend == Backend::tensorrt_rtx) {
        fail(ErrorCode::bad_argument,
             manifest.file + " is an ONNX file, which TensorRT runs only once it is an engine; "
                             "package one with --format trt, or leave the backend automatic");
    }
#ifdef CIFAR_DEPLOY_HAS_ONNXRUNTIME
    if (backend == Backend::automatic || backend == Backend::onnxruntime) {
        return std::make_unique<OnnxRuntime>(manifest, model, options);
    }
#endif
#ifdef CIFAR_DEPLOY_HAS_OPENVINO
    if (backend == Backend::automatic || backend == Backend::openvino) {
        return std::make_unique<OpenVinoRuntime>(manifest, model, options);
    }
#endif
#ifdef CIFAR_DEPLOY_HAS_TENSORRT
    if (backend == Backend::tensorrt) {
        return std::make_unique<TensorRtRuntime>(manifest, model, options);
    }
#endif
#ifdef CIFAR_DEPLOY_HAS_TENSORRT_RTX
    if (backend == Backend::tensorrt_rtx) {
        return std::make_unique<TensorRtRuntime>(manifest, model, options);
    }
#endif
    switch (backend) {
        case Backend::tensorrt:
            fail_backend(manifest.file, "TensorRT", "CIFAR_DEPLOY_WITH_TENSORRT");
        case Backend::tensorrt_rtx:
            fail_backend(manifest.file, "TensorRT for RTX", "CIFAR_DEPLOY_WITH_TENSORRT_RTX");
        case Backend::onnxruntime:
            fail_backend(manifest.file, "ONNX Runtime", "CIFAR_DEPLOY_WITH_ONNXRUNTIME");
        case Backend::openvino:
            fail_backend(manifest.file, "OpenVINO", "CIFAR_DEPLOY_WITH_OPENVINO");
        case Backend::automatic:
            break;
    }
    fail_backend(manifest.file, "OpenVINO or ONNX Runtime",
                 "CIFAR_DEPLOY_WITH_OPENVINO=ON or -DCIFAR_DEPLOY_WITH_ONNXRUNTIME");
}

}  // namespace detail
}  // namespace CIFAR_DEPLOY_NAMESPACE
}  // namespace cifar_deploy
