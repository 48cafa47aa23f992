"""Train the tiny CLIP on scenes that are rendered as it learns, and export it as a Hugging Face folder.

    python -m embedded.train_clip --images 1000000 --out build/tiny-clip-run

The run folder holds `state.pt` (the same command goes on from it), `export/` (averaged weights, rewritten every few
minutes) and `log.jsonl`. `--time-limit-s` shortens the schedule on a slow machine: the learning rate reaches zero when
either the images or the time are used up.
"""

import argparse
import copy
import json
import math
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from embedded.captions import prompts
from embedded.clip_folder import TinyClipSize, build_preprocessor, build_tokenizer, save_folder
from embedded.clip_losses import DenseTargets, claims_truth, contrastive_loss, dense_loss, zero_shot_loss
from embedded.clip_trainee import Trainee
from embedded.concepts import FACTORS, OBJECT_FACTORS, OBJECT_LIMIT
from embedded.muon import Muon
from embedded.scene_batches import BatchPlan, SceneBatch, open_batches
from embedded.scenes import EVALUATION_FIRST_SEED, TRAINING_FIRST_SEED
from embedded.zero_shot import measure_zero_shot


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How long and how fast."""

    images: int
    time_limit_s: float
    batch_size: int = 128
    matrix_rate: float = 4e-3
    """Peak step of Muon on the matrices of the blocks."""
    other_rate: float = 1.5e-3
    """Peak step of AdamW on everything else."""
    weight_decay: float = 0.05
    warm_up_images: int = 12_000
    decay_share: float = 0.5
    """The last share of the run, over which the rate falls linearly to zero."""
    average: float = 0.998
    """Decay of the running average of the weights, which is what is exported."""


def rate_factor(plan: TrainingPlan, image_count: int, elapsed_s: float) -> float:
    """Share of the peak rate: warm-up, level, then a linear fall to zero."""
    progress = min(max(image_count / plan.images, elapsed_s / plan.time_limit_s), 1.0)
    warm_up = min((image_count + 1) / plan.warm_up_images, 1.0)
    return warm_up * min((1.0 - progress) / plan.decay_share, 1.0)


def build_optimisers(trainee: Trainee, plan: TrainingPlan) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices inside the towers' blocks, AdamW for the rest."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in trainee.named_parameters():
        (matrices if ".layers." in name and parameter.ndim == 2 else others).append(parameter)
    return (
        Muon(matrices, lr=plan.matrix_rate, momentum=0.95, weight_decay=plan.weight_decay),
        torch.optim.AdamW(others, lr=plan.other_rate, betas=(0.9, 0.98), weight_decay=0.01),
    )


def batch_loss(
    trainee: Trainee, batch: SceneBatch, prompt_tokens: Tensor, pixel_mean: Tensor, pixel_deviation: Tensor
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The weighted sum of all losses on one batch, and its parts."""
    pixels = torch.from_numpy(batch.pixels).permute(0, 3, 1, 2).float().div_(255)
    image = trainee.embed_images((pixels - pixel_mean) / pixel_deviation)
    text = trainee.embed_text(torch.from_numpy(batch.tokens))
    near_miss = trainee.embed_text(torch.from_numpy(batch.near_miss_tokens))
    prompt = trainee.embed_text(prompt_tokens)
    scale = trainee.clip.logit_scale.exp()
    facts, presence = torch.from_numpy(batch.facts), torch.from_numpy(batch.presence)
    truth = claims_truth(torch.from_numpy(batch.claims), OBJECT_LIMIT, facts)
    patch_objects = torch.from_numpy(batch.patch_objects)
    objects = facts[:, 2:].view(-1, OBJECT_LIMIT, len(OBJECT_FACTORS))
    padded = torch.cat([torch.full_like(objects[:, :1], -1), objects], dim=1) + 1
    labels = {factor: padded[:, :, place].gather(1, patch_objects) for place, factor in enumerate(OBJECT_FACTORS)}
    parts = {
        "contrastive": contrastive_loss(image.embedding, text, near_miss, scale, truth),
        "zero_shot": zero_shot_loss(image.embedding, prompt, scale, presence),
        "presence": nn.functional.binary_cross_entropy_with_logits(image.presence, presence),
        "dense": dense_loss(
            image.labels, image.silhouette, DenseTargets(labels, torch.from_numpy(batch.silhouette).float())
        ),
    }
    weights = {"contrastive": 0.5, "zero_shot": 2.0, "presence": 2.0, "dense": 0.5}
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    covered = labels["shape"] > 0
    figures = {name: part.item() for name, part in parts.items()}
    for factor in ("shape", "colour", "texture", "size"):
        hit = image.labels[factor].argmax(-1) == labels[factor]
        figures[f"patch_{factor}"] = hit[covered].float().mean().item()
    return total, figures


