"""The class-conditional DiT against diffusers' DiTTransformer2DModel on shared random weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.checkpoints.tensors import load_into, shapes_of
from safelight.models.networks.attention import BACKENDS
from safelight.models.networks.class_dit import ClassDiT, Row
from safelight.models.networks.config import ClassDiTConfig
from safelight.models.networks.layers import unpatchify
from tests.models.closeness import assert_near

NULL = 10
TINY = ClassDiTConfig(
    num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=3, sample_size=16,
    num_embeds_ada_norm=NULL,
    norm_eps=0.1,  # large, so that a norm with another value differs
)  # fmt: skip
XL = ClassDiTConfig(out_channels=8)  # DiT-XL/2 at 256
XL_BLOCK = replace(XL, num_layers=1, sample_size=8)

SIZES = [(16, 16), (24, 24), (8, 32)]
NO_STATES, NO_MASK = torch.empty(0, 0), torch.empty(0, dtype=torch.bool)
Networks = tuple[ClassDiT, DiTTransformer2DModel]


def randomise(module: nn.Module, seed: int) -> None:
    """Fill every parameter from `seed`: gates are open and biases are not zero."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.uniform_(-1, 1, generator=g)
            if tensor.ndim > 1 and "embedding_table" not in name:
                tensor.mul_((3 / tensor[0].numel()) ** 0.5)


