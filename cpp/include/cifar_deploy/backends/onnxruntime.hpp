// SPDX-License-Identifier: Apache-2.0
// ONNX Runtime: ONNX files on a CPU or, with its CUDA provider, on an NVIDIA GPU.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "../backend.hpp"
#include "../version.hpp"

namespace cifar_deploy {
inline namespace CIFAR_DEPLOY_NAMESPACE {
namespace detail {

class OnnxRuntime final : public Runtime {
public:
    OnnxRuntime(const Manifest& manifest, const std::string& model, const LoadOptions& options)
        : image_{manifest.height, manifest.width, 3},
          classes_(manifest.classes),
          input_(manifest.input),
          output_(manifest.output),
          device_(device(options)) {
        const int gpu = cuda_index(device_);
        if (device_ != "cpu" && gpu < 0) {
            fail(ErrorCode::bad_argument, "device " + options.device +
                                              ": ONNX Runtime takes auto, cpu, cuda or cuda:N");
        }
        try {
            load(manifest, model, options, gpu);
        } catch (const Ort::Exception& error) {
            fail_runtime("ONNX Runtime cannot load " + manifest.file + " on " + device_,
                         trimmed(error.what()), "close what else runs there");
        }
    }

    std::string describe() const override {
        return std::string("ONNX Runtime ") + OrtGetApiBase()->GetVersionString() + ", " + device_;
    }

    std::uint8_t* input(std::size_t batch) override {
        if (batch > room_) {
            bound_.clear();
            room_ = 0;
            images_.resize(batch * pixels());
            logits_.resize(batch * classes_);
            room_ = batch;
        }
        return images_.data();
    }

    const float* run(std::size_t batch) override {
        try {
            auto& [in, out] = bind(batch);
            const char* const from = input_.c_str();
            const char* const to = output_.c_str();
            session_.Run(Ort::RunOptions{nullptr}, &from, &in, 1, &to, &out, 1);
        } catch (const Ort::Exception& error) {
            fail_runtime("ONNX Runtime cannot run a batch of " + std::to_string(batch),
                         trimmed(error.what()), "use smaller batches");
        }
        return logits_.data();
    }

private:
    using Pair = std::pair<Ort::Value, Ort::Value>;

    // Checked before there is a member of ONNX Runtime's: each of them calls its functions even to
    // be destroyed.
    static std::string device(const LoadOptions& options) {
        if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr) {
            fail(ErrorCode::runtime,
                 std::string("the ONNX Runtime that was found, ") +
                     OrtGetApiBase()->GetVersionString() +
                     ", is older than the headers that the program was built with (API " +
                     std::to_string(ORT_API_VERSION) + "); put a newer library in its place");
        }
        return options.device == "auto" ? "cpu" : options.device;
    }

    std::size_t pixels() const { return image_[0] * image_[1] * image_[2]; }

    void load(const Manifest& manifest, const std::string& model, const LoadOptions& options,
              int gpu) {
        env_ = Ort::Env(ORT_LOGGING_LEVEL_FATAL, "cifar_deploy");  // what it says is thrown too
        Ort::SessionOptions settings;
        if (options.threads != 0) settings.SetIntraOpNumThreads(static_cast<int>(options.threads));
        if (gpu >= 0) {
            // A node that only the CPU can run is then an error and not a hidden copy.
            settings.AddConfigEntry("session.disable_cpu_ep_fallback", "1");
            // Of int8 graphs CUDA has no convolutions: as where the file was validated, what is
            // between two roundings is computed in fp32.
            settings.AddConfigEntry("session.disable_quant_qdq", "1");
            use_cuda(settings, gpu, manifest.precision == "fp16");
        }
        session_ = Ort::Session(env_, model.data(), model.size(), settings);
        check(manifest);
    }

    static void use_cuda(Ort::SessionOptions& settings, int gpu, bool half) {
        OrtCUDAProviderOptionsV2* cuda = nullptr;
        Ort::ThrowOnError(Ort::GetApi().CreateCUDAProviderOptions(&cuda));
        const struct Release {
            OrtCUDAProviderOptionsV2* options;
            ~Release() { Ort::GetApi().ReleaseCUDAProviderOptions(options); }
        } release{cuda};
        const std::string index = std::to_string(gpu);
        // As where the file was validated: fp32 means fp32. Without TF32 the convolutions of fp16
        // have no tensor cores either.
        const char* const keys[] = {"device_id", "use_tf32", "cudnn_conv_algo_search"};
        const char* const values[] = {index.c_str(), half ? "1" : "0",
                                      half ? "HEURISTIC" : "EXHAUSTIVE"};
        Ort::ThrowOnError(Ort::GetApi().UpdateCUDAProviderOptions(cuda, keys, values, 3));
        settings.AppendExecutionProvider_CUDA_V2(*cuda);
    }

    void check(const Manifest& manifest) const {
        if (session_.GetInputCount() != 1 || session_.GetOutputCount() != 1) {
            fail_interface(manifest);
        }
        Ort::AllocatorWithDefaultOptions allocator;
        const auto side = [](std::size_t n) { return static_cast<std::int64_t>(n); };
        const std::vector<std::int64_t> in{side(image_[0]), side(image_[1]), 3};
        const std::vector<std::int64_t> out{side(classes_)};
        if (session_.GetInputNameAllocated(0, allocator).get() != input_ ||
            session_.GetOutputNameAllocated(0, allocator).get() != output_ ||
            !fits(session_.GetInputTypeInfo(0), ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, in) ||
            !fits(session_.GetOutputTypeInfo(0), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, out)) {
            fail_interface(manifest);
        }
    }

    // Whether a tensor has this type and, behind the batch, these sides.
    static bool fits(const Ort::TypeInfo& type, ONNXTensorElementDataType element,
                     const std::vector<std::int64_t>& sides) {
        if (type.GetONNXType() != ONNX_TYPE_TENSOR) return false;
        const auto tensor = type.GetTensorTypeAndShapeInfo();
        const auto shape = tensor.GetShape();
        return tensor.GetElementType() == element && shape.size() == sides.size() + 1 &&
               std::vector<std::int64_t>(shape.begin() + 1, shape.end()) == sides;
    }

    // Tensors over the buffers, kept for each batch size that was run.
    Pair& bind(std::size_t batch) {
        const auto found = bound_.find(batch);
        if (found != bound_.end()) return found->second;
        const auto side = [](std::size_t n) { return static_cast<std::int64_t>(n); };
        const std::array<std::int64_t, 4> in{side(batch), side(image_[0]), side(image_[1]), 3};
        const std::array<std::int64_t, 2> out{side(batch), side(classes_)};
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        return bound_
            .emplace(batch, Pair(Ort::Value::CreateTensor<std::uint8_t>(
                                     memory, images_.data(), batch * pixels(), in.data(), in.size()),
                                 Ort::Value::CreateTensor<float>(memory, logits_.data(),
                                                                 batch * classes_, out.data(),
                                                                 out.size())))
            .first->second;
    }

    std::size_t image_[3];
    std::size_t classes_;
    std::string input_;
    std::string output_;
    std::string device_;  // before what is ONNX Runtime's, see `device`
    Ort::Env env_{nullptr};
    Ort::Session session_{nullptr};
    std::vector<std::uint8_t> images_;
    std::vector<float> logits_;
    std::size_t room_ = 0;  // images that the buffers hold
    std::map<std::size_t, Pair> bound_;
};

}  // namespace detail
}  // namespace CIFAR_DEPLOY_NAMESPACE
}  // namespace cifar_deploy
