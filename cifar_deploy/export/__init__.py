"""From trained weights to files that other programs run: batch norms folded, ONNX written."""
