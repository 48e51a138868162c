"""From a photograph to the face in it: what a detector of the user's finds, cut out and resized.

emojax ships no detector. Any function from an image to boxes will do.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emojax.data.folder import to_square
from emojax.errors import InputError

# RGB, uint8 [H, W, 3] → boxes [N, 4 or more] as OpenCV gives them: left, top, width, height in
# pixels, what follows is not read. None or no boxes: no face.
Detector = Callable[[np.ndarray], Any]


class Look:
    """How images become squares: as they are, or cut to the largest face that a detector finds."""

    def __init__(self, size: int, channels: int, detector: Detector | None = None):
        self.shape = (size, size, channels)
        self._detector = detector
        self._lock = threading.Lock()  # detectors need not be for threads; OpenCV's are not

    def square(self, file: Path, image: Image.Image) -> np.ndarray:
        """uint8 [size, size, channels]; `file` is what messages name.

        Raises:
          InputError: no face is found, the detector fails or gives something else than boxes, or
            the image is so long that it would become too large.
        """
        if self._detector is not None:
            image = self._face(file, image, self._detector)
        return to_square(file, image, self.shape[0], self.shape[2])

    def _face(self, file: Path, image: Image.Image, detector: Detector) -> Image.Image:
        pixels = np.asarray(image.convert("RGB"), np.uint8)
        try:
            with self._lock:
                detections = detector(pixels)
        except Exception as error:  # whatever the user's code raises costs one image, not the job
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{file}: the detector failed ({reason})") from error
        boxes = _boxes(file, detections)
        if not len(boxes):
            raise InputError(f"{file}: no face found")
        left, top, width, height = boxes[(boxes[:, 2] * boxes[:, 3]).argmax()]
        # A square about the face, moved into the image where it sticks out.
        side = min(max(width, height), *image.size)
        x = min(max(left + width / 2 - side / 2, 0), image.width - side)
        y = min(max(top + height / 2 - side / 2, 0), image.height - side)
        return image.crop((round(x), round(y), round(x + side), round(y + side)))


def _boxes(file: Path, detections: Any) -> np.ndarray:
    """What a detector gave, as float64 [N, 4].

    Raises:
      InputError: it is no such array, or a box has no size or is not finite.
    """
    try:
        boxes: np.ndarray = np.asarray([] if detections is None else detections, np.float64)
    except (TypeError, ValueError):
        boxes = np.asarray(np.nan)
    if not boxes.size:
        return np.zeros((0, 4))
    sound = boxes.ndim == 2 and boxes.shape[1] >= 4
    if not sound or not np.isfinite(boxes[:, :4]).all() or (boxes[:, 2:4] < 1).any():
        raise InputError(
            f"{file}: the detector gave no boxes [N, 4] of left, top, width and height in pixels"
        )
    return boxes[:, :4]
