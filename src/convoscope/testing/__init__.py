"""Checks for methods of your own: the laws that every method of the package keeps on every network of a hostile zoo.

from convoscope.testing import check_method
check_method(MyMethod(steps=8))                 # on every network of the zoo: prints a line, or raises with each law broken
check_method(MyMethod(steps=8), ["skip"])       # on some of them
check_method(MyMethod(), [my_network])          # on your own
check_method(MyMethod(), thorough=True)         # with the costly laws too: a line for each fault

The same for metrics: `check_metric(MyMetric())`, on cases of which the answer is known.
"""

from convoscope.testing.checking import REFUSED, check_method, check_on
from convoscope.testing.exceptions import EXCEPTIONS
from convoscope.testing.faults import FAULTS
from convoscope.testing.laws import LAWS
from convoscope.testing.laws_trial import small
from convoscope.testing.metrics import METRIC_EXCEPTIONS, METRIC_LAWS, check_metric
from convoscope.testing.zoo import Hostile, randomized, unavailable, zoo

__all__ = [
    "EXCEPTIONS", "FAULTS", "LAWS", "METRIC_EXCEPTIONS", "METRIC_LAWS", "REFUSED", "Hostile", "check_method", "check_metric",
    "check_on", "randomized", "small", "unavailable", "zoo",
]  # fmt: skip
