"""Stage `evaluate`: how often the nearest clean picture is of the concept that was asked for; and the contact sheet.

Draws through the engine that serves, at the served defaults. Prints one JSON object and writes it beside the weights.
"""

import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.progress import Progress

from models.recipes.emoji import data
from models.recipes.emoji.captions import STYLES, Concept, styled
from models.recipes.emoji.oracle import Oracle
from models.vae import decode_latents, load_vae
from pipeline.build.decoder import build_decoder
from pipeline.build.encoder import build_text_encoder
from pipeline.build.engine import build_engine
from pipeline.catalog import find_model
from pipeline.params import GenerationParams, ModelInfo

SEED = 0
BATCH = 8

SHEET = (
    "red apple", "rocket", "pizza", "christmas tree", "smiling cat face", "red heart",
    "3d red apple", "flat red apple", "noto red apple", "3d rocket", "flat rocket", "noto rocket",
    "guitar", "umbrella", "camera", "police car", "key", "airplane",
    "grinning face", "crying face", "angry face", "ghost", "alien", "robot",
    "dog face", "panda", "frog", "octopus", "butterfly", "whale",
    "sunflower", "cactus", "mushroom", "banana", "strawberry", "hamburger",
    "house", "castle", "sailboat", "bicycle", "soccer ball", "trophy",
    "a yellow fruit", "something to drink", "green heart", "a cat on a bicycle", "two red apples", "purple elephant",
)  # fmt: skip


