// SPDX-License-Identifier: Apache-2.0
// OpenVINO: ONNX files on Intel's and other processors.
#pragma once

#include <openvino/core/version.hpp>
#include <openvino/runtime/core.hpp>
#include <openvino/runtime/properties.hpp>

#include <algorithm>
#include <cctype>
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

class OpenVinoRuntime final : public Runtime {
public:
    OpenVinoRuntime(const Manifest& manifest, const std::string& model, const LoadOptions& options)
        : image_{manifest.height, manifest.width, 3},
          classes_(manifest.classes),
          most_(manifest.max_batch) {
        device_ = options.device == "auto" ? "CPU" : options.device;
        std::transform(device_.begin(), device_.end(), device_.begin(),
                       [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
        if (cuda_index(options.device) >= 0) {
            fail(ErrorCode::bad_argument,
                 "device " + options.device +
                     ": OpenVINO does not run on CUDA; use cpu, or the ONNX Runtime backend");
        }
        try {
            load(manifest, model, options);
        } catch (const ov::Exception& error) {
            fail_runtime("OpenVINO cannot load " + manifest.file + " on " + device_, said(error),
                         "close what else runs there");
        }
    }

    std::string describe() const override {
        return std::string("OpenVINO ") + ov::get_openvino_version().buildNumber + ", " + device_;
    }

    // OpenVINO compiles for each batch size that it meets and keeps that, some megabytes of a small
    // network; of all sizes up to 1000 there would be a thousand, rounded there are 64.
    std::size_t batch_for(std::size_t wanted) const override {
        const std::size_t batch = rounded_batch(wanted);
        return most_ == 0 ? batch : (std::min)(batch, most_);
    }

    std::uint8_t* input(std::size_t batch) override {
        if (batch > room_) {
            bound_.clear();
            current_ = 0;
            room_ = 0;
            images_.resize(batch * image_[0] * image_[1] * image_[2]);
            logits_.resize(batch * classes_);
            room_ = batch;
        }
        return images_.data();
    }

    const float* run(std::size_t batch) override {
        try {
            if (batch != current_) bind(batch);
            request_.infer();
        } catch (const ov::Exception& error) {
            current_ = 0;
            fail_runtime("OpenVINO cannot run a batch of " + std::to_string(batch), said(error),
                         "use smaller batches");
        }
        return logits_.data();
    }

private:
    // What OpenVINO says: its last line; before it stands where in its sources that was.
    static std::string said(const ov::Exception& error) {
        const std::string text = trimmed(error.what());
        return text.substr(text.rfind('\n') + 1);
    }

    // The one Core of this process, which is never let go. The first model that a Core compiles gives
    // the thread a stack for signals, and the Core's end puts the stack before it back: of two Cores,
    // or on another thread, that may be one already freed, on which the next signal ends the process
    // (seen with OpenVINO 2026.4).
    static ov::Core& core() {
        static ov::Core& kept = *new ov::Core;
        return kept;
    }

    void load(const Manifest& manifest, const std::string& bytes, const LoadOptions& options) {
        const auto model = core().read_model(bytes, ov::Tensor());
        check(manifest, *model);
        ov::AnyMap properties{
            ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
            // Else a processor with bf16 would round more than the file that was validated.
            ov::hint::inference_precision(ov::element::f32)};
#if defined(__aarch64__) || defined(_M_ARM64) || defined(__arm__)
        // On ARM its 8 bits are experimental: 2026.4 makes linear layers of them that are wrong
        // (github.com/openvinotoolkit/openvino/pull/36764). It computes in fp32 what the file rounds.
        properties["LP_TRANSFORMS_MODE"] = std::string("NO");
#endif
        if (options.threads != 0) {
            properties.insert(
                ov::inference_num_threads(static_cast<std::int32_t>(options.threads)));
        }
        request_ = core().compile_model(model, device_, properties).create_infer_request();
    }

    void check(const Manifest& manifest, const ov::Model& model) const {
        const auto inputs = model.inputs();
        const auto outputs = model.outputs();
        if (inputs.size() != 1 || outputs.size() != 1) fail_interface(manifest);
        const ov::Dimension batch;
        const auto side = [](std::size_t n) { return static_cast<std::int64_t>(n); };
        const ov::PartialShape in{batch, side(image_[0]), side(image_[1]), 3};
        const ov::PartialShape out{batch, side(classes_)};
        if (inputs[0].get_names().count(manifest.input) == 0 ||
            outputs[0].get_names().count(manifest.output) == 0 ||
            inputs[0].get_element_type() != ov::element::u8 ||
            outputs[0].get_element_type() != ov::element::f32 ||
            !inputs[0].get_partial_shape().compatible(in) ||
            !outputs[0].get_partial_shape().compatible(out)) {
            fail_interface(manifest);
        }
    }

    // Tensors over the buffers, kept for each batch size that was run.
    void bind(std::size_t batch) {
        current_ = 0;  // should something below throw
        auto found = bound_.find(batch);
        if (found == bound_.end()) {
            ov::Tensor in(ov::element::u8, {batch, image_[0], image_[1], image_[2]},
                          images_.data());
            ov::Tensor out(ov::element::f32, {batch, classes_}, logits_.data());
            found = bound_.emplace(batch, std::make_pair(in, out)).first;
        }
        request_.set_input_tensor(found->second.first);
        request_.set_output_tensor(found->second.second);
        current_ = batch;
    }

    std::size_t image_[3];
    std::size_t classes_;
    std::size_t most_;  // images that the file takes at once; 0: no limit
    std::string device_;
    ov::InferRequest request_;
    std::vector<std::uint8_t> images_;
    std::vector<float> logits_;
    std::size_t room_ = 0;  // images that the buffers hold
    std::map<std::size_t, std::pair<ov::Tensor, ov::Tensor>> bound_;
    std::size_t current_ = 0;  // the batch whose tensors the request has
};

}  // namespace detail
}  // namespace CIFAR_DEPLOY_NAMESPACE
}  // namespace cifar_deploy
