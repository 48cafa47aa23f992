"""Every error that Phosphene raises on purpose; knows nothing of what raises it.

A message says what is wrong, the value, the limit and the remedy. The edges (command line, gRPC) print it as it is;
anything that is not a `PhospheneError` is a defect and is reported without its text.

    PhospheneError
    ├── InputError                  what a caller or a user handed in
    │   ├── ImageError
    │   │   ├── ImageFormatUnsupported
    │   │   ├── ImageTooLarge
    │   │   ├── ImageTooSlow        it decodes for longer than an image may
    │   │   └── ImageUnreadable
    │   ├── CorpusError             a set of images that cannot be listed or read
    │   ├── SettingError            a configuration value out of bounds
    │   ├── SiteError               a block or token selection that the encoder does not have
    │   └── NotFound                an unknown neuron, image, bundle or corpus
    ├── ArtefactError               what lies on disk
    │   ├── ArtefactMissing
    │   ├── ArtefactDamaged         a digest, size or shape differs from the manifest
    │   ├── ArtefactMismatch        an artefact made for another one (code_id differs)
    │   ├── ArtefactRefused         a pickle, or a file that no manifest names
    │   └── SchemaUnknown           written by another version
    ├── EncoderError
    │   ├── EncoderMissing          neither a local folder nor reachable on the hub
    │   └── EncoderUnsupported      a model family that Phosphene does not read
    ├── ReadoutMissing              scores asked of an encoder that has none
    ├── Unanswerable                a right question that this bundle or corpus cannot answer
    │   └── ImageRequired           ... without the image's bytes
    ├── NumericError                NaN or infinity where numbers are due
    ├── DeviceError                 the accelerator, not the input
    │   ├── DeviceOutOfMemory       a smaller batch may fit
    │   └── DeviceFailed            nothing will run on it again in this process
    └── ServiceError
        ├── Overloaded              a bounded queue is full; carries the delay after which to try again
        │   └── RateLimited         one caller asks more often than it may
        ├── DeadlineExpired         the caller's deadline passed before the work was done
        ├── Unavailable             starting, draining or broken: another replica may answer
        ├── ReloadUnderWay          one switch of generations at a time
        ├── Unauthenticated         no token, or one that is not known
        ├── PermissionDenied        a known caller who may not do this
        └── ServiceUnreachable      the client found no server
            └── StreamBroken        a stream of images broke; carries the positions that are open
"""

from __future__ import annotations

__all__ = [
    "ArtefactDamaged",
    "ArtefactError",
    "ArtefactMismatch",
    "ArtefactMissing",
    "ArtefactRefused",
    "CorpusError",
    "DeadlineExpired",
    "DeviceError",
    "DeviceFailed",
    "DeviceOutOfMemory",
    "EncoderError",
    "EncoderMissing",
    "EncoderUnsupported",
    "ImageError",
    "ImageFormatUnsupported",
    "ImageRequired",
    "ImageTooLarge",
    "ImageTooSlow",
    "ImageUnreadable",
    "InputError",
    "NotFound",
    "NumericError",
    "Overloaded",
    "PermissionDenied",
    "PhospheneError",
    "RateLimited",
    "ReadoutMissing",
    "ReloadUnderWay",
    "SchemaUnknown",
    "ServiceError",
    "ServiceUnreachable",
    "SettingError",
    "SiteError",
    "StreamBroken",
    "Unanswerable",
    "Unauthenticated",
    "Unavailable",
]


class PhospheneError(Exception):
    """Root of the tree; its text may be shown to whoever asked."""


class InputError(PhospheneError):
    """Something handed in is wrong; doing it again unchanged fails again."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        """Keep the message and, where one is at fault, the dotted name of the request field."""
        super().__init__(message)
        self.field = field


class ImageError(InputError):
    """An image cannot be used."""


class ImageFormatUnsupported(ImageError):
    """The bytes are not JPEG, PNG or WebP."""


class ImageTooLarge(ImageError):
    """The image exceeds a limit on bytes, pixels or scans."""


class ImageTooSlow(ImageError):
    """The image decodes for longer than one image may."""


class ImageUnreadable(ImageError):
    """The bytes claim a supported format and do not decode."""


class CorpusError(InputError):
    """A corpus cannot be listed or read, or is empty."""


class SettingError(InputError):
    """A configuration value is out of its bounds or contradicts another."""


class SiteError(InputError):
    """The encoder has no such site."""


class NotFound(InputError):
    """A named thing does not exist here."""

    def __init__(self, message: str, *, field: str | None = None, name: str = "") -> None:
        """Keep the message, the request field that named the thing, and the name that was not found."""
        super().__init__(message, field=field)
        self.name = name


class ArtefactError(PhospheneError):
    """An artefact on disk cannot be used."""


class ArtefactMissing(ArtefactError):
    """The artefact, or one of the files that its manifest names, is not there."""


class ArtefactDamaged(ArtefactError):
    """A file differs from the manifest that names it."""


class ArtefactMismatch(ArtefactError):
    """Two artefacts do not belong together."""


class ArtefactRefused(ArtefactError):
    """A file of a kind that is never read (pickle), or that no manifest names."""


class SchemaUnknown(ArtefactError):
    """A manifest with a schema number, kind or key that this version does not know."""


class EncoderError(PhospheneError):
    """The encoder cannot be loaded."""


class EncoderMissing(EncoderError):
    """No such local folder, and the hub cannot give it."""


class EncoderUnsupported(EncoderError):
    """A model family, or a configuration of one, that Phosphene does not read."""


class ReadoutMissing(PhospheneError):
    """Scores or text vectors were asked of an encoder that has no readout for them."""


class Unanswerable(PhospheneError):
    """The question is right, but this bundle or corpus lacks what its answer needs; the message says what helps."""

    def __init__(self, message: str, *, subject: str) -> None:
        """Keep the message and what lacks something, such as `corpus photos` or `parts`."""
        super().__init__(message)
        self.subject = subject


class ImageRequired(Unanswerable):
    """What was asked of a digest needs the image's bytes."""


class NumericError(PhospheneError):
    """NaN or infinity in residuals, weights or codes."""


class DeviceError(PhospheneError):
    """The accelerator failed; the input is not at fault."""


class DeviceOutOfMemory(DeviceError):
    """A batch, or a model, did not fit into the device's memory; a smaller one may."""


class DeviceFailed(DeviceError):
    """The device answers nothing any more in this process (a CUDA error that sticks)."""


class ServiceError(PhospheneError):
    """The service cannot answer now; doing it again later may succeed."""


class Overloaded(ServiceError):
    """A bounded queue is full."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        """Keep the message and the seconds after which to try again."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Overloaded):
    """One caller asks more often than it may; others are answered."""


class DeadlineExpired(ServiceError):
    """The caller's deadline passed before its work was done."""


class Unavailable(ServiceError):
    """This replica is starting, draining or broken; another one, or this one later, may answer."""


class ReloadUnderWay(ServiceError):
    """Another reload has not ended yet."""


class Unauthenticated(ServiceError):
    """The request carries no token, or one that is not known."""


class PermissionDenied(ServiceError):
    """The caller is known and may not do this."""


class ServiceUnreachable(ServiceError):
    """No server answers at the address."""


class StreamBroken(ServiceUnreachable):
    """The call broke, and not every image was answered."""

    def __init__(self, message: str, *, open_positions: tuple[int, ...]) -> None:
        """Keep the message and the positions of the images that were taken and not answered, in order."""
        super().__init__(message)
        self.open_positions = open_positions
