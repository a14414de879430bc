// SPDX-License-Identifier: Apache-2.0
// manifest.txt of a package: a `key value` a line; what each key means stands at its member.
#pragma once

#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "error.hpp"
#include "version.hpp"

namespace cifar_deploy {
inline namespace CIFAR_DEPLOY_NAMESPACE {

// Batch sizes that an engine was built for.
struct Profile {
    std::size_t min = 0;
    std::size_t opt = 0;
    std::size_t max = 0;
};

struct Manifest {
    std::string model;      // the model's name
    std::string network;    // the network's
    std::string precision;  // fp32, fp16 or int8
    std::string backend;    // onnx, tensorrt or tensorrt-rtx
    std::string file;       // the model file, in the package's folder
    std::uint64_t bytes = 0;
    std::string sha256;
    std::string input;   // name of the input, uint8 [batch, height, width, 3]
    std::string output;  // name of the output, float32 [batch, classes]
    std::size_t height = 0;
    std::size_t width = 0;
    std::size_t classes = 0;
    std::string labels;  // the file with a class name a line
    std::string labels_sha256;
    std::size_t min_batch = 0;
    std::size_t max_batch = 0;    // 0: no limit
    std::size_t fixed_batch = 0;  // not 0: the file takes this batch only

    // Of engines.
    std::string tensorrt;                           // the version that built it
    std::vector<std::string> compute_capabilities;  // that it runs on; none: any
    std::string gpu;                                // the only model that it runs on; empty: any
    std::string system;                             // and the only system; empty: any
    std::vector<Profile> profiles;

    // Test vectors, for self_test; none where `vectors_count` is 0.
    std::string vectors_from;  // the runtime that gave the logits
    std::size_t vectors_count = 0;
    std::string vectors_images_sha256;
    std::string vectors_logits_sha256;

    // What `cifar-deploy validate` found, for Evaluator; nothing where `test_count` is 0.
    std::size_t test_count = 0;   // images
    std::size_t test_right = 0;   // of them the file had right
    std::size_t test_margin = 0;  // so many fewer are as good
    std::string test_from;        // the runtime that had them right
    std::string test_sha256;      // of their pixels and labels, see Evaluator

    bool is_engine() const { return backend != "onnx"; }
};

namespace detail {

constexpr std::uintmax_t largest_manifest = 64 * 1024;  // bytes
constexpr std::size_t largest_side = 4096;              // pixels, of the network's input
constexpr std::size_t most_classes = 100'000;
constexpr std::size_t largest_batch = std::size_t{1} << 20;
constexpr std::size_t most_images = std::size_t{1} << 30;  // of a test set

// Whether a terminal that shows the text would do more than show it. UTF-8 stays.
inline bool holds_control_character(std::string_view text) {
    for (const char c : text) {
        if (static_cast<unsigned char>(c) < ' ' || c == 0x7F) return true;
    }
    return false;
}

// What a message may show of a value from outside.
inline std::string printable(std::string_view value) {
    std::string shown = "'";
    for (const char c : value.substr(0, 40)) shown += c >= ' ' && c <= '~' ? c : '?';
    return shown + (value.size() > 40 ? "...'" : "'");
}

// Reads one manifest; every refusal names the manifest and the line's key.
class ManifestParser {
public:
    ManifestParser(std::string_view text, std::string name) : name_(std::move(name)) {
        if (text.size() > largest_manifest) refuse("it has more than 64 KiB");
        while (!text.empty()) {
            const std::size_t end = text.find('\n');
            std::string_view line = text.substr(0, end);
            text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
            if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
            if (line.find('\0') != std::string_view::npos) refuse("a line holds a zero byte");
            const std::size_t space = line.find(' ');
            if (space == std::string_view::npos) continue;
            keep(line.substr(0, space), line.substr(space + 1));
        }
    }

    Manifest parse() const {
        if (text("format") != "1") {
            refuse("its format is " + printable(text("format")) +
                   " and this library reads format 1; use the library of the cifar-deploy that "
                   "wrote it");
        }
        Manifest m;
        m.model = text("model");
        m.network = text("network");
        m.precision = text("precision");
        if (m.precision != "fp32" && m.precision != "fp16" && m.precision != "int8") {
            refuse("precision " + printable(m.precision) +
                   " is none that this library knows (fp32, fp16, int8)");
        }
        m.backend = text("backend");
        if (m.backend != "onnx" && m.backend != "tensorrt" && m.backend != "tensorrt-rtx") {
            refuse("backend " + printable(m.backend) +
                   " is none that this library knows (onnx, tensorrt, tensorrt-rtx)");
        }
        m.file = file_name("file");
        m.bytes = number("bytes", 1, std::uint64_t{1} << 40);
        m.sha256 = sha256("sha256", text("sha256"));
        m.input = text("input");
        m.output = text("output");
        m.height = size("height", 1, largest_side);
        m.width = size("width", 1, largest_side);
        m.classes = size("classes", 1, most_classes);
        m.labels = file_name("labels");
        m.labels_sha256 = sha256("labels_sha256", text("labels_sha256"));
        batches(m);
        if (m.is_engine()) engine(m);
        vectors(m);
        tested(m);
        return m;
    }

private:
    static constexpr std::array<std::string_view, 31> known{
        "format",      "model",        "network",      "precision", "backend",
        "file",        "bytes",        "sha256",       "input",     "output",
        "height",      "width",        "classes",      "labels",    "labels_sha256",
        "min_batch",   "max_batch",    "fixed_batch",  "tensorrt",  "compute_capability",
        "gpu",         "system",       "profiles",     "vectors_from",  "vectors_count",
        "vectors_sha256", "test_count", "test_right",  "test_margin",   "test_from",
        "test_sha256"};

    [[noreturn]] void refuse(const std::string& why) const {
        fail(ErrorCode::bad_package, name_ + ": " + why);
    }

    [[noreturn]] void refuse(std::string_view key, const std::string& why) const {
        refuse(std::string(key) + " " + why + "; the manifest is damaged, package again");
    }

    void keep(std::string_view key, std::string_view value) {
        for (std::size_t i = 0; i < known.size(); ++i) {
            if (key != known[i]) continue;
            if (values_[i]) refuse(key, "stands in it twice");
            values_[i] = std::string(value);
        }
    }

    const std::optional<std::string>& find(std::string_view key) const {
        std::size_t i = 0;
        while (known[i] != key) ++i;
        return values_[i];
    }

    const std::string& text(std::string_view key) const {
        const auto& value = find(key);
        if (!value) refuse(key, "is missing");
        if (value->empty()) refuse(key, "has no value");
        if (holds_control_character(*value)) {  // it may stand in a message on a terminal
            refuse(key, "is " + printable(*value) + ", which holds a control character");
        }
        return *value;
    }

    std::uint64_t parsed(std::string_view key, std::string_view digits, std::uint64_t least,
                         std::uint64_t most) const {
        std::uint64_t value = 0;
        const auto [end, error] =
            std::from_chars(digits.data(), digits.data() + digits.size(), value);
        if (error != std::errc{} || end != digits.data() + digits.size()) {
            refuse(key, "is " + printable(digits) + ", which is no number");
        }
        if (value < least || value > most) {
            refuse(key, "is " + printable(digits) + ", which is not between " +
                            std::to_string(least) + " and " + std::to_string(most));
        }
        return value;
    }

    std::uint64_t number(std::string_view key, std::uint64_t least, std::uint64_t most) const {
        return parsed(key, text(key), least, most);
    }

    std::size_t size(std::string_view key, std::size_t least, std::size_t most) const {
        return static_cast<std::size_t>(number(key, least, most));
    }

    // A file in the package's own folder and nowhere else.
    std::string file_name(std::string_view key) const {
        const std::string& name = text(key);
        if (name == "." || name == ".." || name.find_first_of("/\\:") != std::string::npos) {
            refuse(key, "is " + printable(name) + ", which is no plain file name");
        }
        return name;
    }

    std::string sha256(std::string_view key, std::string_view value) const {
        if (value.size() != 64 ||
            value.find_first_not_of("0123456789abcdef") != std::string_view::npos) {
            refuse(key, "is " + printable(value) + ", which is no sha256 in hexadecimal");
        }
        return std::string(value);
    }

    std::vector<std::string_view> words(std::string_view key) const {
        std::vector<std::string_view> found;
        std::string_view rest = text(key);
        while (!rest.empty()) {
            const std::size_t end = rest.find(' ');
            if (end != 0) found.push_back(rest.substr(0, end));
            rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
        }
        if (found.empty()) refuse(key, "has no value");
        return found;
    }

    void batches(Manifest& m) const {
        m.min_batch = size("min_batch", 1, largest_batch);
        m.max_batch = size("max_batch", 0, largest_batch);
        m.fixed_batch = size("fixed_batch", 0, largest_batch);
        if (m.max_batch != 0 && m.max_batch < m.min_batch) {
            refuse("max_batch", "is less than min_batch");
        }
        if (m.fixed_batch != 0 &&
            (m.min_batch != m.fixed_batch || m.max_batch != m.fixed_batch)) {
            refuse("fixed_batch", "is not the same as min_batch and max_batch");
        }
    }

    void engine(Manifest& m) const {
        m.tensorrt = text("tensorrt");
        for (const std::string_view word : words("compute_capability")) {
            if (word.find_first_not_of("0123456789.") != std::string_view::npos && word != "any") {
                refuse("compute_capability", "is " + printable(word) + ", not as 9.0");
            }
            m.compute_capabilities.emplace_back(word);
        }
        if (m.compute_capabilities.front() == "any") m.compute_capabilities.clear();
        if (find("gpu")) m.gpu = text("gpu");
        if (find("system")) m.system = text("system");
        for (const std::string_view word : words("profiles")) {
            const std::size_t one = word.find(':');
            const std::size_t two = word.find(':', one == std::string_view::npos ? one : one + 1);
            if (two == std::string_view::npos) {
                refuse("profiles", "holds " + printable(word) + ", not min:opt:max");
            }
            const auto part = [&](std::string_view digits) {
                return static_cast<std::size_t>(parsed("profiles", digits, 1, largest_batch));
            };
            const Profile profile{part(word.substr(0, one)),
                                  part(word.substr(one + 1, two - one - 1)),
                                  part(word.substr(two + 1))};
            if (profile.min > profile.opt || profile.opt > profile.max) {
                refuse("profiles", "holds " + printable(word) + ", which does not rise");
            }
            m.profiles.push_back(profile);
        }
    }

    void vectors(Manifest& m) const {
        if (!find("vectors_count")) return;
        m.vectors_count = size("vectors_count", 0, largest_batch);
        if (m.vectors_count == 0) return;
        if (find("vectors_from")) m.vectors_from = text("vectors_from");
        const auto sums = words("vectors_sha256");
        if (sums.size() != 2) refuse("vectors_sha256", "has not two values");
        m.vectors_images_sha256 = sha256("vectors_sha256", sums[0]);
        m.vectors_logits_sha256 = sha256("vectors_sha256", sums[1]);
    }

    void tested(Manifest& m) const {
        if (!find("test_count")) return;
        m.test_count = size("test_count", 1, most_images);
        m.test_right = size("test_right", 0, m.test_count);
        m.test_margin = size("test_margin", 0, m.test_count);
        m.test_from = text("test_from");
        m.test_sha256 = sha256("test_sha256", text("test_sha256"));
    }

    std::string name_;
    std::array<std::optional<std::string>, known.size()> values_;
};

// Class names, one a line. Throws Error unless there are `classes` of them, none empty and none with
// a control character.
inline std::vector<std::string> parse_labels(std::string_view text, std::size_t classes,
                                             const std::string& name) {
    std::vector<std::string> labels;
    while (!text.empty() && labels.size() <= classes) {
        const std::size_t end = text.find('\n');
        std::string_view line = text.substr(0, end);
        text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
        if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
        if (line.empty()) {
            fail(ErrorCode::bad_package, name + " has an empty line; package the model again");
        }
        if (holds_control_character(line)) {
            fail(ErrorCode::bad_package, name + " names a class " + printable(line) +
                                             ", which holds a control character; package the model "
                                             "again");
        }
        labels.emplace_back(line);
    }
    if (labels.size() != classes) {
        fail(ErrorCode::bad_package, name + " has not the " + std::to_string(classes) +
                                         " class names that manifest.txt speaks of; package the "
                                         "model again");
    }
    return labels;
}

}  // namespace detail

// The manifest in `text`; `name` is what messages call it. Throws Error where it is none.
inline Manifest parse_manifest(std::string_view text, std::string name = "manifest.txt") {
    return detail::ManifestParser(text, std::move(name)).parse();
}

}  // namespace CIFAR_DEPLOY_NAMESPACE
}  // namespace cifar_deploy
