"""From uint8 images to a network's input, on the device: resize, crop, scale, normalize.

What a Hugging Face `preprocessor_config.json` describes. Resizes are Pillow's, to the pixel, as in
transformers' PIL image processors. Shapes: B batch, H height, W width, C channels (1 or 3).
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt8

from emojax.errors import InputError
from emojax.ops import image


@dataclass(frozen=True)
class Preprocess:
    """The steps in order; part of what compiled programs are keyed by.

    Attributes:
      resize: pixels of the short side, or (height, width), or None to leave the size alone.
      crop: height and width of the centre that is cut out, or None for all of it.
      mean: of each channel, subtracted from the scaled values.
      std: of each channel, divided by.
      kernel: how pixels are interpolated.
      scale: multiplies the values 0…255.
      square: only square images fit (a Siglip2Model keeps their aspect ratio).
      half_even: half of an odd margin is rounded as torchvision does it, not transformers.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kernel: image.Kernel = "bicubic"
    scale: float = 1 / 255
    square: bool = False
    half_even: bool = False

    def __call__(self, images: UInt8[Array | np.ndarray, "B H W C"]) -> Float32[Array, "B h w 3"]:
        """uint8 images → the network's input.

        Gray images are resized as one channel and broadcast afterwards: the same pixels for a third
        of the work.

        Raises:
          InputError: the network takes square images and these are not.
        """
        height, width = images.shape[1:3]
        if self.square and height != width:
            raise InputError(
                f"a Siglip2Model keeps the images' aspect ratio; here it takes square images, "
                f"these are {height}×{width}; use a SiglipModel, or --data.size"
            )
        pixels = self.pixels(images)
        scaled = jnp.asarray(pixels, jnp.float32) * jnp.float32(self.scale)
        if self.scale == 1 / 255:  # the division rounds as the reference's float64 product does
            scaled = image.to_unit(pixels)
        channels = (1, 1, 1, len(self.mean))
        mean = jnp.reshape(jnp.asarray(self.mean, jnp.float32), channels)
        std = jnp.reshape(jnp.asarray(self.std, jnp.float32), channels)
        return (jnp.broadcast_to(scaled, (*scaled.shape[:-1], len(self.mean))) - mean) / std

    def pixels(self, images: UInt8[Array | np.ndarray, "B H W C"]) -> UInt8[Array, "B h w C"]:
        """Resized and cropped, still uint8."""
        pixels = jnp.asarray(images)
        if self.resize is not None:
            pixels = image.resize_pil(pixels, self._size(*pixels.shape[1:3]), self.kernel)
        if self.crop is not None:
            pixels = image.pad_or_crop(pixels, self.crop, half_even=self.half_even)
        return jnp.asarray(pixels)

    def part(self, height: int, width: int) -> tuple[float, float, float, float]:
        """What of an image the network sees: top, left, height and width, as shares of its own.

        A crop that is larger than the resized image has a border: its top and left are below 0.
        """
        size = self._size(height, width)
        crop = self.crop or size
        tall, wide = (cut / whole for cut, whole in zip(crop, size, strict=True))
        return (1 - tall) / 2, (1 - wide) / 2, tall, wide

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the network's input, from those of an image."""
        return self.crop or self._size(height, width)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the resize."""
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        short = min(height, width)
        return int(self.resize * height / short), int(self.resize * width / short)


# What torchvision's classifiers were trained and tested with (its `ImageClassification` preset).
TORCHVISION = Preprocess(
    256,
    (224, 224),
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
    kernel="bilinear",
    half_even=True,
)
