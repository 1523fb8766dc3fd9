"""Operations: one file, one operation (or one family), what is opened and dealt for it, and its faces."""

from ditto.ops.base import REGISTRY, BitRounds, Cost, Masked, Op
from ditto.ops.causal import CausalMask, Join, Triangle, Untriangle
from ditto.ops.compare import Compare
from ditto.ops.extend import Extend
from ditto.ops.guard import Guard, Random
from ditto.ops.lines import HighBits, InverseLines, Zones
from ditto.ops.local import Add, Affine, SuffixSum, Sum, View
from ditto.ops.matmul import Matmul, MatmulWeight, RightHand, WeightShare
from ditto.ops.mux import B2A, Mux, MuxAll
from ditto.ops.open import Open
from ditto.ops.positions import RelativePositions
from ditto.ops.product import Product, Product3, Square
from ditto.ops.rank import AddStarts, Differences, IsZero, Losses, Windows
from ditto.ops.separable import Exponential, Harmonic
from ditto.ops.sketch import LessRow, NonZero, Sketch
from ditto.ops.table import Combine, Lookup, OneHot
from ditto.ops.together import Begin, Together
from ditto.ops.tree import InverseTree
from ditto.ops.truncate import TruncateReduce
from ditto.ops.wide import SumOfSquares, Widen, WideProduct, WideSquare

__all__ = [
    "Add", "AddStarts", "Affine", "Begin", "BitRounds", "Combine", "Compare", "Cost", "Differences", "Exponential",
    "Extend", "B2A", "CausalMask", "Guard", "Harmonic", "HighBits", "InverseLines", "InverseTree", "IsZero", "Join",
    "LessRow", "Lookup", "Losses", "Masked", "Matmul", "MatmulWeight", "NonZero", "OneHot", "Op", "Open", "Product",
    "Product3", "REGISTRY", "Random", "RelativePositions", "RightHand", "Mux", "MuxAll", "Sketch", "Square",
    "SuffixSum", "Sum", "SumOfSquares", "Together", "Triangle", "TruncateReduce", "Untriangle", "View", "WeightShare",
    "Widen", "WideProduct", "WideSquare", "Windows", "Zones",
]  # fmt: skip
