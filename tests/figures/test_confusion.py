import torch

from src.figures.confusion import confusion_figure


def test_confusion_figure_shows_shares_of_rows_and_counts():
    figure = confusion_figure(torch.tensor([[3, 1], [0, 0]]), ("available", "space_mismatch"))
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["75%\n3", "25%\n1", "0%\n0", "0%\n0"]
