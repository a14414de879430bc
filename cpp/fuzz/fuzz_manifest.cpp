// Arbitrary bytes as manifest.txt and as labels: parsed, or refused with an Error, nothing else.
#include <cifar_deploy/manifest.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

namespace {

void require(bool holds) {
    if (!holds) std::abort();
}

// Nothing that a program shows may steer a terminal.
void require_plain(std::string_view text) {
    for (const char c : text) require(static_cast<unsigned char>(c) >= 0x20 && c != 0x7F);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    try {
        const auto m = cifar_deploy::parse_manifest(text);
        // What the rest of the library relies on.
        require(m.height >= 1 && m.height <= 4096 && m.width >= 1 && m.width <= 4096);
        require(m.classes >= 1 && m.classes <= 100'000 && m.bytes >= 1);
        require(m.min_batch >= 1 && (m.max_batch == 0 || m.min_batch <= m.max_batch));
        require(m.file.find('/') == m.file.npos && m.labels.find('/') == m.labels.npos);
        require(m.sha256.size() == 64 && m.labels_sha256.size() == 64);
        require(m.is_engine() == !m.profiles.empty());
        require(m.precision == "fp32" || m.precision == "fp16" || m.precision == "int8");
        for (const auto& shown : {m.model, m.network, m.precision, m.backend, m.file, m.input,
                                  m.output, m.labels, m.tensorrt, m.gpu, m.system, m.vectors_from}) {
            require_plain(shown);
        }
    } catch (const cifar_deploy::Error& error) {
        require(error.code() == cifar_deploy::ErrorCode::bad_package && *error.what() != '\0');
    }
    try {
        const std::size_t classes = size == 0 ? 1 : data[0];
        const auto labels = cifar_deploy::detail::parse_labels(text, classes, "labels.txt");
        require(labels.size() == classes);
        for (const auto& label : labels) require_plain(label);
    } catch (const cifar_deploy::Error& error) {
        require(error.code() == cifar_deploy::ErrorCode::bad_package);
    }
    return 0;
}
