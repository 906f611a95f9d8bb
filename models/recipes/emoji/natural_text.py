"""Stage `natural`: teach the text tower natural captions, while the DiT reads all other captions as before.

The tower starts from the one that the DiT was trained with. Four terms:

- contrastive: natural captions, and captions of the grammar, against all images (as in stage `locked`);
- distillation: the concepts that a teacher finds in captions and their variations (stage `teacher`);
- reading: what the DiT reads in a natural caption goes to what it reads in the concept's name;
- anchor: the states of the grammar's captions, and what the DiT reads in them, stay where they are.

So the DiT can serve with the new tower before it is trained on its states.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.models.recipes.emoji import (
    data,
    dit,
    locked,
    natural,
    reading,
    retrieval,
    teacher,
    text,
    token_rows,
    views,
)
from safelight.models.recipes.emoji.captions import COLOURS, WHITE, Concept, sample_caption, sample_frame
from safelight.models.recipes.emoji.training import TrainingRun, WeightAverage
from safelight.models.text.clip import text_states
from safelight.models.text.open_clip_classes import CustomTextCLIP

NATURAL, SOFT, GRAMMAR, READ = 96, 128, 40, 32  # texts a step: of each kind, and those that are read
LENGTH_GROUPS = 4
NUM_QUERIES = 24
QUERY_IMAGES = 16
READING_WEIGHT, ANCHOR_WEIGHT = 1.0, 8.0
WARMUP = 40  # steps
LABEL_SHARE = 0.5  # of a labelled text's own concept in its soft target
RATE, NEW_RATE = 2.5e-4, 2e-3  # the second for rows of words that the old tower did not know


def run(work: Path, num_steps: int, minutes: float = math.inf, seed: int = 0) -> None:
    """Train for `num_steps` from `work/text_encoder`, and write `work/text_encoder-natural`."""
    torch.manual_seed(seed)
    stage = NaturalStage(work, seed)
    tower = nn.ModuleDict({"text": stage.clip.text})
    average = WeightAverage(tower, decay=0.99)
    new = stage.clip.text.token_embedding.new
    old = [p for p in tower.parameters() if p is not new]
    optimiser = torch.optim.AdamW(
        [{"params": [new], "lr": NEW_RATE}, {"params": old, "lr": RATE}],
        betas=(0.9, 0.98),
        weight_decay=0.02,
        fused=True,
    )
    TrainingRun(
        "natural",
        tower,
        [optimiser],
        average,
        num_steps,
        work / "natural.ckpt",
        warmup=WARMUP,
        save_every_s=120.0,
        minutes=minutes,
    ).train(stage.loss_of_step, seed)
    tower.load_state_dict(average.shadow, strict=False)
    stage.write(work / text.NATURAL_FOLDER)


@dataclass(frozen=True, slots=True)
class Texts:
    """What a step trains on: captions by kind, and the view that each of the first two kinds belongs to."""

    natural: list[str]
    names: list[str]  # of the concepts of `natural`, in the same frames
    grammar: list[str]
    soft: list[str]
    views: Tensor  # of `natural`, then of `grammar`
    soft_targets: Tensor  # (SOFT, concepts)
    colour: str  # the background of all views that are not on white


class NaturalStage:
    """The tower in training, with everything that its loss compares it with."""

    def __init__(self, work: Path, seed: int):
        self._seed = seed
        self._dataset = data.load(work)
        self._concepts = teacher.concepts_of(self._dataset)
        self._captions = natural.training_captions()
        self._targets = teacher.SoftTargets.load(work)
        self._labels = dict(zip(*_labels(self._concepts, self._captions), strict=True))
        self._rows = token_rows.choose(self._dataset, self._captions, self._targets.texts)
        self.clip, self._old = (retrieval.load_clip(work / text.CONDITIONING.folder) for _ in range(2))
        self._features, self._images, self._colours = load_views(work, self._old, self._dataset)
        self._scale = self._old.logit_scale.detach().exp()
        self._read = _reading(work, self._dataset, self._old, seed)
        self._slots = concept_slots(self._concepts, self._dataset, self._images[: self._num_white])
        is_new = token_rows.find_new(self._old, self._rows)
        token_rows.initialise(self.clip, self._rows, work)
        for tower in (self.clip, self._old):
            token_rows.compact(tower, self._rows, is_new)
        self._old.requires_grad_(False)

    @property
    def _num_white(self) -> int:
        return sum(colour == WHITE for colour in self._colours)  # they come first

    def loss_of_step(self, step: int, generator: torch.Generator) -> Tensor:
        """The loss on texts that the step and the generator decide."""
        texts = self._draw(random.Random(self._seed * 1_000_003 + step), generator)
        captions = [*texts.natural, *texts.grammar, *texts.soft]
        states, mask = states_by_length(self.clip, self._rows.ids(captions))
        pooled = F.normalize(states[:, 0], dim=-1)
        hard = len(texts.natural) + len(texts.grammar)
        candidates = self._candidates(texts.colour)
        logits = self._scale * pooled[:hard] @ self._features[candidates].T
        contrast = F.cross_entropy(logits, texts.views)
        soft = self._scale * pooled[hard:] @ self._features[: self._num_white].T
        distillation = soft_cross_entropy(concept_logits(soft, self._slots), texts.soft_targets)
        return contrast + distillation + self._reading_loss(texts, states, mask)

    def _reading_loss(self, texts: Texts, states: Tensor, mask: Tensor) -> Tensor:
        """How far the DiT's reading is from that of the old tower, and the grammar's states from the old."""
        old_states, old_mask = self._old_states([*texts.names[:READ], *texts.grammar[:READ]])
        target = self._read(old_states, old_mask)
        first, last = len(texts.natural), len(texts.natural) + READ
        natural_distance = reading.distance(self._read(states[:READ], mask[:READ]), target[:, :, :READ])
        grammar_states, grammar_mask = states[first:last], mask[first:last]
        grammar_distance = reading.distance(self._read(grammar_states, grammar_mask), target[:, :, READ:])
        length = min(states.shape[1], old_states.shape[1])
        where = old_mask[READ:, :length]
        drift = (grammar_states[:, :length] - old_states[READ:, :length]).square().mean(-1)[where].mean()
        return READING_WEIGHT * natural_distance + ANCHOR_WEIGHT * (grammar_distance + drift)

    @torch.no_grad()
    def _old_states(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        return states_by_length(self._old, self._rows.ids(captions))

    def _candidates(self, colour: str) -> Tensor:
        """The views on white, then those on `colour`."""
        others = [i for i, name in enumerate(self._colours) if name == colour]
        return torch.tensor([*range(self._num_white), *others])

    def _draw(self, rng: random.Random, generator: torch.Generator) -> Texts:
        colour = rng.choice([name for name in COLOURS if name != WHITE])
        candidates = self._candidates(colour)
        is_coloured = torch.rand(NATURAL + GRAMMAR, generator=generator) < text.COLOURED_SHARE
        white = torch.randint(self._num_white, (NATURAL + GRAMMAR,), generator=generator)
        others = torch.randint(self._num_white, len(candidates), (NATURAL + GRAMMAR,), generator=generator)
        views = torch.where(is_coloured, others, white)
        labelled = [
            (self._dataset.images[self._images[i]], self._colours[i]) for i in candidates[views].tolist()
        ]
        frames = [sample_frame(image.style, name, rng) for image, name in labelled[:NATURAL]]
        pairs = list(zip(frames, (image.concept for image, _ in labelled), strict=False))
        picks = torch.randint(len(self._targets.texts), (SOFT,), generator=generator)
        return Texts(
            natural=[frame.format(rng.choice(self._captions[c.hexcode])) for frame, c in pairs],
            names=[frame.format(concept.label) for frame, concept in pairs],
            grammar=[sample_caption(i.concept, i.style, name, rng) for i, name in labelled[NATURAL:]],
            soft=[self._targets.texts[i] for i in picks.tolist()],
            views=views,
            soft_targets=self._soft_targets(picks),
            colour=colour,
        )

    def _soft_targets(self, picks: Tensor) -> Tensor:
        """The probabilities (SOFT, concepts) of texts; a labelled one's concept has `LABEL_SHARE` more."""
        probabilities = torch.zeros(len(picks), len(self._concepts))
        concepts, values = self._targets.concepts[picks].long(), self._targets.probabilities[picks].float()
        probabilities.scatter_(1, concepts, values)
        # A concept whose images are all held out has no logit.
        probabilities[:, self._slots[:, 0] < 0] = 0.0
        probabilities /= probabilities.sum(1, keepdim=True).clamp_min(1e-6)
        for row, pick in enumerate(picks.tolist()):
            label = self._labels.get(self._targets.texts[pick])
            if label is not None and self._slots[label, 0] >= 0:
                probabilities[row] *= 1.0 - LABEL_SHARE
                probabilities[row, label] += LABEL_SHARE
        return probabilities

    def write(self, folder: Path) -> None:
        """Write the whole CLIP with the trained tower, every row of its vocabulary in place."""
        token_rows.expand(self.clip, self._rows)
        text.write_folder(folder, text.CONDITIONING, self.clip)


