"""Cost of a gradient sample compared with other methods: `python -m benchmarks.tuning [KEY=VALUE ...]`.

All methods use the same generator, reward, products and late step, and run one after the other in separate processes. A
gradient sample is one image whose reward gradient reaches the trained weights. Methods (`ways`):

    rfft         the training step of this project without regularizer, like the other methods
    rfft_draws   the same with three late steps per rollout (steps=late_random)
    rfft_cc      the same with the CC regularizer, which also runs the reference model
    refl         a plain implementation of ReFL with diffusers: text and uncond in two forward passes; prompt, outline
                 and product are encoded at every step
    refl_once    the same, encoded once
    alignprop    gradient through all steps, text and uncond in one forward pass

Prints seconds and memory (the peak in addition to the loaded networks), and writes them and the total peak of the
process or device to `benchmarks/results/tuning.json`, which keeps its other entries. There is no optimizer: AdamW needs
8 more bytes per trained weight.
Options: generator=checkpoints/showroom-generator, or sd15 (full size, random weights); size=null (image size in px);
checkpoint=checkpoints/rfnet-reward trainable=controlnet batch=8 steps=40 repeats=3 threads=2 device=cpu
precision=float32 ways=rfft,rfft_draws,...
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from src.data.batch import Batch, collate, to_float
from src.data.showroom.world import Showroom
from src.diffusion.generator import Generator
from src.diffusion.loading import load_generator
from src.models.rfft.regularizers import ConsistentCondition, NoRegularizer, Regularizer
from src.models.rfft.steps import LateRandom, Window
from src.models.rfft.system import RFFT
from src.models.rfnet.reward import RFNetReward
from src.rewards.base import Reward
from src.runtime.checkpoint import located
from src.runtime.device import machine

WAYS = ("rfft", "rfft_draws", "rfft_cc", "refl", "refl_once", "alignprop")
WORDS = {
    "generator": "checkpoints/showroom-generator", "size": "null", "checkpoint": "checkpoints/rfnet-reward",
    "trainable": "controlnet", "batch": "8", "steps": "40", "repeats": "3", "threads": "2", "device": "cpu",
    "precision": "float32", "ways": ",".join(WAYS),
}  # fmt: skip
RESULTS = Path(__file__).parent / "results" / "tuning.json"
DRAWS = 3  # as conf/steps/late_random.yaml
OUT_OF_MEMORY = 75  # exit code of a process that ran out of memory
ALONE = "import sys; from benchmarks.tuning import alone; alone(*sys.argv[1:])"  # in a separate process


def random_sd15(size: int, tiny: bool = False, **settings: Any) -> Generator:
    """Stable Diffusion 1.5 with its canny ControlNet and random weights; `size`: image size in px.

    tiny: a tenth of the width, half of the layers and levels of the UNet, for tests. The weights are made on
    torch's default device.
    """
    tokenizer, make = CLIPTokenizer.from_pretrained(located("src/data/showroom/prompt")), AutoencoderKL
    width, coded, hidden, layers, each = (32, 32, 96, 2, 1) if tiny else (320, 128, 768, 12, 2)
    words = CLIPTextConfig(
        vocab_size=49408, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=12, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    levels = (1, 2, 4, 4)
    options: dict[str, Any] = {"block_out_channels": [coded * level for level in levels], "layers_per_block": each}
    options["latent_channels"] = 4
    blocks: Any = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    torch.manual_seed(0)
    layout: dict[str, Any] = {"block_out_channels": [width * level for level in levels], "layers_per_block": each}
    if tiny:
        layout["block_out_channels"] = [width, 2 * width]
        layout["down_block_types"] = ["CrossAttnDownBlock2D", "DownBlock2D"]
        layout["up_block_types"] = ["UpBlock2D", "CrossAttnUpBlock2D"]
    unet = UNet2DConditionModel(sample_size=size // 8, cross_attention_dim=hidden, **layout)  # otherwise SD 1.5
    ddim: Any = DDIMScheduler
    with torch.device("cpu"):
        scheduler = ddim(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        )  # fmt: skip
    controlnet = ControlNetModel.from_unet(unet)
    return Generator(
        tokenizer, CLIPTextModel(words), make(**options, **blocks), unet, controlnet, scheduler, **settings
    )


def rfft(
    generator: Generator,
    reward: Reward,
    trainable: str,
    draws: int,
    regularizer: Regularizer,
    checkpointing: bool = False,
) -> tuple[Any, Any]:
    """The system and its loss for a batch, at step 35 of 40, or at `draws` steps after step 30."""
    options: dict[str, Any] = {"trainable": trainable, "checkpointing": checkpointing, "gradients_every": 0}
    system = RFFT(generator, reward, regularizer, LateRandom(), **options)
    system.steps = lambda num_steps, chance: late(num_steps, draws)  # pyright: ignore[reportAttributeAccessIssue]

    def loss(batch: Batch, seed: int) -> Tensor:
        pairs = [system.losses(*look) for look in system.rollout_scores(batch, seed)]
        return torch.stack([value + regularizer.beta * penalty for value, penalty in pairs]).mean()

    return system, loss


def late(num_steps: int, draws: int) -> list[Window]:
    """`draws` evenly spaced steps in the last quarter."""
    first, length = num_steps - num_steps // 4, num_steps // 4
    steps = [first + (2 * k + 1) * length // (2 * draws) for k in range(draws)]
    return [Window(step, step + 1) for step in steps]


class Plain:
    """Plain implementations of the loops of ReFL and AlignProp."""

    def __init__(self, generator: Generator, reward: Reward, trainable: str, once: bool, chain: bool) -> None:
        self.g, self.reward, self.once, self.chain = generator, reward, once, chain
        generator.requires_grad_(False)
        getattr(generator, trainable).requires_grad_(True)

    def predicted(self, x: Tensor, t: Tensor, text: Tensor, edges: Tensor) -> Tensor:
        down, middle = self.g.controlnet(
            x, t, encoder_hidden_states=text, controlnet_cond=edges, conditioning_scale=self.g.control_scale,
            return_dict=False,
        )  # fmt: skip
        return self.g.unet(
            x, t, encoder_hidden_states=text, down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample  # fmt: skip

    def noise(self, x: Tensor, t: Tensor, c: Any) -> Tensor:
        uncond, text = c.text.chunk(2)
        if self.chain:
            both = self.predicted(torch.cat([x, x]), t, c.text, torch.cat([c.edges] * 2))
            without, guided = both.chunk(2)
        else:
            guided, without = self.predicted(x, t, text, c.edges), self.predicted(x, t, uncond, c.edges)
        return without + self.g.guidance_scale * (guided - without)

    def loss(self, batch: Batch, seed: int) -> Tensor:
        g, c = self.g, self.g.encode(batch, seed)
        x, (window,) = c.noise, late(g.num_steps, 1)
        last = g.num_steps - 1 if self.chain else window.start
        clean = x
        for i in range(last + 1):
            if not self.once:
                c = g.encode(batch, seed)
            with torch.set_grad_enabled(self.chain or i == last):
                t = torch.tensor(g.timesteps[i], device=x.device)
                made = g.scheduler.step(self.noise(x, t, c), g.timesteps[i], x, return_dict=True)
                x, clean = made.prev_sample, made.pred_original_sample
                if i + 1 < g.num_steps:
                    known = g.scheduler.add_noise(c.latents, c.noise, torch.tensor([g.timesteps[i + 1]]))
                    x = c.background * x + (1 - c.background) * known
        return -self.reward(g.image(clean, c), {field: batch[field] for field in self.reward.fields}).value.mean()


def made(
    way: str, generator: Generator, reward: Reward, trainable: str
) -> tuple[Any, Callable[[Batch, int], Tensor], int]:
    """The module with the trained weights, the loss, and the gradient samples per image of the batch."""
    if way.startswith("rfft"):
        draws = DRAWS if way == "rfft_draws" else 1
        regularizer = ConsistentCondition(1.0) if way == "rfft_cc" else NoRegularizer()
        return *rfft(generator, reward, trainable, draws, regularizer), draws
    plain = Plain(generator, reward, trainable, once=way != "refl", chain=way == "alignprop")
    return generator, plain.loss, 1


class Peak:
    """Peak memory in a block, in MiB: in addition to that at its start, and in total (`all`)."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.mib, self.all = device, 0.0, 0.0

    def now(self) -> float:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def watch(self) -> None:
        while not self.done.wait(0.002):
            now = self.now()
            self.mib, self.all = max(self.mib, now - self.before), max(self.all, now)

    def __enter__(self) -> "Peak":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 2**20
        else:
            self.before, self.done = self.now(), threading.Event()
            self.thread = threading.Thread(target=self.watch)
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**20
            self.mib, self.all = max(self.mib, peak - self.before), max(self.all, peak)
        else:
            self.done.set()
            self.thread.join()


