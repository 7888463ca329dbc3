"""Cheaper gradients between ranks."""

from reuse_algos.callbacks.gradient_compression.gradient_compression import GradientCompression
from reuse_algos.callbacks.gradient_compression.settings import Fp16, Median, PowerSGD, ScaleCom, Sign

__all__ = ["Fp16", "GradientCompression", "Median", "PowerSGD", "ScaleCom", "Sign"]
