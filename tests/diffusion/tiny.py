"""A generator of the real classes, a few thousand weights each."""

import string
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from src.data.batch import Batch
from src.diffusion.generator import Generator
from src.diffusion.residual_autoencoder import ResidualAutoencoder

SIZE = 64  # px; latents are 16 x 16
WORDS = 24  # tokens of a prompt


def tokenizer() -> CLIPTokenizer:
    """Reads single letters and digits."""
    letters = string.ascii_lowercase + string.digits
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=WORDS)


def generator(
    seed: int = 0, prediction: str = "epsilon", from_noise: bool = False, version: int = 0, **settings: Any
) -> Generator:
    """`version`: 1 or 2 of Stable Diffusion, whose heads and groups its networks have; 0: neither."""
    reader = tokenizer()
    channels, groups = ((32, 64), 32) if version else ((8, 16), 4)
    heads: Any = (4, 8, [1, 1])[version]
    layers, act = 2 + (version == 2), "gelu" if version == 2 else "quick_gelu"
    autoencoder: Any = AutoencoderKL  # diffusers' own types allow one block only
    ddim: Any = DDIMScheduler
    options: dict[str, Any] = {"num_steps": 6} | settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(reader), hidden_size=16, intermediate_size=32, num_hidden_layers=layers,
                num_attention_heads=1 if version else 2, hidden_act=act, max_position_embeddings=WORDS,
                bos_token_id=len(reader) - 2, eos_token_id=len(reader) - 1, pad_token_id=len(reader) - 1,
            )
        )  # fmt: skip
        vae = autoencoder(
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(channels[0], *channels), norm_num_groups=groups, latent_channels=4, layers_per_block=1,
            sample_size=SIZE,
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=channels,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16, attention_head_dim=heads, norm_num_groups=groups,
            use_linear_projection=version == 2,
        )  # fmt: skip
        controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8))
        for name, weight in controlnet.named_parameters():  # it starts as zero, which would hide a mistake
            if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
                torch.nn.init.normal_(weight, std=0.2)
    scheduler = ddim(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction, rescale_betas_zero_snr=from_noise,
        timestep_spacing="trailing" if from_noise else "leading",
    )  # fmt: skip
    made = Generator(reader, text, vae, unet, controlnet, scheduler, **options)
    return made.eval().requires_grad_(False)


def residual_autoencoder(seed: int = 0) -> ResidualAutoencoder:
    """In place of the generator's: latents at a quarter of the size, with a mean and deviation of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ResidualAutoencoder(block_out_channels=(8, 8, 16), layers_per_block=(0, 1, 1), latent_channels=4)
    net.normalize(torch.tensor([1.0, 0, -0.5, 0]), torch.tensor([2.0, 1, 0.5, 1]))
    return net.eval()


def ads(count: int = 2, size: int = SIZE) -> Batch:
    """Noisy products in a rectangle of the canvas."""
    product = torch.rand(count, 4, size, size, generator=torch.Generator().manual_seed(1))
    product[:, 3] = 0
    product[:, 3, size // 4 : size // 2 + 4, size // 3 : size // 3 * 2] = 1
    prompts = ["a red room", "oak floor, warm light", "brick"]
    return {
        "key": [f"ad{i}" for i in range(count)],
        "prompt": [prompts[i % 3] for i in range(count)],
        "product": product,
    }
