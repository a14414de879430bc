// Sizes, pointers and batches of any kind into classify and classify_batch: an answer, or an Error
// that leaves the predictions as they were. The pixels lie in memory of exactly their size.
#include <cifar_deploy/classifier.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "fake_runtime.hpp"

namespace {

void require(bool holds) {
    if (!holds) std::abort();
}

struct Input {
    const std::uint8_t* data;
    std::size_t size;

    std::size_t number(std::size_t bytes) {
        std::size_t value = 0;
        for (; bytes != 0 && size != 0; --bytes, ++data, --size) value = value << 8 | *data;
        return value;
    }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static cifar_deploy::Classifier classifier = fake_classifier(nullptr, fake_manifest(8));
    Input input{data, size};
    const std::size_t count = input.number(1) % 11;
    const std::size_t places = input.number(1) % 16 == 0 ? input.number(1) : count;
    std::vector<std::unique_ptr<std::uint8_t[]>> owned;
    std::vector<cifar_deploy::Image> images;
    bool good = places == count && count <= 8;
    for (std::size_t i = 0; i < count; ++i) {
        const std::size_t kind = input.number(1);
        cifar_deploy::Image image;
        if (kind % 8 == 0) {  // sizes of any kind, which must not be believed
            image.width = input.number(8);
            image.height = input.number(8);
            // A true image of such sizes would be fine; these are refused before a read.
            const bool refused = image.width == 0 || image.height == 0 ||
                                 image.width > 65'535 || image.height > 65'535;
            static const std::uint8_t nothing = 0;
            image.data = refused && kind % 16 == 0 ? &nothing : nullptr;
            good = false;
        } else {
            image.width = 1 + (kind % 4 == 1 ? input.number(2) % 2000 : input.number(1) % 48);
            image.height = 1 + (kind % 4 == 2 ? input.number(2) % 2000 : input.number(1) % 48);
            image.pixels = static_cast<cifar_deploy::Pixels>(kind / 32 % 5);
            const std::size_t pixel = cifar_deploy::detail::layout(image.pixels).bytes;
            const std::size_t bytes = image.width * image.height * pixel;
            owned.push_back(std::make_unique<std::uint8_t[]>(bytes));
            const std::size_t taken = input.size < bytes ? input.size : bytes;
            if (taken != 0) std::memcpy(owned.back().get(), input.data, taken);
            if (kind % 32 == 31) input.number(taken);
            image.data = owned.back().get();
        }
        images.push_back(image);
    }
    std::vector<cifar_deploy::Prediction> predictions(places);
    for (auto& prediction : predictions) prediction.label = "as before";
    const auto status = classifier.try_classify_batch(images, predictions);
    require(status.ok() == good);
    for (const auto& prediction : predictions) {
        if (!good) {
            require(prediction.label == "as before" && prediction.logits.empty());
            continue;
        }
        require(prediction.logits.size() == 4 && prediction.index < 4);
        require(prediction.label == classifier.labels()[prediction.index]);
        require(prediction.probability >= 0.25F && prediction.probability <= 1);
    }
    return 0;
}
