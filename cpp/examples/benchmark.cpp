// benchmark: how long an inference takes, in the terms of `cifar-deploy validate`'s table.
//
// Calls are made one after another, each waited for; the first ones, until the times are steady, do
// not count. A call goes from pixels in the caller's memory to a filled prediction, copies to and
// from the device included.
#include <cifar_deploy/classifier.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using cifar_deploy::Error;
using cifar_deploy::ErrorCode;
using Clock = std::chrono::steady_clock;

constexpr const char* usage =
    "usage: benchmark FOLDER [options]\n"
    "\n"
    "FOLDER is what `cifar-deploy package MODEL --target cpp` wrote.\n"
    "\n"
    "  --batch N,N,...  batch sizes (1,8,32,128)\n"
    "  --seconds S      a batch size (2)\n"
    "  --json           for programs: times in milliseconds\n"
    "  --on-request     read a number of calls a line, print their times in ms, until the end\n"
    "                   of the input; with the first batch size (for comparisons in turns)\n"
    "  --backend NAME   openvino or onnxruntime; else the package's own\n"
    "  --device NAME    auto, cpu, cuda, cuda:N (auto)\n"
    "  --threads N      of the CPU (as the runtime thinks right)\n";

struct Arguments {
    std::string folder;
    std::vector<std::size_t> batches{1, 8, 32, 128};
    double seconds = 2;
    cifar_deploy::LoadOptions options;
    bool json = false;
    bool on_request = false;
    bool help = false;
};

struct Timing {
    std::size_t batch = 0;
    std::vector<double> sorted;  // milliseconds a call

    // As numpy.percentile: linear between the two nearest.
    double percentile(double q) const {
        const double at = q / 100 * static_cast<double>(sorted.size() - 1);
        const auto below = static_cast<std::size_t>(at);
        const std::size_t above = std::min(below + 1, sorted.size() - 1);
        return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
    }
    double images_per_second() const {
        return 1000 * static_cast<double>(batch) / percentile(50);
    }
};

[[noreturn]] void refuse(const std::string& why) { throw Error(ErrorCode::bad_argument, why); }

double positive(const std::string& option, const std::string& text, double most) {
    try {
        std::size_t end = 0;
        const double value = std::stod(text, &end);
        if (end == text.size() && value > 0 && value <= most) return value;
    } catch (const std::logic_error&) {
    }
    refuse(option + " " + text + ": give a number above 0, at most " + std::to_string(most));
}

std::size_t natural(const std::string& option, const std::string& text) {
    const double value = positive(option, text, 1e6);
    if (std::floor(value) < value) refuse(option + " " + text + ": give a whole number");
    return static_cast<std::size_t>(value);
}

Arguments parse(int count, char** words) {
    Arguments arguments;
    for (int i = 1; i < count; ++i) {
        const std::string word = words[i];
        const auto value = [&] {
            if (++i >= count) refuse(word + " needs a value; see benchmark --help");
            return std::string(words[i]);
        };
        if (word == "--help" || word == "-h") {
            arguments.help = true;
        } else if (word == "--json") {
            arguments.json = true;
        } else if (word == "--on-request") {
            arguments.on_request = true;
        } else if (word == "--seconds") {
            arguments.seconds = positive(word, value(), 3600);
        } else if (word == "--threads") {
            arguments.options.threads = static_cast<unsigned>(natural(word, value()));
        } else if (word == "--device") {
            arguments.options.device = value();
        } else if (word == "--backend") {
            const std::string name = value();
            if (name == "openvino") {
                arguments.options.backend = cifar_deploy::Backend::openvino;
            } else if (name == "onnxruntime") {
                arguments.options.backend = cifar_deploy::Backend::onnxruntime;
            } else if (name != "auto") {
                refuse("--backend " + name + ": it can be auto, openvino or onnxruntime");
            }
        } else if (word == "--batch") {
            arguments.batches.clear();
            std::string rest = value() + ',';
            while (!rest.empty()) {
                const std::size_t end = rest.find(',');
                arguments.batches.push_back(natural(word, rest.substr(0, end)));
                rest.erase(0, end + 1);
            }
        } else if (word.size() > 1 && word[0] == '-') {
            refuse("there is no option " + word + "; see benchmark --help");
        } else if (arguments.folder.empty()) {
            arguments.folder = word;
        } else {
            refuse(word + ": one folder is enough; see benchmark --help");
        }
    }
    if (arguments.folder.empty() && !arguments.help) {
        refuse("name the package's folder; see benchmark --help");
    }
    return arguments;
}

// A batch of noise, the same every time, and room for what comes of it.
class Workload {
public:
    Workload(cifar_deploy::Classifier& classifier, std::size_t batch)
        : classifier_(classifier), images_(batch), predictions_(batch) {
        const auto& manifest = classifier.manifest();
        const std::size_t pixels = manifest.height * manifest.width * 3;
        rgb_.resize(batch * pixels);
        std::uint32_t state = 1;
        for (auto& value : rgb_) {
            state = state * 1664525U + 1013904223U;
            value = static_cast<std::uint8_t>(state >> 24);
        }
        for (std::size_t i = 0; i < batch; ++i) {
            images_[i] = {rgb_.data() + i * pixels, manifest.width, manifest.height};
        }
    }

