"""RFNet: the paper's equation, what reaches the result and what must not, calibration, and one real training run."""

import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from src.build import build
from src.config import compose
from src.data.batch import CLASSES, Batch, collate, to_float
from src.data.module import AdData
from src.data.splits import Source
from src.models.augmentation import augmented
from src.models.layers import ImageEncoder, ImageEncoderSettings
from src.models.rfnet.layers import FeatureFilter, TextEncoderSettings, TitleEncoder, ordinal_embeddings
from src.models.rfnet.net import FusionSettings
from src.models.rfnet.system import INPUTS, RFNetSystem
from src.runtime import checkpoint
from tests.data.records import Records
from tests.models.stepping import QUIET, batches

TITLES = ["Nordhem Oak Chair 49x61x118 cm", "Sofa", "Brixmoor Steel Double Oven 60x52x109 cm Free Shipping", "Barrel"]
OPTIONS = {"channels": [8, 8, 16, 16], "stem_width": 8, "zero_init_last": False}
IMAGE = ImageEncoderSettings("resnet10t", options=OPTIONS, stage=2, size=32, unshuffle=2)
TEXT = TextEncoderSettings(options={"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32})
FUSION = FusionSettings(width=16, num_heads=2, num_layers=1, feedforward=32, dropout=0.0)
TINY: dict[str, Any] = {"image_encoder": IMAGE, "text_encoder": TEXT, "fusion": FUSION}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def system(**changes: Any) -> RFNetSystem:
    """A tiny RFNet whose batch norms have seen pictures."""
    made = RFNetSystem(**{**TINY, **changes})
    with torch.no_grad():
        for _ in range(3):
            made.train()(batch(8))
    return made.eval()


def batch(size: int = 4) -> dict[str, Any]:
    names = {"image": 3, "product": 4, "depth": 1, "saliency": 1}
    pictures = {name: torch.rand(size, channels, 32, 32) for name, channels in names.items()}
    rows = {"key": [f"{i}" for i in range(size)], "title": [TITLES[i % 4] for i in range(size)]}
    return {**pictures, **rows, "label": torch.arange(size) % 5}


def test_feature_filter_is_the_papers_equation():
    """Against attention written out head by head with the module's own weights."""
    module = FeatureFilter(width=8, num_heads=2).double()
    product, title = torch.randn(2, 5, 8).double(), torch.randn(2, 3, 8).double()
    padding = torch.tensor([[False, False, False], [False, True, True]])
    for row in range(2):
        words = title[row][~padding[row]]
        wq, wk, wv = module.attention.in_proj_weight.chunk(3)
        bq, bk, bv = module.attention.in_proj_bias.chunk(3)
        q, k, v = product[row] @ wq.T + bq, words @ wk.T + bk, words @ wv.T + bv
        heads = []
        for h in (slice(0, 4), slice(4, 8)):
            weights = torch.exp(q[:, h] @ k[:, h].T / math.sqrt(4))
            heads.append(weights / weights.sum(1, keepdim=True) @ v[:, h])
        mixed = module.attention.out_proj
        heard = torch.cat(heads, dim=1) @ mixed.weight.T + mixed.bias
        left = heard @ module.title.weight.T + module.title.bias
        right = product[row] @ module.product.weight.T + module.product.bias
        expected = (left * right) @ module.out.weight.T + module.out.bias + product[row]
        torch.testing.assert_close(module(product, title, padding)[row], expected)


@pytest.mark.parametrize("inputs", [INPUTS, ("image", "title")])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_batch_of_one_equals_a_row_of_a_batch(inputs, pooling):
    """So titles padded to a longer neighbour's length give what they give unpadded."""
    net, ads = system(inputs=inputs, fusion=replace(FUSION, pooling=pooling)), batch()
    with torch.no_grad():
        whole = net(ads)
        alone = torch.cat([net({name: value[i : i + 1] for name, value in ads.items()}) for i in range(4)])
    assert len({len(words) for words in net.net.title.tokenizer(TITLES).input_ids}) > 2
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=1e-5)
    assert whole.std(dim=0).max() > 1e-3


@pytest.mark.parametrize("dropped", INPUTS)
def test_an_ablation_drops_its_input_and_no_other(dropped):
    net = system(inputs=[name for name in INPUTS if name != dropped])
    assert net.fields == {*INPUTS, "label"} - {dropped}
    ads = {name: value for name, value in batch().items() if name != dropped}
    for name in {"image", "product", "depth", "saliency"} & ads.keys():
        ads[name].requires_grad_()
    plain = net(ads)
    plain[:, 0].sum().backward()
    for name in {"image", "product", "depth", "saliency"} & ads.keys():
        assert ads[name].grad.abs().sum() > 0, name
    if dropped != "title":
        other = net({**ads, "title": ["Teddy Bear 33x22x32 cm"] * 4})
        assert (other - plain).abs().max() > 1e-5
    if dropped == "product":
        assert not hasattr(net.net, "filters")


def test_the_title_speaks_only_through_the_product():
    """With the filter's last convolution at zero e_f is e_o, and the title is mute."""
    net, ads = system(), batch()
    heard = [net({**ads, "title": titles}) for titles in (TITLES, TITLES[::-1])]
    assert (heard[0] - heard[1]).abs().max() > 1e-5
    for parameter in next(iter(net.net.filters)).get_submodule("out").parameters():
        torch.nn.init.zeros_(parameter)
    mute = [net({**ads, "title": titles}) for titles in (TITLES, TITLES[::-1])]
    torch.testing.assert_close(mute[0], mute[1], atol=0, rtol=0)


@pytest.mark.parametrize("change", [
    {}, {"separate_encoders": True}, {"map_encoder": replace(IMAGE, size=16, grid=2)},
    {"fusion": replace(FUSION, pooling="cls")}, {"image_encoder": replace(IMAGE, grid=1, alpha=True)},
    {"inputs": ["image"]}, {"inputs": ["depth", "title"]}, {"fusion": replace(FUSION, num_filters=2)},
])  # fmt: skip
def test_every_weight_learns(change):
    net = system(**change).train()
    F.cross_entropy(net(batch(5)), torch.arange(5)).backward()
    idle = [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.abs().sum() > 0]
    # a key's bias adds the same to all scores of a query, which softmax takes away again
    assert [name for name in idle if not name.endswith("key.bias")] == []


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("maps", [None, replace(IMAGE, size=16)])
def test_encoders_are_shared_as_configured(maps, separate):
    net = RFNetSystem(**TINY, map_encoder=maps, separate_encoders=separate).net
    assert len(net.encoders) == (4 if separate else 1 if maps is None else 2)
    sizes = {name: net.encoders[net.encoder_of[name]].size for name in ("product", "image", "depth", "saliency")}
    assert sizes == {"product": 32, "image": 32} | dict.fromkeys(("depth", "saliency"), maps.size if maps else 32)


def test_product_stands_on_the_background():
    net = system(product_background=0.25).net
    product = torch.cat([torch.full((1, 3, 2, 2), 0.8), torch.tensor([[[[0.0, 1.0], [0.5, 0.0]]]])], dim=1)
    image, depth = torch.rand(1, 3, 2, 2), torch.rand(1, 1, 4, 4)
    ads: Batch = {"product": product, "image": image, "depth": depth}
    shown = net.prepared("product", ads)
    torch.testing.assert_close(shown[0, 0], torch.tensor([[0.25, 0.8], [0.525, 0.25]]))
    with pytest.raises(ValueError, match=r"product must be \(batch, 4"):
        net.prepared("product", {**ads, "product": product[:, :3]})
    placed = system(image_encoder=replace(IMAGE, alpha=True), map_encoder=IMAGE).net
    assert placed.prepared("product", ads).shape == (1, 4, 2, 2)
    torch.testing.assert_close(placed.prepared("image", ads), torch.cat([image, product[:, 3:]], dim=1))
    assert placed.prepared("depth", ads).shape == (1, 3, 4, 4)  # its encoder takes no alpha
    placed = system(image_encoder=replace(IMAGE, alpha=True)).net
    assert placed.prepared("depth", ads)[:, 3].amax() > 0  # resized to the map's own size
    blind = system(image_encoder=replace(IMAGE, alpha=True), inputs=["image"]).net
    assert blind.prepared("image", ads)[:, 3].min() == 1  # it does not see the product, nor where it is


@pytest.mark.parametrize(("change", "message"), [
    ({"inputs": ["image", "text"]}, "choose from product, image, depth, saliency, title"),
    ({"inputs": []}, "choose from"),
    ({"fusion": replace(FUSION, pooling="max")}, "choose one of mean, cls"),
    ({"schedule": "linear"}, "choose one of cosine, step"),
    ({"image_encoder": replace(IMAGE, name="resnet19")}, "not a timm network; similar names: .*resnet18"),
    ({"image_encoder": replace(IMAGE, unshuffle=3)}, "size=32 is not a multiple of unshuffle=3"),
    ({"text_encoder": replace(TEXT, options={"hidden": 3})}, r"text_encoder\.options: .* has no option hidden"),
    ({"text_encoder": replace(TEXT, max_tokens=500)}, r"text_encoder\.max_tokens is 500"),
    ({"text_encoder": replace(TEXT, name="no/such/folder/at/all")}, "text_encoder 'no/such/folder/at/all'"),
    ({"text_encoder": None}, "text_encoder is null"),
    ({"classes": ["good", "bad"]}, "none is 'available'"),
])  # fmt: skip
def test_refuses_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        RFNetSystem(**{**TINY, **change})


def test_unshuffled_pixels_are_the_same_pixels():
    """Stage 1 divides by 4, two by two pixels in one by 2: eight pixels to the right are one token to the right."""
    encoder = ImageEncoder(replace(IMAGE, size=128, stage=1), 8).eval()
    picture = torch.rand(1, 3, 128, 128)
    [tokens], [moved] = encoder([picture]), encoder([picture.roll(8, dims=3)])
    assert encoder.grid == 16
    tokens, moved = tokens.view(16, 16, 8), moved.view(16, 16, 8)
    torch.testing.assert_close(tokens[8, 7], moved[8, 8], atol=1e-4, rtol=1e-4)  # too far from the edges to see them
    assert (tokens[8, 8] - moved[8, 8]).abs().max() > 1e-3


def test_numbers_begin_in_order():
    weight = 0.02 * torch.randn(3, 64)
    kept = weight[0].clone()
    vocabulary = {"oak": 0, "100": 1, "110": 2}
    rows = torch.cat([weight, 0.02 * torch.randn(2, 64)])
    ordinal_embeddings(rows, {**vocabulary, "10": 3, "x": 4})
    near, far = (F.cosine_similarity(rows[1], rows[i], dim=0) for i in (2, 3))
    assert near > 0.6 > far + 0.3
    torch.testing.assert_close(rows[0], kept)
    assert 0.5 < rows[1].std() / kept.std() < 2


def test_titles_are_cut_and_sizes_stay_whole():
    encoder = TitleEncoder(TextEncoderSettings(max_tokens=8), 8).eval()
    assert encoder.tokenizer.tokenize("49x61x118 cm") == ["49", "x", "61", "x", "118", "cm"]
    tokens, padding = encoder(["Sofa", "Oak Chair 49x61x118 cm Brown"])
    assert tokens.shape == (2, 8, 8)
    assert padding.sum(dim=1).tolist() == [5, 0]  # [CLS] sofa [SEP]
    assert encoder([""])[0].isfinite().all()


def test_noise_takes_words_and_leaves_numbers():
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    encoder = TitleEncoder(TextEncoderSettings(options=still, word_noise=0.5), 8)
    ids = encoder.tokenizer(["Nordhem Oak Dining Chair 49x61x118 cm"] * 200, return_tensors="pt")["input_ids"]
    kept = encoder.noised(ids) == ids
    numbers = [encoder.tokenizer.convert_tokens_to_ids(word) for word in ("[CLS]", "49", "61", "118", "[SEP]")]
    fixed = torch.isin(ids, torch.tensor(numbers))
    assert kept[fixed].all()
    assert 0.45 < kept[~fixed].float().mean() < 0.55
    title = ["Oak Chair 49x61x118 cm"]
    assert not torch.equal(encoder(title)[0], encoder(title)[0])
    encoder.eval()
    torch.testing.assert_close(encoder(title)[0], encoder(title)[0])


def test_flip_turns_all_pictures_together():
    ads = batch(16)
    ads["product"][:, :3] = ads["image"]
    new = augmented(ads, flip=0.5, colour=0.0)
    turned = [torch.equal(new["image"][i], ads["image"][i].flip(-1)) for i in range(16)]
    assert 0 < sum(turned) < 16
    for name in ("image", "product", "depth", "saliency"):
        for i in range(16):
            torch.testing.assert_close(new[name][i], ads[name][i].flip(-1) if turned[i] else ads[name][i])


def test_light_changes_image_and_product_alike():
    ads = batch(16)
    ads["product"][:, :3] = ads["image"]
    new = augmented(ads, flip=0.0, colour=0.3)
    torch.testing.assert_close(new["product"][:, :3], new["image"])
    assert (new["image"] - ads["image"]).abs().mean() > 0.02
    assert new["image"].min() >= 0
    assert new["image"].max() <= 1
    for name in ("depth", "saliency"):
        torch.testing.assert_close(new[name], ads[name])
    torch.testing.assert_close(new["product"][:, 3:], ads["product"][:, 3:])
    torch.manual_seed(7)
    first = augmented(ads, 0.5, 0.3)["image"]
    torch.manual_seed(7)
    torch.testing.assert_close(augmented(ads, 0.5, 0.3)["image"], first, atol=0, rtol=0)


def test_calibration_lowers_the_loss_and_keeps_the_choice():
    net, ads = system(), [batch(5) for _ in range(20)]
    torch.nn.init.normal_(net.net.classifier.weight, std=2)
    for ad in ads:  # three times surer than right
        ad["label"] = torch.multinomial((net.predict([ad])[0].clone() / 3).softmax(dim=1), 1)[:, 0]

    def loss() -> float:
        with torch.no_grad():
            return float(torch.stack([F.nll_loss(net.log_probabilities(ad), ad["label"]) for ad in ads]).mean())

    before, chosen = loss(), net.predict(ads)[0].argmax(dim=1)
    net.calibrate(ads)
    temperature = float(net.net.temperature)
    assert temperature > 1
    assert f"Temperature {temperature:.2f}" in net.card["limits"]
    assert loss() < before
    assert torch.equal(net.log_probabilities(ads[0]).argmax(dim=1), chosen[:5])
    best = loss()
    for factor in (0.9, 1.1):
        net.net.temperature.fill_(temperature * factor)
        assert loss() >= best


class Ads(Source):
    """Sixty ads in which the image's brightness is the class."""

    fields = frozenset({*INPUTS, "key", "label"})
    classes = CLASSES

    def split(self, name: str) -> Records:
        rng = np.random.default_rng(len(name))
        return Records(self.record(rng, i % 5) for i in range(60))

    def record(self, rng: np.random.Generator, label: int) -> dict[str, Any]:
        shapes = {"image": 3, "product": 4, "depth": 1, "saliency": 1}
        pictures = {name: rng.integers(0, 40, (c, 32, 32)).astype(np.uint8) + 50 * label for name, c in shapes.items()}
        return {"key": f"{label}", "title": TITLES[label % 4], "label": label, **pictures}


def test_learns_draws_and_comes_back_from_its_folder(tmp_path: Path):
    net = RFNetSystem(**TINY, lr=0.01, weight_decay=0.0, colour=0.0)
    data = AdData(Ads(), batch_size=20, num_workers=0)
    trainer = L.Trainer(
        max_steps=30, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(net, data)
    [measured] = trainer.test(net, data, verbose=False)
    assert measured["test/macro_f1"] > 0.9
    assert measured["test/availability_ap"] > 0.9
    paths = net.report(data, tmp_path / "figures")
    assert [path.name for path in paths] == ["ads.png", "confusion.png"]
    assert all(path.stat().st_size > 10_000 for path in paths)

    about = {str(part): "a test" for part in checkpoint.ABOUT}
    fusion = {"_target_": "src.models.rfnet.net.FusionSettings", **asdict(FUSION)}
    arguments = {"_target_": "src.models.rfnet.system.RFNetSystem", "fusion": fusion}
    checkpoint.save(tmp_path / "folder", net.cpu().eval(), arguments, measured, about)
    loaded: Any = checkpoint.load(tmp_path / "folder")
    ads = to_float(collate([data.split("test")[i] for i in range(7)]))
    torch.testing.assert_close(loaded.log_probabilities(ads), net.log_probabilities(ads), atol=1e-6, rtol=1e-6)


def test_refuses_titles_that_its_tokenizer_cannot_read():
    source = Ads()
    source.record = lambda rng, label: Ads.record(source, rng, label) | {"title": "北欧实木餐椅 450x500 mm"}
    trainer = L.Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(ValueError, match=r"of the tokens of titles such as '北欧.*model\.text_encoder\.name to"):
        trainer.fit(RFNetSystem(**TINY), AdData(source, batch_size=20, num_workers=0))


def test_non_finite_logits_are_an_error():
    broken = system()
    torch.nn.init.constant_(broken.net.classifier.weight, torch.nan)
    with pytest.raises(ValueError, match=r"^logits: NaN or infinite for 4 of 4 images \(0, 1, 2, 3\)"):
        L.Trainer(**QUIET).test(broken, batches(batch()), verbose=False)
    with pytest.raises(ValueError, match=r"^logits: NaN or infinite for 4 of 4 images \(0, 1, 2, 3\)"):
        broken.calibrate([batch()])


def test_refuses_data_with_other_classes():
    source = Ads()
    source.classes = (*CLASSES, "unsuitable")
    trainer = L.Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(ValueError, match=r"the data has the classes .*model.classes=\[available,.*unsuitable\]"):
        trainer.fit(RFNetSystem(**TINY), AdData(source, batch_size=20, num_workers=0))


def test_configurations_build():
    paper = compose("fit", ["experiment=rfnet_paper", "data.root=nowhere"])
    words = ["model=rfnet", "model.fusion.num_layers=1"]
    shipped, alone = (build(compose("fit", [*words, f"model={name}"]).model) for name in ("rfnet", "rfnet_image"))
    assert alone.fields == {"image", "label"}
    assert sum(p.numel() for p in shipped.net.parameters()) * 2 < 8e6  # bytes in fp16
    assert [tuple(p.shape) for p in alone.net.encoders["picture"].parameters()] == [
        tuple(p.shape) for p in shipped.net.encoders["picture"].parameters()
    ]
    assert alone.net.encoders.keys() == {"picture"}
    assert (paper.model.fusion.width, paper.model.fusion.num_filters, paper.model.fusion.num_layers) == (384, 1, 3)
    assert paper.trainer.max_epochs == 10


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_text_folder_with_a_file_missing_or_torn_is_named(file: str, tmp_path: Path) -> None:
    text = tmp_path / "text"
    shutil.copytree("src/data/showroom/text", text)
    whole = (text / file).read_text()
    (text / file).write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{text}: invalid JSON|{text}' cannot be loaded"):
        TitleEncoder(TextEncoderSettings(str(text)), width=8)
    (text / file).unlink()
    with pytest.raises(ValueError, match=f"{text} is not a text encoder folder: {file} is missing"):
        TitleEncoder(TextEncoderSettings(str(text)), width=8)
    (text / file).write_text(whole)
    TitleEncoder(TextEncoderSettings(str(text)), width=8)
