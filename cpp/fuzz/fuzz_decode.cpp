// Arbitrary bytes as an image file of the program classify: a picture, or an Error.
#define CLASSIFY_WITHOUT_MAIN
#define CLASSIFY_MOST_PIXELS 1'000'000  // a header of a few bytes could ask for half a gigabyte
#include "classify.cpp"

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        const auto picture =
            classify::decode(std::string(reinterpret_cast<const char*>(data), size));
        if (picture.rgb.size() != picture.width * picture.height * 3 || picture.rgb.empty()) {
            std::abort();
        }
    } catch (const cifar_deploy::Error&) {
    }
    return 0;
}
