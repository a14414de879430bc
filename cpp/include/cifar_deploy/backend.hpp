// SPDX-License-Identifier: Apache-2.0
// What the classifier needs of a runtime, and what a program may choose of one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "error.hpp"
#include "manifest.hpp"
#include "version.hpp"

namespace cifar_deploy {
inline namespace CIFAR_DEPLOY_NAMESPACE {

enum class Backend {
    automatic,  // the manifest's: for onnx ONNX Runtime if compiled in, else OpenVINO
    onnxruntime,
    openvino,
    tensorrt,
    tensorrt_rtx,
};

struct LoadOptions {
    Backend backend = Backend::automatic;
    // "cpu"; "cuda" or "cuda:1" (ONNX Runtime, TensorRT); a device's name as OpenVINO has it.
    // "auto" is the GPU for engines and the CPU for everything else.
    std::string device = "auto";
    unsigned threads = 0;  // of a CPU, up to 1024; 0: as many as the runtime thinks right
};

namespace detail {

constexpr unsigned most_threads = 1024;

// A model in a runtime, with buffers of its own. Not for two threads at once.
class Runtime {
public:
    Runtime() = default;
    Runtime(const Runtime&) = delete;
    Runtime& operator=(const Runtime&) = delete;
    virtual ~Runtime() = default;

    // Its name, version and device, for people.
    virtual std::string describe() const = 0;

    // The batch that `wanted` images are run as: that, or more where the file takes no such batch or
    // the runtime is better off with few sizes. 0 where it takes none so large.
    virtual std::size_t batch_for(std::size_t wanted) const { return wanted; }

    // Where to write `batch` images, uint8 [batch, height, width, 3]. A batch not larger than one
    // before it needs no memory.
    virtual std::uint8_t* input(std::size_t batch) = 0;

    // Runs what was written; float32 [batch, classes], valid until the next call.
    virtual const float* run(std::size_t batch) = 0;
};

// `wanted`, or up to an eighth more from 17 on: of the sizes from one power of two to the next there
// are eight.
inline std::size_t rounded_batch(std::size_t wanted) {
    std::size_t step = 1;
    while (wanted != 0 && (wanted - 1) / step >= 16) step *= 2;
    return wanted + (step - wanted % step) % step;
}

// The least batch that a profile takes and that has room for `wanted` images; 0 where none has.
inline std::size_t batch_of(const std::vector<Profile>& profiles, std::size_t wanted) {
    std::size_t least = 0;
    for (const Profile& one : profiles) {
        if (wanted > one.max) continue;
        const std::size_t batch = wanted < one.min ? one.min : wanted;
        if (least == 0 || batch < least) least = batch;
    }
    return least;
}

// The number of the profile that runs `batch`: of those that take it, the one that is tuned nearest to
// it, of several the first, as in Python (cifar_deploy/runtimes/tensorrt.py), which validated it so.
// `profiles.size()` where none takes it.
inline std::size_t profile_of(const std::vector<Profile>& profiles, std::size_t batch) {
    std::size_t best = profiles.size();
    std::size_t nearest = 0;
    for (std::size_t i = 0; i < profiles.size(); ++i) {
        const Profile& one = profiles[i];
        if (batch < one.min || batch > one.max) continue;
        const std::size_t apart = batch < one.opt ? one.opt - batch : batch - one.opt;
        if (best == profiles.size() || apart < nearest) {
            best = i;
            nearest = apart;
        }
    }
    return best;
}

// N of "cuda" (0) or "cuda:N"; -1 for anything else.
inline int cuda_index(std::string_view device) {
    if (device == "cuda") return 0;
    if (device.substr(0, 5) != "cuda:" || device.size() == 5 || device.size() > 8) return -1;
    int index = 0;
    for (const char c : device.substr(5)) {
        if (c < '0' || c > '9') return -1;
        index = index * 10 + (c - '0');
    }
    return index;
}

// What a foreign library said, without its trailing blanks.
inline std::string trimmed(std::string_view text) {
    const std::size_t end = text.find_last_not_of(" \n\r\t.");
    return std::string(text.substr(0, end == std::string_view::npos ? 0 : end + 1));
}

// Whether what a foreign library said is that the memory, a CPU's or a GPU's, is full; "an illegal memory
// access" is another failure.
inline bool says_memory_full(std::string_view said) {
    for (const char* words : {"ut of memory", "utOfMemory", "ut of Memory", "UT_OF_MEMORY",
                              "ailed to allocate memory", "bad_alloc", "ALLOC_FAILED"}) {
        if (said.find(words) != std::string_view::npos) return true;
    }
    return false;
}

// Throws what a runtime refused, `what`, and the reason that it gave; where that is the memory, as such
// and with the way out.
[[noreturn]] inline void fail_runtime(const std::string& what, const std::string& said,
                                      const char* way_out) {
    if (says_memory_full(said)) {
        fail(ErrorCode::out_of_memory, what + ": " + said + "; " + way_out);
    }
    fail(ErrorCode::runtime, what + ": " + said);
}

// "uint8 [batch, 32, 32, 3]", what a model must take.
inline std::string wanted_interface(const Manifest& manifest) {
    return "uint8 [batch, " + std::to_string(manifest.height) + ", " +
           std::to_string(manifest.width) + ", 3] '" + manifest.input +
           "' in and float32 [batch, " + std::to_string(manifest.classes) + "] '" +
           manifest.output + "' out";
}

[[noreturn]] inline void fail_interface(const Manifest& manifest) {
    fail(ErrorCode::bad_package, manifest.file + " has not the interface that manifest.txt names (" +
                                     wanted_interface(manifest) + "); package the model again");
}

}  // namespace detail
}  // namespace CIFAR_DEPLOY_NAMESPACE
}  // namespace cifar_deploy
