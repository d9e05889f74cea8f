"""The offline toolchain: it turns a sentence-transformers model into a bundle of measured artifacts.

`firstvec_build.pipeline.build` is its one public function. Importing this package imports none of the toolchain.
"""