def pair(config: ClassDiTConfig) -> Networks:
    theirs = DiTTransformer2DModel.from_config(config.to_diffusers()).eval()
    randomise(theirs, seed=0)
    ours = ClassDiT(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.fixture(scope="module")
def networks() -> Networks:
    return pair(TINY)


def inputs(size: tuple[int, int], classes: int = NULL) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, times and classes; the last class is the null class."""
    x = torch.randn(3, 4, *size, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([999.0, 500.25, 3.0]), torch.tensor([7, 0, classes])


def forward(network: ClassDiT, x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
    with torch.inference_mode():
        rows = [row(network, t[r : r + 1], classes[r : r + 1]) for r in range(len(x))]
        return network.predict(x, network.collate(rows), [0] * len(x))


def row(network: ClassDiT, timesteps: Tensor, class_index: Tensor | None) -> Row:
    return network.prepare_row(NO_STATES, NO_MASK, class_index, network.prepare_times(timesteps, (128, 128)))


def forward_theirs(theirs: DiTTransformer2DModel, x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
    """diffusers' result. It arranges the patches of every image in a square, which this undoes."""
    with torch.inference_mode():
        square = theirs(x, timestep=t, class_labels=classes, return_dict=False)[0]
    height, width, patch = *x.shape[-2:], theirs.config.patch_size
    side = square.shape[-1] // patch
    tokens = (
        square.unflatten(3, (side, patch))
        .unflatten(2, (side, patch))
        .permute(0, 2, 4, 3, 5, 1)
        .flatten(3)
        .flatten(1, 2)
    )
    return unpatchify(tokens, height, width, patch)


def assert_points_the_same_way(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.bfloat16
    assert (torch.cosine_similarity(actual.float().flatten(1), expected.flatten(1)) >= 0.999).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_diffusers(networks: Networks, size: tuple[int, int]) -> None:
    ours, theirs = networks
    expected = forward_theirs(theirs, *inputs(size))
    assert expected.shape == (3, 8, *size)
    assert_near(forward(ours, *inputs(size)), expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bfloat16_is_close_in_direction_to_diffusers_in_float32(size: tuple[int, int]) -> None:
    ours, theirs = pair(TINY)
    x, t, classes = inputs(size)
    assert_points_the_same_way(
        forward(ours.bfloat16(), x.bfloat16(), t, classes), forward_theirs(theirs, x, t, classes)
    )


def test_a_block_of_the_true_width_equals_diffusers_in_both_dtypes() -> None:
    """The embeddings before the block and the last norm are included."""
    ours, theirs = pair(XL_BLOCK)
    x, t, classes = inputs((8, 8), classes=1000)
    expected = forward_theirs(theirs, x, t, classes)
    assert_near(forward(ours, x, t, classes), expected)
    assert_points_the_same_way(forward(ours.bfloat16(), x.bfloat16(), t, classes), expected)


def test_the_true_network_has_diffusers_tensors_and_the_papers_size() -> None:
    with torch.device("meta"):
        ours, theirs = ClassDiT(XL), DiTTransformer2DModel.from_config(XL.to_diffusers())
    assert shapes_of(ours.state_dict()) == shapes_of(theirs.state_dict())
    count = sum(parameter.numel() for parameter in ours.parameters())
    embedders = sum(parameter.numel() for parameter in ours.transformer_blocks[0].norm1.emb.parameters())
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
    # The paper's network has the embedders once.
    assert count - 27 * embedders == pytest.approx(675e6, rel=0.01)


def test_a_folder_that_diffusers_wrote_is_loaded(networks: Networks, tmp_path: Path) -> None:
    ours, theirs = networks
    theirs.save_pretrained(tmp_path)
    with torch.device("meta"):
        empty = ClassDiT(TINY)
    loaded = load_into(empty, tmp_path, "cpu", torch.float32)
    assert torch.equal(forward(loaded, *inputs((16, 16))), forward(ours, *inputs((16, 16))))


def test_rows_of_different_plans_and_classes_run_together(networks: Networks) -> None:
    ours, theirs = networks
    x, _, classes = inputs((16, 16))
    plans, steps = (
        [torch.tensor([900.0, 400.0, 20.0]), torch.tensor([750.5, 1.0]), torch.tensor([33.0])],
        [2, 1, 0],
    )
    with torch.inference_mode():
        rows = [row(ours, plan, classes[r : r + 1]) for r, plan in enumerate(plans)]
        together = ours.predict(x, ours.collate(rows), steps)
        alone = [ours.predict(x[r : r + 1], ours.collate([rows[r]]), [steps[r]]) for r in range(3)]
        elsewhere = ours.predict(x, ours.collate(rows), [0, 0, 0])
    current_times = torch.stack([plan[step] for plan, step in zip(plans, steps, strict=True)])
    assert_near(together, torch.cat(alone), tolerance=1e-5)
    assert_near(together, forward_theirs(theirs, x, current_times, classes))
    assert not torch.allclose(together[:2], elsewhere[:2], atol=1e-3)


@pytest.mark.parametrize(
    "pooled", [None, torch.tensor([7.0]), torch.tensor([7.0], dtype=torch.bfloat16)], ids=str
)
def test_a_row_needs_an_integer_class_index(networks: Networks, pooled: Tensor | None) -> None:
    with pytest.raises(ValueError, match="class index"):
        row(networks[0], torch.tensor([10.0]), pooled)


def test_plain_attention_gives_the_same_result(networks: Networks) -> None:
    ours, _ = networks
    plain = ClassDiT(TINY, BACKENDS["plain"]).eval()
    plain.load_state_dict(ours.state_dict(), strict=True)
    assert_near(forward(plain, *inputs((8, 32))), forward(ours, *inputs((8, 32))))


@pytest.mark.parametrize("config", [TINY, XL])
def test_config_round_trip(config: ClassDiTConfig) -> None:
    assert ClassDiTConfig.from_diffusers(config.to_diffusers() | {"_diffusers_version": "0.42.0"}) == config


def test_omitted_options_have_diffusers_defaults() -> None:
    with torch.device("meta"):
        theirs = DiTTransformer2DModel()
    assert (
        ClassDiTConfig.from_diffusers({})
        == ClassDiTConfig.from_diffusers(dict(theirs.config))
        == ClassDiTConfig()
    )
    assert ClassDiTConfig.from_diffusers({"in_channels": 16}).out_channels == 16


def test_extra_options_of_old_folders_are_accepted() -> None:
    """The options of `Transformer2DModel`, the class under which these networks were first saved."""
    options = {
        "_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero", "attention_bias": True,
        "attention_type": "default", "cross_attention_dim": None, "double_self_attention": False,
        "num_vector_embeds": None, "only_cross_attention": False, "use_linear_projection": False,
        "dropout": 0.0, "norm_num_groups": 32, "caption_channels": None,
    }  # fmt: skip
    assert ClassDiTConfig.from_diffusers(XL.to_diffusers() | options) == XL


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("norm_type", "ada_norm_single"), ("activation_fn", "geglu"), ("norm_elementwise_affine", True),
        ("attention_bias", False), ("upcast_attention", True), ("attention_type", "gated"),
        ("num_embeds_ada_norm", None), ("cross_attention_dim", 768), ("quantization_config", {"bits": 4}),
    ],
)  # fmt: skip
def test_unsupported_configs_are_named(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key):
        ClassDiTConfig.from_diffusers(TINY.to_diffusers() | {key: value})
