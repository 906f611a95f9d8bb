"""The DiT against diffusers' PixArtTransformer2DModel on shared random weights."""

from dataclasses import replace

import pytest
import torch
from diffusers import PixArtTransformer2DModel

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.networks.attention import BACKENDS
from safelight.models.networks.config import DiTConfig
from safelight.models.networks.dit import DiT, TextKeyValues

CONFIG = DiTConfig(
    num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=3, sample_size=16,
    patch_size=2, caption_channels=24, interpolation_scale=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def networks() -> tuple[DiT, PixArtTransformer2DModel]:
    torch.manual_seed(0)
    theirs = PixArtTransformer2DModel.from_config(CONFIG.to_diffusers()).eval()
    ours = DiT(CONFIG).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def forward(
    dit: DiT, x: torch.Tensor, t: torch.Tensor, states: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    with torch.inference_mode():
        prediction: torch.Tensor = dit(x, dit.modulations(t), dit.text_key_values(states, mask))
    return prediction


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (8, 16)], ids=str)
def test_equals_diffusers(networks: tuple[DiT, PixArtTransformer2DModel], size: tuple[int, int]) -> None:
    ours, theirs = networks
    g = torch.Generator().manual_seed(1)
    x, t = torch.randn(3, 4, *size, generator=g), torch.tensor([999.0, 500.25, 3.0])
    states = torch.randn(3, 7, 24, generator=g)
    mask = torch.arange(7)[None] < torch.tensor([[7], [3], [1]])
    with torch.inference_mode():
        expected = theirs(
            x, encoder_hidden_states=states, encoder_attention_mask=mask.long(), timestep=t, return_dict=False
        )[0]
    torch.testing.assert_close(forward(ours, x, t, states, mask), expected, atol=1e-5, rtol=0)


SIZED = replace(CONFIG, num_attention_heads=3, sample_size=128, is_sized=True)


@pytest.mark.parametrize("size", [(16, 16), (12, 20)], ids=str)
def test_a_sized_network_equals_diffusers(size: tuple[int, int]) -> None:
    """PixArt-alpha at 1024 adds embeddings of resolution and aspect ratio to that of the time."""
    torch.manual_seed(0)
    theirs = PixArtTransformer2DModel.from_config(SIZED.to_diffusers()).eval()
    ours = DiT(SIZED).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    g = torch.Generator().manual_seed(1)
    x, t = torch.randn(2, 4, *size, generator=g), torch.tensor([999.0, 40.5])
    states, mask = torch.randn(2, 7, 24, generator=g), torch.ones(2, 7, dtype=torch.bool)
    height, width = 8 * size[0], 8 * size[1]
    conditions = {
        "resolution": torch.tensor([[height, width]] * 2).float(),
        "aspect_ratio": torch.tensor([[height / width]] * 2),
    }
    with torch.inference_mode():
        expected = theirs(
            x,
            encoder_hidden_states=states,
            encoder_attention_mask=mask.long(),
            timestep=t,
            added_cond_kwargs=conditions,
            return_dict=False,
        )[0]
        actual = ours(x, ours.modulations(t, (height, width)), ours.text_key_values(states, mask))
        other = ours(x, ours.modulations(t, (width // 2, height)), ours.text_key_values(states, mask))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(actual, other, atol=1e-4)
    with pytest.raises(ValueError, match="size"):
        ours.modulations(t)


def test_masked_text_changes_nothing(networks: tuple[DiT, PixArtTransformer2DModel]) -> None:
    ours, _ = networks
    x, t, states = torch.randn(1, 4, 16, 16), torch.tensor([300.0]), torch.randn(1, 7, 24)
    mask = torch.arange(7)[None] < 3
    other = states.clone()
    other[:, 3:] = 100.0
    assert torch.equal(forward(ours, x, t, states, mask), forward(ours, x, t, other, mask))
    assert not torch.equal(
        forward(ours, x, t, states, mask), forward(ours, x, t, states, torch.ones_like(mask))
    )


def test_rows_have_their_own_time_and_text(networks: tuple[DiT, PixArtTransformer2DModel]) -> None:
    ours, _ = networks
    x, t = torch.randn(4, 4, 16, 16), torch.tensor([900.0, 10.0, 500.0, 123.4])
    states, mask = torch.randn(4, 7, 24), torch.arange(7)[None] < torch.tensor([[7], [2], [4], [1]])
    together = forward(ours, x, t, states, mask)
    for row in range(4):
        one = slice(row, row + 1)
        torch.testing.assert_close(
            forward(ours, x[one], t[one], states[one], mask[one]), together[one], atol=1e-5, rtol=0
        )


def test_sdpa_equals_plain() -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=g) for n in (5, 7, 7))
    mask = torch.arange(7)[None] < torch.tensor([[7], [2]])
    torch.testing.assert_close(
        BACKENDS["sdpa"](q, k, v, mask), BACKENDS["plain"](q, k, v, mask), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(BACKENDS["sdpa"](q, k, v), BACKENDS["plain"](q, k, v), atol=1e-6, rtol=0)


def test_text_key_values_are_rows(networks: tuple[DiT, PixArtTransformer2DModel]) -> None:
    ours, _ = networks
    states, mask = torch.randn(2, 7, 24), torch.ones(2, 7, dtype=torch.bool)
    text = ours.text_key_values(states, mask)
    assert isinstance(text, TextKeyValues)
    assert text.kv.shape == (3, 2, 2, 4, 7, 16)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("norm_type", "ada_norm_zero"),
        ("activation_fn", "geglu"),
        ("caption_channels", None),
        ("cross_attention_dim", 48),
        ("sr_ratio", 2),  # the original's name for the compressed keys and values of its 2K network
    ],
)
def test_unsupported_configs_are_named(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key):
        DiTConfig.from_diffusers(CONFIG.to_diffusers() | {key: value})


