"""Every registered method on every hostile network keeps every law."""

import pytest

from convoscope.method import methods
from convoscope.testing import EXCEPTIONS, LAWS, REFUSED, check_on, small, unavailable, zoo


@pytest.mark.parametrize("network", zoo())
@pytest.mark.parametrize("method", methods())
def test_laws(method: str, network: str) -> None:
    hostile = zoo()[network]
    if reason := unavailable(hostile):
        pytest.skip(reason)
    refusal = check_on(small(method), hostile)
    assert not refusal or (method, network, REFUSED) in EXCEPTIONS, f"{method} refuses {network!r}: {refusal}"


def test_exceptions_name_what_exists() -> None:
    for method, network, law in EXCEPTIONS:
        assert method in methods()
        assert network == "*" or network in zoo()
        assert law == REFUSED or law in LAWS
