"""Compressed pixels are decoded in a child process, with limits of memory and of time.

The codecs are C libraries that were not written for hostile streams. In a child, a stream that
claims gigabytes, never ends or crashes its codec costs one refused file.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from contourcast.imaging.dicom.instance import Header
from contourcast.imaging.errors import DicomError

# The interpreter with numpy and the codecs takes 0.4 GiB of address space; an image of
# 2048 x 2048 and what JPEG 2000 needs around it 0.2 GiB.
MEMORY_BYTES: Final = 2 << 30
# JPEG 2000 decodes 15 slices of 512 x 512 a second (DEPENDENCIES §1), so 2048 x 2048 in 1 s. The
# processor's time is what counts, since a busy machine is no hostile stream; wall time is for one
# that sleeps.
CPU_SECONDS_A_FRAME: Final = 30
WALL_SECONDS_A_FRAME: Final = 600
# One thread: the address space of many would break the limit. The path is that of this package.
CHILD_ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(
        filter(None, (str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")))
    ),
}
NOT_INSTALLED: Final = {
    "error": "no decoder for it is installed",
    "remedy": "install contourcast[codecs], or send it uncompressed",
}


class Codec:
    """Decodes compressed single-frame images in a child that starts when first needed.

    Use it as a context manager, for as many images as you like, from any thread.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._one_at_a_time = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def decode(self, encoded: bytes, header: Header) -> bytes:
        """The native samples of an image, little endian, unsigned, row by row.

        Args:
            encoded: The value of the encapsulated pixel data, from its offset table on.
            header: What the file says of it.

        Raises:
            DicomError: The stream is damaged or too costly, or no codec for it is installed.
        """
        image = header.pixels
        assert image is not None
        request = {
            "bytes": len(encoded),
            "transfer_syntax_uid": header.transfer_syntax,
            "rows": image.rows,
            "columns": image.columns,
            "number_of_frames": 1,
            "samples_per_pixel": image.samples,
            "photometric_interpretation": image.photometric,
            "bits_allocated": image.bits_allocated,
            "bits_stored": image.bits_stored,
            "pixel_representation": int(image.signed),
            "pixel_keyword": "PixelData",
        }
        with self._one_at_a_time:
            try:
                answer, data = self._ask(request, encoded)
            except (OSError, ValueError):
                self.close()
                answer, data = {"error": "the decoder gave up"}, b""
        if "error" in answer or len(data) != image.native_bytes:
            raise DicomError(
                f"the compressed pixels cannot be decoded ({answer.get('error', 'wrong size')})",
                tag=f"(7FE0,0010) Pixel Data, transfer syntax {header.transfer_syntax}",
                uid=header.sop_instance_uid,
                file=header.file,
                remedy=answer.get("remedy", "send the file again, or uncompressed"),
            )
        return data

    def _ask(self, request: dict[str, object], encoded: bytes) -> tuple[dict[str, str], bytes]:
        if self._child is not None and self._child.poll() is not None:
            self.close()  # it ended between two images
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],  # -P: nothing from the working folder
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **CHILD_ENVIRONMENT},
            )
        to_child, from_child = self._child.stdin, self._child.stdout
        assert to_child is not None
        assert from_child is not None
        to_child.write(json.dumps(request).encode() + b"\n" + encoded)
        to_child.flush()
        answer = json.loads(from_child.readline())
        return answer, from_child.read(int(answer.get("bytes", 0)))


def main() -> None:
    """The child: answers one request after the other until its input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while line := requests.readline():
        request = json.loads(line)
        encoded = requests.read(request.pop("bytes"))
        _end_after(cpu_seconds=CPU_SECONDS_A_FRAME, wall_seconds=WALL_SECONDS_A_FRAME)
        _answer(answers, encoded, request)
        _end_after(cpu_seconds=0, wall_seconds=0)


def _end_after(*, cpu_seconds: int, wall_seconds: int) -> None:
    """The system ends this process then, in whatever code it is; zero: never."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, wall_seconds)


def _answer(answers: IO[bytes], encoded: bytes, request: dict[str, object]) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    answer, data = {}, b""
    try:
        decoder = get_decoder(str(request.pop("transfer_syntax_uid")))
        if decoder.is_available:
            array, _ = decoder.as_array(encoded, raw=True, **request)  # type: ignore[arg-type]
            data = array.astype(f"<u{int(str(request['bits_allocated'])) // 8}").tobytes()
            answer = {"bytes": str(len(data))}
        else:
            answer = NOT_INSTALLED
    except NotImplementedError:
        answer = NOT_INSTALLED
    except Exception as error:  # whatever a codec throws at us is a damaged stream
        answer = {"error": type(error).__name__}
    answers.write(json.dumps(answer).encode() + b"\n" + data)
    answers.flush()


if __name__ == "__main__":
    main()
