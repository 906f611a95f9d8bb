"""int8 layers and networks against exact ones, alone and in batches. The kernels are really compiled."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.models.denoisers import pack
from safelight.models.networks.class_dit import ClassDiT
from safelight.models.networks.config import ClassDiTConfig, MMDiTConfig
from safelight.models.packed import int8
from safelight.models.packed.attention import BACKENDS
from safelight.models.packed.dit import PackedDiT
from safelight.models.packed.int8 import MIN_TOKENS, MLP_CHUNK, Int8, QuantizationUnavailable, _kernels
from safelight.models.packed.linear import LinearFunction, Unquantized
from safelight.models.packed.mmdit import PackedMMDiT
from tests.models.networks.test_mmdit import TINY
from tests.models.packed import test_dit as dits
from tests.models.packed import test_mmdit as mmdits

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
CPU = torch.device("cpu")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def random_tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def relative_error(output: Tensor, expected: Tensor) -> float:
    return float((output.float() - expected.float()).norm() / expected.float().norm())


def layer(width: int, out: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    weight = random_tensor(out, width, seed=seed, dtype=dtype) / width**0.5
    return weight, random_tensor(out, seed=seed + 1, dtype=dtype)


@torch.inference_mode()
@DTYPES
@pytest.mark.parametrize("tokens", [1, 5, 70, MLP_CHUNK + 3])
def test_layers_are_close_to_exact_ones(dtype: torch.dtype, tokens: int) -> None:
    factory, x = Int8.on(CPU, dtype), random_tensor(tokens, 48, seed=5, dtype=dtype)
    x[0] *= 100  # one large token must not cost the others precision
    single, up, down = layer(48, 40, 1, dtype), layer(48, 80, 3, dtype), layer(80, 48, 7, dtype)
    linear, exact_linear = factory.linear(*single)(x), F.linear(x, *single)
    hidden = F.gelu(F.linear(x, *up), approximate="tanh")
    mlp, exact_mlp = factory.feed_forward(up, down)(x), F.linear(hidden, *down)
    assert (linear.dtype, linear.shape, mlp.shape) == (dtype, exact_linear.shape, exact_mlp.shape)
    for token in range(tokens):
        assert relative_error(linear[token], exact_linear[token]) < 0.03
        assert relative_error(mlp[token], exact_mlp[token]) < 0.05


@torch.inference_mode()
@pytest.mark.parametrize("is_unsigned", [True, False])
def test_integers_are_the_nearest(is_unsigned: bool) -> None:
    x = random_tensor(67, 48)
    integers, largest = int8._kernels(is_unsigned, torch.float32).quantize(x)
    torch.testing.assert_close(largest, x.abs().amax(1, keepdim=True))
    scaled = x * (127 / largest)
    error = integers.int() - (128 if is_unsigned else 0) - scaled
    assert float(error.abs().max()) <= 0.501


@torch.inference_mode()
def test_integers_are_multiplied_exactly() -> None:
    """With tokens and weights that int8 holds exactly, only the float32 scales round."""
    x = torch.arange(-127.0, 128.0).repeat(70, 1)
    weight = torch.randint(-127, 128, (24, 255), generator=torch.Generator().manual_seed(0))
    weight[:, 0] = 127
    output = Int8.on(CPU, torch.float32).linear(weight.float(), torch.zeros(24))(x)
    torch.testing.assert_close(output, x @ weight.float().t(), rtol=1e-5, atol=0.5)


@torch.inference_mode()
@DTYPES
def test_the_bits_of_a_token_do_not_depend_on_its_batch_mates(dtype: torch.dtype) -> None:
    factory = Int8.on(CPU, dtype)
    linear = factory.linear(*layer(48, 40, 1, dtype))
    mlp = factory.feed_forward(layer(48, 80, 3, dtype), layer(80, 48, 7, dtype))
    x = random_tensor(MLP_CHUNK + 300, 48, seed=9, dtype=dtype)
    for function in (linear, mlp):
        whole = function(x)
        for start, count in (
            (0, 1),
            (7, 2),
            (100, 16),
            (65, 63),
            (30, MIN_TOKENS),
            (MLP_CHUNK - 9, 129),
            (3, MLP_CHUNK + 1),
        ):
            assert torch.equal(function(x[start : start + count]), whole[start : start + count])


@torch.inference_mode()
def test_a_nan_stays_in_its_token() -> None:
    factory = Int8.on(CPU, torch.float32)
    mlp = factory.feed_forward(layer(48, 80, 3, torch.float32), layer(80, 48, 7, torch.float32))
    x = random_tensor(70, 48)
    finite = mlp(x)
    x[3, 5] = torch.nan
    output = mlp(x)
    assert not output[3].isfinite().any()
    assert torch.equal(torch.cat([output[:3], output[4:]]), torch.cat([finite[:3], finite[4:]]))


@torch.inference_mode()
@DTYPES
def test_a_dit_in_int8_is_close_to_the_plain_one_in_every_batch(dtype: torch.dtype) -> None:
    network = PackedDiT(dits.plain(dtype), BACKENDS["fused"], Int8.on(CPU, dtype))
    states, mask = dits.text(9, 16, 5, dtype)
    tested, other = dits.row(network, states, mask), dits.row(network, *dits.text(3, 32, 20, dtype))
    x, batch_mates = dits.latents(7, 1, (16, 16), dtype), dits.latents(8, 5, (16, 16), dtype)
    [alone] = network.predict([x], network.collate([tested], [(16, 16)]), [4])
    exact = dits.expected(x[0].float(), states.float(), mask, 4)
    assert 1e-4 < relative_error(alone[0], exact) < 0.1  # without an error it would not be int8
    for place in range(6):
        group = torch.cat([batch_mates[:place], x, batch_mates[place:]])
        rows = [*[other] * place, tested, *[tested] * (5 - place)]
        small = dits.latents(4, 1, (6, 4), dtype)
        collated = network.collate([other, *rows], [(6, 4), *[(16, 16)] * 6])
        together = network.predict([small, group], collated, [1, *[2] * place, 4, *[5] * (5 - place)])
        assert torch.equal(together[1][place], alone[0])


@torch.inference_mode()
@DTYPES
@pytest.mark.parametrize("config", TINY.values(), ids=TINY)
def test_an_mmdit_in_int8_is_close_to_the_exact_one_in_every_batch(
    config: MMDiTConfig, dtype: torch.dtype
) -> None:
    exact = mmdits.packed(config, dtype=dtype)
    network = PackedMMDiT(mmdits.plain(config, dtype), BACKENDS["fused"], Int8.on(CPU, dtype))
    x = mmdits.latents(config, 7, 1, (16, 16), dtype)
    batch_mates = mmdits.latents(config, 8, 3, (16, 16), dtype)

    def predict(net: PackedMMDiT, group: Tensor, place: int) -> Tensor:
        rows = [
            mmdits.row(net, *mmdits.text(config, 9 if k == place else k, dtype)) for k in range(len(group))
        ]
        return net.predict([group], net.collate(rows, [(16, 16)] * len(group)), [4] * len(group))[0][place]

    alone = predict(network, x, 0)
    assert 1e-4 < relative_error(alone, predict(exact, x, 0)) < 0.2
    assert torch.equal(predict(network, torch.cat([batch_mates, x]), 3), alone)


def test_a_device_without_int8_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_networks_without_packed_rows_have_no_int8() -> None:
    with pytest.raises(QuantizationUnavailable, match="whose rows are packed"):
        pack(ClassDiT(ClassDiTConfig(num_layers=1)), "int8")


def test_small_layers_stay_exact() -> None:
    """The factory makes the six large layers of a block, not the patch, text or output layers."""
    shapes: list[tuple[int, ...]] = []

    class RecordingFactory(Unquantized):
        def linear(self, weight: Tensor, bias: Tensor) -> LinearFunction:
            shapes.append(tuple(weight.shape))
            return lambda x: F.linear(x, weight, bias)

        def feed_forward(self, up: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor]) -> LinearFunction:
            shapes.extend((tuple(up[0].shape), tuple(down[0].shape)))
            return lambda x: F.linear(F.gelu(F.linear(x, *up), approximate="tanh"), *down)

    PackedDiT(dits.plain(), BACKENDS["fused"], RecordingFactory())
    width = dits.CONFIG.width
    block = [(3 * width, width), *[(width, width)] * 3, (4 * width, width), (width, 4 * width)]
    assert shapes == block * dits.CONFIG.num_layers


def test_kernels_are_compiled_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Callable[..., object]] = []

    def record(step: Callable[..., object], **_: object) -> Callable[..., object]:
        compiled.append(step)
        return step

    monkeypatch.setattr(torch, "compile", record)
    _kernels.cache_clear()
    try:
        for width in (24, 48):
            factory = Int8(_kernels(True, torch.float32))
            weight, bias = torch.randn(width, width), torch.randn(width)
            factory.linear(weight, bias)
            factory.feed_forward((weight, bias), (weight, bias))
        assert len(compiled) == 3  # quantize, restore, activate
    finally:
        _kernels.cache_clear()
