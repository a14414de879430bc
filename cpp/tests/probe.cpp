// What the Python tests ask the library: raw bytes in on standard input, raw bytes out.
//   probe sha256                      of the input, in hexadecimal
//   probe resize W H                  an RGB image W x H to 32 x 32
//   probe logits FOLDER BACKEND N     images of 32 x 32, N at a time, to float32 logits
//   probe allocations FOLDER BACKEND  heap allocations of classify_batch and of the bare runtime
#include <cifar_deploy/classifier.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "counting_new.hpp"
#include "fake_runtime.hpp"

namespace {

using cifar_deploy::Classifier;
using cifar_deploy::Image;
using cifar_deploy::LoadOptions;
using cifar_deploy::Prediction;
using cifar_deploy::Span;

constexpr std::size_t side = 32;
constexpr std::size_t pixels = side * side * 3;
constexpr std::size_t calls = 5;
const std::vector<std::size_t> batches{1, 3, 2};  // each is run in turn, again and again

std::string standard_input() {
    return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

const std::uint8_t* bytes_of(const std::string& text) {
    return reinterpret_cast<const std::uint8_t*>(text.data());
}

LoadOptions options_for(const std::string& backend) {
    LoadOptions options;
    if (backend == "openvino") options.backend = cifar_deploy::Backend::openvino;
    if (backend == "onnxruntime") options.backend = cifar_deploy::Backend::onnxruntime;
    return options;
}

int resize(std::size_t width, std::size_t height) {
    const std::string image = standard_input();
    if (image.size() != width * height * 3) return 2;
    std::vector<std::uint8_t> small(pixels);
    cifar_deploy::detail::Resizer resizer(side, side);
    resizer(bytes_of(image), width, height, small.data());
    return std::fwrite(small.data(), 1, small.size(), stdout) == small.size() ? 0 : 2;
}

int logits(const std::string& folder, const std::string& backend, std::size_t batch) {
    const std::string input = standard_input();
    Classifier classifier = Classifier::load(folder, options_for(backend));
    std::vector<Image> images;
    for (std::size_t at = 0; at + pixels <= input.size(); at += pixels) {
        images.push_back({bytes_of(input) + at, side, side});
    }
    std::vector<Prediction> predictions(images.size());
    for (std::size_t at = 0; at < images.size(); at += batch) {
        const std::size_t size = std::min(batch, images.size() - at);
        classifier.classify_batch({images.data() + at, size}, {predictions.data() + at, size});
    }
    for (const Prediction& prediction : predictions) {
        std::fwrite(prediction.logits.data(), sizeof(float), prediction.logits.size(), stdout);
    }
    return 0;
}

// Allocations of `calls` rounds of `work` over the batch sizes, after one round to warm up.
template <class Work>
std::size_t counted(Work&& work) {
    for (const std::size_t batch : batches) work(batch);
    const std::size_t before = allocations;
    for (std::size_t i = 0; i < calls; ++i) {
        for (const std::size_t batch : batches) work(batch);
    }
    return allocations - before;
}

std::size_t counted(Classifier& classifier, std::size_t image_side) {
    const std::vector<std::uint8_t> rgb(image_side * image_side * 3, 77);
    const std::vector<Image> images(3, Image{rgb.data(), image_side, image_side});
    std::vector<Prediction> predictions(3);
    return counted([&](std::size_t batch) {
        classifier.classify_batch({images.data(), batch}, {predictions.data(), batch});
    });
}

// The same calls of the runtime without the library, for what it allocates on this thread itself.
std::size_t counted_bare(const std::string& folder, const std::string& backend) {
    const auto model = cifar_deploy::detail::read_file(folder + "/model.onnx", 1U << 30);
#ifdef CIFAR_DEPLOY_HAS_OPENVINO
    if (backend == "openvino") {
        ov::Core core;
        auto compiled = core.compile_model(
            core.read_model(model, ov::Tensor()), "CPU",
            ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
            ov::hint::inference_precision(ov::element::f32), ov::inference_num_threads(1));
        auto request = compiled.create_infer_request();
        std::vector<ov::Tensor> in(4);
        std::vector<ov::Tensor> out(4);
        for (const std::size_t batch : batches) {
            in[batch] = ov::Tensor(ov::element::u8, {batch, side, side, 3});
            out[batch] = ov::Tensor(ov::element::f32, {batch, 10});
        }
        return counted([&](std::size_t batch) {
            request.set_input_tensor(in[batch]);
            request.set_output_tensor(out[batch]);
            request.infer();
        });
    }
#endif
#ifdef CIFAR_DEPLOY_HAS_ONNXRUNTIME
    if (backend == "onnxruntime") {
        const Ort::Env env(ORT_LOGGING_LEVEL_FATAL);
        Ort::SessionOptions settings;
        settings.SetIntraOpNumThreads(1);
        Ort::Session session(env, model.data(), model.size(), settings);
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        std::vector<std::uint8_t> images(3 * pixels);
        std::vector<float> results(30);
        std::vector<Ort::Value> in;
        std::vector<Ort::Value> out;
        for (std::int64_t batch = 0; batch < 4; ++batch) {
            const std::int64_t from[] = {batch, 32, 32, 3};
            const std::int64_t to[] = {batch, 10};
            in.push_back(Ort::Value::CreateTensor<std::uint8_t>(memory, images.data(),
                                                                images.size(), from, 4));
            out.push_back(
                Ort::Value::CreateTensor<float>(memory, results.data(), results.size(), to, 2));
        }
        const char* const input = "images";
        const char* const output = "logits";
        return counted([&](std::size_t batch) {
            session.Run(Ort::RunOptions{nullptr}, &input, &in[batch], 1, &output, &out[batch], 1);
        });
    }
#endif
    std::fprintf(stderr, "no %s\n", backend.c_str());
    std::exit(2);
}

int report_allocations(const std::string& folder, const std::string& backend) {
    Classifier fake = fake_classifier();
    const std::size_t start = allocations;
    // With more threads this one takes a varying share of the runtime's work, and of its memory.
    LoadOptions options = options_for(backend);
    options.threads = 1;
    Classifier classifier = Classifier::load(folder, options);
    const std::size_t load = allocations - start;
    std::printf("{\"rounds\": %zu, \"fake\": %zu, \"fake_resized\": %zu, \"load\": %zu, ", calls,
                counted(fake, side), counted(fake, 200), load);
    std::printf("\"ours\": %zu, \"ours_resized\": %zu, \"bare\": %zu}\n", counted(classifier, side),
                counted(classifier, 100), counted_bare(folder, backend));
    return 0;
}

}  // namespace

int main(int count, char** words) {
    const std::vector<std::string> arguments(words + 1, words + count);
    const std::string what = arguments.empty() ? "" : arguments[0];
    try {
        if (what == "sha256") {
            std::printf("%s\n", cifar_deploy::detail::sha256_hex(standard_input()).c_str());
            return 0;
        }
        if (what == "resize" && count == 4) {
            return resize(std::stoul(arguments[1]), std::stoul(arguments[2]));
        }
        if (what == "logits" && count == 5) {
            return logits(arguments[1], arguments[2], std::stoul(arguments[3]));
        }
        if (what == "allocations" && count == 4) {
            return report_allocations(arguments[1], arguments[2]);
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "probe: %s\n", error.what());
        return 2;
    }
    std::fprintf(stderr, "probe: see the top of probe.cpp\n");
    return 2;
}
