"""Offline toolchain: a sentence-transformers model → a verified bundle of TorchScript, ONNX and INT8 artifacts.

The one public verb is `firstvec_build.pipeline.build`. Importing this package imports none of the toolchain.
"""