def states_by_length(clip: CustomTextCLIP, ids: Tensor) -> tuple[Tensor, Tensor]:
    """States (M, 1 + L, D) and mask (M, 1 + L) of `ids` (M, context), L the length of the longest text.

    Short texts are computed apart from long ones: half of a mixed batch would be padding.
    """
    lengths = ids.argmax(1) + 1
    order = lengths.argsort(stable=True)
    states, masks = [], []
    for rows in order.tensor_split(LENGTH_GROUPS):
        with text.shortened(clip.text, ids[rows]) as short:
            group_states, group_mask = text_states(clip.text, short)
        missing = int(lengths.max()) + 1 - group_states.shape[1]
        states.append(F.pad(group_states, (0, 0, 0, missing)))
        masks.append(F.pad(group_mask, (0, missing)))
    back = order.argsort()
    return torch.cat(states)[back], torch.cat(masks)[back]


def concept_slots(concepts: Sequence[Concept], dataset: data.Dataset, images: Sequence[int]) -> Tensor:
    """The positions in `images` of every concept's images, (concepts, most images of one); -1 where none."""
    index = {concept: i for i, concept in enumerate(concepts)}
    positions: list[list[int]] = [[] for _ in concepts]
    for position, image in enumerate(images):
        positions[index[dataset.images[image].concept]].append(position)
    width = max(map(len, positions))
    return torch.tensor([p + [-1] * (width - len(p)) for p in positions])


