"""Checks for methods of your own: the laws that every method of the package keeps on every network of a hostile zoo.

from convoscope.testing import check_method
check_method(MyMethod(steps=8))
"""

from convoscope.testing.exceptions import EXCEPTIONS
from convoscope.testing.laws import LAWS, REFUSED, check_method, check_on, small
from convoscope.testing.zoo import Hostile, randomized, unavailable, zoo

__all__ = ["EXCEPTIONS", "LAWS", "REFUSED", "Hostile", "check_method", "check_on", "randomized", "small", "unavailable", "zoo"]
