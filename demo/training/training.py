"""How the demo model is trained: `python demo/train.py`.

The autoencoder first, then UNet and text encoder together on the latents of rendered scenes. Progress is
saved and the same command goes on where it stopped. Uses a GPU when there is one.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bundle import load, world
from comfy.clip_model import CLIPTextModel
from safetensors.torch import load_file, save_file
from scenes import captions
from torch import Tensor, nn
from tqdm import tqdm
from training import network
from training import training_data as data
from training.muon import descend, optimizers, take_in

SEED = 20_24
HERE = Path(__file__).parents[1]
STATE = HERE / ".training"
PUT_RIGHT_FROM = 13 / 15
"""From this share of the steps on the UNet also learns to put disturbed scenes right; drawing comes first."""
OUTER = ("embeddings", "input_blocks.0.", "unet.out.")


class Clock:
    """How long this call may still run."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def over(self) -> bool:
        return time.monotonic() > self.end


class Trainer:
    """Modules with Muon for their inner matrices and AdamW for the rest, a falling learning rate, averaged
    weights, and a state file to go on from."""

    def __init__(
        self, name: str, modules: nn.ModuleDict, steps: int, rate: float, average: float, outer: tuple[str, ...]
    ) -> None:
        """`outer`: parts of the names of weights that meet the input or the output, which Muon does not suit."""
        self.path, self.modules, self.steps, self.rate = STATE / f"{name}.safetensors", modules, steps, rate
        self.weights = [p for p in modules.parameters() if p.requires_grad]
        self.optimizers = optimizers(modules, rate, outer)
        self.average, self.averaged = average, [p.detach().clone() for p in self.weights]
        self.step = 0
        if self.path.exists():
            self._load()

    def update(self, loss: Tensor) -> None:
        """One optimiser step."""
        warm = min(1.0, (self.step + 1) / 200)
        # Constant, then linear to nothing over the second half: a stopped run may be given other steps.
        decay = min(1.0, 2 * (1 - self.step / self.steps) + 0.01)
        descend(self.optimizers, loss, self.weights, self.rate * warm * decay)
        self.step += 1
        take_in(self.averaged, self.weights, self.average, self.step)

    def use_average(self) -> None:
        """Put the averaged weights into the modules."""
        with torch.no_grad():
            for mean, weight in zip(self.averaged, self.weights, strict=True):
                weight.copy_(mean)

    def save(self) -> None:
        """Write the state, whole or not at all."""
        STATE.mkdir(exist_ok=True)
        tensors = {"step": torch.tensor(self.step)}
        for i, (weight, mean) in enumerate(zip(self.weights, self.averaged, strict=True)):
            tensors |= {f"{i}.weight": weight.detach(), f"{i}.mean": mean}
            for optimizer in self.optimizers:
                tensors |= {f"{i}.{k}": v for k, v in optimizer.state.get(weight, {}).items()}
        part = self.path.with_suffix(".part")
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part)
        part.replace(self.path)

    def _load(self) -> None:
        tensors = load_file(self.path)
        self.step = int(tensors["step"])
        places = {id(weight): i for i, weight in enumerate(self.weights)}
        with torch.no_grad():
            for i, (weight, mean) in enumerate(zip(self.weights, self.averaged, strict=True)):
                weight.copy_(tensors[f"{i}.weight"])
                mean.copy_(tensors[f"{i}.mean"])
            for optimizer in self.optimizers:
                for weight in optimizer.param_groups[0]["params"]:
                    kept = {k: tensors.get(f"{places[id(weight)]}.{k}") for k in ("exp_avg", "exp_avg_sq", "step")}
                    # The file has every tensor contiguous; the optimiser wants the weights' own strides.
                    optimizer.state[weight] = {
                        k: v if k == "step" else torch.empty_like(weight).copy_(v)
                        for k, v in kept.items()
                        if v is not None
                    }


