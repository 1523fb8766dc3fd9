"""Post-training quantization: static bounds and dyadic scales from calibration."""

from ditto.quantize.calibrate import Ranges, calibrate

__all__ = ["Ranges", "calibrate"]
