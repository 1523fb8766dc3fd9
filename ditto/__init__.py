"""Ditto: quantization-aware secure two-party inference of Transformers, with a dealer.

The library knows no process: `ditto.program` describes a model as typed steps, `ditto.ops` holds the operations on
shares, `ditto.client` talks to the running parties. The servers live in the package `parties`.
"""

__version__ = "0.1.0"