class Run:
    """One training run and its folder."""

    def __init__(self, folder: Path, plan: TrainingPlan, size: TinyClipSize) -> None:
        self._folder, self._plan, self._size = folder, plan, size
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        self.trainee = Trainee(size)
        self.averaged = copy.deepcopy(self.trainee)
        self._optimisers = build_optimisers(self.trainee, plan)
        self._tokenizer = build_tokenizer()
        texts = [text for factor in FACTORS for text in prompts(factor).values()]
        self._prompt_tokens = self._tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
        preprocessor = build_preprocessor(size)
        self._mean = torch.tensor(preprocessor.image_mean).view(1, 3, 1, 1)
        self._deviation = torch.tensor(preprocessor.image_std).view(1, 3, 1, 1)
        self.image_count, self.elapsed_s, self.cpu_s = 0, 0.0, 0.0
        if (folder / "state.pt").exists():
            self._load()

    def step(self, batch: SceneBatch) -> dict[str, float]:
        """One update; returns the parts of the loss."""
        factor = rate_factor(self._plan, self.image_count, self.elapsed_s)
        for optimiser, peak in zip(self._optimisers, (self._plan.matrix_rate, self._plan.other_rate), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * factor
        loss, figures = batch_loss(self.trainee, batch, self._prompt_tokens, self._mean, self._deviation)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trainee.parameters(), 2.0)
        for optimiser in self._optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        steps = self.image_count / self._plan.batch_size
        decay = min(self._plan.average, (1 + steps) / (10 + steps))
        with torch.no_grad():
            self.trainee.clip.logit_scale.clamp_(max=math.log(60.0))
            kept: list[Tensor] = list(self.averaged.parameters())
            learned: list[Tensor] = list(self.trainee.parameters())
            torch._foreach_lerp_(kept, learned, 1 - decay)
        self.image_count += len(batch.pixels)
        return figures

    def zero_shot(self, scene_count: int) -> dict[str, float]:
        """Accuracy of the averaged weights on scenes that are kept for evaluation."""
        seeds = range(EVALUATION_FIRST_SEED + 500_000, EVALUATION_FIRST_SEED + 500_000 + scene_count)
        self.averaged.eval()
        return measure_zero_shot(self.averaged.clip, self._tokenizer, build_preprocessor(self._size), seeds)

    def save(self) -> None:
        """Write `export/` and the state to go on from."""
        save_folder(self._folder / "export", self.averaged.clip, self._size)
        state = {
            "trainee": self.trainee.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
            "counts": (self.image_count, self.elapsed_s, self.cpu_s),
        }
        partial = self._folder / "state.pt.partial"
        torch.save(state, partial)
        partial.replace(self._folder / "state.pt")

    def _load(self) -> None:
        state = torch.load(self._folder / "state.pt", weights_only=True)
        self.trainee.load_state_dict(state["trainee"])
        self.averaged.load_state_dict(state["averaged"])
        for optimiser, kept in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.image_count, self.elapsed_s, self.cpu_s = state["counts"]

    def log(self, line: dict[str, float]) -> None:
        """Append one line to `log.jsonl` and the terminal."""
        text = json.dumps({key: round(value, 4) for key, value in line.items()})
        with (self._folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def train(folder: Path, plan: TrainingPlan, size: TinyClipSize, save_every_s: float) -> None:
    """Train until the images or the time are used up, or until SIGTERM; saves on the way and at the end."""
    asked_to_stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked_to_stop.append(number))
    run = Run(folder, plan, size)
    batches_plan = BatchPlan(
        first_seed=TRAINING_FIRST_SEED, batch_size=plan.batch_size, image_px=size.image_px, patch_px=size.patch_px
    )
    began_s, cpu_began_s = time.monotonic() - run.elapsed_s, time.process_time() - run.cpu_s
    saved_s, logged_s, logged_images = time.monotonic(), time.monotonic(), run.image_count
    with open_batches(batches_plan, run.image_count) as batches:
        while not asked_to_stop and run.image_count < plan.images and run.elapsed_s < plan.time_limit_s:
            figures = run.step(next(batches))
            now_s = time.monotonic()
            run.elapsed_s, run.cpu_s = now_s - began_s, time.process_time() - cpu_began_s
            if now_s - logged_s > 20:
                rate = (run.image_count - logged_images) / (now_s - logged_s)
                logged_s, logged_images = now_s, run.image_count
                progress = {"images": run.image_count, "elapsed_s": run.elapsed_s, "images_per_s": rate}
                scale = {"logit_scale": run.trainee.clip.logit_scale.exp().item()}
                run.log({**progress, **figures, **scale})
            if now_s - saved_s > save_every_s:
                saved_s = now_s
                run.save()
                run.log({"images": run.image_count, **{f"held_out_{k}": v for k, v in run.zero_shot(400).items()}})
    run.save()
    if run.image_count < plan.images and run.elapsed_s < plan.time_limit_s:
        return
    figures = {f"held_out_{factor}": value for factor, value in run.zero_shot(1000).items()}
    run.log({"images": run.image_count, "elapsed_s": run.elapsed_s, "cpu_s": run.cpu_s, **figures})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m embedded.train_clip", description="Train the tiny CLIP.")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, required=True, help="the run folder; an unfinished run goes on")
    parser.add_argument("--time-limit-s", type=float, default=math.inf)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-blocks", type=int, default=6)
    parser.add_argument("--matrix-rate", type=float, default=4e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every-s", type=float, default=240)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    plan = TrainingPlan(
        images=options.images,
        time_limit_s=options.time_limit_s,
        batch_size=options.batch_size,
        matrix_rate=options.matrix_rate,
    )
    train(options.out, plan, TinyClipSize(image_blocks=options.image_blocks), options.save_every_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())
