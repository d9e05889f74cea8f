"""The offline toolchain: it turns a sentence-transformers model into a bundle of measured artifacts.

The one public function is `firstvec_build.pipeline.build`. Importing this package does not import the toolchain.
"""
