"""What the configs of convolutional networks in stages share: ResNet and ConvNeXt."""

from collections.abc import Iterator
from dataclasses import dataclass

from emojax.models.tapped import POOLED, NetworkConfig
from emojax.models.transformer import check_activation, check_depth, check_sizes


@dataclass(frozen=True, kw_only=True)
class StagedConfig(NetworkConfig):
    """Widths and depths of the stages, and the activation.

    Raises:
      ValueError: sizes that no network can have, or an unknown activation.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    activation: str

    def __post_init__(self):
        check_activation(self.activation)
        check_sizes(classes=self.classes)
        for width, depth in zip(self.widths, self.depths, strict=True):
            check_sizes(width=width, depth=depth)
            check_depth(depth)
        if not self.widths:
            raise ValueError("there are no stages")

    def stem_width(self) -> int:
        """Units of the tap `stem`."""
        raise NotImplementedError

    def inside(self, width: int) -> Iterator[tuple[str, int]]:
        """Names and units of the taps inside a block of this width."""
        raise NotImplementedError

    def units(self) -> dict[str, int]:
        """Units of every tap."""
        units = {"stem": self.stem_width()}
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            for block in range(depth):
                name = f"stage{stage}.block{block}"
                units |= {f"{name}.{tap}": number for tap, number in self.inside(width)}
                units[name] = width
            units[f"stage{stage}"] = width
        return units | {POOLED: self.widths[-1]}

    def probed(self) -> tuple[str, ...]:
        """The stem and the stages, as CLIP-Dissect has them for a ResNet-50."""
        return ("stem", *(f"stage{stage}" for stage in range(len(self.widths))))
