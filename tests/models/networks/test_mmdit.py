"""The MMDiT against diffusers' SD3Transformer2DModel on shared random weights."""

from dataclasses import replace

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention import JointTransformerBlock
from torch import Tensor, nn

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.checkpoints.tensors import shapes_of
from safelight.models.networks.attention import BACKENDS
from safelight.models.networks.config import MMDiTConfig
from safelight.models.networks.mmdit import Block, MMDiT
from tests.models.closeness import assert_near

SD3 = MMDiTConfig(
    sample_size=16, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=4,
    joint_attention_dim=24, caption_projection_dim=64, pooled_projection_dim=20, out_channels=4,
    pos_embed_max_size=13,
)  # fmt: skip
SD35_MEDIUM = replace(SD3, qk_norm="rms_norm", dual_attention_layers=(0, 1))
SD35_LARGE = replace(SD3, qk_norm="rms_norm")
TINY = {"sd3": SD3, "sd3.5-medium": SD35_MEDIUM, "sd3.5-large": SD35_LARGE}

TRUE_SD3 = MMDiTConfig(
    num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
)
TRUE_MEDIUM = replace(
    TRUE_SD3, pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=tuple(range(13))
)
TRUE_LARGE = replace(
    TRUE_SD3, num_layers=38, num_attention_heads=38, caption_projection_dim=2432, qk_norm="rms_norm"
)

