"""Arguments of other libraries that say where or how to compute, which a bundle has decided: named, not obeyed.

What would change the answer is never among them; that is an error.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from m3_runtime.errors import InputError

Devices = str | int | Sequence[str] | Sequence[int]


class IgnoredArgumentWarning(UserWarning):
    """An argument has no effect here; results are the same without it."""


def warn_ignored(message: str) -> None:
    """Say to the caller's caller that an argument has no effect."""
    warnings.warn(message, IgnoredArgumentWarning, stacklevel=4)


def taken_from(more: dict[str, Any], *names: str) -> dict[str, Any]:
    """Those of our own arguments that are among another library's, which lose them."""
    return {name: more.pop(name) for name in names if name in more}


def check_devices(devices: Devices | None, name: str = "devices") -> None:
    """See that they are devices; those that are not the CPU give a warning, as this runtime has no other.

    Raises:
        InputError: neither a device nor a list of them.

    Warns:
        IgnoredArgumentWarning: another device is asked for.
    """
    asked = [devices] if devices is None or isinstance(devices, str | int) else devices
    items = list(asked) if isinstance(asked, list | tuple) else []
    if not items or any(isinstance(item, bool) or not isinstance(item, str | int | None) for item in items):
        raise InputError(f"{name} must be a device such as 'cpu' or a list of them, got {devices!r}")
    if any(item not in (None, "cpu") for item in items):
        warn_ignored(f"{name}={devices!r}: this runtime computes on the CPU; use threads= to say with how many cores")


def refuse_changes(given: Mapping[str, Any], harmless: Mapping[str, Any]) -> None:
    """Refuse arguments that ask for what this runtime cannot do: any value but None and the harmless one of that name.

    Raises:
        InputError: one has another value; it is named.
    """
    for name, value in given.items():
        if name in harmless and value is not None and value != harmless[name]:
            raise InputError(
                f"{name}={value!r} is not possible in this runtime, which has no PyTorch; leave it out, "
                f"or pass {harmless[name]!r}"
            )


def accept_unknown(given: Mapping[str, Any], harmless: Mapping[str, Any]) -> None:
    """`refuse_changes`, and a warning that names unknown arguments.

    Warns:
        IgnoredArgumentWarning: there are some.
    """
    refuse_changes(given, harmless)
    if unknown := sorted(given.keys() - harmless.keys()):
        warn_ignored(f"unknown arguments have no effect: {', '.join(unknown)}")
