"""Every error of this project, as one tree.

    M3Error
    ├── BundleError               the folder may not be opened as a bundle
    │   ├── BundleNotFoundError   no such folder, or no manifest in it
    │   ├── BundleFormatError     the manifest is malformed, newer than this release, or points outside the folder
    │   └── BundleDamagedError    a listed file is missing, cut off or changed
    ├── VariantError              the bundle has no such variant, or it does not run on the engine asked for
    ├── EngineError               an engine failed to load or to run a graph
    │   └── EngineNotInstalledError
    ├── HeadError                 the bundle has no such head (a dense-only bundle, for instance)
    ├── ExtraNotInstalledError    a package that an extra brings is not installed
    ├── BulkError                 a bulk job cannot go on, for now: what it has done is kept
    ├── SpaceMismatchError        an index was filled from another vector space
    ├── PartlyAddedError          an index has taken some of the passages, then something failed
    ├── ServiceError              the server cannot take or finish a request now; the request itself is fine
    │   ├── QueueFullError        so much waits that the request would have to wait too long
    │   ├── DeadlineError         its time was up before it was done
    │   └── DrainingError         the server is about to stop
    └── InputError (ValueError)   an argument or a text is not what it must be; names the item
        ├── TextTooLongError      on_truncate="error" and a text is longer than allowed
        ├── NoRoomError           a reranker's query leaves no room for its passage
        ├── FileFormatError       a file of texts is not of the format, or has not the columns, that are looked for
        └── FieldError            a field of a request to the server is not what it must be
            └── RequestTooLargeError  it has more texts, tokens or bytes than the server takes

Messages say what was expected, what came, and what to do about it.
"""

import copyreg
from typing import Any, ClassVar, Self


class M3Error(Exception):
    """Root of the tree: catch it to catch everything that this project raises on purpose.

    Attributes:
        is_of_input: what was given is wrong, a file or a bundle too, or a package is missing: the same call fails
            again. Commands end with exit code 2 for it, and with 1 for the rest.
    """

    is_of_input: ClassVar[bool] = False

    def __reduce__(self) -> tuple[Any, ...]:
        # the default calls the class with the message alone, which those with attributes do not take
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]


class BundleError(M3Error):
    """The folder may not be opened as a bundle."""

    is_of_input = True


class BundleNotFoundError(BundleError):
    """There is no such folder, or it holds no manifest."""


class BundleFormatError(BundleError):
    """The manifest is malformed, newer than this release, or points outside the bundle."""


class BundleDamagedError(BundleError):
    """A file that the manifest lists is missing, cut off or changed."""


class VariantError(M3Error):
    """The bundle has no such variant, or the variant does not run on the engine asked for."""

    is_of_input = True


class EngineError(M3Error):
    """An engine failed to load or to run a graph."""


class EngineNotInstalledError(EngineError):
    """The package behind an engine is not installed."""

    is_of_input = True


class HeadError(M3Error):
    """The bundle does not have the head that was asked for."""

    is_of_input = True


class ExtraNotInstalledError(M3Error):
    """A package that an extra brings is not installed."""

    is_of_input = True


class BulkError(M3Error):
    """A bulk job cannot go on, for now (no room on disk, say): what it has done is kept, and it can resume."""


class SpaceMismatchError(M3Error):
    """An index was filled from another vector space: its vectors may not be compared with the encoder's."""

    is_of_input = True


class PartlyAddedError(M3Error):
    """`add` of an index failed halfway; its cause is what failed.

    What was written stays. An id that is there is replaced, so the same `add` can be repeated.

    Attributes:
        written: how many passages were written.
        last_id: the last one of them, in the order in which they came.
    """

    def __init__(self, message: str, written: int, last_id: int | str) -> None:
        super().__init__(message)
        self.written, self.last_id = written, last_id


class ServiceError(M3Error):
    """The server cannot take or finish a request now; the request itself is fine.

    Attributes:
        retry_after_s: when to ask again.
    """

    retry_after_s = 1


class QueueFullError(ServiceError):
    """So much waits that the request would have to wait too long."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(ServiceError):
    """A request's time was up before it was done."""


class DrainingError(ServiceError):
    """The server is about to stop and takes no more requests."""


class InputError(M3Error, ValueError):
    """An argument or a text is not what it must be."""

    is_of_input = True


class FileFormatError(InputError):
    """A file of texts is not of the format, or has not the columns, that are looked for; the message says what to do.

    Attributes:
        arguments: what helps too where a command takes it: the values of `--input-format` and its like, by name.
    """

    def __init__(self, message: str, **arguments: str) -> None:
        super().__init__(message)
        self.arguments = arguments


class FieldError(InputError):
    """A field of a request to the server is not what it must be.

    Attributes:
        field: the field, or the item in it: `inputs[3]`; None where it is the whole request.
        code: what kind of mistake it is, as OpenAI's API calls it.
    """

    code = "invalid_value"

    def __init__(self, message: str, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.field, self.code = field, code or self.code


class RequestTooLargeError(FieldError):
    """A request to the server has more texts, tokens or bytes than it takes at a time."""

    code = "request_too_large"


class _TooManyTokensError(InputError):
    """A text of a list has too many tokens.

    Attributes:
        name: what the message calls the text.
        index: which text or pair.
        tokens: how many tokens the text has.
        max_length: how many it, or its pair, may have.
    """

    _message: ClassVar[str]

    def __init__(self, name: str, index: int, tokens: int, max_length: int) -> None:
        super().__init__(self._message.format(name=name, tokens=tokens, max_length=max_length))
        self.name, self.index, self.tokens, self.max_length = name, index, tokens, max_length

    def of_part(self, start: int) -> Self:
        """The same where its list is a part of another, from the place `start` on."""
        index = start + self.index
        return type(self)(f"{self.name.removesuffix(str(self.index))}{index}", index, self.tokens, self.max_length)


class TextTooLongError(_TooManyTokensError):
    """A text is longer than allowed and truncation was not; `index` is its place in the list of texts or pairs."""

    _message = (
        "{name} has {tokens} tokens, the limit is {max_length}; split the text, raise the limit, or pass "
        "on_truncate='truncate'"
    )


class NoRoomError(_TooManyTokensError):
    """A reranker's query leaves no room for its passage; `index` is the pair's place in the list of pairs."""

    _message = (
        "{name} has {tokens} tokens, which leave no room for its passage in {max_length}; shorten it, lower "
        "query_max_length, or raise max_length"
    )
