"""Lists of words as a user writes them."""

from m3_runtime.errors import InputError


def distinct_words(text: str, what: str) -> list[str]:
    """The words between commas, without the blanks around them; `what` is one word's kind.

    Raises:
        InputError: one is empty, or comes twice.

    >>> distinct_words("dense, sparse", "head")
    ['dense', 'sparse']
    """
    words = [word.strip() for word in text.split(",")]
    if not any(words):
        raise InputError(f"{text!r} names no {what}; give one, or several with commas between them")
    if not all(words):
        raise InputError(f"{text!r} names no {what} before, between or after its commas; leave the comma out")
    if twice := [word for i, word in enumerate(words) if word in words[:i]]:
        raise InputError(f"{text!r} names the {what} {twice[0]!r} twice; name it once")
    return words
