// SPDX-License-Identifier: Apache-2.0
// The library's version, and the namespace within cifar_deploy that its names are in.
#pragma once

#define CIFAR_DEPLOY_VERSION "0.1.0"

// Two libraries of one program may each hold these headers, of two versions or for other runtimes.
// What differs must not have the same name, or the linker takes one for both.
#ifdef CIFAR_DEPLOY_HAS_OPENVINO
#define CIFAR_DEPLOY_NAME_OPENVINO _openvino
#else
#define CIFAR_DEPLOY_NAME_OPENVINO
#endif
#ifdef CIFAR_DEPLOY_HAS_ONNXRUNTIME
#define CIFAR_DEPLOY_NAME_ONNXRUNTIME _onnxruntime
#else
#define CIFAR_DEPLOY_NAME_ONNXRUNTIME
#endif
#ifdef CIFAR_DEPLOY_HAS_TENSORRT
#define CIFAR_DEPLOY_NAME_TENSORRT _tensorrt
#elif defined(CIFAR_DEPLOY_HAS_TENSORRT_RTX)
#define CIFAR_DEPLOY_NAME_TENSORRT _tensorrt_rtx
#else
#define CIFAR_DEPLOY_NAME_TENSORRT
#endif
#define CIFAR_DEPLOY_JOINED(version, a, b, c) version##a##b##c
#define CIFAR_DEPLOY_JOIN(version, a, b, c) CIFAR_DEPLOY_JOINED(version, a, b, c)
#define CIFAR_DEPLOY_NAMESPACE                                                \
    CIFAR_DEPLOY_JOIN(v0_1_0, CIFAR_DEPLOY_NAME_OPENVINO,                     \
                      CIFAR_DEPLOY_NAME_ONNXRUNTIME, CIFAR_DEPLOY_NAME_TENSORRT)
