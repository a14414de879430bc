// What the Python tests ask the library: raw bytes in on standard input, raw bytes out.
//   probe sha256                      of the input, in hexadecimal
//   probe resize W H                  an RGB image W x H to 32 x 32
//   probe decode FILE...              images as classify reads them, to RGB
//   probe logits FOLDER BACKEND N     images of 32 x 32, N at a time, to float32 logits
//   probe allocations FOLDER BACKEND  heap allocations of classify_batch once warm
//   probe memory FOLDER BACKEND       the statuses of a batch that memory does not hold, and of one image
//   probe signal FOLDER BACKEND       whether a signal is survived when two classifiers are gone
#include <cifar_deploy/classifier.hpp>

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#define CLASSIFY_WITHOUT_MAIN
#include "../examples/classify.cpp"
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
constexpr std::size_t calls = 2;
const std::vector<std::size_t> batches{3, 1, 2};  // each is run in turn, again and again

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
    resizer({bytes_of(image), width, height}, small.data());
    return std::fwrite(small.data(), 1, small.size(), stdout) == small.size() ? 0 : 2;
}

int decode(const std::vector<std::string>& paths) {
    for (const std::string& path : paths) {
        const classify::Bytes rgb = classify::read_picture(path).rgb;
        if (std::fwrite(rgb.data(), 1, rgb.size(), stdout) != rgb.size()) return 2;
    }
    return 0;
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

template <class Work>
Allocations during(Work&& work) {
    allocations = {};
    counting = true;
    work();
    counting = false;
    return allocations;
}

// Allocations of `calls` rounds over the batch sizes, after one round to warm up.
Allocations counted(Classifier& classifier, std::size_t image_side) {
    const std::vector<std::uint8_t> rgb(image_side * image_side * 3, 77);
    const std::vector<Image> images(3, Image{rgb.data(), image_side, image_side});
    std::vector<Prediction> predictions(3);
    const auto round = [&] {
        for (const std::size_t batch : batches) {
            classifier.classify_batch({images.data(), batch}, {predictions.data(), batch});
        }
    };
    round();
    return during([&] {
        for (std::size_t i = 0; i < calls; ++i) round();
    });
}

void print(const char* name, const Allocations& found, const char* end) {
    std::printf("\"%s\": {\"program\": %zu, \"others\": %zu}%s", name, found.program, found.others,
                end);
}

int report_allocations(const std::string& folder, const std::string& backend) {
    Classifier fake = fake_classifier();
    Classifier classifier = Classifier::load(folder, options_for(backend));
    std::printf("{");
    print("making_one", during([] { fake_classifier(); }), ", ");
    print("fake", counted(fake, side), ", ");
    print("fake_resized", counted(fake, 200), ", ");
    print("batches", counted(classifier, side), ", ");
    print("batches_resized", counted(classifier, 100), "}\n");
    return 0;
}

// With an address space that holds the images of a large batch, but not what becomes of them.
int fill_memory(const std::string& folder, const std::string& backend) {
    LoadOptions options = options_for(backend);
    options.threads = 1;
    Classifier classifier = Classifier::load(folder, options);
    const std::vector<std::uint8_t> rgb(pixels, 7);
    const std::vector<Image> images(classifier.max_batch(), Image{rgb.data(), side, side});
    std::vector<Prediction> predictions(images.size());
    classifier.classify(images[0], predictions[0]);
    std::size_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    rlimit limit = {};
    limit.rlim_cur = limit.rlim_max =
        pages * static_cast<std::size_t>(sysconf(_SC_PAGESIZE)) + 2 * images.size() * pixels;
    if (setrlimit(RLIMIT_AS, &limit) != 0) return 2;
    const auto print_status = [](const cifar_deploy::Status& status) {
        std::printf("%d %s\n", static_cast<int>(status.code()), status.message());
    };
    print_status(classifier.try_classify_batch(images, predictions));
    print_status(classifier.try_classify(rgb.data(), side, side, predictions[0]));
    return 0;
}

void wake(int) {}

// Of two classifiers the older goes first; then a handler runs on the thread's stack for signals.
int survive(const std::string& folder, const std::string& backend) {
    std::vector<Classifier> two;
    for (int i = 0; i < 2; ++i) two.push_back(Classifier::load(folder, options_for(backend)));
    two.erase(two.begin());
    two.clear();
    struct sigaction action = {};
    action.sa_handler = wake;
    action.sa_flags = SA_ONSTACK;
    if (sigaction(SIGUSR1, &action, nullptr) != 0 || raise(SIGUSR1) != 0) return 2;
    std::printf("alive\n");
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
        if (what == "decode") return decode({arguments.begin() + 1, arguments.end()});
        if (what == "logits" && count == 5) {
            return logits(arguments[1], arguments[2], std::stoul(arguments[3]));
        }
        if (what == "allocations" && count == 4) {
            return report_allocations(arguments[1], arguments[2]);
        }
        if (what == "memory" && count == 4) {
            return fill_memory(arguments[1], arguments[2]);
        }
        if (what == "signal" && count == 4) {
            return survive(arguments[1], arguments[2]);
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "probe: %s\n", error.what());
        return 2;
    }
    std::fprintf(stderr, "probe: see the top of probe.cpp\n");
    return 2;
}