def run(work: Path, weights: Path, limit: int) -> None:
    """Measure `limit` concepts by name, draw the contact sheet, write `weights/evaluation.json` and `docs/contact-sheet.png`."""
    dataset = data.load(work)
    oracle = Oracle.of(dataset)
    model = find_model(str(weights))
    draw_sheet(model, oracle, dataset, Path("docs/contact-sheet.png"))
    concepts = sample_concepts(dataset, limit)
    figures = {
        "model": weights.name,
        "prompts": len(concepts),
        "steps": model.num_steps,
        "guidance_scale": model.guidance_scale,
        "solver": model.solver,
        "distance": "euclidean, rgb on white, pooled to 32x32",
        "gallery": len(dataset.pictures),
        **concept_rates(model, oracle, concepts),
        "ceiling": reconstruction_rates(weights, oracle, dataset, concepts),
    }
    (weights / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def sample_concepts(dataset: data.Dataset, limit: int) -> list[Concept]:
    """`limit` concepts by a fixed seed."""
    concepts = list(dict.fromkeys(p.concept for p in dataset.pictures))
    return random.Random(SEED).sample(concepts, min(limit, len(concepts)))


def concept_rates(model: ModelInfo, oracle: Oracle, concepts: Sequence[Concept]) -> dict[str, object]:
    """Top-1 and top-5 of the concept by plain name, the same against shuffled names (the floor), and style by name."""
    names = [c.label for c in concepts]
    drawn = draw(model, names)
    nearest = oracle.nearest(drawn, 5)
    shuffled = concepts[1:] + concepts[:1]
    in_style = [STYLES[i % len(STYLES)] for i in range(len(concepts))]
    styles = oracle.nearest(draw(model, [styled(c.label, s) for c, s in zip(concepts, in_style, strict=True)]))
    return {
        "concept_top1": rate([n[0].concept == c for n, c in zip(nearest, concepts, strict=True)]),
        "concept_top5": rate([c in [p.concept for p in n] for n, c in zip(nearest, concepts, strict=True)]),
        "floor_top1": rate([n[0].concept == c for n, c in zip(nearest, shuffled, strict=True)]),
        "styled_concept_top1": rate([n[0].concept == c for n, c in zip(styles, concepts, strict=True)]),
        "style_accuracy": rate([n[0].style == s for n, s in zip(styles, in_style, strict=True)]),
    }


def reconstruction_rates(weights: Path, oracle: Oracle, dataset: data.Dataset, concepts: Sequence[Concept]) -> dict[str, float]:
    """The ceiling: the same oracle on true pictures that only went through the autoencoder."""
    vae = load_vae(weights / "vae", "cpu", torch.float32)
    first = {p.concept: i for i, p in reversed(list(enumerate(dataset.pictures)))}
    originals = np.stack([dataset.on_background(first[c]) for c in concepts])
    restored = []
    with torch.inference_mode():
        for part in torch.from_numpy(originals).permute(0, 3, 1, 2).split(BATCH):
            latents = vae.encode(part.float() / 127.5 - 1.0).latents * vae.config.scaling_factor
            restored.append(((decode_latents(vae, latents) + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    nearest = oracle.nearest(np.concatenate(restored))
    return rate([n[0].concept == c for n, c in zip(nearest, concepts, strict=True)])


def rate(hits: Sequence[bool]) -> dict[str, float]:
    """A share with its 95 % Wilson interval."""
    n, p, z = len(hits), sum(hits) / len(hits), 1.96
    middle, half = (p + z * z / (2 * n)) / (1 + z * z / n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return {"rate": round(p, 4), "low": round(middle - half, 4), "high": round(middle + half, 4)}


def draw(model: ModelInfo, prompts: Sequence[str], seed: int = SEED) -> np.ndarray:
    """One picture a prompt through the serving engine, at the model's defaults: (P, H, W, 3) uint8."""
    encoder, engine, decoder = build_text_encoder(model), build_engine(model), build_decoder(model)
    width, height = model.native_size
    empty = encoder.encode([""])[0]
    for number, (prompt, states) in enumerate(zip(prompts, _encoded(encoder, prompts), strict=True)):
        params = GenerationParams(prompt, "", width, height, model.num_steps, model.guidance_scale, model.solver, seed + number)
        engine.add(str(number), params, states, empty)
    pictures: dict[int, np.ndarray] = {}
    with Progress() as bar:
        task = bar.add_task("drawing", total=len(prompts))
        while engine.has_work:
            for outcome in engine.step():
                if outcome.latents is None:
                    raise RuntimeError(f"{prompts[int(outcome.request_id)]}: {outcome.error}")
                pictures[int(outcome.request_id)] = decoder.decode([outcome.latents])[0][0]
                bar.advance(task)
    return np.stack([pictures[i] for i in range(len(prompts))])


def _encoded(encoder, prompts: Sequence[str]) -> Iterator:
    for start in range(0, len(prompts), encoder.max_batch):
        yield from encoder.encode(prompts[start : start + encoder.max_batch])


def draw_sheet(model: ModelInfo, oracle: Oracle, dataset: data.Dataset, path: Path, columns: int = 8) -> None:
    """48 prompts, never selected: a green bar where the nearest clean picture is of the concept, red where it is not."""
    names = {p.concept.label for p in dataset.pictures}
    drawn = draw(model, SHEET, seed=1000)
    nearest = oracle.nearest(drawn)
    cell_w, cell_h, size = 140, 160, data.SIZE
    sheet = Image.new("RGB", (columns * cell_w, -(-len(SHEET) // columns) * cell_h), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (prompt, pixels, near) in enumerate(zip(SHEET, drawn, nearest, strict=True)):
        x, y = i % columns * cell_w + 6, i // columns * cell_h + 4
        sheet.paste(Image.fromarray(pixels), (x, y))
        subject = prompt.removeprefix("3d ").removeprefix("flat ").removeprefix("noto ")
        right = near[0].concept.label == subject
        colour = ("#1a9850" if right else "#d73027") if subject in names else "#888888"
        pen.rectangle([x, y + size, x + size, y + size + 3], fill=colour)
        pen.text((x, y + size + 6), prompt, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    print(f"evaluate: {path} (green: nearest clean picture is the concept, red: it is not, grey: no such concept)")