    // One call, in milliseconds.
    double operator()() {
        const auto start = Clock::now();
        classifier_.classify_batch(images_, predictions_);
        return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
    }

private:
    cifar_deploy::Classifier& classifier_;
    std::vector<std::uint8_t> rgb_;
    std::vector<cifar_deploy::Image> images_;
    std::vector<cifar_deploy::Prediction> predictions_;
};

Timing measure(cifar_deploy::Classifier& classifier, std::size_t batch, double seconds) {
    Workload one(classifier, batch);
    const auto after = [](double s) {
        return Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                  std::chrono::duration<double>(s));
    };

    // As in Python: until two windows of 8 calls have medians within 5 %, 3 s at most.
    const auto limit = after(3);
    double before = HUGE_VAL;
    while (Clock::now() < limit) {
        std::vector<double> window(8);
        for (auto& time : window) time = one();
        std::sort(window.begin(), window.end());
        const double median = (window[3] + window[4]) / 2;
        if (std::abs(median - before) <= 0.05 * median) break;
        before = median;
    }
    Timing timing;
    timing.batch = batch;
    for (const auto end = after(seconds); timing.sorted.size() < 3 || Clock::now() < end;) {
        timing.sorted.push_back(one());
    }
    std::sort(timing.sorted.begin(), timing.sorted.end());
    return timing;
}

void serve(cifar_deploy::Classifier& classifier, std::size_t batch) {
    Workload one(classifier, batch);
    for (std::size_t calls = 0; std::cin >> calls;) {
        for (; calls != 0; --calls) std::cout << one() << (calls == 1 ? "" : " ");
        std::cout << std::endl;
    }
}

// `text` as a JSON string.
std::string quoted(const std::string& text) {
    std::string result = "\"";
    for (const char c : text) {
        const auto code = static_cast<unsigned char>(c);
        if (c == '"' || c == '\\') {
            result += '\\';
            result += c;
        } else if (code < 0x20) {
            char escape[8];
            std::snprintf(escape, sizeof escape, "\\u%04x", code);
            result += escape;
        } else {
            result += c;
        }
    }
    return result + '"';
}

void print_json(const cifar_deploy::Classifier& classifier, const std::vector<Timing>& timings) {
    const auto& manifest = classifier.manifest();
    std::printf("{\n  \"model\": %s,\n  \"precision\": %s,\n  \"runtime\": %s,\n  \"sweep\": [",
                quoted(manifest.model).c_str(), quoted(manifest.precision).c_str(),
                quoted(classifier.runtime()).c_str());
    const char* comma = "";
    for (const Timing& t : timings) {
        std::printf("%s\n    {\"batch\": %zu, \"calls\": %zu, \"min\": %.6g, \"p50\": %.6g, "
                    "\"p90\": %.6g, \"p99\": %.6g, \"images_per_second\": %.6g",
                    comma, t.batch, t.sorted.size(), t.sorted.front(), t.percentile(50),
                    t.percentile(90), t.percentile(99), t.images_per_second());
        std::printf("}");
        comma = ",";
    }
    std::printf("\n  ]\n}\n");
}

void print_table(const cifar_deploy::Classifier& classifier, const std::vector<Timing>& timings) {
    const auto& manifest = classifier.manifest();
    std::printf("%s (%s), %s; milliseconds a call\n", manifest.model.c_str(),
                manifest.precision.c_str(), classifier.runtime().c_str());
    std::printf("%6s %7s %9s %9s %9s %9s %10s\n", "batch", "calls", "min", "p50", "p90", "p99",
                "images/s");
    for (const Timing& t : timings) {
        std::printf("%6zu %7zu %9.3f %9.3f %9.3f %9.3f %10.0f\n", t.batch, t.sorted.size(),
                    t.sorted.front(), t.percentile(50), t.percentile(90), t.percentile(99),
                    t.images_per_second());
    }
}

void run(int count, char** words) {
    const Arguments arguments = parse(count, words);
    if (arguments.help) {
        std::fputs(usage, stdout);
        return;
    }
    auto classifier = cifar_deploy::Classifier::load(arguments.folder, arguments.options);
    if (arguments.on_request) {
        serve(classifier, arguments.batches.front());
        return;
    }
    std::vector<Timing> timings;
    for (const std::size_t batch : arguments.batches) {
        timings.push_back(measure(classifier, batch, arguments.seconds));
    }
    if (arguments.json) {
        print_json(classifier, timings);
    } else {
        print_table(classifier, timings);
    }
}

}  // namespace

int main(int count, char** words) {
    try {
        run(count, words);
        if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0 || !std::cout) {
            throw std::runtime_error("cannot write standard output");
        }
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "benchmark: %s\n", error.what());
        return 2;
    }
}
