"""Ditto as published (ICML 2024, section 4): FXP32 linear layers and Quad GELU, FXP64 exponential and LayerNorm.

The softmax maximum is FXP32. `EXACT` has PUMA's GELU, in FXP64: eight fraction bits cannot hold its coefficients.
"""

from dataclasses import replace

from ditto.functions.fixed import FXP32, FXP64
from ditto.functions.gelu_published import puma_gelu, quad_gelu
from ditto.functions.inverse_published import goldschmidt_reciprocal, polynomial_rsqrt
from ditto.presets.recipe import Recipe

STYLE = Recipe(
    linear_type=FXP32,
    precise=FXP64,
    gelu_type=FXP32,
    gelu=quad_gelu,
    reciprocal=goldschmidt_reciprocal,
    rsqrt=polynomial_rsqrt,
)
EXACT = replace(STYLE, gelu_type=FXP64, gelu=puma_gelu)
