"""One pass over a data set for any number of layers and statistics: in this process, in several, or on a Ray cluster."""

from convoscope.engine.result import Sweep
from convoscope.engine.run import merged, sweep

__all__ = ["Sweep", "merged", "sweep"]
