// Tests of the headers without a real runtime. Prints what fails; the exit status counts.
#include <cifar_deploy/classifier.hpp>
#include <cifar_deploy/evaluation.hpp>
#include <cifar_deploy/self_test.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "fake_runtime.hpp"

// Of this thread's next wishes for memory the one that is not granted; 0: none.
thread_local std::size_t refused_wish = 0;

// Not inlined, or GCC takes the one for malloc's and the other for another's (mismatched-new-delete).
[[gnu::noinline]] void* operator new(std::size_t size) {
    if (refused_wish != 0 && --refused_wish == 0) throw std::bad_alloc();
    void* const memory = std::malloc(size == 0 ? 1 : size);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

using cifar_deploy::Classifier;
using cifar_deploy::Error;
using cifar_deploy::ErrorCode;
using cifar_deploy::Image;
using cifar_deploy::Manifest;
using cifar_deploy::Prediction;
using cifar_deploy::Span;

int failures = 0;

void expect(bool holds, const char* what, int line) {
    if (holds) return;
    ++failures;
    std::fprintf(stderr, "unit.cpp:%d: %s\n", line, what);
}
#define EXPECT(condition) expect(static_cast<bool>(condition), #condition, __LINE__)

// Whether `work` throws an Error of this code whose text holds `said`.
template <class Work>
bool refuses(ErrorCode code, const std::string& said, Work&& work) {
    try {
        work();
    } catch (const Error& error) {
        if (error.code() == code && std::string(error.what()).find(said) != std::string::npos) {
            return true;
        }
        std::fprintf(stderr, "code %d: %s\n", static_cast<int>(error.code()), error.what());
    }
    return false;
}

// Does `work` with its first wish for memory refused, then the second, and so on, until it has them all;
// how often it was refused, each of which must be an Error of that code.
template <class Work>
std::size_t refusals_of_memory(Work&& work) {
    for (std::size_t wish = 1;; ++wish) {
        refused_wish = wish;
        try {
            work();
        } catch (const Error& error) {
            expect(error.code() == ErrorCode::out_of_memory, error.what(), __LINE__);
        } catch (const std::exception& error) {
            expect(false, error.what(), __LINE__);
        }
        const bool whole = refused_wish != 0;
        refused_wish = 0;
        if (whole) return wish - 1;
    }
}

constexpr ErrorCode bad_argument = ErrorCode::bad_argument;
constexpr ErrorCode bad_package = ErrorCode::bad_package;

// --- sha256 -------------------------------------------------------------------------------------

void test_sha256() {
    using cifar_deploy::detail::sha256_hex;
    // FIPS 180-4's examples.
    EXPECT(sha256_hex("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    EXPECT(sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    EXPECT(sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
           "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    EXPECT(sha256_hex(std::string(1'000'000, 'a')) ==
           "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

// --- the manifest -------------------------------------------------------------------------------

using Lines = std::vector<std::pair<std::string, std::string>>;

Lines onnx_lines() {
    const std::string sum(64, 'a');
    return {{"format", "1"},       {"model", "tiny"},       {"network", "resnet18"},
            {"precision", "fp32"}, {"backend", "onnx"},     {"file", "model.onnx"},
            {"bytes", "12"},       {"sha256", sum},         {"input", "images"},
            {"output", "logits"},  {"height", "32"},        {"width", "32"},
            {"classes", "10"},     {"labels", "labels.txt"}, {"labels_sha256", sum},
            {"min_batch", "1"},    {"max_batch", "0"},      {"fixed_batch", "0"}};
}

Lines engine_lines() {
    Lines lines = onnx_lines();
    lines[4].second = "tensorrt-rtx";
    lines[5].second = "model.engine";
    lines[16].second = "1024";
    lines.push_back({"tensorrt", "1.7.1.116"});
    lines.push_back({"compute_capability", "8.6 9.0"});
    lines.push_back({"profiles", "1:128:1024 1:1:1"});
    return lines;
}

std::string joined(const Lines& lines) {
    std::string text;
    for (const auto& [key, value] : lines) text += key + ' ' + value + '\n';
    return text;
}

Lines with(Lines lines, const std::string& key, const std::string& value) {
    for (auto& line : lines) {
        if (line.first == key) line.second = value;
    }
    return lines;
}

Lines without(const Lines& lines, const std::string& key) {
    Lines rest;
    for (const auto& line : lines) {
        if (line.first != key) rest.push_back(line);
    }
    return rest;
}

bool refused(const Lines& lines, const std::string& said) {
    return refuses(bad_package, said, [&] {
        cifar_deploy::parse_manifest(joined(lines), "a/manifest.txt");
    });
}

void test_manifest() {
    const Manifest onnx = cifar_deploy::parse_manifest(joined(onnx_lines()));
    EXPECT(onnx.model == "tiny" && onnx.network == "resnet18" && onnx.precision == "fp32");
    EXPECT(onnx.backend == "onnx" && !onnx.is_engine() && onnx.file == "model.onnx");
    EXPECT(onnx.bytes == 12 && onnx.height == 32 && onnx.width == 32 && onnx.classes == 10);
    EXPECT(onnx.min_batch == 1 && onnx.max_batch == 0 && onnx.fixed_batch == 0);
    EXPECT(onnx.vectors_count == 0);

    const Manifest engine = cifar_deploy::parse_manifest(joined(engine_lines()));
    EXPECT(engine.is_engine() && engine.tensorrt == "1.7.1.116");
    EXPECT(engine.compute_capabilities == (std::vector<std::string>{"8.6", "9.0"}));
    EXPECT(engine.profiles.size() == 2 && engine.profiles[0].opt == 128);
    const Manifest any =
        cifar_deploy::parse_manifest(joined(with(engine_lines(), "compute_capability", "any")));
    EXPECT(any.compute_capabilities.empty() && any.gpu.empty() && any.system.empty());
    Lines bound = engine_lines();
    bound.push_back({"gpu", "NVIDIA H100 80GB HBM3"});
    bound.push_back({"system", "Linux aarch64"});
    EXPECT(cifar_deploy::parse_manifest(joined(bound)).gpu == "NVIDIA H100 80GB HBM3");
    EXPECT(cifar_deploy::parse_manifest(joined(bound)).system == "Linux aarch64");
    EXPECT(refused(with(bound, "gpu", ""), "gpu has no value"));

    // Unknown keys, CRLF, a missing last newline and spaces in a value are fine.
    std::string odd = "colour blue\n" + joined(with(onnx_lines(), "model", "a b  c"));
    for (std::size_t i = 0; (i = odd.find('\n', i)) != std::string::npos; i += 2) {
        odd.insert(i, 1, '\r');
    }
    odd.resize(odd.size() - 2);
    EXPECT(cifar_deploy::parse_manifest(odd).model == "a b  c");

    for (const auto& [key, value] : engine_lines()) {
        EXPECT(refused(without(engine_lines(), key), "a/manifest.txt: " + key + " is missing"));
        Lines twice = engine_lines();
        twice.push_back({key, value});
        EXPECT(refused(twice, key + " stands in it twice"));
        EXPECT(refused(with(engine_lines(), key, ""), key));
    }
    const Lines lines = onnx_lines();
    EXPECT(refused(with(lines, "format", "2"), "this library reads format 1"));
    EXPECT(refused(with(lines, "input", "\x1b[31mimages"), "holds a control character"));
    EXPECT(refused(with(lines, "backend", "tflite"), "backend 'tflite'"));
    for (const char* precision : {"fp16", "int8"}) {
        const Lines other = with(lines, "precision", precision);
        EXPECT(cifar_deploy::parse_manifest(joined(other)).precision == precision);
    }
    for (const char* precision : {"bf16", "FP32", "fp32 "}) {
        EXPECT(refused(with(lines, "precision", precision),
                       "precision '" + std::string(precision) + "' is none that this library knows"));
    }
    for (const char* name : {"../model.onnx", "/etc/passwd", "a\\b", "..", ".", "c:x"}) {
        EXPECT(refused(with(lines, "file", name), "no plain file name"));
        EXPECT(refused(with(lines, "labels", name), "no plain file name"));
    }
    for (const char* number : {"-1", "1.5", " 1", "1 ", "0x10", "99999999999999999999", "ten"}) {
        EXPECT(refused(with(lines, "bytes", number), "bytes is"));
        EXPECT(refused(with(lines, "classes", number), "classes is"));
        EXPECT(refused(with(lines, "max_batch", number), "max_batch is"));
    }
    EXPECT(refused(with(lines, "height", "0"), "not between 1 and 4096"));
    EXPECT(refused(with(lines, "width", "4097"), "not between 1 and 4096"));
    const Manifest flat = cifar_deploy::parse_manifest(joined(with(lines, "height", "64")));
    EXPECT(flat.height == 64 && flat.width == 32);
    EXPECT(onnx.input == "images" && onnx.output == "logits");
    EXPECT(refused(with(lines, "classes", "0"), "not between 1 and 100000"));
    EXPECT(refused(with(lines, "sha256", std::string(63, 'a')), "no sha256"));
    EXPECT(refused(with(lines, "sha256", std::string(64, 'A')), "no sha256"));
    EXPECT(refused(with(lines, "labels_sha256", std::string(64, 'g')), "no sha256"));
    EXPECT(refused(with(lines, "min_batch", "0"), "min_batch is '0'"));
    EXPECT(refused(with(lines, "fixed_batch", "4"), "not the same as min_batch"));
    Lines four = with(with(lines, "fixed_batch", "4"), "min_batch", "4");
    four = with(four, "max_batch", "4");
    EXPECT(cifar_deploy::parse_manifest(joined(four)).fixed_batch == 4);
    EXPECT(refused(with(four, "min_batch", "1"), "not the same as min_batch"));
    EXPECT(refused(with(four, "max_batch", "8"), "not the same as min_batch"));
    EXPECT(refused(with(engine_lines(), "min_batch", "2000"), "less than min_batch"));
    for (const char* bad : {"1:2", "1", "3:2:4", "1:5:4", "0:1:2", "1:2:3:4", "::", "a:b:c"}) {
        EXPECT(refused(with(engine_lines(), "profiles", bad), "profiles"));
    }
    EXPECT(refused(with(engine_lines(), "compute_capability", "sm_90"), "not as 9.0"));
    Lines vectors = lines;
    vectors.push_back({"vectors_count", "64"});
    EXPECT(refused(vectors, "vectors_sha256 is missing"));
    vectors.push_back({"vectors_sha256", std::string(64, 'b')});
    EXPECT(refused(vectors, "has not two values"));
    vectors.back().second += ' ' + std::string(64, 'c');
    EXPECT(cifar_deploy::parse_manifest(joined(vectors)).vectors_logits_sha256 ==
           std::string(64, 'c'));
    vectors.push_back({"vectors_from", "ONNX Runtime\x1b]0;x\x07"});  // self_test shows it
    EXPECT(refused(vectors, "vectors_from is 'ONNX Runtime?]0;x?', which holds a control"));
    vectors.back().second = "ONNX Runtime 1.31";
    EXPECT(cifar_deploy::parse_manifest(joined(vectors)).vectors_from == "ONNX Runtime 1.31");
    Lines tested = lines;
    tested.insert(tested.end(), {{"test_count", "100"}, {"test_right", "96"}, {"test_margin", "1"},
                                 {"test_from", "ONNX Runtime"},
                                 {"test_sha256", std::string(64, 'd')}});
    const Manifest judged = cifar_deploy::parse_manifest(joined(tested));
    EXPECT(judged.test_count == 100 && judged.test_right == 96 && judged.test_margin == 1);
    EXPECT(judged.test_from == "ONNX Runtime" && judged.test_sha256 == std::string(64, 'd'));
    for (const char* key : {"test_right", "test_margin", "test_from", "test_sha256"}) {
        EXPECT(refused(without(tested, key), std::string(key) + " is missing"));
    }
    EXPECT(refused(with(tested, "test_margin", "101"), "not between 0 and 100"));
    EXPECT(refused(with(tested, "test_right", "101"), "not between 0 and 100"));
    EXPECT(refused(with(tested, "test_count", "0"), "test_count is '0'"));
    EXPECT(refused(with(tested, "test_sha256", "d"), "test_sha256 is 'd', which is no sha256"));

    EXPECT(refused({}, "format is missing"));
    EXPECT(refuses(bad_package, "64 KiB", [] {
        cifar_deploy::parse_manifest(std::string(64 * 1024 + 1, ' '));
    }));
    EXPECT(refuses(bad_package, "zero byte", [] {
        cifar_deploy::parse_manifest(std::string("format 1\nmodel a\0b\n", 19));
    }));
    // A value from outside is shown cut and without control characters.
    EXPECT(refused(with(lines, "backend", "\x1b[31m" + std::string(99, 'x')),
                   "'?[31m" + std::string(35, 'x') + "...'"));
}

// The same answers as of `shares` in tests/runtimes/test_tensorrt.py.
void test_profiles() {
    using cifar_deploy::detail::batch_of;
    using cifar_deploy::detail::profile_of;
    const std::vector<cifar_deploy::Profile> apart{{8, 8, 16}, {1, 64, 64}, {100, 100, 100}};
    EXPECT(batch_of(apart, 3) == 3 && profile_of(apart, 3) == 1);
    EXPECT(batch_of(apart, 8) == 8 && profile_of(apart, 8) == 0);
    EXPECT(profile_of(apart, 16) == 0 && profile_of(apart, 17) == 1);
    EXPECT(batch_of(apart, 65) == 100 && profile_of(apart, 100) == 2);
    EXPECT(batch_of(apart, 101) == 0 && profile_of(apart, 101) == 3 && profile_of(apart, 65) == 3);
    const std::vector<cifar_deploy::Profile> same{{1, 1, 32}, {1, 32, 64}, {1, 33, 64}};
    EXPECT(profile_of(same, 16) == 0 && profile_of(same, 17) == 1);
    EXPECT(profile_of(same, 32) == 1 && profile_of(same, 33) == 2);
    const std::vector<cifar_deploy::Profile> equal{{1, 2, 9}, {1, 4, 9}};
    EXPECT(profile_of(equal, 3) == 0 && profile_of(equal, 4) == 1);
}

void test_rounded_batches() {
    using cifar_deploy::detail::rounded_batch;
    std::size_t sizes = 0;
    for (std::size_t wanted = 0, before = 0; wanted <= 1000; ++wanted) {
        const std::size_t batch = rounded_batch(wanted);
        EXPECT(batch >= wanted && batch - wanted <= wanted / 8 && rounded_batch(batch) == batch);
        EXPECT(batch >= before && (wanted > 16 || batch == wanted));
        if (batch != before) ++sizes;
        before = batch;
    }
    EXPECT(sizes == 64);
    EXPECT(rounded_batch(17) == 18 && rounded_batch(33) == 36 && rounded_batch(128) == 128);
}

void test_labels() {
    using cifar_deploy::detail::parse_labels;
    const auto labels = parse_labels("cat\nsea lion\r\ndog", 3, "labels.txt");
    EXPECT(labels == (std::vector<std::string>{"cat", "sea lion", "dog"}));
    for (const char* text : {"", "cat\n", "cat\ndog\nfrog\n"}) {
        EXPECT(refuses(bad_package, "has not the 2 class names",
                       [&] { parse_labels(text, 2, "labels.txt"); }));
    }
    EXPECT(refuses(bad_package, "an empty line", [] { parse_labels("cat\n\n", 2, "labels.txt"); }));
    for (const char* text : {"cat\nd\x1b[2Jog", "cat\nd\x7fog", "cat\nd\x01og", "cat\nd\rog"}) {
        EXPECT(refuses(bad_package, "labels.txt names a class 'd?",
                       [&] { parse_labels(text, 2, "labels.txt"); }));
    }
    EXPECT(parse_labels("caf\xc3\xa9 \xe7\x8c\xab", 1, "labels.txt")[0] == "caf\xc3\xa9 \xe7\x8c\xab");
}

// --- spans and statuses -------------------------------------------------------------------------

static_assert(std::is_constructible_v<Span<const Image>, std::vector<Image>&>);
static_assert(std::is_constructible_v<Span<const Image>, const std::vector<Image>&>);
static_assert(std::is_constructible_v<Span<Prediction>, std::vector<Prediction>&>);
static_assert(!std::is_constructible_v<Span<Prediction>, const std::vector<Prediction>&>);
static_assert(!std::is_constructible_v<Span<const Image>, std::vector<Prediction>&>);
static_assert(std::is_nothrow_move_constructible_v<Classifier>);
static_assert(!std::is_copy_constructible_v<Classifier>);

void test_status() {
    const cifar_deploy::Status fine;
    EXPECT(fine && fine.ok() && std::string(fine.message()).empty());
    const cifar_deploy::Status long_text(ErrorCode::runtime, std::string(5000, 'x').c_str());
    EXPECT(!long_text && std::string(long_text.message()).size() == 1023);
    using cifar_deploy::detail::guarded;
    EXPECT(guarded([] { throw std::bad_alloc(); }).code() == ErrorCode::out_of_memory);
    EXPECT(guarded([] { throw std::out_of_range("x"); }).code() == ErrorCode::runtime);
    EXPECT(guarded([] { throw 7; }).code() == ErrorCode::runtime);

    // What runtimes say.
    using cifar_deploy::detail::cuda_index;
    EXPECT(cuda_index("cuda") == 0 && cuda_index("cuda:0") == 0 && cuda_index("cuda:12") == 12);
    for (const char* none : {"", "cpu", "gpu", "cuda1", "cuda:", "cuda:x", "cuda:1x", "cuda:-1",
                             "cuda:1234"}) {
        EXPECT(cuda_index(none) == -1);
    }
    using cifar_deploy::detail::trimmed;
    EXPECT(trimmed("it failed. \n") == "it failed" && trimmed(" \n").empty());
    using cifar_deploy::detail::fail_runtime;
    for (const char* full : {"bfc_arena.cc:360 AllocateRawInternal Failed to allocate memory for "
                             "requested buffer of size 737280000",
                             "std::bad_alloc", "CUDA failure 2: out of memory ; GPU=0",
                             "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
                             "CUDA_ERROR_OUT_OF_MEMORY", "Out of Memory", "OutOfMemory (64)"}) {
        EXPECT(refuses(ErrorCode::out_of_memory, "it: " + std::string(full) + "; use less",
                       [&] { fail_runtime("it", full, "use less"); }));
    }
    for (const char* other : {"CUDA failure 700: an illegal memory access was encountered",
                              "allocation_planner.cc:42: no such node"}) {
        EXPECT(refuses(ErrorCode::runtime, "it: " + std::string(other),
                       [&] { fail_runtime("it", other, "use less"); }));
    }
}

// --- the classifier -----------------------------------------------------------------------------

std::vector<std::uint8_t> picture(std::size_t width, std::size_t height, std::uint8_t first = 7) {
    std::vector<std::uint8_t> rgb(width * height * 3);
    for (std::size_t i = 0; i < rgb.size(); ++i) {
        rgb[i] = static_cast<std::uint8_t>(first + i * 37);
    }
    return rgb;
}

void test_answers() {
    Classifier classifier = fake_classifier();
    const auto rgb = picture(32, 32);
    const Prediction one = classifier.classify(rgb.data(), 32, 32);
    EXPECT(one.logits == (std::vector<float>{7 / 8.F, 44 / 8.F, 81 / 8.F, 118 / 8.F}));
    EXPECT(one.index == 3 && one.label == "frog");
    double sum = 0;
    for (const float logit : one.logits) sum += std::exp(static_cast<double>(logit) - 118 / 8.);
    EXPECT(std::abs(static_cast<double>(one.probability) - 1 / sum) < 1e-6);
    const auto probabilities = one.probabilities();
    EXPECT(probabilities.size() == 4 && probabilities[3] == one.probability);
    EXPECT(std::abs(static_cast<double>(probabilities[1]) - std::exp((44 - 118) / 8.) / sum) < 1e-9);
    EXPECT(classifier.runtime() == "fake" && classifier.max_batch() == 8);

    // A batch gives what the images give one by one, in order, whatever their sizes.
    std::vector<std::vector<std::uint8_t>> pixels;
    std::vector<Image> images;
    for (std::size_t i = 0; i < 8; ++i) {
        pixels.push_back(picture(20 + 9 * i, 50 - 5 * i, static_cast<std::uint8_t>(31 * i)));
        images.push_back({pixels.back().data(), 20 + 9 * i, 50 - 5 * i});
    }
    std::vector<Prediction> predictions(8);
    classifier.classify_batch(images, predictions);
    for (std::size_t i = 0; i < 8; ++i) {
        const auto alone = classifier.classify(images[i].data, images[i].width, images[i].height);
        EXPECT(alone.logits == predictions[i].logits && alone.label == predictions[i].label);
    }
    const auto fresh = classifier.classify_batch(images);
    EXPECT(fresh.size() == 8 && fresh[7].logits == predictions[7].logits);
    EXPECT(classifier.classify_batch(Span<const Image>()).empty());
    const std::vector<std::uint8_t> grey(32 * 32 * 3, 9);
    EXPECT(classifier.classify(grey.data(), 32, 32).index == 0);  // of equals the first, as in numpy
    classifier.classify_batch({}, {});  // nothing to do is no error

    Prediction quiet;
    EXPECT(classifier.try_classify(rgb.data(), 32, 32, quiet) && quiet.logits == one.logits);
    classifier.classify(pixels[1].data(), 29, 45, quiet);
    EXPECT(quiet.logits == predictions[1].logits);
    EXPECT(classifier.try_classify(pixels[2].data(), 38, 40, quiet) &&
           quiet.logits == predictions[2].logits);
    EXPECT(classifier.try_classify_batch(images, predictions));
    Classifier other = std::move(classifier);
    EXPECT(other.classify(rgb.data(), 32, 32).index == 3);
    // NOLINTNEXTLINE: what was moved from refuses, and does not crash.
    EXPECT(refuses(bad_argument, "moved from", [&] { classifier.classify(rgb.data(), 32, 32); }));
    EXPECT(classifier.try_classify(rgb.data(), 32, 32, quiet).code() == bad_argument);
}

// The same picture as other programs hold it: other orders of bytes, gaps between the rows.
void test_top() {
    using Order = std::vector<std::size_t>;
    Prediction some;
    EXPECT(some.probabilities().empty() && cifar_deploy::top(some, 3).empty());
    some.logits = {1, 3, -2, 3, 0};
    EXPECT(cifar_deploy::top(some, 0).empty());
    EXPECT(cifar_deploy::top(some, 3) == (Order{1, 3, 0}));  // of equals the first
    EXPECT(cifar_deploy::top(some, 99) == (Order{1, 3, 0, 4, 2}));
    some.logits = {1e30F, -1e30F};
    EXPECT(some.probabilities() == (std::vector<float>{1, 0}));
}

void test_pixels() {
    using cifar_deploy::Pixels;
    const std::size_t sizes[][2] = {{32, 32}, {50, 40}, {32, 41}, {45, 32}, {20, 9}};
    for (const auto& [width, height] : sizes) {
        const auto rgb = picture(width, height);
        cifar_deploy::detail::Resizer resizer(32, 32);
        std::vector<std::uint8_t> wanted(32 * 32 * 3);
        std::vector<std::uint8_t> found(wanted.size());
        for (const Pixels order :
             {Pixels::rgb, Pixels::bgr, Pixels::rgba, Pixels::bgra, Pixels::gray}) {
            const bool gray = order == Pixels::gray;
            const bool blue_first = order == Pixels::bgr || order == Pixels::bgra;
            const std::size_t bytes =
                gray ? 1 : order == Pixels::rgba || order == Pixels::bgra ? 4 : 3;
            auto plain = rgb;
            for (const std::size_t gap : {std::size_t{0}, std::size_t{7}}) {
                const std::size_t stride = width * bytes + gap;
                std::vector<std::uint8_t> held(stride * height, 0xEE);
                for (std::size_t i = 0; i < width * height; ++i) {
                    std::uint8_t* const to = &held[i / width * stride + i % width * bytes];
                    if (gray) plain[i * 3 + 1] = plain[i * 3 + 2] = rgb[i * 3];
                    for (std::size_t colour = 0; colour < (gray ? 1 : 3); ++colour) {
                        to[blue_first ? 2 - colour : colour] = rgb[i * 3 + colour];
                    }
                }
                resizer({plain.data(), width, height}, wanted.data());
                resizer({held.data(), width, height, order, gap != 0 ? stride : 0}, found.data());
                EXPECT(found == wanted);
            }
        }
    }
    Classifier classifier = fake_classifier();
    auto bgr = picture(32, 32);
    // One that was used for other sizes gives what a new one gives.
    cifar_deploy::detail::Resizer used(32, 32);
    std::vector<std::uint8_t> wanted(32 * 32 * 3);
    std::vector<std::uint8_t> found(wanted.size());
    for (const auto& [width, height] : sizes) {
        const auto rgb = picture(width, height);
        cifar_deploy::detail::Resizer fresh(32, 32);
        fresh({rgb.data(), width, height}, wanted.data());
        used({rgb.data(), width, height}, found.data());
        EXPECT(found == wanted);
    }
    // Also where memory was short in between.
    const auto small = picture(10, 10);
    const auto large = picture(300, 200);
    cifar_deploy::detail::Resizer fresh(32, 32);
    fresh({small.data(), 10, 10}, wanted.data());
    EXPECT(refusals_of_memory([&] {
               cifar_deploy::detail::in_memory([&] {
                   used({small.data(), 10, 10}, found.data());
                   EXPECT(found == wanted);
                   used({large.data(), 300, 200}, found.data());
               });
           }) > 1);
    // Not square: one side after the other is both at once, and rows stay rows.
    cifar_deploy::detail::Resizer across(20, 20), down(20, 9), both(20, 9);
    const auto tall = picture(9, 20);
    std::vector<std::uint8_t> between(20 * 20 * 3), twice(20 * 9 * 3), once(20 * 9 * 3);
    across({tall.data(), 9, 20}, between.data());
    down({between.data(), 20, 20}, twice.data());
    both({tall.data(), 9, 20}, once.data());
    EXPECT(once == twice);
    std::vector<std::uint8_t> striped(50 * 40 * 3);
    for (std::size_t i = 0; i < striped.size(); ++i) {
        striped[i] = static_cast<std::uint8_t>(6 * (i / (50 * 3)));
    }
    both({striped.data(), 50, 40}, once.data());
    for (std::size_t i = 0; i < once.size(); ++i) EXPECT(once[i] == once[i - i % 60]);
    EXPECT(once.front() < 20 && once.back() > 210);
    const auto exact = picture(20, 9);
    both({exact.data(), 20, 9}, once.data());
    EXPECT(once == exact);
    const auto straight = classifier.classify(bgr.data(), 32, 32);
    for (std::size_t i = 0; i < bgr.size(); i += 3) std::swap(bgr[i], bgr[i + 2]);
    const Image image{bgr.data(), 32, 32, Pixels::bgr};
    EXPECT(classifier.classify(image).logits == straight.logits);
    Prediction quiet;
    EXPECT(classifier.try_classify(image, quiet) && quiet.logits == straight.logits);
    // Of rows without gaps, too, a program may say the stride, as OpenCV's Mat::step does.
    const Image stepped{bgr.data(), 32, 32, Pixels::bgr, 96};
    EXPECT(classifier.classify(stepped).logits == straight.logits);
    EXPECT(classifier.try_classify({bgr.data(), 32, 32, Pixels::gray, 40}, quiet));
    EXPECT(refuses(bad_argument, "its rows have 32 bytes, and its stride is 31",
                   [&] { classifier.classify({bgr.data(), 32, 32, Pixels::gray, 31}); }));
    EXPECT(refuses(bad_argument, "its rows have 128 bytes, and its stride is 127",
                   [&] { classifier.classify({bgr.data(), 32, 1, Pixels::bgra, 127}); }));
    EXPECT(refuses(bad_argument, "its rows have 96 bytes, and its stride is 95",
                   [&] { classifier.classify({bgr.data(), 32, 32, Pixels::bgr, 95}); }));
    for (const std::size_t height : {std::size_t{1}, std::size_t{32}}) {
        EXPECT(refuses(bad_argument, "its stride is negative, and its rows go downwards", [&] {
            classifier.classify({bgr.data(), 32, height, Pixels::bgr, static_cast<std::size_t>(-96)});
        }));
    }
    EXPECT(refuses(bad_argument, "overflow", [&] {
        classifier.classify({bgr.data(), 32, 32, Pixels::bgr, static_cast<std::size_t>(-1) / 4});
    }));
}

void test_sizes_that_the_file_takes() {
    Manifest fixed = fake_manifest();
    fixed.min_batch = fixed.max_batch = fixed.fixed_batch = 4;
    FakeRuntime* runtime = nullptr;
    Classifier classifier = fake_classifier(&runtime, fixed);
    const auto rgb = picture(32, 32);
    const std::vector<Image> images(5, Image{rgb.data(), 32, 32});
    std::vector<Prediction> predictions(5);
    const Span<const Image> three(images.data(), 3);
    classifier.classify_batch(three, {predictions.data(), 3});
    EXPECT(runtime->ran.back() == 4);
    EXPECT(predictions[2].index == 3 && predictions[3].logits.empty());
    runtime->bad = {3 * 4, std::numeric_limits<float>::quiet_NaN()};  // of the image that is none
    classifier.classify_batch(three, {predictions.data(), 3});
    runtime->bad.reset();
    EXPECT(refuses(bad_argument, "5 images are more than the file takes at once (4)",
                   [&] { classifier.classify_batch(images, predictions); }));
    runtime->most = 2;  // less than the manifest promised
    EXPECT(refuses(bad_argument, "smaller batches",
                   [&] { classifier.classify_batch(three, {predictions.data(), 3}); }));
}

void test_bad_arguments() {
    Classifier classifier = fake_classifier();
    const auto rgb = picture(32, 32);
    const auto* const pixels = rgb.data();
    constexpr std::size_t huge = std::numeric_limits<std::size_t>::max();
    const auto refuses_image = [&](Image image, const char* said) {
        Prediction untouched;
        untouched.label = "as before";
        const auto status =
            classifier.try_classify(image.data, image.width, image.height, untouched);
        return status.code() == bad_argument && untouched.label == "as before" &&
               std::string(status.message()).find(said) != std::string::npos &&
               refuses(bad_argument, said, [&] {
                   classifier.classify(image.data, image.width, image.height);
               });
    };
    EXPECT(refuses_image({nullptr, 32, 32}, "null pointer"));
    EXPECT(refuses_image({pixels, 0, 32}, "0 x 32"));
    EXPECT(refuses_image({pixels, 32, 0}, "32 x 0"));
    EXPECT(refuses_image({pixels, huge, huge}, "overflow"));
    EXPECT(refuses_image({pixels, huge / 2, 2}, "overflow"));
    EXPECT(refuses_image({pixels, huge / 3 + 1, 1}, "overflow"));
    EXPECT(refuses_image({pixels, static_cast<std::size_t>(-32), 1}, "overflow"));
    EXPECT(refuses_image({pixels, 65'536, 1}, "65535"));
    EXPECT(refuses_image({pixels, 1, std::size_t{1} << 40}, "65535"));

    std::vector<Image> images(9, Image{pixels, 32, 32});
    std::vector<Prediction> predictions(9);
    EXPECT(refuses(bad_argument, "9 images are more than the file takes at once (8)",
                   [&] { classifier.classify_batch(images, predictions); }));
    predictions.resize(8);
    EXPECT(refuses(bad_argument, "9 images and 8 predictions",
                   [&] { classifier.classify_batch(images, predictions); }));
    EXPECT(refuses(bad_argument, "null pointer",
                   [&] { classifier.classify_batch({nullptr, 8}, predictions); }));
    images.resize(8);
    EXPECT(refuses(bad_argument, "null pointer",
                   [&] { classifier.classify_batch(images, {nullptr, 8}); }));
    images[5].data = nullptr;
    predictions[0].label = "as before";
    EXPECT(refuses(bad_argument, "image 5",
                   [&] { classifier.classify_batch(images, predictions); }));
    EXPECT(predictions[0].label == "as before");

    FakeRuntime* runtime = nullptr;
    Classifier broken = fake_classifier(&runtime);
    const float infinite = std::numeric_limits<float>::infinity();
    const float no_number = std::numeric_limits<float>::quiet_NaN();
    runtime->bad = {0, no_number};
    EXPECT(refuses(ErrorCode::runtime, "no finite number",
                   [&] { broken.classify(pixels, 32, 32); }));
    for (const float bad : {infinite, -infinite, no_number}) {
        runtime->bad = {7, bad};  // the last class of the second image
        EXPECT(refuses(ErrorCode::runtime, "image 1: model.onnx gave a logit that is no finite", [&] {
            broken.classify_batch({images.data(), 2}, {predictions.data(), 2});
        }));
    }
    EXPECT(refuses(bad_argument, "2 images and 3 predictions", [&] {
        broken.classify_batch({images.data(), 2}, {predictions.data(), 3});
    }));
    EXPECT(refuses(bad_argument, "needs a runtime", [] {
        Classifier("nowhere", fake_manifest(), {"a", "b", "c", "d"}, nullptr);
    }));
    EXPECT(refuses(bad_argument, "a label for each class", [] {
        Classifier("nowhere", fake_manifest(), {"a", "b", "c"},
                   std::make_unique<FakeRuntime>(32 * 32 * 3, 4));
    }));
    Classifier unlimited = fake_classifier(nullptr, fake_manifest(32, 0));
    for (const auto& [height, width] : {std::pair<std::size_t, std::size_t>{0, 32}, {32, 0},
                                        {4097, 32}, {32, 4097}}) {
        Manifest odd = fake_manifest();
        odd.height = height;
        odd.width = width;
        EXPECT(refuses(bad_argument, "sides from 1 to 4096 pixels", [&] {
            Classifier("nowhere", odd, {"a", "b", "c", "d"}, std::make_unique<FakeRuntime>(1, 4));
        }));
    }
    Manifest none = fake_manifest();
    none.classes = 0;
    EXPECT(refuses(bad_argument, "a label for each class", [&] {
        Classifier("nowhere", none, {}, std::make_unique<FakeRuntime>(32 * 32 * 3, 4));
    }));
    images.assign(100, Image{pixels, 32, 32});
    predictions.resize(100);
    unlimited.classify_batch(images, predictions);
    EXPECT(predictions[99].index == 3);

    // Without memory all predictions are as before.
    Classifier short_of = fake_classifier();
    std::vector<std::uint8_t> third(32 * 32 * 3);  // of the class with the long label
    for (std::size_t i = 0; i < third.size(); ++i) third[i] = i % 3 == 2 ? 200 : 0;
    images.assign(2, Image{third.data(), 32, 32});
    predictions.assign(2, Prediction{});
    short_of.classify_batch(images, predictions);
    for (Prediction& one : predictions) one = Prediction{"as before", 0, 0, {}};
    EXPECT(refusals_of_memory([&] {
               for (Prediction& one : predictions) {
                   EXPECT(one.label == "as before" && one.logits.empty());
                   Prediction fresh;
                   fresh.label = "as before";
                   std::swap(one, fresh);
               }
               short_of.classify_batch(images, predictions);
           }) == 4);
    EXPECT(predictions[1].index == 2);
}

// Tells whether it was run twice at once.
class Alone : public FakeRuntime {
public:
    explicit Alone(std::atomic<bool>& met) : FakeRuntime(32 * 32 * 3, 4), met_(&met) {}
    const float* run(std::size_t batch) override {
        if (inside_.fetch_add(1) != 0) *met_ = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        inside_.fetch_sub(1);
        return FakeRuntime::run(batch);
    }

private:
    std::atomic<bool>* met_;
    std::atomic<int> inside_{0};
};

void test_threads_take_turns() {
    std::atomic<bool> met{false};
    auto runtime = std::make_unique<Alone>(met);
    runtime->ran.reserve(64);
    Classifier classifier("nowhere", fake_manifest(), {"cat", "dog", "bird", "frog"},
                          std::move(runtime));
    const auto rgb = picture(32, 32);
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back([&] { classifier.classify(rgb.data(), 32, 32); });
    }
    for (std::thread& one : threads) one.join();
    EXPECT(!met);
}

// --- load ---------------------------------------------------------------------------------------

namespace fs = std::filesystem;

void write(const fs::path& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
}

void test_load(const fs::path& home) {
    const auto load = [&] { Classifier::load(home.string()); };
    const auto refuses_load = [&](ErrorCode code, const std::string& said) {
        std::optional<Classifier> none;
        const auto status = Classifier::try_load(home.string(), none);
        return status.code() == code && !none && refuses(code, said, load);
    };
    fs::remove_all(home);
    EXPECT(refuses_load(ErrorCode::not_found, "is no folder"));
    fs::create_directories(home);
    EXPECT(refuses_load(ErrorCode::not_found, "has no manifest.txt"));
    fs::create_directory(home / "manifest.txt");
    EXPECT(refuses_load(ErrorCode::not_found, "it is not a file"));
    fs::remove(home / "manifest.txt");

    const std::string labels = "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n";
    const std::string model = "twelve bytes";
    using cifar_deploy::detail::sha256_hex;
    Lines lines = with(with(onnx_lines(), "sha256", sha256_hex(model)), "labels_sha256",
                       sha256_hex(labels));
    write(home / "manifest.txt", joined(lines));
    EXPECT(refuses_load(ErrorCode::not_found, "labels.txt: no such file"));
    write(home / "labels.txt", "x" + labels);
    EXPECT(refuses_load(ErrorCode::changed_file, "labels.txt is not the file"));
    write(home / "labels.txt", labels);
    EXPECT(refuses_load(ErrorCode::not_found, "model.onnx: no such file"));
    for (const std::string& changed : {std::string("twelve bytez"), std::string("twelve byte"),
                                       std::string("twelve bytes and more"), std::string()}) {
        write(home / "model.onnx", changed);
        EXPECT(refuses_load(ErrorCode::changed_file, "model.onnx is not the file"));
    }
    write(home / "manifest.txt", std::string(70'000, 'x'));
    EXPECT(refuses_load(ErrorCode::bad_package, "has 70000 bytes"));

    // Now all is whole, and which runtime is wanted decides.
    write(home / "model.onnx", model);
    write(home / "manifest.txt", joined(lines));
    cifar_deploy::LoadOptions options;
    options.backend = cifar_deploy::Backend::tensorrt;
    EXPECT(refuses(bad_argument, "is an ONNX file",
                   [&] { Classifier::load(home.string(), options); }));
    options = {};
    options.threads = 1025;
    EXPECT(refuses(bad_argument, "threads 1025: give a number from 1 to 1024",
                   [&] { Classifier::load(home.string(), options); }));
    std::optional<Classifier> loaded;
    EXPECT(Classifier::try_load(home.string(), loaded, options).code() == bad_argument);
    options.threads = 1024;
    EXPECT(Classifier::try_load(home.string(), loaded, options).code() != bad_argument);
    options = {};
    options.backend = cifar_deploy::Backend::tensorrt_rtx;
    EXPECT(refuses(bad_argument, "is an ONNX file",
                   [&] { Classifier::load(home.string(), options); }));
    options = {};
#if !defined(CIFAR_DEPLOY_HAS_OPENVINO) && !defined(CIFAR_DEPLOY_HAS_ONNXRUNTIME)
    EXPECT(refuses_load(ErrorCode::backend_missing, "-DCIFAR_DEPLOY_WITH_OPENVINO=ON"));
#endif
#if !defined(CIFAR_DEPLOY_HAS_ONNXRUNTIME)
    options.backend = cifar_deploy::Backend::onnxruntime;
    EXPECT(refuses(ErrorCode::backend_missing, "-DCIFAR_DEPLOY_WITH_ONNXRUNTIME=ON",
                   [&] { Classifier::load(home.string(), options); }));
#endif
#if !defined(CIFAR_DEPLOY_HAS_TENSORRT) && !defined(CIFAR_DEPLOY_HAS_TENSORRT_RTX)
    Lines engine = with(lines, "file", "model.onnx");
    for (const auto& [key, value] : engine_lines()) {
        if (key == "tensorrt" || key == "compute_capability" || key == "profiles") {
            engine.push_back({key, value});
        }
    }
    write(home / "manifest.txt", joined(with(engine, "backend", "tensorrt-rtx")));
    EXPECT(refuses_load(ErrorCode::backend_missing, "-DCIFAR_DEPLOY_WITH_TENSORRT_RTX=ON"));
    options.backend = cifar_deploy::Backend::tensorrt_rtx;
    EXPECT(refuses(ErrorCode::backend_missing, "-DCIFAR_DEPLOY_WITH_TENSORRT_RTX=ON",
                   [&] { Classifier::load(home.string(), options); }));
    write(home / "manifest.txt", joined(with(engine, "backend", "tensorrt")));
    EXPECT(refuses_load(ErrorCode::backend_missing, "-DCIFAR_DEPLOY_WITH_TENSORRT=ON"));
    options.backend = cifar_deploy::Backend::openvino;
    EXPECT(refuses(bad_argument, "runs in no other backend",
                   [&] { Classifier::load(home.string(), options); }));
#endif
    fs::remove_all(home);
}

// --- self-test ----------------------------------------------------------------------------------

void test_self_test(const fs::path& home) {
    fs::create_directories(home / "vectors");
    Manifest manifest = fake_manifest(2, 2);  // so the three are two batches
    manifest.vectors_count = 3;
    auto rgb = picture(2, 6);  // three images of 2 x 2
    rgb[14] = rgb[15] = 250;  // bird and frog alike in image 1
    rgb[24] = 0;              // a logit of 0 in image 2
    const std::string images(rgb.begin(), rgb.end());
    std::string logits;
    for (std::size_t i = 0; i < 3; ++i) {
        for (std::size_t c = 0; c < 4; ++c) {
            const float logit = static_cast<float>(rgb[i * 12 + c]) / 8;
            logits.append(reinterpret_cast<const char*>(&logit), 4);  // this machine: little-endian
        }
    }
    write(home / "vectors" / "images.rgb", images);
    using cifar_deploy::detail::sha256_hex;
    manifest.vectors_images_sha256 = sha256_hex(images);
    const auto test = [&](const std::string& wanted, const std::string& precision) {
        write(home / "vectors" / "logits.f32", wanted);
        manifest.vectors_logits_sha256 = sha256_hex(wanted);
        manifest.precision = precision;
        auto runtime = std::make_unique<FakeRuntime>(12, 4);
        runtime->ran.reserve(8);
        Classifier classifier(home.string(), manifest, {"cat", "dog", "bird", "frog"},
                              std::move(runtime));
        return cifar_deploy::self_test(classifier);
    };
    const auto changed = [&](std::size_t at, float by) {
        std::string other = logits;
        float value = 0;
        other.copy(reinterpret_cast<char*>(&value), 4, at * 4);
        value += by;
        other.replace(at * 4, 4, reinterpret_cast<const char*>(&value), 4);
        return other;
    };
    auto result = test(logits, "fp32");
    EXPECT(result.passed && result.images == 3 && result.text.find("PASS: 3 images") == 0);
    {
        // Loaded from a relative folder, by a program that goes elsewhere then, and has little memory.
        const fs::path before = fs::current_path();
        fs::current_path(home.parent_path());
        auto runtime = std::make_unique<FakeRuntime>(12, 4);
        runtime->ran.reserve(64);
        Classifier classifier(home.filename().string(), manifest, {"cat", "dog", "bird", "frog"},
                              std::move(runtime));
        fs::current_path(before);
        EXPECT(classifier.folder() == home.filename().string());
        const std::size_t refusals = refusals_of_memory([&] {
            EXPECT(cifar_deploy::self_test(classifier).passed);
        });
        EXPECT(refusals > 5);
    }
    EXPECT(test(changed(6, 0.0009F), "fp32").passed);
    result = test(changed(6, 0.0009F), "fp32");
    EXPECT(std::abs(result.largest_difference - 0.0009) < 1e-5);
    EXPECT(result.text.find("of those of the validated runtime") != std::string::npos);
    manifest.vectors_from = "ONNX Runtime";
    EXPECT(test(logits, "fp32").text.find("of those of ONNX Runtime") != std::string::npos);
    manifest.max_batch = 0;  // as of every ONNX package
    EXPECT(test(logits, "fp32").images == 3);
    manifest.max_batch = 2;
    result = test(changed(6, 0.0011F), "fp32");
    EXPECT(!result.passed && result.text.find("image 1 differs: the logit of bird") !=
                                 std::string::npos);
    EXPECT(test(changed(6, 0.04F), "fp16").passed);
    EXPECT(!test(changed(6, 6.0F), "fp16").passed);
    EXPECT(test(changed(6, 1.5F), "fp16").passed && !test(changed(6, 2.0F), "fp16").passed);
    EXPECT(test(changed(8, 0.04F), "fp16").passed && !test(changed(8, 0.06F), "fp16").passed);
    EXPECT(test(changed(6, 0.4F), "int8").passed && !test(changed(6, 0.6F), "int8").passed);
    // Each logit is near enough, and yet another class is the first by more than that.
    logits = changed(6, -0.0009F);
    EXPECT(test(logits, "fp32").passed);  // a tie
    EXPECT(test(std::string(48, '\0'), "fp32").text.find("image 0 differs") != std::string::npos);
    result = test(changed(7, 0.0009F), "fp32");
    EXPECT(!result.passed);
    EXPECT(result.text.find("it is taken for bird, not for frog") != std::string::npos);
    EXPECT(!test(changed(6, std::numeric_limits<float>::quiet_NaN()), "fp16").passed);
    EXPECT(refuses(bad_package, "has not the sizes",
                   [&] { test(logits.substr(0, 44), "fp32"); }));
    write(home / "vectors" / "images.rgb", images.substr(0, 24));
    manifest.vectors_images_sha256 = sha256_hex(images.substr(0, 24));
    EXPECT(refuses(bad_package, "has not the sizes", [&] { test(logits, "fp32"); }));
    write(home / "vectors" / "images.rgb", "other");
    EXPECT(refuses(ErrorCode::changed_file, "images.rgb is not the file",
                   [&] { test(logits, "fp32"); }));
    manifest.vectors_count = 0;
    EXPECT(refuses(ErrorCode::not_found, "no test vectors", [&] { test(logits, "fp32"); }));
    fs::remove_all(home);
}

// --- the accuracy on a test set -----------------------------------------------------------------

// What the images' classes are by their first four bytes, as FakeRuntime has it: 10 images of 2 x 2,
// which it gets right but for the last.
cifar_deploy::Evaluation evaluated(const Manifest& manifest, std::size_t count = 10,
                                   std::size_t wrong = 1) {
    FakeRuntime* runtime = nullptr;
    Classifier classifier = fake_classifier(&runtime, manifest);
    cifar_deploy::Evaluator evaluator(classifier);
    for (std::size_t i = 0; i < count; ++i) {
        std::vector<std::uint8_t> rgb(12, 0);
        rgb[i % 4] = 9;
        evaluator.add({rgb.data(), 2, 2}, (i + (i + wrong >= count ? 1 : 0)) % 4);
    }
    const auto result = evaluator.result();
    EXPECT(runtime->ran.size() == (count + 3) / 4 && runtime->ran.front() == 4);
    return result;
}

// cifar-deploy's Split.set_sha256 of those images.
std::string digest(std::size_t count, std::size_t wrong) {
    using cifar_deploy::detail::sha256_hex;
    std::vector<std::string> each;
    for (std::size_t i = 0; i < count; ++i) {
        std::string image(12, '\0');
        image[i % 4] = 9;
        const auto label = static_cast<char>((i + (i + wrong >= count ? 1 : 0)) % 4);
        each.push_back(sha256_hex(image + label + std::string(3, '\0')));
    }
    std::sort(each.begin(), each.end());
    std::string all;
    for (const std::string& one : each) all += one;
    return sha256_hex(all);
}

void test_evaluation() {
    Manifest manifest = fake_manifest(2, 4);
    auto result = evaluated(manifest);
    EXPECT(result.images == 10 && result.right == 9 && !result.comparable && !result.passed);
    EXPECT(result.text ==
           "10 images, 90.00 % right (9); the package does not say what the file was proved on");
    manifest.test_count = 10;
    manifest.test_right = 10;
    manifest.test_from = "ONNX Runtime";
    manifest.test_sha256 = digest(10, 1);
    result = evaluated(manifest);
    EXPECT(result.comparable && !result.passed);
    EXPECT(result.text == "FAIL: 10 images, 90.00 % right (9); 10 were by ONNX Runtime, and 0 fewer "
                          "are allowed");
    manifest.test_margin = 1;
    result = evaluated(manifest);
    EXPECT(result.passed && result.text.find("PASS: 10 images") == 0);
    manifest.test_right = 8;  // better than it was: nothing is lost
    manifest.test_margin = 0;
    EXPECT(evaluated(manifest).passed);
    for (const auto& other : {evaluated(manifest, 9), evaluated(manifest, 10, 0)}) {
        EXPECT(!other.comparable && !other.passed);
        EXPECT(other.text.find("they are not the 10 images that the file was proved on (80.00 % "
                               "right)") != std::string::npos);
    }

    // Larger images are resized before they are known; who goes on after an Error has those for wrong.
    FakeRuntime* runtime = nullptr;
    Classifier classifier = fake_classifier(&runtime, fake_manifest(2, 4));
    cifar_deploy::Evaluator resized(classifier);
    const std::vector<std::uint8_t> large(4 * 4 * 3, 9);  // all of its classes are as likely: the first
    for (std::size_t i = 0; i < 6; ++i) {
        runtime->bad.reset();
        const auto add = [&] { resized.add({large.data(), 4, 4}, 0); };
        if (i == 3) {
            runtime->bad = {0, std::numeric_limits<float>::quiet_NaN()};
            EXPECT(refuses(ErrorCode::runtime, "of the images from 0 on, image 0: model.onnx gave a logit",
                           add));
        } else {
            add();
        }
    }
    result = resized.result();
    EXPECT(result.images == 6 && result.right == 2);

    // Without memory nothing is half added, and what was not is added by the next try.
    classifier = fake_classifier(&runtime, fake_manifest(2, 4));
    EXPECT(refusals_of_memory([&] { const cifar_deploy::Evaluator none(classifier); }) > 2);
    cifar_deploy::Evaluator short_of(classifier);
    std::size_t refusals = 0;
    for (std::size_t i = 0; i < 3; ++i) {
        refusals += refusals_of_memory([&] { short_of.add({large.data(), 4, 4}, 0); });
    }
    EXPECT(refusals > 5);
    refusals = refusals_of_memory([&] { result = short_of.result(); });
    EXPECT(refusals > 0 && result.images == 3);

    // Of more than 256 classes a label has more than a byte.
    // Of a file that takes any number, as every ONNX package says, 64 at once.
    Classifier any = fake_classifier(&runtime, fake_manifest(2, 0));
    cifar_deploy::Evaluator many_images(any);
    for (std::size_t i = 0; i < 70; ++i) many_images.add({large.data(), 4, 4}, 0);
    EXPECT(many_images.result().right == 70);
    EXPECT(runtime->ran == (std::vector<std::size_t>{64, 6}));

    Manifest many = fake_manifest(16, 4);
    many.classes = 300;
    many.test_count = 1;
    many.test_right = 0;
    many.test_from = "ONNX Runtime";
    const std::string black(16 * 16 * 3, '\0');
    using cifar_deploy::detail::sha256_hex;
    many.test_sha256 = sha256_hex(sha256_hex(black + std::string("\x2b\x01\0\0", 4)));
    Classifier knowing("nowhere", many, std::vector<std::string>(300, "label"),
                       std::make_unique<FakeRuntime>(black.size(), 300));
    cifar_deploy::Evaluator last(knowing);
    last.add({reinterpret_cast<const std::uint8_t*>(black.data()), 16, 16}, 299);
    EXPECT(last.result().comparable);

    cifar_deploy::Evaluator evaluator(classifier);
    const auto rgb = picture(4, 4);
    EXPECT(refuses(bad_argument, "class 4 is none of the 4",
                   [&] { evaluator.add({rgb.data(), 4, 4}, 4); }));
    EXPECT(refuses(bad_argument, "image 0: its pixels are a null pointer",
                   [&] { evaluator.add({nullptr, 4, 4}, 0); }));
    EXPECT(refuses(bad_argument, "no images to judge by", [&] { evaluator.result(); }));
}

// --- a real package -----------------------------------------------------------------------------

void test_package(const std::string& folder) {
    Classifier classifier = Classifier::load(folder);
    const auto result = cifar_deploy::self_test(classifier);
    EXPECT(result.passed && result.images == 64);
    const auto rgb = picture(50, 40);
    const auto alone = classifier.classify(rgb.data(), 50, 40);
    std::vector<Prediction> predictions(5);
    classifier.classify_batch(std::vector<Image>(5, Image{rgb.data(), 50, 40}), predictions);
    EXPECT(predictions[4].index == alone.index);
    // A larger batch has memory of its own; a size that ran before it has then that, too.
    Classifier growing = Classifier::load(folder);
    const auto second = picture(50, 40, 99);
    growing.classify(rgb.data(), 50, 40);
    growing.classify_batch(std::vector<Image>(3, Image{rgb.data(), 50, 40}));
    const auto later = growing.classify(second.data(), 50, 40);
    const auto sooner = classifier.classify(second.data(), 50, 40);
    for (std::size_t i = 0; i < later.logits.size(); ++i) {
        EXPECT(std::abs(later.logits[i] - sooner.logits[i]) < 1e-3F);
        EXPECT(std::abs(later.logits[i] - alone.logits[i]) > 1e-3F);
    }
#ifdef CIFAR_DEPLOY_HAS_OPENVINO
    // A batch that OpenVINO runs as 36: as many answers, the same, and no more than the file takes.
    cifar_deploy::LoadOptions options;
    options.backend = cifar_deploy::Backend::openvino;
    Classifier openvino = Classifier::load(folder, options);
    for (const auto& one : openvino.classify_batch(std::vector<Image>(33, {rgb.data(), 50, 40}))) {
        for (std::size_t i = 0; i < one.logits.size(); ++i) {
            EXPECT(std::abs(one.logits[i] - alone.logits[i]) < 1e-3F);
        }
    }
    const std::filesystem::path home(folder);
    Manifest manifest = classifier.manifest();
    const auto model = cifar_deploy::detail::read_checked(home / manifest.file, manifest.bytes,
                                                          manifest.sha256);
    for (const std::size_t most : std::vector<std::size_t>{0, 1024, 34, 33}) {
        manifest.max_batch = most;
        const auto runtime = cifar_deploy::detail::make_runtime(manifest, model, options);
        EXPECT(runtime->batch_for(33) == (most == 34 || most == 33 ? most : 36));
    }
#endif
}

}  // namespace

// unit [SCRATCH FOLDER [PACKAGE]]
int main(int count, char** words) {
    const fs::path home = count > 1 ? fs::path(words[1]) : fs::temp_directory_path();
    if (count > 2) test_package(words[2]);
    test_sha256();
    test_manifest();
    test_profiles();
    test_rounded_batches();
    test_labels();
    test_status();
    test_answers();
    test_top();
    test_pixels();
    test_sizes_that_the_file_takes();
    test_bad_arguments();
    test_threads_take_turns();
    test_load(home / "cifar_deploy_unit_load");
    test_self_test(home / "cifar_deploy_unit_vectors");
    test_evaluation();
    if (failures != 0) std::fprintf(stderr, "%d failed\n", failures);
    return failures == 0 ? 0 : 1;
}
