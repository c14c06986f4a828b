"""Numbers as a reader wants them. What speaks for a variant is never rounded in its favour."""

import math

_NO = "–"


def seconds(value: float | None) -> str:
    """A duration with three digits.

    >>> [seconds(v) for v in (0.00912, 0.0182, 1.5, 75.2, None)]
    ['9.12 ms', '18.2 ms', '1.50 s', '75.2 s', '–']
    """
    if value is None:
        return _NO
    return f"{_three(value * 1e3)} ms" if value < 1 else f"{_three(value)} s"


def number(value: float | None) -> str:
    """A number with three digits, thousands apart.

    >>> [number(v) for v in (1564.4, 23456.0, 98.76, 0.5, None)]
    ['1 560', '23 500', '98.8', '0.500', '–']
    """
    return _NO if value is None else _three(value)


def money(value: float | None, currency: str) -> str:
    """An amount.

    >>> [money(v, "USD") for v in (0.0355, 1.2, 0.00042)]
    ['USD 0.0355', 'USD 1.20', 'USD 0.000420']
    """
    if value is None:
        return _NO
    digits = 2 if value == 0 or value >= 1 else 2 - math.floor(math.log10(value))
    return f"{currency} {value:.{digits}f}".strip()


def price(value: float | None, currency: str) -> str:
    """The price of an hour, as people write it.

    >>> [price(v, "USD") for v in (0.2, 3.0, 0.0125)]
    ['USD 0.20', 'USD 3.00', 'USD 0.0125']
    """
    if value is None:
        return _NO
    plain = f"{value:.2f}"
    return f"{currency} {plain if float(plain) == value else f'{value:.3g}'}"


def likeness(value: float | None) -> str:
    """A cosine or a Jaccard index, four digits after the point, more where it is nearly 1; rounded down.

    >>> [likeness(v) for v in (0.98765, 0.99999, 0.9999987, 1.0, None)]
    ['0.9876', '0.99999', '0.999998', '1.0000', '–']
    """
    if value is None:
        return _NO
    lost = 1 - value
    # the digit in which it first differs from 1; documents hold eight
    digits = 4 if lost <= 0 else max(4, min(7, math.ceil(-math.log10(lost) - 1e-9)))
    scale = 10**digits
    return f"{math.floor(value * scale + 1e-6) / scale:.{digits}f}"


def share(value: float | None) -> str:
    """A share, rounded down.

    >>> [share(v) for v in (0.975, 0.99996, 1.0)]
    ['97.5 %', '99.9 %', '100.0 %']
    """
    return _NO if value is None else f"{math.floor(value * 1000 + 1e-9) / 10:.1f} %"


def percent(value: float) -> str:
    """A share that speaks for nobody, rounded.

    >>> percent(0.184), percent(-0.5)
    ('18 %', '−50 %')
    """
    return f"{value * 100:.0f} %".replace("-", "−")


def times(value: float | None) -> str:
    """A ratio.

    >>> [times(v) for v in (2.345, 0.0812, 31.4)]
    ['2.35 ×', '0.0812 ×', '31.4 ×']
    """
    return _NO if value is None else f"{_three(value)} ×"


def size(count: float | None) -> str:
    """Bytes in MB or GB of ten.

    >>> [size(v) for v in (125_233_020, 2_266_820_608, 0)]
    ['125 MB', '2.27 GB', '–']
    """
    if not count:
        return _NO
    return f"{_three(count / 1e9)} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def one_line(text: str) -> str:
    """Without line breaks or bars, for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "/")


def _three(value: float) -> str:
    """Three significant digits.

    >>> [_three(v) for v in (0.0, 9.996, 99.96, 1234567.0)]
    ['0', '10.0', '100', '1 230 000']
    """
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    digits = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{digits}f}".replace(",", " ")
