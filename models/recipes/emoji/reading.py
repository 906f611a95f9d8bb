"""What a DiT reads in a text: the outputs of its cross-attentions at queries that occur while it denoises.

The DiT sees a text through these outputs only, so two texts with equal outputs give the same image.

Shapes: M texts, L text states, D their width, B blocks, A heads, Q queries, K channels a head.
"""

import math

import torch
from torch import Tensor, nn

from safelight.models.networks.dit import DiT
from safelight.models.recipes import objectives
from safelight.pipeline.diffusion.schedules import NUM_TRAIN_STEPS


class Reading(nn.Module):
    """The cross-attentions of a frozen DiT at a bank of `queries` (B, A, Q, K)."""

    def __init__(self, dit: DiT, queries: Tensor):
        super().__init__()
        self._dit = dit.requires_grad_(False)
        self._queries = queries

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Text states (M, L, D) and their mask (M, L) to what is read, (B, A, M, Q, K)."""
        keys, values = self._dit.text_key_values(states, mask).kv.unbind(1)  # (B, M, A, L, K)
        queries = self._queries[:, None]
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(keys.shape[-1])  # (B, M, A, Q, L)
        scores = scores.masked_fill(~mask[None, :, None, None], -torch.inf)
        return (scores.softmax(-1) @ values).transpose(1, 2)


def distance(read: Tensor, target: Tensor) -> Tensor:
    """Squared distance over variance between texts, averaged over heads: 1 is as far as the mean text is.

    Both are (B, A, M, Q, K).
    """
    variance = (target - target.mean(2, keepdim=True)).square().mean((2, 3, 4))
    error = (read - target).square().mean((2, 3, 4))
    return (error / variance.clamp_min(1e-6)).mean()


@torch.no_grad()
def collect_queries(
    dit: DiT, x0: Tensor, states: Tensor, mask: Tensor, num_queries: int, generator: torch.Generator
) -> Tensor:
    """Queries (B, A, Q, K) of image tokens drawn from noised latents, at all noise levels.

    Args:
        dit: the network.
        x0: clean latents (M, C, h, w).
        states: the states (M, L, D) of their texts.
        mask: the mask (M, L) of the states.
        num_queries: how many to draw in every block.
        generator: draws noise, times and queries.
    """
    queries: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        tokens = output.flatten(0, 1)  # (M N, A K)
        rows = torch.randperm(len(tokens), generator=generator)[:num_queries]
        queries.append(tokens[rows].unflatten(1, (dit.config.num_attention_heads, -1)).transpose(0, 1))

    hooks = [block.attn2.to_q.register_forward_hook(keep) for block in dit.transformer_blocks]
    eps = torch.randn(x0.shape, generator=generator)
    t = objectives.logit_normal_times(len(x0), generator)
    times = dit.modulations(NUM_TRAIN_STEPS * t)
    dit(objectives.flow_sample(x0, eps, t), times, dit.text_key_values(states, mask))
    for hook in hooks:
        hook.remove()
    return torch.stack(queries)
