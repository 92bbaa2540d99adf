"""What can go wrong in retrieval. The text of each error is meant for the user: value, reason, remedy."""

from __future__ import annotations


class RetrieverError(Exception):
    """Base of all errors of this package; a caller that wants "retrieval failed" catches this one.

    Errors of a client's call say which url failed, at which attempt, and how long the call had taken.
    """

    url: str | None = None
    attempt: int = 0
    elapsed_s: float = 0.0
    retry_after_s: float | None = None  # what an overloaded server asks for


class CorpusError(RetrieverError):
    """A corpus file cannot be read or one of its rows is malformed; the message names file and line."""


class IndexBuildError(RetrieverError):
    """An index cannot be written: the folder is taken, the disk is full, there is nothing to index."""


class IndexOpenError(RetrieverError):
    """A folder is not there, is not an index, or is damaged."""


class EncoderError(RetrieverError):
    """An encoder is not there, cannot be loaded, or cannot do what is asked of it."""


class BadQuery(RetrieverError, ValueError):
    """The caller's arguments make no sense (`topk` of 0, a string where a list of strings belongs)."""


class ServeError(RetrieverError):
    """The server cannot start as asked: the port is taken, or the address is public and there is no token."""


class RetrieverUnavailable(RetrieverError):
    """The server is down, answers 5xx, or closes connections, also after retries."""


class RetrieverTimeout(RetrieverUnavailable):
    """The deadline of the whole call passed, retries included."""


class RetrieverRejected(RetrieverError):
    """The server answered 4xx: the request is wrong, so it is not sent again. `status` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class RetrieverBadResponse(RetrieverError):
    """The server answered 200 with something that is not Search-R1's wire format."""
