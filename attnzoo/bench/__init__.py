"""The harness behind `attnzoo bench` and `attnzoo.measure`; heavy parts load when they run."""

from .run import Row, measure
from .timing import Latency

__all__ = ["Latency", "Row", "measure"]
