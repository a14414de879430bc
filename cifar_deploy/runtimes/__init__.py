"""Runtimes: one small protocol; PyTorch and ONNX Runtime behind it."""
