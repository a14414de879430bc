"""Runtimes: one small protocol; PyTorch, ONNX Runtime, OpenVINO and TensorRT behind it."""
