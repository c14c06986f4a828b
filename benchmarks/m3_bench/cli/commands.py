"""What a command is added to, and what its options are parsed with."""

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # a text: the class takes no [] when run


def names(words: str) -> list[str]:
    """An argparse type: names between commas."""
    return [name.strip() for name in words.split(",") if name.strip()]
