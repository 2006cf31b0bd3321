"""The head of the LAION aesthetic predictor and of ImageReward."""

from torch import Tensor, nn

WIDTHS = (1024, 128, 64, 16, 1)


class LinearHead(nn.Module):
    """Features (batch, width) to values (batch,): five linear layers without activations between them.

    Dropout stands between the layers in training; here its places are empty, so that the names of the published files,
    `layers.{0,2,4,6,7}`, are kept.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for number, (before, after) in enumerate(zip((width, *WIDTHS), WIDTHS, strict=False)):
            self.layers.append(nn.Linear(before, after))
            if number < 3:
                self.layers.append(nn.Identity())

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features).squeeze(-1)