SIZES = [(16, 16), (12, 20), (26, 10)]
Networks = tuple[MMDiT, SD3Transformer2DModel]
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def randomise(module: nn.Module, seed: int) -> None:
    """Fill every parameter and buffer from `seed`: open gates, different norm weights, a random table."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.uniform_(-1, 1, generator=g)
            if tensor.ndim > 1 and not name.endswith("pos_embed"):
                tensor.mul_((3 / tensor[0].numel()) ** 0.5)
            elif ".norm_" in name and "linear" not in name:
                tensor.add_(1.5)


@pytest.fixture(scope="module", params=TINY)
def networks(request: pytest.FixtureRequest) -> Networks:
    return pair(TINY[request.param])


def pair(config: MMDiTConfig) -> Networks:
    theirs = SD3Transformer2DModel.from_config(config.to_diffusers()).eval()
    randomise(theirs, seed=0)
    ours = MMDiT(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def inputs(size: tuple[int, int], rows: int = 3) -> Inputs:
    g = torch.Generator().manual_seed(1)
    t = torch.tensor([999.0, 500.25, 3.0, 123.4])[:rows]
    return (
        torch.randn(rows, 4, *size, generator=g),
        t,
        torch.randn(rows, 20, generator=g),
        torch.randn(rows, 7, 24, generator=g),
    )


def forward(mmdit: MMDiT, x: Tensor, t: Tensor, pooled: Tensor, states: Tensor) -> Tensor:
    with torch.inference_mode():
        conditioning = mmdit.conditioning(mmdit.prepare_times(t, (x.shape[-2], x.shape[-1])), pooled)
        prediction: Tensor = mmdit(x, mmdit.modulations(conditioning), mmdit.text_tokens(states))
    return prediction


def forward_theirs(
    theirs: SD3Transformer2DModel, x: Tensor, t: Tensor, pooled: Tensor, states: Tensor
) -> Tensor:
    with torch.inference_mode():
        prediction: Tensor = theirs(
            x, timestep=t, pooled_projections=pooled, encoder_hidden_states=states, return_dict=False
        )[0]
    return prediction


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_diffusers(networks: Networks, size: tuple[int, int]) -> None:
    ours, theirs = networks
    expected = forward_theirs(theirs, *inputs(size))
    assert expected.shape == (3, 4, *size)
    assert_near(forward(ours, *inputs(size)), expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", TINY)
def test_bfloat16_is_close_in_direction_to_diffusers_in_float32(name: str, size: tuple[int, int]) -> None:
    ours, theirs = pair(TINY[name])
    x, t, pooled, states = inputs(size)
    actual = forward(ours.bfloat16(), x.bfloat16(), t, pooled.bfloat16(), states.bfloat16())
    assert actual.dtype == torch.bfloat16
    expected = forward_theirs(theirs, x, t, pooled, states)
    assert (torch.cosine_similarity(actual.float().flatten(1), expected.flatten(1)) >= 0.999).all()


@pytest.mark.parametrize(
    ("config", "is_dual"), [(TRUE_MEDIUM, True), (TRUE_LARGE, False)], ids=["sd3.5-medium", "sd3.5-large"]
)
def test_a_block_of_the_true_width_equals_diffusers(config: MMDiTConfig, is_dual: bool) -> None:
    """Both streams of a block are compared. Both blocks share one copy of the weights."""
    with torch.device("meta"):
        theirs = JointTransformerBlock(
            config.width,
            config.num_attention_heads,
            config.attention_head_dim,
            qk_norm=config.qk_norm,
            use_dual_attention=is_dual,
        )
        ours = Block(config, is_last=False, is_dual=is_dual)
    theirs.to_empty(device="cpu")
    randomise(theirs, seed=0)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    g = torch.Generator().manual_seed(1)
    x, text, embedding = (torch.randn(2, *shape, config.width, generator=g) for shape in ((24,), (9,), ()))
    with torch.inference_mode():
        expected_text, expected = theirs(x, text, embedding)
        norms = (ours.norm1, ours.norm1_context)
        modulations = [norm.linear(nn.functional.silu(embedding)) for norm in norms]
        actual, actual_text = ours(x, text, *modulations, BACKENDS["sdpa"])
    assert_near(actual, expected)
    assert_near(actual_text, expected_text)


@pytest.mark.parametrize(
    ("config", "billions"),
    [(TRUE_SD3, 2.03), (TRUE_MEDIUM, 2.24), (TRUE_LARGE, 8.06)],
    ids=["sd3-medium", "sd3.5-medium", "sd3.5-large"],
)
def test_the_true_networks_have_diffusers_tensors(config: MMDiTConfig, billions: float) -> None:
    with torch.device("meta"):
        ours, theirs = MMDiT(config), SD3Transformer2DModel.from_config(config.to_diffusers())
    assert shapes_of(ours.state_dict()) == shapes_of(theirs.state_dict())
    count = sum(parameter.numel() for parameter in ours.parameters())
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
    assert count == pytest.approx(billions * 1e9, rel=0.01)


def test_the_initial_position_table_equals_diffusers(networks: Networks) -> None:
    ours, theirs = networks
    fresh = SD3Transformer2DModel.from_config(ours.config.to_diffusers())
    torch.testing.assert_close(
        MMDiT(ours.config).pos_embed.pos_embed, fresh.pos_embed.pos_embed, atol=1e-6, rtol=0
    )
    assert torch.equal(ours.pos_embed.pos_embed, theirs.pos_embed.pos_embed)
    assert torch.equal(ours.pos_embed.positions(26, 26), theirs.pos_embed.pos_embed)


@pytest.mark.parametrize("size", [(28, 16), (16, 28), (15, 16)], ids=str)
def test_a_latent_without_positions_is_refused(networks: Networks, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]}"):
        forward(networks[0], *inputs(size))


def test_rows_have_their_own_time_and_text(networks: Networks) -> None:
    ours, _ = networks
    batch = inputs((12, 20), rows=4)
    together = forward(ours, *batch)
    for row in range(4):
        one = slice(row, row + 1)
        assert_near(forward(ours, *(part[one] for part in batch)), together[one], tolerance=1e-5)


def test_rows_of_different_plans_run_together(networks: Networks) -> None:
    ours, _ = networks
    x, _, pooled, states = inputs((12, 20))
    plans, steps = (torch.tensor([900.0, 400.0, 20.0]), torch.tensor([750.5, 1.0])), (2, 1)
    everything = torch.ones(states.shape[1], dtype=torch.bool)
    with torch.inference_mode():
        rows = [
            ours.prepare_row(states[r], everything, pooled[r], ours.prepare_times(plans[r], (96, 160)))
            for r in range(2)
        ]
        together = ours.predict(x[:2], ours.collate(rows), steps)
    current_times = torch.stack([plan[step] for plan, step in zip(plans, steps, strict=True)])
    assert_near(together, forward(ours, x[:2], current_times, pooled[:2], states[:2]), tolerance=1e-5)
    assert not torch.allclose(together, ours.predict(x[:2], ours.collate(rows), (0, 0)), atol=1e-3)


def test_a_row_needs_pooled_text(networks: Networks) -> None:
    ours, _ = networks
    _, t, _, states = inputs((12, 20))
    with pytest.raises(ValueError, match="pooled"):
        ours.prepare_row(states[0], torch.ones(7, dtype=torch.bool), None, ours.prepare_times(t, (96, 160)))


def test_plain_attention_gives_the_same_result(networks: Networks) -> None:
    ours, _ = networks
    plain = MMDiT(ours.config, BACKENDS["plain"]).eval()
    plain.load_state_dict(ours.state_dict(), strict=True)
    assert_near(forward(plain, *inputs((12, 20))), forward(ours, *inputs((12, 20))))


@pytest.mark.parametrize("config", [*TINY.values(), TRUE_SD3, TRUE_MEDIUM, TRUE_LARGE])
def test_config_round_trip(config: MMDiTConfig) -> None:
    written = config.to_diffusers() | {
        "dual_attention_layers": list(config.dual_attention_layers),
        "_diffusers_version": "0.42.0",
    }
    assert MMDiTConfig.from_diffusers(written) == config


def test_omitted_options_have_diffusers_defaults() -> None:
    with torch.device("meta"):
        theirs = SD3Transformer2DModel()
    assert MMDiTConfig.from_diffusers({}) == MMDiTConfig.from_diffusers(dict(theirs.config))
    assert MMDiTConfig.from_diffusers({"in_channels": 8, "out_channels": None}).out_channels == 8


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("qk_norm", "layer_norm"),
        ("caption_projection_dim", 128),
        ("pos_embed_max_size", None),
        ("quantization_config", {"bits": 4}),
    ],
)
def test_unsupported_configs_are_named(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key):
        MMDiTConfig.from_diffusers(SD3.to_diffusers() | {key: value})
