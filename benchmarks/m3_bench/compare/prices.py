"""Prices as they are written on a command line: cpu=0.20/h gpu=3.00/h."""

import math
from collections.abc import Sequence

from m3_bench.documents import Prices
from m3_bench.machine import Machine
from m3_runtime.errors import InputError

_ROLES = ("cpu", "gpu")
_PER_HOUR = "/h"


def parse(words: Sequence[str], currency: str) -> Prices:
    """Prices of an hour, by role.

    Raises:
        InputError: an unknown or repeated role, or no price.

    >>> parse(["cpu=0.20/h", "gpu=3/h"], "EUR")
    Prices(currency='EUR', cpu=0.2, gpu=3.0)
    """
    found: dict[str, float] = {}
    for word in words:
        role, _, amount = word.partition("=")
        if role not in _ROLES or not amount.endswith(_PER_HOUR):
            raise InputError(f"--price {word}: expected cpu=AMOUNT/h or gpu=AMOUNT/h, as in cpu=0.20/h")
        if role in found:
            raise InputError(f"--price {word}: the price of {role} is given twice; give it once")
        found[role] = _amount(word, amount.removesuffix(_PER_HOUR))
    return Prices(currency, found.get("cpu"), found.get("gpu"))


def _amount(word: str, text: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not (math.isfinite(amount) and amount >= 0):
        raise InputError(f"--price {word}: {text!r} is no price; write a number of 0 or more, as in 0.20")
    return amount


def of(machine: Machine, prices: Prices) -> float | None:
    """What an hour of a machine costs; None if that was not given."""
    return prices.gpu if machine.accelerator else prices.cpu
