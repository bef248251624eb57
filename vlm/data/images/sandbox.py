"""Decode untrusted images in a worker process with limits of time, memory and pixels.

The worker runs this module as a program: it imports no PyTorch and starts in a third of a second. It receives a line
of JSON and the file's bytes, and answers with a line of JSON and the pixels; nothing is pickled. If it exceeds a limit
or dies it is killed, the request fails with one `UserError`, and the next one gets a new worker.
"""

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from vlm.data.images.header import LARGEST_IMAGE
from vlm.data.images.image import LARGEST_FILE, ImageSpec, decode_image
from vlm.data.images.modality import is_modality
from vlm.data.images.square import Square, decode_square
from vlm.errors import UserError
from vlm.host import SETTINGS, limit_process

LONGEST_LINE = 8192
"""Largest line of JSON in the protocol, bytes."""
START_SECONDS = 60.0
"""Time limit of the worker's imports, generous for a busy machine."""


@dataclass(frozen=True)
class DecodeLimits:
    """Limits of decoding one image."""

    seconds: float = 20.0
    """Time limit from the first byte sent to the last pixel received."""
    memory: int = 1 << 30
    """Memory limit beyond the libraries', bytes; enforced if the platform limits address space, as Linux does."""
    pixels: int = LARGEST_IMAGE


class ImageDecoder:
    """Pool of decoding worker processes; use it as a context manager, or close it. It is thread-safe.

    Up to `workers` images are decoded at once; further ones wait.
    """

    def __init__(self, limits: DecodeLimits | None = None, workers: int = 1) -> None:
        self.limits = limits or DecodeLimits()
        self._turn = threading.Semaphore(workers)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._closed = False

    def __enter__(self) -> "ImageDecoder":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start a worker without waiting for it, so that the first image need not wait."""
        with self._lock:
            if not self._idle and not self._closed:
                self._idle.append(_Worker(self.limits))

    def close(self) -> None:
        """Stop the idle workers, and the busy ones when they finish."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.end()

    def decode(self, data: bytes, where: str) -> np.ndarray:
        """Decode the bytes of a file with `decode_image`, H × W float32.

        Raises `UserError` in one line that begins with `where`, for an unreadable image or an exceeded limit.
        """
        answer = self._ask(data, where, None)
        return np.frombuffer(answer["pixels"], np.float32).reshape(answer["shape"])

    def decode_square(self, data: bytes, where: str, spec: ImageSpec) -> Square:
        """Decode with `decode_square` in the worker; the full picture never enters here."""
        answer = self._ask(data, where, spec)
        pixels = np.frombuffer(answer["pixels"], np.uint8).reshape(spec.shape)
        modality = answer.get("modality")
        return Square(pixels, answer.get("loses_color") is True, modality if is_modality(modality) else "")

    def _ask(self, data: bytes, where: str, spec: ImageSpec | None) -> dict[str, Any]:
        if len(data) > LARGEST_FILE:
            raise UserError(f"{where}: larger than {LARGEST_FILE >> 20} MiB")
        with self._turn:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None or not worker.alive:  # killed by something else, not by this image
                worker = _Worker(self.limits)
            try:
                answer = worker.ask(data, spec)
            except BaseException:
                worker.kill()
                raise
            with self._lock:
                keep = worker.alive and not self._closed
                if keep:
                    self._idle.append(worker)
        if not keep:
            worker.end()
        if "error" in answer:
            raise UserError(f"{where}: {answer['error']}")
        return answer


