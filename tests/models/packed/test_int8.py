"""Layers in int8 against exact ones, alone and in company, and networks made of them. All of them really compiled."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.models.denoisers import pack
from safelight.models.networks.class_dit import ClassDiT
from safelight.models.networks.config import ClassDiTConfig
from safelight.models.packed.attention import BACKENDS
from safelight.models.packed.dit import PackedDiT
from safelight.models.packed.int8 import FEWEST_TOKENS, MLP_TOKENS, Int8, QuantizationUnavailable, _kernels
from safelight.models.packed.mmdit import PackedMMDiT
from tests.models.networks.test_mmdit import TINY
from tests.models.packed import test_dit as dits
from tests.models.packed import test_mmdit as mmdits

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
CPU = torch.device("cpu")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def layer(width: int, out: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return drawn(out, width, seed=seed, dtype=dtype) / width**0.5, drawn(out, seed=seed + 1, dtype=dtype)


@torch.inference_mode()
@DTYPES
@pytest.mark.parametrize("tokens", [1, 5, 70, MLP_TOKENS + 3])
def test_layers_are_close_to_exact_ones(dtype: torch.dtype, tokens: int) -> None:
    maker, x = Int8.on(CPU, dtype), drawn(tokens, 48, seed=5, dtype=dtype)
    x[0] *= 100  # one loud token must not make the others coarse
    one, (rise, fall) = layer(48, 40, 1, dtype), (layer(48, 80, 3, dtype), layer(80, 48, 7, dtype))
    found, wanted = maker.linear(*one)(x), F.linear(x, *one)
    between = F.gelu(F.linear(x, *rise), approximate="tanh")
    found_mlp, wanted_mlp = maker.feed_forward(rise, fall)(x), F.linear(between, *fall)
    assert (found.dtype, found.shape, found_mlp.shape) == (dtype, wanted.shape, wanted_mlp.shape)
    for token in range(tokens):
        assert off(found[token], wanted[token]) < 0.03
        assert off(found_mlp[token], wanted_mlp[token]) < 0.05


@torch.inference_mode()
def test_whole_numbers_are_multiplied_exactly() -> None:
    """On a token and weights that int8 holds without rounding only the scales are left, each a rounding of float32."""
    x, weight = (
        torch.arange(-127.0, 128.0).repeat(70, 1),
        torch.randint(-127, 128, (24, 255), generator=torch.Generator().manual_seed(0)),
    )
    weight[:, 0] = 127
    found = Int8.on(CPU, torch.float32).linear(weight.float(), torch.zeros(24))(x)
    torch.testing.assert_close(found, x @ weight.float().t(), rtol=1e-5, atol=0.5)


@torch.inference_mode()
@DTYPES
def test_the_bits_of_a_token_do_not_depend_on_its_neighbours(dtype: torch.dtype) -> None:
    maker = Int8.on(CPU, dtype)
    one, mlp = (
        maker.linear(*layer(48, 40, 1, dtype)),
        maker.feed_forward(layer(48, 80, 3, dtype), layer(80, 48, 7, dtype)),
    )
    x = drawn(MLP_TOKENS + 300, 48, seed=9, dtype=dtype)
    for each in (one, mlp):
        whole = each(x)
        for start, count in (
            (0, 1),
            (7, 2),
            (100, 16),
            (65, 63),
            (30, FEWEST_TOKENS),
            (MLP_TOKENS - 9, 129),
            (3, MLP_TOKENS + 1),
        ):
            assert torch.equal(each(x[start : start + count]), whole[start : start + count])


@torch.inference_mode()
def test_a_token_that_is_no_number_stays_one_and_stays_alone() -> None:
    maker = Int8.on(CPU, torch.float32)
    mlp, x = (
        maker.feed_forward(layer(48, 80, 3, torch.float32), layer(80, 48, 7, torch.float32)),
        drawn(70, 48),
    )
    sound = mlp(x)
    x[3, 5] = torch.nan
    found = mlp(x)
    assert not found[3].isfinite().any()
    assert torch.equal(torch.cat([found[:3], found[4:]]), torch.cat([sound[:3], sound[4:]]))


@torch.inference_mode()
@DTYPES
def test_a_dit_in_int8_is_close_to_the_plain_one_whatever_runs_beside(dtype: torch.dtype) -> None:
    network = PackedDiT(dits.plain(dtype), BACKENDS["fused"], Int8.on(CPU, dtype))
    states, mask = dits.text(9, 16, 5, dtype)
    mine, other = dits.row(network, states, mask), dits.row(network, *dits.text(3, 32, 20, dtype))
    x, beside = dits.latents(7, 1, (16, 16), dtype), dits.latents(8, 5, (16, 16), dtype)
    [alone] = network.predict([x], network.collate([mine], [(16, 16)]), [4])
    wanted = dits.expected(x[0].float(), states.float(), mask, 4)
    assert 1e-4 < off(alone[0], wanted) < 0.1  # what is exact is not int8
    for place in range(6):
        group = torch.cat([beside[:place], x, beside[place:]])
        rows = [*[other] * place, mine, *[mine] * (5 - place)]
        small = dits.latents(4, 1, (6, 4), dtype)
        collated = network.collate([other, *rows], [(6, 4), *[(16, 16)] * 6])
        together = network.predict([small, group], collated, [1, *[2] * place, 4, *[5] * (5 - place)])
        assert torch.equal(together[1][place], alone[0])


@torch.inference_mode()
@DTYPES
@pytest.mark.parametrize("config", TINY.values(), ids=TINY)
def test_an_mmdit_in_int8_likewise(config, dtype: torch.dtype) -> None:
    exact = mmdits.packed(config, dtype=dtype)
    network = PackedMMDiT(mmdits.plain(config, dtype), BACKENDS["fused"], Int8.on(CPU, dtype))
    x, beside = mmdits.latents(config, 7, 1, (16, 16), dtype), mmdits.latents(config, 8, 3, (16, 16), dtype)

    def predicted(net: PackedMMDiT, group: Tensor, place: int) -> Tensor:
        rows = [
            mmdits.row(net, *mmdits.text(config, 9 if k == place else k, dtype)) for k in range(len(group))
        ]
        return net.predict([group], net.collate(rows, [(16, 16)] * len(group)), [4] * len(group))[0][place]

    alone = predicted(network, x, 0)
    assert 1e-4 < off(alone, predicted(exact, x, 0)) < 0.2
    assert torch.equal(predicted(network, torch.cat([beside, x]), 3), alone)


def test_where_it_does_not_work_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Tensor) -> Tensor:
        raise RuntimeError("no such\nproduct")

    monkeypatch.setattr(torch, "_int_mm", broken)
    with pytest.raises(
        QuantizationUnavailable, match="int8 does not work on cpu here: RuntimeError: no such product"
    ):
        Int8.on(CPU, torch.float32)
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.int() @ b.int()) // 2)
    with pytest.raises(QuantizationUnavailable, match="int8 gives wrong numbers on cpu here"):
        Int8.on(CPU, torch.float32)


def test_a_network_whose_rows_are_not_packed_has_none() -> None:
    with pytest.raises(QuantizationUnavailable, match="whose rows are packed"):
        pack(ClassDiT(ClassDiTConfig(num_layers=1)), "int8")


def test_what_is_small_stays_exact() -> None:
    """Into tokens, out of tokens and the text: only six products of a block are in int8."""
    made: list[tuple[int, ...]] = []

    class Noted:
        def linear(self, weight: Tensor, bias: Tensor):
            made.append(tuple(weight.shape))
            return lambda x: F.linear(x, weight, bias)

        def feed_forward(self, rise, fall):
            made.extend((tuple(rise[0].shape), tuple(fall[0].shape)))
            return lambda x: F.linear(F.gelu(F.linear(x, *rise), approximate="tanh"), *fall)

    PackedDiT(dits.plain(), BACKENDS["fused"], Noted())
    width = dits.CONFIG.width
    assert (
        made
        == [(3 * width, width), *[(width, width)] * 3, (4 * width, width), (width, 4 * width)]
        * dits.CONFIG.num_layers
    )


def test_kernels_are_compiled_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda step, **_: compiled.append(step) or step)
    _kernels.cache_clear()
    try:
        for width in (24, 48):
            maker = Int8(_kernels(True, torch.float32))
            weight, bias = torch.randn(width, width), torch.randn(width)
            maker.linear(weight, bias)
            maker.feed_forward((weight, bias), (weight, bias))
        assert len(compiled) == 3  # quantize, restore, activate
    finally:
        _kernels.cache_clear()
