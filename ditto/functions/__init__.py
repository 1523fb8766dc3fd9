"""Functions built from operations: each adds typed steps to a program."""

from ditto.functions.argmax import argmax
from ditto.functions.gelu import gelu
from ditto.functions.inverse import inverse
from ditto.functions.layernorm import layernorm
from ditto.functions.linear import linear
from ditto.functions.smooth import harmonics
from ditto.functions.softmax import ScoreType, softmax_numerator
from ditto.functions.tanh import tanh

__all__ = [
    "ScoreType",
    "argmax",
    "gelu",
    "harmonics",
    "inverse",
    "layernorm",
    "linear",
    "softmax_numerator",
    "tanh",
]
