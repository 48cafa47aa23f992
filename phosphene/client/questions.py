"""The questions of one `explain_images`: what is sent for each, which are open, and what becomes of an answer.

What the streams of `Client` and `AsyncClient` have in common. Reads image files; knows no channel, and never waits.

No call of `phosphene.v1` has effects, so that a question that got no answer may be asked again: one that the service
refused for now after the delay that it names, and all open ones when a call breaks, on a new call. Each is asked again
at most `RetryPolicy.retry_count` times; what was answered never is.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Unpack

import grpc

from phosphene.client.failures import error_from, error_of, needs_bytes
from phosphene.client.options import ExplainOptions
from phosphene.client.requests import ImageSource, explain_request, image_query, read_image
from phosphene.client.retries import RetryPolicy, retry_delay_s
from phosphene.errors import (
    DeadlineExpired,
    InputError,
    Overloaded,
    PhospheneError,
    ServiceError,
    ServiceUnreachable,
    StreamBroken,
    Unavailable,
)
from phosphene.v1.explain_pb2 import ExplainRequest, ExplainResponse
from phosphene.v1.streams_pb2 import ExplainImagesRequest, ExplainImagesResponse
from phosphene.v1.values_pb2 import ImageQuery

__all__ = ["CHUNK_BYTES", "Answer", "Digest", "OpenQuestions", "Question", "QuestionSource", "Unsent"]

CHUNK_BYTES = 2**20
"""A longer image is sent in pieces of this many bytes, so that no message comes near gRPC's usual limit of 4 MiB."""
_LISTED_POSITIONS = 20


@dataclass(frozen=True)
class Digest:
    """An image that is not sent: one of the corpus, or one that this caller sent before."""

    sha256: str
    """SHA-256 of its encoded file: 64 lowercase hexadecimal digits."""


