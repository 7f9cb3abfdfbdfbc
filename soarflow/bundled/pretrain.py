"""Makes the bundled pipeline from nothing but seeds: `python -m soarflow.bundled.pretrain --output
FOLDER`.

A Z-Image pipeline at toy size. The text encoder is random; the VAE is trained first, then the
transformer, by plain flow matching, on scenes of which some are sloppily laid out or wrongly
captioned, so that post-training has something to gain. Every draw derives from (seed, step): a run
that was cut off goes on from its last state as if it had not been. With --compile it takes about 50
minutes on one core; a model so small gains nothing from a second thread (OMP_NUM_THREADS=1)."""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from ..path import interpolate, velocity
from ..tinyscenes.captions import (
    CATEGORIES,
    COLORS,
    NUMBERS,
    RELATIONS,
    SHAPES,
    Caption,
    category_of,
)
from ..tinyscenes.scenes import Sloppiness, draw_scenes, render

VAE_SEED, SCENE_SEED, TRAIN_SEED = 11, 12, 13
NUM_SCENES = 40_000
TEXT_WIDTH, WIDTH, HEADS, LAYERS = 64, 128, 4, 5


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the caption language; the chat template wraps the text, so that an
    empty prompt has tokens too."""
    words = [*NUMBERS, *COLORS, *SHAPES, *(f"{shape}s" for shape in SHAPES), "crosses", "and"]
    words += sorted({word for relation in RELATIONS for word in relation.split()})
    vocabulary = {
        word: index
        for index, word in enumerate(dict.fromkeys(["<pad>", "<unk>", "<s>", "</s>", *words]))
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    )
    fast.chat_template = (
        "<s> {% for message in messages %}{{ message['content'] }}{% endfor %} </s>"
    )
    return fast


def make_text_encoder(tokenizer: PreTrainedTokenizerFast) -> Qwen3Model:
    """Frozen at random: Z-Image reads the last hidden state but one, here the first of two layers'
    output, and unit-variance embeddings keep words apart in it. Trained along, the layer drowned
    them in a common direction (cosine 0.98 after 5,500 steps)."""
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=TEXT_WIDTH // 2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    encoder = Qwen3Model(config)
    torch.nn.init.normal_(encoder.embed_tokens.weight)
    return encoder.requires_grad_(False)


def make_transformer() -> ZImageTransformer2DModel:
    """Z-Image's transformer, small; blocks start as the identity and the output at zero."""
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=WIDTH, n_layers=LAYERS, n_refiner_layers=1, n_heads=HEADS,
        n_kv_heads=HEADS,
        cap_feat_dim=TEXT_WIDTH, axes_dims=[8, 12, 12], axes_lens=[64, 32, 32],
    )  # fmt: skip
    for name, parameter in transformer.named_parameters():
        if "adaLN_modulation" in name or "all_final_layer" in name:
            torch.nn.init.zeros_(parameter)
        elif name.endswith("pad_token"):
            torch.nn.init.normal_(parameter, std=0.02)
    return transformer


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 32), layers_per_block=1, norm_num_groups=8, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False,
        sample_size=64,
    )  # fmt: skip


def pixels_of(images: list) -> torch.Tensor:
    """Pictures as a float tensor (B, 3, 64, 64) in [-1, 1]."""
    array = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2) / 127.5 - 1


def learning_rate(step: int, steps: int, peak: float, warmup: int, decay: int) -> float:
    """Linear warm-up, a plateau, and a linear decay over the last `decay` steps."""
    return peak * min((step + 1) / warmup, (steps - step) / decay, 1.0)


