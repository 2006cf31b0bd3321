import pytest

from src.runtime.card import without_folders


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("data.source.folder=/home/me/shop", "data.source.folder=shop"),
        ("data.source.folder=/home/my name/shop/", "data.source.folder=shop"),
        ("init=~/nets/rfnet", "init=rfnet"),
        ("data.transforms.perceived={depth: /home/me/depth, saliency: '~/s'}",
         "data.transforms.perceived={depth: depth, saliency: 's'}"),
        ("generator.folder=runs/fit-rfft/checkpoint", "generator.folder=runs/fit-rfft/checkpoint"),
        ("generator.folder=../x/checkpoint", "generator.folder=../x/checkpoint"),
        ("url=https://a.b/c", "url=https://a.b/c"),
        ("/home/me/painter", "painter"),
        ("someone/painter", "someone/painter"),
    ],
)  # fmt: skip
def test_cards_name_no_folders_of_the_machine(word, told):
    assert without_folders(word) == told
