// SPDX-License-Identifier: Apache-2.0
// TensorRT 10 and later, and TensorRT for RTX, whose classes are the same: engines on NVIDIA GPUs.
#pragma once

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../backend.hpp"
#include "../version.hpp"

namespace cifar_deploy {
inline namespace CIFAR_DEPLOY_NAMESPACE {
namespace detail {

inline void check_cuda(cudaError_t result, const char* what) {
    if (result == cudaSuccess) return;
    static_cast<void>(cudaGetLastError());  // else the caller's next call would report it
    const bool full = result == cudaErrorMemoryAllocation;
    fail(full ? ErrorCode::out_of_memory : ErrorCode::runtime,
         std::string("CUDA: ") + what + ": " + cudaGetErrorString(result) +
             (full ? "; use smaller batches" : ""));
}

// Keeps TensorRT's first error since `clear` for our own message, for the later ones follow from it;
// prints nothing. TensorRT for RTX calls it from threads of its own.
class TensorRtLog final : public nvinfer1::ILogger {
public:
    void log(Severity severity, const nvinfer1::AsciiChar* text) noexcept override {
        if (severity > Severity::kERROR || text == nullptr) return;
        const std::lock_guard<std::mutex> lock(mutex_);
        if (first_[0] != '\0') return;
        for (std::size_t i = 0; i + 1 < sizeof first_ && text[i] != '\0'; ++i) first_[i] = text[i];
    }

    void clear() {
        const std::lock_guard<std::mutex> lock(mutex_);
        std::memset(first_, 0, sizeof first_);
    }

    std::string first() const {
        const std::lock_guard<std::mutex> lock(mutex_);
        return first_[0] == '\0' ? "it gave no reason" : trimmed(first_);
    }

    // Whether the error is that the GPU's memory is full.
    bool memory() const {
        const std::string said = first();
        return says_memory_full(said) || said.find("lloc") != std::string::npos;
    }

private:
    mutable std::mutex mutex_;
    char first_[512] = {};
};

// A log for as long as this lives. TensorRT keeps the first logger that a process gives it, also when
// whoever gave it is gone: logs are never freed, but handed on.
class LentLog {
public:
    LentLog() {
        const std::lock_guard<std::mutex> lock(shelf().mutex);
        kept_ = shelf().first;
        if (kept_ == nullptr) {
            kept_ = new Kept;
        } else {
            shelf().first = kept_->next;
        }
        kept_->log.clear();
    }
    LentLog(const LentLog&) = delete;
    LentLog& operator=(const LentLog&) = delete;
    ~LentLog() {
        const std::lock_guard<std::mutex> lock(shelf().mutex);
        kept_->next = shelf().first;
        shelf().first = kept_;
    }

    TensorRtLog& operator*() const { return kept_->log; }
    TensorRtLog* operator->() const { return &kept_->log; }

private:
    struct Kept {
        TensorRtLog log;
        Kept* next = nullptr;
    };
    struct Shelf {
        std::mutex mutex;
        Kept* first = nullptr;  // of those that nobody has
    };
    static Shelf& shelf() {
        static Shelf& kept = *new Shelf;
        return kept;
    }

    Kept* kept_ = nullptr;
};

// Makes a device the thread's current one, and the caller's own one again at the end.
class CurrentDevice {
public:
    explicit CurrentDevice(int device) {
        check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
        if (before_ == device) {
            before_ = -1;
        } else {
            check_cuda(cudaSetDevice(device), "cudaSetDevice");
        }
    }
    CurrentDevice(const CurrentDevice&) = delete;
    CurrentDevice& operator=(const CurrentDevice&) = delete;
    ~CurrentDevice() {
        if (before_ >= 0) static_cast<void>(cudaSetDevice(before_));
    }

private:
    int before_ = -1;
};

struct FreeDevice {
    void operator()(void* memory) const noexcept { static_cast<void>(cudaFree(memory)); }
};
struct FreePinned {
    void operator()(void* memory) const noexcept { static_cast<void>(cudaFreeHost(memory)); }
};
struct DestroyStream {
    void operator()(cudaStream_t stream) const noexcept {
        static_cast<void>(cudaStreamDestroy(stream));
    }
};
using DeviceMemory = std::unique_ptr<void, FreeDevice>;
using PinnedMemory = std::unique_ptr<void, FreePinned>;

inline DeviceMemory device_memory(std::size_t bytes) {
    void* memory = nullptr;
    check_cuda(cudaMalloc(&memory, bytes), "cudaMalloc");
    return DeviceMemory(memory);
}

inline PinnedMemory pinned_memory(std::size_t bytes) {
    void* memory = nullptr;
    check_cuda(cudaMallocHost(&memory, bytes), "cudaMallocHost");
    return PinnedMemory(memory);
}

// Whether an engine of version `built` ("10.13.3", with or without a build number) is one for the
// library's version `here` ("10.13.3"). An engine is tied to the version that built it; one of
// TensorRT for RTX to its major and minor number.
inline bool same_tensorrt(const std::string& built, const std::string& here) {
#ifdef CIFAR_DEPLOY_HAS_TENSORRT_RTX
    const std::string needed = here.substr(0, here.rfind('.'));
#else
    const std::string& needed = here;
#endif
    return built == needed || built.compare(0, needed.size() + 1, needed + '.') == 0;
}

// The operating system and the processor's architecture that this is compiled for, as the manifest
// has them: "Linux x86_64". Empty where this is not known.
inline std::string this_system() {
#if defined(__linux__) && defined(__x86_64__)
    return "Linux x86_64";
#elif defined(__linux__) && defined(__aarch64__)
    return "Linux aarch64";
#elif defined(_WIN32) && (defined(__x86_64__) || defined(_M_X64))
    return "Windows x86_64";
#else
    return "";
#endif
}

// What to do where an engine is not for this GPU, of compute capability `major`.`minor`: the facts of
// `cifar-deploy validate`. `product`: name and version of the library.
inline std::string other_engine(const std::string& product, int major, int minor) {
#ifdef CIFAR_DEPLOY_HAS_TENSORRT_RTX
    const std::string here = std::to_string(major) + '.' + std::to_string(minor);
    // What TensorRT for RTX 1.7 builds for (ComputeCapability), the oldest first; for Turing no linear
    // layer in fp32. GPUs that are newer than the last run what was built for no GPU by name.
    for (const char* target : {"7.5", "8.0", "8.6", "8.9", "12.0", "12.1"}) {
        if (here != target) continue;
        return "export the engine again with --compute-capability " + here +
               (here == "7.5" ? " --precision fp16" : "");
    }
    if (major > 12 || (major == 12 && minor > 1)) {
        return "export the engine again without --compute-capability";
    }
    return product + " does not support this GPU: package the ONNX file, or an engine of --flavour "
                     "tensorrt";
#else
    static_cast<void>(product), static_cast<void>(major), static_cast<void>(minor);
    return "export the engine on this GPU";
#endif
}

class TensorRtRuntime final : public Runtime {
public:
    TensorRtRuntime(const Manifest& manifest, const std::string& model, const LoadOptions& options)
        : pixels_(manifest.height * manifest.width * 3),
          classes_(manifest.classes),
          image_{manifest.height, manifest.width, 3},
          input_(manifest.input),
          output_(manifest.output) {
        device_ = cuda_index(options.device == "auto" ? "cuda" : options.device);
        if (device_ < 0) {
            fail(ErrorCode::bad_argument,
                 "device " + options.device + ": TensorRT takes auto, cuda or cuda:N");
        }
        check_version(manifest);
        check_gpu(manifest);
        const CurrentDevice current(device_);
        runtime_.reset(nvinfer1::createInferRuntime(*log_));
        if (!runtime_) {
            fail(ErrorCode::runtime, product() + " cannot start: " + log_->first());
        }
        engine_.reset(runtime_->deserializeCudaEngine(model.data(), model.size()));
        if (!engine_ && log_->memory()) {
            fail(ErrorCode::out_of_memory, product() + " cannot load " + manifest.file + ": " +
                                               log_->first() + "; close what else runs on the GPU");
        }
        if (!engine_) {
            const std::string said = log_->first();
            const bool other_gpu = said.find("ompute capability") != std::string::npos;
            fail(ErrorCode::wrong_engine,
                 product() + " cannot load " + manifest.file + ": " + said + "; " +
                     (other_gpu ? other_engine(product(), major_, minor_)
                                : "export the engine again with this version and for this GPU"));
        }
        check_interface(manifest);
        for (int i = 0; i < engine_->getNbOptimizationProfiles(); ++i) add_profile(i);
        cudaStream_t stream = nullptr;
        check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
        stream_.reset(stream);
    }

    ~TensorRtRuntime() override {
        // Memory and stream go back on the device they are from.
        int before = -1;
        if (cudaGetDevice(&before) == cudaSuccess) static_cast<void>(cudaSetDevice(device_));
        contexts_.clear();
        stream_.reset();
        device_images_.reset();
        device_logits_.reset();
        images_.reset();
        logits_.reset();
        engine_.reset();
        runtime_.reset();
        if (before >= 0) static_cast<void>(cudaSetDevice(before));
    }

    std::string describe() const override { return product() + ", " + gpu_; }

    std::size_t batch_for(std::size_t wanted) const override {
        return batch_of(profiles_, wanted);
    }

    std::uint8_t* input(std::size_t batch) override {
        if (batch > room_) {
            const CurrentDevice current(device_);
            room_ = 0;
            for (Shapes& context : contexts_) context.batch = 0;  // its addresses are the old ones
            images_ = pinned_memory(batch * pixels_);
            logits_ = pinned_memory(batch * classes_ * sizeof(float));
            device_images_ = device_memory(batch * pixels_);
            device_logits_ = device_memory(batch * classes_ * sizeof(float));
            std::memset(images_.get(), 0, batch * pixels_);
            room_ = batch;
        }
        return static_cast<std::uint8_t*>(images_.get());
    }

    const float* run(std::size_t batch) override {
        const CurrentDevice current(device_);
        log_->clear();
        nvinfer1::IExecutionContext& context = prepared(batch);
        check_cuda(cudaMemcpyAsync(device_images_.get(), images_.get(), batch * pixels_,
                                   cudaMemcpyHostToDevice, stream_.get()),
                   "copying the images");
        if (!context.enqueueV3(stream_.get())) refused(batch);
        check_cuda(cudaMemcpyAsync(logits_.get(), device_logits_.get(),
                                   batch * classes_ * sizeof(float), cudaMemcpyDeviceToHost,
                                   stream_.get()),
                   "copying the logits");
        check_cuda(cudaStreamSynchronize(stream_.get()), "running the engine");
        return static_cast<const float*>(logits_.get());
    }

private:
    // A context for each profile, made at its first use and then kept.
    struct Shapes {
#ifdef CIFAR_DEPLOY_HAS_TENSORRT_RTX
        std::unique_ptr<nvinfer1::IRuntimeConfig> config;  // outlives the context
#endif
        std::unique_ptr<nvinfer1::IExecutionContext> context;
        std::size_t batch = 0;  // that its shapes and addresses are set for
    };

    static std::string version() {
        return std::to_string(getInferLibMajorVersion()) + '.' +
               std::to_string(getInferLibMinorVersion()) + '.' +
               std::to_string(getInferLibPatchVersion());
    }

    static std::string product() {
#ifdef CIFAR_DEPLOY_HAS_TENSORRT_RTX
        return "TensorRT for RTX " + version();
#else
        return "TensorRT " + version();
#endif
    }

    static void check_version(const Manifest& manifest) {
        if (getInferLibMajorVersion() != NV_TENSORRT_MAJOR) {
            fail(ErrorCode::runtime, "the program was built with the headers of TensorRT " +
                                         std::to_string(NV_TENSORRT_MAJOR) + " and runs with " +
                                         product() + "; let both be of the same version");
        }
        if (!same_tensorrt(manifest.tensorrt, version())) {
            fail(ErrorCode::wrong_engine,
                 manifest.file + " was built by TensorRT " + manifest.tensorrt +
                     ", and an engine runs only with the version that built it; this program has " +
                     product() + ": export the engine again, or use that version");
        }
        const std::string system = this_system();
        if (!manifest.system.empty() && !system.empty() && manifest.system != system) {
            fail(ErrorCode::wrong_engine, manifest.file + " was built on " + manifest.system +
                                              ", and this is " + system +
                                              ": export the engine again on such a machine");
        }
    }

    void check_gpu(const Manifest& manifest) {
        int count = 0;
        const cudaError_t result = cudaGetDeviceCount(&count);
        if (result != cudaSuccess || device_ >= count) {
            static_cast<void>(cudaGetLastError());  // else the next call would report it
            fail(ErrorCode::wrong_engine,
                 manifest.file + " needs an NVIDIA GPU, and CUDA sees " +
                     (result == cudaSuccess
                          ? std::to_string(count) + " here, not cuda:" + std::to_string(device_)
                          : std::string("none here (") + cudaGetErrorString(result) + ")") +
                     "; use an onnx package on a CPU");
        }
        cudaDeviceProp properties{};
        check_cuda(cudaGetDeviceProperties(&properties, device_), "cudaGetDeviceProperties");
        gpu_ = properties.name;
        major_ = properties.major;
        minor_ = properties.minor;
        const std::string here = std::to_string(major_) + '.' + std::to_string(minor_);
        std::string targets;
        for (const std::string& target : manifest.compute_capabilities) {
            if (target == here) return check_model(manifest);
            targets += (targets.empty() ? "" : ", ") + target;
        }
        if (targets.empty()) return;
        fail(ErrorCode::wrong_engine,
             manifest.file + " was built for GPUs of compute capability " + targets + ", and " +
                 gpu_ + " has " + here + "; " + other_engine(product(), major_, minor_));
    }

    void check_model(const Manifest& manifest) const {
        if (manifest.gpu.empty() || manifest.gpu == gpu_) return;
        fail(ErrorCode::wrong_engine,
             manifest.file + " was built for " + manifest.gpu + ", and this is " + gpu_ +
                 "; export the engine on this GPU, or there with --hardware-compatibility "
                 "same-compute-capability");
    }

    void check_interface(const Manifest& manifest) const {
        using nvinfer1::DataType;
        using nvinfer1::TensorIOMode;
        if (engine_->getNbIOTensors() != 2 ||
            engine_->getTensorIOMode(input_.c_str()) != TensorIOMode::kINPUT ||
            engine_->getTensorIOMode(output_.c_str()) != TensorIOMode::kOUTPUT ||
            engine_->getTensorDataType(input_.c_str()) != DataType::kUINT8 ||
            engine_->getTensorDataType(output_.c_str()) != DataType::kFLOAT) {
            fail_interface(manifest);
        }
        const auto is = [](std::int64_t side, std::size_t wanted) {
            return side >= 0 && static_cast<std::uint64_t>(side) == wanted;
        };
        const nvinfer1::Dims in = engine_->getTensorShape(input_.c_str());
        const nvinfer1::Dims out = engine_->getTensorShape(output_.c_str());
        if (in.nbDims != 4 || !is(in.d[1], image_[0]) || !is(in.d[2], image_[1]) ||
            !is(in.d[3], image_[2]) || out.nbDims != 2 || !is(out.d[1], classes_)) {
            fail_interface(manifest);
        }
    }

    void add_profile(int index) {
        using nvinfer1::OptProfileSelector;
        const auto batch = [&](OptProfileSelector which) {
            const auto dims = engine_->getProfileShape(input_.c_str(), index, which);
            return dims.nbDims == 4 && dims.d[0] > 0 ? static_cast<std::size_t>(dims.d[0]) : 0;
        };
        profiles_.push_back({batch(OptProfileSelector::kMIN), batch(OptProfileSelector::kOPT),
                             batch(OptProfileSelector::kMAX)});
        contexts_.emplace_back();
    }

    // Leaves the context null where the library refuses.
    void make_context(Shapes& chosen) const {
#ifdef CIFAR_DEPLOY_HAS_TENSORRT_RTX
        // By default it begins with kernels for any batch and changes to others later on; what was
        // validated ran with those for its batch from the first image on.
        chosen.config.reset(engine_->createRuntimeConfig());
        if (!chosen.config) return;
        chosen.config->setDynamicShapesKernelSpecializationStrategy(
            nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER);
        chosen.context.reset(engine_->createExecutionContext(chosen.config.get()));
#else
        chosen.context.reset(engine_->createExecutionContext());
#endif
    }

    nvinfer1::IExecutionContext& prepared(std::size_t batch) {
        const std::size_t index = profile_of(profiles_, batch);
        if (index == profiles_.size() || batch > room_) refused(batch);
        Shapes& chosen = contexts_[index];
        if (!chosen.context) {
            make_context(chosen);
            if (!chosen.context ||
                !chosen.context->setOptimizationProfileAsync(static_cast<int>(index), stream_.get())) {
                chosen.context.reset();
                refused(batch);
            }
            check_cuda(cudaStreamSynchronize(stream_.get()), "choosing the profile");
        }
        if (chosen.batch != batch) {
            chosen.batch = 0;
            nvinfer1::Dims shape{};
            shape.nbDims = 4;
            shape.d[0] = static_cast<std::int64_t>(batch);
            for (std::size_t i = 0; i < image_.size(); ++i) {
                shape.d[i + 1] = static_cast<std::int64_t>(image_[i]);
            }
            if (!chosen.context->setInputShape(input_.c_str(), shape) ||
                !chosen.context->setTensorAddress(input_.c_str(), device_images_.get()) ||
                !chosen.context->setTensorAddress(output_.c_str(), device_logits_.get())) {
                refused(batch);
            }
            chosen.batch = batch;
        }
        return *chosen.context;
    }

    [[noreturn]] void refused(std::size_t batch) const {
        const std::string said = product() + " cannot run a batch of " + std::to_string(batch) +
                                 ": " + log_->first();
        if (log_->memory()) fail(ErrorCode::out_of_memory, said + "; use smaller batches");
        fail(ErrorCode::runtime, said);
    }

    std::size_t pixels_;
    std::size_t classes_;
    std::array<std::size_t, 3> image_;
    std::string input_;
    std::string output_;
    int device_ = 0;
    std::string gpu_;
    int major_ = 0;  // of its compute capability
    int minor_ = 0;
    LentLog log_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::vector<Profile> profiles_;
    std::vector<Shapes> contexts_;  // one for each
    std::unique_ptr<CUstream_st, DestroyStream> stream_;
    PinnedMemory images_;
    PinnedMemory logits_;
    DeviceMemory device_images_;
    DeviceMemory device_logits_;
    std::size_t room_ = 0;  // images that the buffers hold
};

}  // namespace detail
}  // namespace CIFAR_DEPLOY_NAMESPACE
}  // namespace cifar_deploy
