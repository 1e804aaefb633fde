"""Ternary layers: quantisers with a versioned threshold, training layers, packed layers, files."""

from workbench.ternary.bitlinear import BitLinear
from workbench.ternary.convert import (
    ConversionReport,
    bit_linears,
    forget_quantised,
    set_reuse,
    set_strength,
    to_full_precision,
    to_ternary,
)
from workbench.ternary.threshold import ThresholdVersion

__all__ = [
    "BitLinear",
    "ConversionReport",
    "ThresholdVersion",
    "bit_linears",
    "forget_quantised",
    "set_reuse",
    "set_strength",
    "to_full_precision",
    "to_ternary",
]
