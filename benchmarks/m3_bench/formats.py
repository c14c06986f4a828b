"""Numbers as a reader wants them. What speaks for a variant is never rounded in its favour."""

import math

NOTHING = "–"


def number(value: float | None) -> str:
    """A number with three significant digits, thousands apart.

    >>> [number(v) for v in (0.0, 9.996, 1564.4, 23456.0, 0.5, None)]
    ['0', '10.0', '1 560', '23 500', '0.500', '–']
    """
    if not value:
        return NOTHING if value is None else "0"
    rounded = float(f"{value:.3g}")
    digits = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{digits}f}".replace(",", " ")


def seconds(value: float | None) -> str:
    """A duration with three digits.

    >>> [seconds(v) for v in (0.00912, 1.5, 75.2, None)]
    ['9.12 ms', '1.50 s', '75.2 s', '–']
    """
    if value is None:
        return NOTHING
    return f"{number(value * 1e3)} ms" if value < 1 else f"{number(value)} s"


def money(value: float, currency: str) -> str:
    """An amount: two digits after the point, three significant ones where that is more.

    >>> [money(v, "USD") for v in (0.0355, 1.2, 0.00042)]
    ['USD 0.0355', 'USD 1.20', 'USD 0.000420']
    """
    digits = 2 if value == 0 or value >= 1 else 2 - math.floor(math.log10(value))
    return f"{currency} {value:.{digits}f}".strip()


def likeness(value: float) -> str:
    """A cosine or a Jaccard index, four digits after the point, more where it is nearly 1; rounded down.

    >>> [likeness(v) for v in (0.98765, 0.99999, 0.9999987, 1.0)]
    ['0.9876', '0.99999', '0.999998', '1.0000']
    """
    lost = 1 - value
    # the digit in which it first differs from 1; documents hold eight
    digits = 4 if lost <= 0 else max(4, min(7, math.ceil(-math.log10(lost) - 1e-9)))
    scale = 10**digits
    return f"{math.floor(value * scale + 1e-6) / scale:.{digits}f}"


def share(value: float) -> str:
    """A share that speaks for a variant, rounded down.

    >>> [share(v) for v in (0.975, 0.99996, 1.0)]
    ['97.5 %', '99.9 %', '100.0 %']
    """
    return f"{math.floor(value * 1000 + 1e-9) / 10:.1f} %"


def size(count: float) -> str:
    """Bytes in MB or GB of ten.

    >>> [size(v) for v in (125_233_020, 2_266_820_608)]
    ['125 MB', '2.27 GB']
    """
    return f"{number(count / 1e9)} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def signed(value: float) -> str:
    """A difference: three digits after the point and a sign, which 0 has none of.

    >>> signed(-0.0041), signed(-0.0001), signed(0.002)
    ('−0.004', '0.000', '+0.002')
    """
    return "0.000" if abs(value) < 0.0005 else f"{value:+.3f}".replace("-", "−")
