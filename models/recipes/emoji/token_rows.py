"""The rows of the text tower's embedding that are in training: which, and where they start.

The vocabulary has 49,408 tokens, of which captions use a sixth. Training holds a table of the used rows only,
with ids that number them; the end mark keeps the largest id, by which open_clip finds the end of a text.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from safelight.models.recipes.emoji import data, teacher, text
from safelight.models.text.bpe import BytePairs
from safelight.models.text.open_clip_classes import CustomTextCLIP

MIN_VARIATIONS = 3  # occurrences of a token in variations from which on it is trained
RIDGE = 1.0


@dataclass(frozen=True)
class TokenRows:
    """The trained tokens (N,), sorted."""

    tokens: Tensor

    def ids(self, captions: Sequence[str]) -> Tensor:
        """Captions as ids (B, context) of the compact table; words with untrained tokens are left out."""
        vocabulary = set(self.tokens.tolist())
        return torch.searchsorted(self.tokens, tokenise(captions, vocabulary))


def choose(
    dataset: data.Dataset, captions: Mapping[str, Iterable[str]], variations: Iterable[str]
) -> TokenRows:
    """The tokens of the grammar, of all captions, and those that variations use repeatedly."""
    pairs = _pairs()
    counts = Counter(
        token for text in variations for word, _ in pairs.words(text) for token in pairs.encode(word)
    )
    frequent = {token for token, count in counts.items() if count >= MIN_VARIATIONS}
    of_captions = text.trained_tokens(dataset, (c for of_concept in captions.values() for c in of_concept))
    return TokenRows(torch.tensor(sorted({0, *of_captions, *frequent})))  # 0 pads


def tokenise(captions: Sequence[str], vocabulary: set[int] | None = None) -> Tensor:
    """Captions as CLIP's ids (B, context), without words that have a token outside `vocabulary`."""
    pairs = _pairs()
    rows = []
    for caption in captions:
        words = [pairs.encode(word) for word, _ in pairs.words(caption)]
        allowed = [word for word in words if vocabulary is None or vocabulary.issuperset(word)]
        rows.append(pairs.frame([token for word in allowed for token in word], text.CONTEXT, pad_id=0))
    return torch.stack(rows)


@torch.no_grad()
def initialise(clip: CustomTextCLIP, rows: TokenRows, work: Path) -> None:
    """Give new rows a start: a linear map of the word's sentence embedding, fitted on the trained rows.

    Words of like meaning so start near each other. Parts of words start at zero mean with the rows' spread.
    """
    table = clip.text.token_embedding.weight
    words = _whole_words(rows)
    is_trained = table.abs().amax(1) > 0
    sources = torch.tensor([token for token in words if is_trained[token]])
    new = torch.tensor([token for token in words if not is_trained[token]])
    embeddings = dict(zip(words, teacher.embed(work, [*words.values()]), strict=True))
    x, y = torch.stack([embeddings[int(t)] for t in sources]), table[sources]
    weights = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1]), x.T @ y)
    size = y.norm(dim=1).mean()
    others = torch.tensor([t for t in rows.tokens.tolist() if not is_trained[t] and t not in words])
    if len(others):
        noise = torch.randn(len(others), table.shape[1], generator=torch.Generator().manual_seed(0))
        table[others] = 0.5 * size * nn.functional.normalize(noise, dim=-1)
    if len(new):
        starts = torch.stack([embeddings[int(t)] for t in new]) @ weights
        table[new] = size * nn.functional.normalize(starts, dim=-1)


class SplitEmbedding(nn.Module):
    """An embedding whose old and new rows are two parameters, so that each has a learning rate of its own."""

    def __init__(self, table: Tensor, is_new: Tensor):
        super().__init__()
        self.old, self.new = nn.Parameter(table[~is_new].clone()), nn.Parameter(table[is_new].clone())
        self._place = torch.cat([(~is_new).nonzero()[:, 0], is_new.nonzero()[:, 0]]).argsort()

    @property
    def weight(self) -> Tensor:
        """All rows (N, D) in order."""
        return torch.cat([self.old, self.new])[self._place]

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.weight)


def find_new(clip: CustomTextCLIP, rows: TokenRows) -> Tensor:
    """Which of the rows (N,) the tower has no embedding for."""
    is_new: Tensor = clip.text.token_embedding.weight[rows.tokens].abs().amax(1) == 0
    return is_new


def compact(clip: CustomTextCLIP, rows: TokenRows, is_new: Tensor) -> None:
    """Replace the embedding of the whole vocabulary by the rows in training, of which some are new."""
    table = clip.text.token_embedding.weight.detach()
    clip.text.token_embedding = SplitEmbedding(table[rows.tokens], is_new)


def expand(clip: CustomTextCLIP, rows: TokenRows) -> None:
    """Undo `compact`: all other rows become zero."""
    small = clip.text.token_embedding.weight.detach()
    table = torch.zeros(text.TEXT["vocab_size"], small.shape[1])
    table[rows.tokens] = small
    clip.text.token_embedding = nn.Embedding.from_pretrained(table, freeze=False)


def _whole_words(rows: TokenRows) -> dict[int, str]:
    """The rows' tokens that are whole words of letters, with the word."""
    spelt = {number: token for token, number in _pairs().vocabulary.items()}
    words = {int(token): spelt[int(token)] for token in rows.tokens}
    return {
        token: word.removesuffix("</w>")
        for token, word in words.items()
        if word.endswith("</w>") and word.removesuffix("</w>").isalpha()
    }


@cache
def _pairs() -> BytePairs:
    return BytePairs()
