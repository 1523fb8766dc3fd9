"""Quantization: calibration of ranges after training."""

from ditto.quantize.calibrate import calibrate, centre

__all__ = ["calibrate", "centre"]