QuestionSource = ImageSource | Digest
"""An encoded JPEG, PNG or WebP file, the path of one, or a digest."""
Answer = tuple[int, ExplainResponse | PhospheneError]
"""The position of an image among those given, from 0, and what became of it."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """An image that is to be explained."""

    position: int
    """Its place among the images, from 0; the item number of its messages."""
    image: QuestionSource
    """The image; a file is read whenever the question is sent."""
    by_digest: bool
    """Whether to ask by digest, although the bytes are here."""
    retry_count: int = 0
    """How often it was asked again."""


@dataclass(frozen=True)
class Unsent:
    """A question that could not be sent, as the sending side tells the one that settles."""

    position: int
    """Its place among the images."""
    error: PhospheneError
    """Why."""


class OpenQuestions:
    """The questions that have no answer yet. One thread's, but for `messages`."""

    def __init__(
        self,
        *,
        policy: RetryPolicy,
        clock: Callable[[], float],
        address: str,
        image_limit_bytes: int,
        digest_first: bool = False,
        in_flight: int = 32,
        **options: Unpack[ExplainOptions],
    ) -> None:
        """Begin with none.

        Args:
            policy: how often a question is asked again, and after how long.
            clock: seconds on a clock that never goes back.
            address: the server that is asked, for messages.
            image_limit_bytes: largest image to send.
            digest_first: whether to send a digest first, and the image only where the service needs it.
            in_flight: most questions that are open at a time.
            **options: what to answer.

        Raises:
            InputError: `in_flight` is below 1, or the options are wrong.
        """
        if in_flight < 1:
            raise InputError(f"in_flight is {in_flight}; it is 1 or more", field="in_flight")
        self._policy = policy
        self._clock = clock
        self._address = address
        self._image_limit_bytes = image_limit_bytes
        self._digest_first = digest_first
        self._in_flight = in_flight
        self._template = explain_request(ImageQuery(), **options)
        self._open: dict[int, Question] = {}
        self._later: list[tuple[float, int]] = []
        self._count = 0

    def __len__(self) -> int:
        """Return how many are open."""
        return len(self._open)

    @property
    def has_room(self) -> bool:
        """Whether another may be asked now; not while the service has asked for patience."""
        return len(self._open) < self._in_flight and not self._later

    @property
    def is_heard(self) -> bool:
        """Whether a question is with the service, so that an answer is due; not while all wait to be asked again."""
        return len(self._open) > len(self._later)

    def ask(self, image: QuestionSource) -> Question:
        """Open a question; it is to be sent.

        Raises:
            InputError: it is no image.
        """
        if not isinstance(image, bytes | str | Path | Digest):
            raise InputError(
                f"image {self._count} is a {type(image).__name__}; give bytes, a path or a Digest", field="images"
            )
        question = Question(
            position=self._count, image=image, by_digest=self._digest_first and not isinstance(image, Digest)
        )
        self._count += 1
        self._open[question.position] = question
        return question

    def messages(self, question: Question) -> Iterator[ExplainImagesRequest]:
        """What is sent for a question; nothing where an error is raised.

        Raises:
            ImageError: the file cannot be read, or is too large.
            InputError: the digest is none.
        """
        request = ExplainRequest()
        request.CopyFrom(self._template)
        match question.image:
            case Digest(digest):
                request.image.CopyFrom(image_query(sha256=digest))
                data = b""
            case image:
                data = read_image(image, limit_bytes=self._image_limit_bytes)
                if question.by_digest:
                    request.image.sha256 = sha256(data).hexdigest()
                elif len(data) > CHUNK_BYTES:
                    request.image.upload.size_bytes = len(data)
                else:
                    request.image.data = data
        yield ExplainImagesRequest(item=question.position, explain=request)
        if request.image.HasField("upload"):
            for start in range(0, len(data), CHUNK_BYTES):
                yield ExplainImagesRequest(item=question.position, chunk=data[start : start + CHUNK_BYTES])

    def settle(self, response: ExplainImagesResponse) -> Answer | Question | None:
        """Take what the service says of an item.

        Returns:
            The answer; or the question, where it is to be sent again at once; or None: it is to be sent again later
            (see `due`), or it is not open.
        """
        question = self._open.get(response.item)
        if question is None:
            return None
        match response.WhichOneof("outcome"):
            case "explanation":
                return self._close(question, response.explanation)
            case "status":
                error = error_of(response.status, address=self._address)
            case _:
                error = ServiceError(
                    f"the service at {self._address} answered with nothing; are client and service of one version?"
                )
        if question.by_digest and needs_bytes(error):
            return self._reopen(replace(question, by_digest=False))
        delay_s = retry_delay_s(self._policy, error, retry_count=question.retry_count)
        if delay_s is None:
            return self._close(question, error)
        self._reopen(replace(question, retry_count=question.retry_count + 1))
        heapq.heappush(self._later, (self._clock() + delay_s, question.position))
        return None

    def fail(self, position: int, error: PhospheneError) -> Answer | None:
        """Close a question that could not be sent; None where it is not open."""
        question = self._open.get(position)
        return None if question is None else self._close(question, error)

    def due(self) -> list[Question]:
        """The questions whose delay is over; they are to be sent again."""
        due = []
        while self._later and self._later[0][0] <= self._clock():
            _, position = heapq.heappop(self._later)
            if position in self._open:
                due.append(self._open[position])
        return due

    def pause_s(self) -> float | None:
        """Seconds until one is `due`; None where none waits."""
        return max(0.0, self._later[0][0] - self._clock()) if self._later else None

    def all_open(self) -> list[Question]:
        """Every open question, in order: what a new call sends first."""
        self._later = []
        return [self._open[position] for position in sorted(self._open)]

    def error_from(self, failure: grpc.RpcError | None) -> PhospheneError:
        """Return what the end of a call means; None where the service ended it as if all were said."""
        # A replica that leaves cancels what its drain does not wait for.
        if failure is None or failure.code() is grpc.StatusCode.CANCELLED:
            return ServiceUnreachable(f"the service at {self._address} ended the call before its answers came")
        return error_from(failure, address=self._address, timeout_s=self._policy.timeout_s)

    def broke_off(self, error: PhospheneError) -> float:
        """Take the end of a call that was not over. Where nothing is open, nothing is lost.

        Args:
            error: how it ended.

        Returns:
            The seconds after which to ask all that is open on a new call.

        Raises:
            StreamBroken: a question was asked often enough.
            PhospheneError: it ended for a reason that a new call cannot mend.
        """
        if not self._open:
            return 0.0
        retry_count = max(question.retry_count for question in self._open.values())
        delay_s = retry_delay_s(self._policy, error, retry_count=retry_count)
        if delay_s is None:
            raise self._broken(error) from error
        for question in list(self._open.values()):
            self._reopen(replace(question, retry_count=question.retry_count + 1))
        return delay_s

    def closed(self) -> PhospheneError:
        """The error to raise where the client is closed while images are open."""
        return self._broken(ServiceUnreachable(f"the client of {self._address} was closed"))

    def silence(self) -> DeadlineExpired:
        """The error to raise where something is open and nothing was said for `RetryPolicy.timeout_s`."""
        return DeadlineExpired(
            f"no answer from {self._address} within {self._policy.timeout_s:g} s, and {len(self._open)} images are "
            "open; ask for less, or allow more time (timeout_s, --timeout)"
        )

    def _broken(self, error: PhospheneError) -> PhospheneError:
        match error:
            case ServiceUnreachable() | Unavailable() | Overloaded():
                positions = tuple(sorted(self._open))
                shown = ", ".join(str(position) for position in positions[:_LISTED_POSITIONS])
                more = ", …" if len(positions) > _LISTED_POSITIONS else ""
                return StreamBroken(
                    f"{error}; of {self._count} images asked, {len(positions)} got no answer: positions {shown}{more}",
                    open_positions=positions,
                )
            case _:
                return error

    def _reopen(self, question: Question) -> Question:
        self._open[question.position] = question
        return question

    def _close(self, question: Question, outcome: ExplainResponse | PhospheneError) -> Answer:
        del self._open[question.position]
        return question.position, outcome
