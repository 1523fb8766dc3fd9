"""Ditto: quantization-aware secure two-party inference of Transformers, with a dealer.

`ditto.ops` holds the operations on shares, `ditto.engine` the programs made of them and what runs these, `ditto.models`
the architectures, `ditto.client` what asks the running servers, whose mains are in the package `parties`.
"""

__version__ = "0.1.0"