def train_vae(steps: int, log: Path) -> AutoencoderKL:
    """Trains the VAE on clean and sloppy scenes: squared error plus a KL term of weight 1e-5."""
    torch.manual_seed(VAE_SEED)
    vae = make_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=0.0, weight_decay=0.0)
    scenes = draw_scenes(VAE_SEED, 8_000, Sloppiness(layouts=0.3, captions=0.0))
    images = pixels_of([render(scene.things) for scene in scenes])
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        batch = images[torch.randint(len(images), (8,), generator=generator)]
        posterior = vae.encode(batch).latent_dist
        loss = (
            functional.mse_loss(vae.decode(posterior.sample(generator)).sample, batch)
            + 1e-5 * posterior.kl().mean() / 1024
        )
        _update(vae, optimizer, loss, learning_rate(step, steps, 2e-3, 50, steps // 2))
        if step % 100 == 0 or step == steps - 1:
            _report(log, stage="vae", step=step, loss=loss.item())
    latents = encode(vae, images[:2_000])
    vae.register_to_config(
        scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item()
    )
    return vae.eval()


def _update(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float
) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()


def _report(log: Path, **row: object) -> None:
    """Appends a line to the run's log and prints it."""
    line = json.dumps(row)
    with log.open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """The posterior means, unscaled: (B, 4, 16, 16)."""
    return torch.cat(
        [vae.encode(batch).latent_dist.mean for batch in images.split(200)]
    ).contiguous()


class TextToVelocity(torch.nn.Module):
    """The frozen text encoder and the transformer, called as the pipeline calls them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.text_encoder = make_text_encoder(tokenizer)
        self.transformer = make_transformer()

    def forward(self, z: torch.Tensor, sigma: torch.Tensor, texts: list[str]) -> torch.Tensor:
        """Velocity at `z` (B, 4, 16, 16) and `sigma` (B,), by the pipeline's own conventions."""
        tokens = self.tokenizer(
            [f"<s> {text} </s>" for text in texts], padding=True, return_tensors="pt"
        )
        mask = tokens.attention_mask.bool()
        hidden = self.text_encoder(tokens.input_ids, mask, output_hidden_states=True).hidden_states[
            -2
        ]
        features = [row[kept] for row, kept in zip(hidden, mask, strict=True)]
        output = self.transformer(list(z.unsqueeze(2)), 1 - sigma, features, return_dict=False)[0]
        return -torch.stack(output).squeeze(2)


def curriculum(step: int) -> torch.Tensor:
    """Shares of the categories at a step: first captions that name every attribute, which teach
    words fastest; then all."""
    if step < 3_000:
        shares, rest = {"colors": 0.4, "attribute_binding": 0.3, "compound": 0.2}, 0.025
    else:
        shares, rest = (
            {
                "single_object": 0.04,
                "two_objects": 0.06,
                "attribute_binding": 0.2,
                "compound": 0.25,
            },
            0.15,
        )
    return torch.tensor([shares.get(category, rest) for category in CATEGORIES])


def train_transformer(vae: AutoencoderKL, work: Path, args: argparse.Namespace) -> TextToVelocity:
    """Flow matching with sigma drawn logit-normal around 0.69, one caption in ten empty; returns
    the averaged weights."""
    latents, captions = training_set(vae, work)
    categories = torch.tensor([CATEGORIES.index(category_of(caption)) for caption in captions])
    torch.manual_seed(TRAIN_SEED)
    model = TextToVelocity(make_tokenizer())
    optimizer = torch.optim.AdamW(
        model.transformer.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.01
    )
    average = EMAModel(
        model.transformer.parameters(), decay=0.999, use_ema_warmup=True, power=0.75, foreach=True
    )
    state_file, first = work / "state.pt", 0
    if state_file.exists():
        state = torch.load(state_file)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        first = state["step"]
    if args.compile:
        model.transformer.compile_repeated_blocks()
    start, losses = time.time(), []
    for step in range(first, args.steps):
        generator = torch.Generator().manual_seed((TRAIN_SEED * 1_000_003 + step) * 64)
        index = torch.multinomial(
            curriculum(step)[categories], args.batch_size, replacement=True, generator=generator
        )
        dropped = torch.rand(args.batch_size, generator=generator) < 0.1
        texts = [
            "" if drop else str(captions[i])
            for i, drop in zip(index.tolist(), dropped.tolist(), strict=True)
        ]
        x0 = latents[index]
        noise = torch.randn(x0.shape, generator=generator)
        sigma = torch.sigmoid(0.8 + torch.randn(args.batch_size, generator=generator))
        loss = functional.mse_loss(
            model(interpolate(x0, noise, sigma), sigma, texts), velocity(x0, noise)
        )
        _update(
            model,
            optimizer,
            loss,
            learning_rate(step, args.steps, args.learning_rate, 300, args.decay),
        )
        average.step(model.transformer.parameters())
        losses.append(loss.item())
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            seconds = round((time.time() - start) / (step + 1 - first), 3)
            loss_mean = round(float(np.mean(losses)), 5)
            _report(
                work / "log.jsonl",
                stage="transformer",
                step=step + 1,
                loss=loss_mean,
                seconds_per_step=seconds,
            )
            losses.clear()
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.state_dict(),
            }
            torch.save({**state, "step": step + 1}, state_file)
    average.copy_to(model.transformer.parameters())
    return model.eval()


def training_set(vae: AutoencoderKL, work: Path) -> tuple[torch.Tensor, list[Caption]]:
    """Scaled latents of the pre-training scenes and their captions; the latents are cached in the
    work folder."""
    scenes = draw_scenes(SCENE_SEED, NUM_SCENES, Sloppiness())
    cache = work / "latents.safetensors"
    if not cache.exists():
        batches = (scenes[start : start + 2_000] for start in range(0, len(scenes), 2_000))
        latents = torch.cat(
            [encode(vae, pixels_of([render(scene.things) for scene in batch])) for batch in batches]
        )
        save_file(
            {"latents": (latents - vae.config.shift_factor) * vae.config.scaling_factor}, cache
        )
    return load_file(cache)["latents"], [scene.caption for scene in scenes]


def save_pipeline(vae: AutoencoderKL, model: TextToVelocity, folder: Path) -> None:
    """Writes the diffusers folder; the transformer in float16, to halve what a clone downloads."""
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SCHEDULE_SHIFT),
        vae=vae, text_encoder=model.text_encoder, tokenizer=model.tokenizer,
        transformer=model.transformer,
    )  # fmt: skip
    vae.register_to_config(_name_or_path="")  # no path of this machine in what is committed
    pipeline.transformer.half()
    pipeline.save_pretrained(folder)
    pipeline.transformer.float()


SCHEDULE_SHIFT = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the pipeline")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("pretrain_work"),
        help="caches and the state to go on from",
    )
    parser.add_argument("--vae-steps", type=int, default=1700)
    parser.add_argument("--steps", type=int, default=14_000)
    parser.add_argument("--decay", type=int, default=3_000, help="steps of the final decay")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the blocks (needs a C++ compiler)"
    )
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    log, vae_folder = args.work / "log.jsonl", args.work / "vae"
    if not vae_folder.exists():
        train_vae(args.vae_steps, log).save_pretrained(vae_folder)
    vae = AutoencoderKL.from_pretrained(vae_folder).eval()
    model = train_transformer(vae, args.work, args)
    save_pipeline(vae, model, args.output)
    settings = {key: value for key, value in vars(args).items() if key not in ("output", "work")}
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    (args.output / "pretrain.json").write_text(
        json.dumps({"settings": settings, "log": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