def train_autoencoder(vae: load.Autoencoder, device: torch.device, steps: int, batch: int, clock: Clock) -> bool:
    """Pixels to 8x smaller latents of about unit spread and back. True when all steps are done."""
    trainer = Trainer("autoencoder", nn.ModuleDict({"vae": vae}), steps, 2e-3, 0.99, ("",))
    rng = torch.Generator(device).manual_seed(SEED + trainer.step)
    bar = tqdm(total=steps, initial=trainer.step, desc="autoencoder")
    while trainer.step < steps and not clock.over():
        scenes = world.sample_scenes(batch, SEED * 1000 + trainer.step, empty_share=0.05)
        image = world.render(scenes.to(device)) * 2 - 1
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            latent = vae.encoder(image).float()
            noisy = latent + 0.03 * torch.randn(latent.shape, generator=rng, device=device)
            decoded = vae.decoder(noisy).float()
        difference = (decoded - image) / 2
        spread = latent.mean((0, 2, 3)).square().mean() + (latent.std((0, 2, 3)) - 1).square().mean()
        loss = difference.abs().mean() + 5 * difference.square().mean() + 0.05 * spread
        trainer.update(loss)
        bar.update()
        if trainer.step % 50 == 0:
            psnr = -10 * difference.square().mean().log10().item()
            bar.set_postfix_str(f"PSNR {psnr:.1f} dB, spread {latent.std().item():.2f}")
        if trainer.step % 500 == 0:
            trainer.save()
    trainer.save()
    trainer.use_average()
    return trainer.step >= steps


def encode_text(text: CLIPTextModel, tokens: Tensor) -> Tensor:
    """Text states (N, 77, C), as the host computes them, but without adding in place, which autograd refuses."""
    model = text.text_model
    x = model.embeddings(tokens)
    layers: Any = model.encoder.layers
    for layer in layers:
        x = x + layer.self_attn(layer.layer_norm1(x), None, _causal_attention)
        x = x + layer.mlp(layer.layer_norm2(x))
    return model.final_layer_norm(x)


def _causal_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, _: None) -> Tensor:
    """Attention (N, T, C) to earlier tokens. The host's own, given a mask, plans anew for every N on a GPU."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def train_diffusion(
    unet: nn.Module, text: CLIPTextModel, pool: data.Pool, steps: int, batch: int, clock: Clock
) -> bool:
    """Predict the noise of noisy latents from captions. True when all steps are done."""
    device = pool.latents.device
    table = network.tokenize(captions.all_captions()).to(device)
    trainer = Trainer("diffusion", nn.ModuleDict({"unet": unet, "text": text}), steps, 6e-4, 0.999, OUTER)
    rng = torch.Generator(device).manual_seed(SEED + 1 + trainer.step)
    bar = tqdm(total=steps, initial=trainer.step, desc="diffusion")
    running = None
    while trainer.step < steps and not clock.over():
        drawn = data.draw(pool, batch, rng, put_right=trainer.step >= PUT_RIGHT_FROM * steps)
        unique, place = drawn.said.unique(return_inverse=True)
        with torch.autocast(device.type, torch.bfloat16):
            context = encode_text(text, table[unique])[place]
            predicted = unet(drawn.noisy, drawn.t.float(), context=context)
            error = (predicted.float() - drawn.wanted).square().mean((1, 2, 3))
            loss = (error * drawn.weight).mean()
        trainer.update(loss)
        running = loss.detach() if running is None else running.lerp(loss.detach(), 0.02)
        bar.update()
        if trainer.step % 100 == 0:
            bar.set_postfix_str(f"loss {running.item():.4f}")
        if trainer.step % 250 == 0:
            trainer.save()
    trainer.save()
    trainer.use_average()
    return trainer.step >= steps


def main(arguments: list[str]) -> int:
    """Train, or go on training, and write the model file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--autoencoder-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=15_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--autoencoder-batch", type=int, default=32)
    parser.add_argument("--scenes", type=int, default=40_000)
    parser.add_argument("--stop-after", type=float, default=math.inf, help="seconds; then save and stop")
    parser.add_argument(
        "--refine", type=Path, help="start from the weights of a model file (its autoencoder is kept as it is)"
    )
    parser.add_argument("--output", type=Path, default=load.FILE)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(SEED)
    clock, rng = Clock(options.stop_after), torch.Generator().manual_seed(SEED)
    vae, unet, text = network.Autoencoder(), network.new_unet(), network.new_text_model()
    for module in (unet, text):
        network.initialise(module, rng)
    if options.refine is not None:
        parts = load.read_parts(options.refine)
        for name, module in (("vae", vae), ("unet", unet), ("text", text)):
            module.load_state_dict({k: v.float() for k, v in parts[name].items()})
    for module in (vae, unet, text):
        module.to(device)
    done = options.refine is not None or train_autoencoder(
        vae, device, options.autoencoder_steps, options.autoencoder_batch, clock
    )
    if done:
        pool = data.draw_pool(vae, device, options.scenes, SEED, STATE)
        done = train_diffusion(unet, text, pool, options.steps, options.batch, clock)
    used = network.tokenize(captions.all_captions()).unique()
    output = options.output if done else STATE / "unfinished.safetensors"
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(network.pack(unet, text, vae, used), output)
    print(f"{'done' if done else 'stopped; run again to go on'}: {output}")
    return 0
