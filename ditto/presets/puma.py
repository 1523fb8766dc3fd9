"""PUMA (arXiv 2307.12533): FXP64 throughout, piecewise-polynomial GELU, clipped limit exponential."""

from ditto.functions.fixed import FXP64
from ditto.functions.gelu_published import puma_gelu
from ditto.functions.inverse_published import goldschmidt_reciprocal, polynomial_rsqrt
from ditto.presets.recipe import Recipe

STYLE = Recipe(
    linear_type=FXP64,
    precise=FXP64,
    gelu_type=FXP64,
    gelu=puma_gelu,
    reciprocal=goldschmidt_reciprocal,
    rsqrt=polynomial_rsqrt,
)