def measure(way: str, words: dict[str, str]) -> dict[str, float]:
    """Median seconds per gradient sample, and memory in MiB, of one method."""
    torch.set_num_threads(int(words["threads"]))
    device, half = torch.device(words["device"]), words["precision"] == "bfloat16"
    settings: dict[str, Any] = {"num_steps": int(words["steps"]), "guidance_scale": 3.0}
    size = None if words["size"] == "null" else int(words["size"])
    net = (
        random_sd15(size or 512, **settings)
        if words["generator"] == "sd15"
        else load_generator(words["generator"], **settings)
    )
    pixels, count = size or net.size, int(words["batch"])
    reward = RFNetReward(words["checkpoint"]).to(device)
    rows = Showroom({"test": count}, size=pixels, holds=["prompt", "title", "product"]).split("test")
    batch = move_data_to_device(to_float(collate([rows[i] for i in range(count)])), device)
    owner, loss, samples = made(way, net.to(device), reward, words["trainable"])
    owner.to(device)
    if half and isinstance(owner, RFFT):
        owner.trainable.cast_frozen_to_bf16(owner.precise)
    elif half:  # frozen weights in bfloat16, as in the other methods
        for part in (net.text_encoder, net.vae, net.unet, net.controlnet):
            if not any(weight.requires_grad for weight in part.parameters()):
                part.bfloat16()
    weights = [weight for weight in owner.parameters() if weight.requires_grad]
    seconds, peak = [], Peak(device)
    for repeat in range(int(words["repeats"]) + 1):  # the first is a warmup
        for weight in weights:
            weight.grad = None
        start = time.perf_counter()
        with peak, torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            value = loss(batch, repeat)
            value.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    assert all(weight.grad is not None for weight in weights)
    return {"seconds": sorted(seconds[1:])[len(seconds[1:]) // 2] / (count * samples), "MiB": peak.mib, "all": peak.all}


def alone(way: str, words: str) -> None:
    """Prints the result of `measure` as JSON; `words`: options as JSON."""
    try:
        print(json.dumps(measure(way, json.loads(words))))
    except torch.OutOfMemoryError:
        sys.exit(OUT_OF_MEMORY)


def line(cost: dict[str, Any], first: dict[str, Any]) -> str:
    """The cost of a method, relative to the first method if that has one."""
    beside = first["seconds"] is not None
    cells = (("seconds", "8.3f", "s per gradient sample"), ("MiB", "8.0f", "MiB"))
    return "  ".join(
        f"{cost[name]:{form}} {unit}" + (f" ({cost[name] / first[name]:.2f})" if beside else "")
        for name, form, unit in cells
    )


def main() -> None:
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(__doc__)
        return
    words = WORDS | {name: value for name, _, value in (word.partition("=") for word in sys.argv[1:])}
    if foreign := words.keys() - WORDS.keys():
        raise SystemExit(f"tuning: no option {', '.join(sorted(foreign))}; choices: {', '.join(WORDS)}")
    ways = words["ways"].split(",")
    if words["trainable"] not in ("controlnet", "unet"):
        raise SystemExit(f"tuning: trainable={words['trainable']}: choose controlnet or unet")
    if foreign := set(ways) - set(WAYS):
        raise SystemExit(f"tuning: ways={', '.join(sorted(foreign))}: choose from {', '.join(WAYS)}")
    found = {}
    for way in ways:
        answer = subprocess.run(
            [sys.executable, "-c", ALONE, way, json.dumps(words)], stdout=subprocess.PIPE, text=True
        )
        if answer.returncode in (OUT_OF_MEMORY, -9):  # torch's error, or killed by the system
            found[way] = {"seconds": None, "MiB": None, "all": None}
            print(f"{way:<12} out of memory", flush=True)
            continue
        answer.check_returncode()
        found[way] = json.loads(answer.stdout.splitlines()[-1])
        print(f"{way:<12} {line(found[way], found[ways[0]])}", flush=True)
    about = {
        "machine": f"{machine(torch.device(words['device']))}, torch {torch.__version__}",
        "date": date.today().isoformat(), "words": words,
    }  # fmt: skip
    RESULTS.parent.mkdir(exist_ok=True)
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    sizes = [f"{key}={words[key]}" for key in ("size", "batch", "steps")]
    name = " ".join([Path(words["generator"]).name, words["trainable"], *sizes, words["device"], words["precision"]])
    found = known.get(name, {}).get("ways", {}) | found
    RESULTS.write_text(json.dumps({**known, name: about | {"ways": found}}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