def test_unknown_options_that_are_off_are_ignored() -> None:
    assert (
        DiTConfig.from_diffusers(
            CONFIG.to_diffusers() | {"double_self_attention": False, "num_vector_embeds": None}
        )
        == CONFIG
    )


def test_rows_of_different_plans_run_together(networks: tuple[DiT, PixArtTransformer2DModel]) -> None:
    ours, _ = networks
    x, states, mask = (
        torch.randn(2, 4, 12, 20),
        torch.randn(2, 7, 24),
        torch.arange(7)[None] < torch.tensor([[7], [3]]),
    )
    plans, steps = (torch.tensor([900.0, 400.0, 20.0]), torch.tensor([750.5, 1.0])), (2, 1)
    with torch.inference_mode():
        rows = [
            ours.prepare_row(states[r], mask[r], None, ours.prepare_times(plans[r], (96, 160)))
            for r in range(2)
        ]
        together = ours.predict(x, ours.collate(rows), steps)
        current_times = torch.stack([plan[step] for plan, step in zip(plans, steps, strict=True)])
        torch.testing.assert_close(
            together,
            ours(x, ours.modulations(current_times), ours.text_key_values(states, mask)),
            atol=1e-5,
            rtol=0,
        )
        assert not torch.allclose(together, ours.predict(x, ours.collate(rows), (0, 0)), atol=1e-3)


def test_config_round_trip() -> None:
    for config in (CONFIG, SIZED):
        assert DiTConfig.from_diffusers(config.to_diffusers()) == config


def test_a_network_of_1024_is_sized_by_default() -> None:
    for side, is_sized in ((128, True), (64, False)):
        config = replace(CONFIG, sample_size=side).to_diffusers()
        del config["use_additional_conditions"]
        assert DiTConfig.from_diffusers(config).is_sized == is_sized


@pytest.mark.parametrize("is_sized", [False, True])
def test_a_block_of_the_true_width_equals_diffusers(is_sized: bool) -> None:
    """PixArt-XL/2: 16 heads of 72; alpha, which reads the size, and Sigma, which does not."""
    config = replace(
        CONFIG, num_attention_heads=16, attention_head_dim=72, out_channels=8, num_layers=1, is_sized=is_sized
    )
    torch.manual_seed(0)
    theirs = PixArtTransformer2DModel(
        **{k: v for k, v in config.to_diffusers().items() if not k.startswith("_")}
    ).eval()
    ours = DiT(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, t, states = torch.randn(2, 4, 12, 20), torch.tensor([999.0, 500.0]), torch.randn(2, 7, 24)
    size = {"resolution": torch.tensor([[96.0, 160.0]] * 2), "aspect_ratio": torch.tensor([[0.6]] * 2)}
    with torch.inference_mode():
        expected = theirs(
            x, encoder_hidden_states=states, timestep=t, added_cond_kwargs=size, return_dict=False
        )[0]

        def predicted(dit: DiT, dtype: torch.dtype) -> torch.Tensor:
            everything = torch.ones(2, 7, dtype=torch.bool)
            prediction: torch.Tensor = dit(
                x.to(dtype), dit.modulations(t, (96, 160)), dit.text_key_values(states.to(dtype), everything)
            ).float()
            return prediction

        assert float((predicted(ours, torch.float32) - expected).abs().max()) <= 1e-4 * float(expected.std())
        near = torch.cosine_similarity(
            predicted(ours.bfloat16(), torch.bfloat16).flatten(), expected.flatten(), dim=0
        )
    assert float(near) >= 0.999
