// SPDX-License-Identifier: Apache-2.0
// Reading files, each refusal with its reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

#include "error.hpp"
#include "sha256.hpp"
#include "version.hpp"

namespace cifar_deploy {
inline namespace CIFAR_DEPLOY_NAMESPACE {
namespace detail {

// All texts of this library are UTF-8, also the paths that it takes and names. On Windows the narrow
// paths of the standard library are in the system's code page, which lacks letters.
inline std::filesystem::path path_of(const std::string& text) {
#if defined(_WIN32) && defined(__cpp_char8_t)
    return std::filesystem::path(std::u8string(text.begin(), text.end()));
#elif defined(_WIN32)
    return std::filesystem::u8path(text);
#else
    return std::filesystem::path(text);
#endif
}

inline std::string text_of(const std::filesystem::path& path) {
#ifdef _WIN32
    const auto text = path.u8string();
    return std::string(text.begin(), text.end());
#else
    return path.string();
#endif
}

// The bytes of the regular file at `path`. Throws Error where there is none, or it has more than
// `largest` bytes.
inline std::string read_file(const std::filesystem::path& path, std::uintmax_t largest) {
    std::error_code failure;
    const auto status = std::filesystem::status(path, failure);
    if (status.type() == std::filesystem::file_type::not_found) {
        fail(ErrorCode::not_found, "cannot read " + text_of(path) + ": no such file");
    }
    if (!failure && !std::filesystem::is_regular_file(status)) {
        fail(ErrorCode::not_found, "cannot read " + text_of(path) + ": it is not a file");
    }
    const std::uintmax_t size = std::filesystem::file_size(path, failure);
    std::ifstream file(path, std::ios::binary);
    if (failure || !file) {
        fail(ErrorCode::not_found,
             "cannot read " + text_of(path) + ": see that it exists and that you may read it");
    }
    if (size > largest) {
        fail(ErrorCode::bad_package, text_of(path) + " has " + std::to_string(size) +
                                         " bytes, more than the " + std::to_string(largest) +
                                         " that it can have; package the model again");
    }
    std::string bytes(static_cast<std::size_t>(size), '\0');
    file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!file) {
        fail(ErrorCode::not_found, "cannot read all of " + text_of(path) + "; try again");
    }
    return bytes;
}

// The bytes of a file of a package, which must be those that its manifest speaks of: not more than
// `largest`, and with this sha256.
inline std::string read_checked(const std::filesystem::path& path, std::uintmax_t largest,
                                const std::string& sha256) {
    std::error_code ignored;
    const std::uintmax_t size = std::filesystem::file_size(path, ignored);
    const bool too_large = !ignored && size > largest;
    std::string bytes = too_large ? std::string() : read_file(path, largest);
    if (too_large || sha256_hex(bytes) != sha256) {
        fail(ErrorCode::changed_file,
             text_of(path) + " is not the file that manifest.txt speaks of (sha256 differs): it "
                             "was changed or cut short; copy the package anew or package again");
    }
    return bytes;
}

}  // namespace detail
}  // namespace CIFAR_DEPLOY_NAMESPACE
}  // namespace cifar_deploy
