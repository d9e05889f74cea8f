"""Quantize an ONNX graph to INT8."""