class _Worker:
    """Worker process that decodes one image after another."""

    def __init__(self, limits: DecodeLimits) -> None:
        self.limits = limits
        self._late = self._ready = False
        package = Path(__file__).resolve().parents[2]
        # Pass no environment variable that may be secret; one thread, since others use the cores.
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
        paths = os.pathsep.join([str(package), *filter(None, sys.path)])
        environment = {**SETTINGS, **kept, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vlm.data.images.sandbox", str(limits.memory)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
            start_new_session=True,  # the parent handles Ctrl-C
        )  # fmt: skip

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, data: bytes, spec: ImageSpec | None) -> dict[str, Any]:
        """Send an image and wait for its pixels or an `error`."""
        if not self._ready:
            if self._within(START_SECONDS, self._read_line) is None:
                return self._failed("the process that decodes images cannot be started")
            self._ready = True
        answer = self._within(self.limits.seconds, lambda: self._exchange(data, spec))
        if answer is not None:
            return answer
        if self._late:
            return self._failed(f"not a readable image: it takes longer than {self.limits.seconds:g} seconds to decode")
        return self._failed("not a readable image: the process that decodes it died of it, or of too little memory")

    def _failed(self, reason: str) -> dict[str, Any]:
        self.kill()
        return {"error": reason}

    def _exchange(self, data: bytes, spec: ImageSpec | None) -> dict[str, Any] | None:
        wanted = {"size": len(data), "pixels": self.limits.pixels, "spec": asdict(spec) if spec else None}
        sent, received = self._pipes()
        sent.write(json.dumps(wanted).encode() + b"\n")
        sent.write(data)
        sent.flush()
        answer = self._read_line()
        if answer is None or "error" in answer:
            return answer
        shape = answer["shape"]
        if tuple(shape) != spec.shape if spec else not 0 < shape[0] * shape[1] <= self.limits.pixels:
            return None
        pixels = bytearray(math.prod(spec.shape) if spec else 4 * shape[0] * shape[1])
        return {**answer, "pixels": pixels} if received.readinto(pixels) == len(pixels) else None  # type: ignore[attr-defined]

    def _read_line(self) -> dict[str, Any] | None:
        line = self._pipes()[1].readline(LONGEST_LINE)
        return json.loads(line) if line.endswith(b"\n") else None

    def _within(self, seconds: float, work: Any) -> Any:
        """Run `work` with a time limit; None if the process died or was killed at the limit."""
        timer = threading.Timer(seconds, self._over)
        timer.daemon = True
        timer.start()
        try:
            return work()
        except (OSError, ValueError):  # a broken pipe, or a partial line
            return None
        finally:
            timer.cancel()

    def _over(self) -> None:
        self._late = True
        self._process.kill()

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdin and self._process.stdout
        return self._process.stdin, self._process.stdout

    def end(self) -> None:
        """Stop the process: close its input, and kill it if it does not exit."""
        with suppress(OSError):
            self._pipes()[0].close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in self._pipes():
            with suppress(OSError):
                pipe.close()


# ------------------------------------------------------------------------------------- in the worker


def _serve(received: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until the input ends."""
    answers.write(b"{}\n")
    answers.flush()
    while line := received.readline(LONGEST_LINE):
        wanted = json.loads(line)
        data = received.read(wanted["size"])
        answer, pixels = _answer(data, wanted)
        del data
        answers.write(json.dumps(answer).encode() + b"\n")
        if pixels is not None:
            answers.write(pixels.data)
        answers.flush()


def _answer(data: bytes, wanted: Mapping[str, Any]) -> tuple[dict[str, Any], np.ndarray | None]:
    """Decode an image and return its shape and pixels, or an `error` message."""
    try:
        spec = ImageSpec(**wanted["spec"]) if wanted["spec"] else None
        if spec is not None:
            square = decode_square(data, "", spec, wanted["pixels"])
            told = {"loses_color": square.loses_color, "modality": square.modality}
            return {"shape": square.pixels.shape, **told}, square.pixels
        image = decode_image(data, "")
        if image.shape[0] * image.shape[1] > wanted["pixels"]:
            return {"error": f"larger than {wanted['pixels']:,} pixels"}, None
        return {"shape": image.shape}, np.ascontiguousarray(image)
    except UserError as error:
        return {"error": str(error).removeprefix(": ")[: LONGEST_LINE // 16]}, None
    except MemoryError:
        return {"error": "not a readable image: there is not enough memory for it"}, None


def main() -> None:
    """Run the worker; the answer pipe is kept separate from anything a library may print."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    limit_process(int(sys.argv[1]), writes=False)
    _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
