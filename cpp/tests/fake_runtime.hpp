// A runtime without a network: class c's logit is the c-th byte of the image, scaled.
#pragma once

#include <cifar_deploy/classifier.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

class FakeRuntime : public cifar_deploy::detail::Runtime {
public:
    FakeRuntime(std::size_t pixels, std::size_t classes) : pixels_(pixels), classes_(classes) {}

    std::string describe() const override { return "fake"; }
    std::size_t batch_for(std::size_t wanted) const override {
        return wanted <= most ? wanted : 0;
    }
    std::uint8_t* input(std::size_t batch) override {
        if (images.size() < batch * pixels_) {
            logits_.resize(batch * classes_);
            images.resize(batch * pixels_);  // the last, should there be no memory
        }
        return images.data();
    }
    const float* run(std::size_t batch) override {
        ran.push_back(batch);
        if (ran.size() == ran.capacity()) ran.clear();
        for (std::size_t i = 0; i < batch; ++i) {
            for (std::size_t c = 0; c < classes_; ++c) {
                logits_[i * classes_ + c] = static_cast<float>(images[i * pixels_ + c]) / 8;
            }
        }
        if (bad) logits_[bad->first] = bad->second;
        return logits_.data();
    }

    std::vector<std::uint8_t> images;
    std::vector<std::size_t> ran;
    std::size_t most = std::numeric_limits<std::size_t>::max();
    std::optional<std::pair<std::size_t, float>> bad;  // a logit of the batch, and what it is then

private:
    std::size_t pixels_;
    std::size_t classes_;
    std::vector<float> logits_;
};

inline cifar_deploy::Manifest fake_manifest(std::size_t side = 32, std::size_t max_batch = 8) {
    cifar_deploy::Manifest manifest;
    manifest.model = "fake";
    manifest.backend = "onnx";
    manifest.precision = "fp32";
    manifest.file = "model.onnx";
    manifest.height = manifest.width = side;
    manifest.classes = 4;
    manifest.min_batch = 1;
    manifest.max_batch = max_batch;
    return manifest;
}

// A classifier over a fake runtime, which `runtime` then points to.
inline cifar_deploy::Classifier fake_classifier(FakeRuntime** runtime = nullptr,
                                                cifar_deploy::Manifest manifest = fake_manifest()) {
    auto fake = std::make_unique<FakeRuntime>(manifest.height * manifest.width * 3,
                                              manifest.classes);
    fake->ran.reserve(64);
    if (runtime != nullptr) *runtime = fake.get();
    return cifar_deploy::Classifier(
        "nowhere", std::move(manifest),
        {"cat", "dog", "a label too long for a string's own place", "frog"}, std::move(fake));
}
