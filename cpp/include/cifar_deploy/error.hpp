// SPDX-License-Identifier: Apache-2.0
// What a user can do wrong: one exception, and a status for programs that catch none.
#pragma once

#include <cstddef>
#include <new>
#include <stdexcept>
#include <string>

#include "version.hpp"

#ifdef Status
#error "Status is a macro, as X11/Xlib.h has it: include cifar_deploy before that, or #undef Status"
#endif

namespace cifar_deploy {
inline namespace CIFAR_DEPLOY_NAMESPACE {

enum class ErrorCode {
    ok,               // only in a Status
    not_found,        // a folder or file is missing or cannot be read
    bad_package,      // the manifest or the labels are damaged, or of a newer format
    changed_file,     // a file's sha256 is not the one in the manifest
    backend_missing,  // the backend is not compiled in
    wrong_engine,     // an engine for another GPU or of another TensorRT
    bad_argument,     // a null pointer, a size of 0 or too large a one, spans of different lengths
    runtime,          // the runtime refused; the text says why
    out_of_memory,
};

// The text names the thing and the way out.
class Error : public std::runtime_error {
public:
    Error(ErrorCode code, const std::string& text) : std::runtime_error(text), code_(code) {}

    ErrorCode code() const noexcept { return code_; }

private:
    ErrorCode code_;
};

// What a noexcept variant returns. It owns no memory; a longer text is cut.
class Status {
public:
    Status() noexcept = default;

    Status(ErrorCode code, const char* text) noexcept : code_(code) {
        for (std::size_t i = 0; i + 1 < sizeof text_ && text[i] != '\0'; ++i) text_[i] = text[i];
    }

    bool ok() const noexcept { return code_ == ErrorCode::ok; }
    explicit operator bool() const noexcept { return ok(); }
    ErrorCode code() const noexcept { return code_; }
    const char* message() const noexcept { return text_; }  // empty when ok

private:
    ErrorCode code_ = ErrorCode::ok;
    char text_[1024] = {};
};

namespace detail {

// Runs `work`; whatever it throws becomes the Status.
template <class Work>
Status guarded(Work&& work) noexcept {
    try {
        work();
        return {};
    } catch (const Error& error) {
        return {error.code(), error.what()};
    } catch (const std::bad_alloc&) {
        return {ErrorCode::out_of_memory, "out of memory; use smaller batches or images"};
    } catch (const std::exception& error) {
        return {ErrorCode::runtime, error.what()};
    } catch (...) {
        return {ErrorCode::runtime, "an exception of an unknown kind"};
    }
}

[[noreturn]] inline void fail(ErrorCode code, const std::string& text) { throw Error(code, text); }

// What `work` gives. Throws Error, too, where the memory is full.
template <class Work>
auto in_memory(Work&& work) {
    try {
        return work();
    } catch (const std::bad_alloc&) {
        fail(ErrorCode::out_of_memory, "out of memory; use smaller batches or images");
    } catch (const std::length_error&) {  // of a vector that no memory could hold
        fail(ErrorCode::out_of_memory, "out of memory; use smaller batches or images");
    }
}

}  // namespace detail
}  // namespace CIFAR_DEPLOY_NAMESPACE
}  // namespace cifar_deploy