def concept_logits(logits: Tensor, slots: Tensor) -> Tensor:
    """Logits of images (M, images) to logits of concepts (M, concepts); -1e4 for one without images."""
    image_logits = logits[:, slots.clamp_min(0).flatten()].unflatten(1, slots.shape)
    sums: Tensor = image_logits.masked_fill(slots < 0, -1e4).logsumexp(-1)
    return sums


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy to target probabilities, both (M, concepts)."""
    return -(targets * logits.log_softmax(-1)).sum(-1).mean()


def load_views(
    work: Path, clip: CustomTextCLIP, dataset: data.Dataset
) -> tuple[Tensor, list[int], list[str]]:
    """`locked.encode_views`, kept in `work/view-features.pt`."""
    file = work / "view-features.pt"
    if not file.exists():
        torch.save(locked.encode_views(clip, dataset), file)
    features, images, colours = torch.load(file, weights_only=True)
    return features.float(), images, colours


def _labels(concepts: Sequence[Concept], captions: dict[str, tuple[str, ...]]) -> tuple[list[str], list[int]]:
    texts, labels = teacher.labelled_texts(concepts, captions)
    return texts, labels.tolist()


def _reading(work: Path, dataset: data.Dataset, clip: CustomTextCLIP, seed: int) -> reading.Reading:
    """What the DiT of `work` reads, at queries from images on white with captions of the grammar."""
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    model = dit.ConditionedDiT(dit.build())
    model.load_state_dict(torch.load(dit.latest(work), weights_only=True)["module"])
    trained = text.CONDITIONING.training_images(dataset)
    picks = trained[torch.randperm(len(trained), generator=generator)[:QUERY_IMAGES]].tolist()
    images = [dataset.images[i] for i in picks]
    captions = [sample_caption(image.concept, image.style, WHITE, rng) for image in images]
    with torch.no_grad(), text.shortened(clip.text, token_rows.tokenise(captions)) as ids:
        states, mask = text_states(clip.text, ids)
    latents = views.encode(work, dataset, [(i, views.NAMES.index(WHITE)) for i in picks])
    queries = reading.collect_queries(model.dit, latents.float(), states, mask, NUM_QUERIES, generator)
    return reading.Reading(model.dit, queries)
