import torch

from src.metrics.retrieval import Retrieval, retrieval_ranks


def test_ranks_by_hand():
    texts = torch.eye(3)
    images = torch.tensor([[1.0, 0.5, 0.2], [0.1, 0.2, 0.3], [0.5, 0.1, 0.5], [0.2, 0.9, 0.1]])
    own = torch.tensor([0, 1, 2, 0])
    assert retrieval_ranks(images, texts[own], own * 7).tolist() == [1, 2, 2, 2], "a tie counts against the image"


def test_a_text_of_several_images_counts_once():
    images, numbers = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([4, 4, 9])
    metric = Retrieval()
    metric.update(images[:2], images[:2], numbers[:2])
    metric.update(images[2:], images[2:], numbers[2:])
    assert {name: value.item() for name, value in metric.compute().items()} == {
        "retrieval_at_1": 1,
        "retrieval_at_10": 1,
    }
