"""ONNX: graphs that ONNX Runtime runs, with the codes of a calibrated state."""
