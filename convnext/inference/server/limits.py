"""What a server takes at most, and how it makes batches."""

import math
from dataclasses import dataclass, fields

from convnext.errors import SettingsError

MEGABYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """What a server takes at most, and how it makes batches."""

    max_batch: int = 32
    """Images that the model sees at a time."""
    max_wait_ms: float = 5.0
    """Milliseconds that a batch waits for images which are being decoded; one that comes alone waits for nothing."""
    max_mb: float = 32.0
    """Megabytes (2^20 bytes) of a request; more is answered with 413."""
    max_images: int = 64
    """Images of a request; more is answered with 413."""
    max_queue: int = 256
    """Images that were taken and are not answered yet; more is answered with 503. An explanation counts as a batch."""
    max_memory_mb: float = 512.0
    """Megabytes that the bodies of all requests together hold in memory; more is answered with 503."""
    max_seconds: float = 30.0
    """Seconds from a whole request to its answer; one that takes longer is given up with 503."""
    max_upload_seconds: float = 20.0
    """Seconds that a client may take to send a request, answered with 408, and to take the answer."""
    max_connections: int = 256
    """Open connections; more is answered with 503."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            at_least = 1 if isinstance(field.default, int) else 0
            if not at_least <= value < math.inf:
                raise SettingsError(
                    f"{field.name.replace('_', '-')}: must be at least {at_least} and finite, got {value}"
                )
        if self.max_queue < max(self.max_images, self.max_batch):
            raise SettingsError(
                f"max-queue: must hold a batch (max-batch {self.max_batch}) and a request (max-images "
                f"{self.max_images}), got {self.max_queue}"
            )
        if self.max_memory_mb < self.max_mb:
            raise SettingsError(
                f"max-memory-mb: must hold a request (max-mb {self.max_mb:g}), got {self.max_memory_mb:g}"
            )

    @property
    def max_bytes(self) -> int:
        """Bytes of a request."""
        return int(self.max_mb * MEGABYTE)
