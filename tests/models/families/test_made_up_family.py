"""A family that is added by one module is recognised, checked, sized, counted, built, packed and served."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from safelight.models.checkpoints.writer import write_part
from safelight.models.denoisers import example_text, load_network, pack
from safelight.models.families import registry
from safelight.models.packed.int8 import QuantizationUnavailable
from safelight.pipeline.assembly.check import check_folder
from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_engine
from safelight.pipeline.capacity.model_profiles import model_profile
from safelight.pipeline.catalog.served_models import UnknownModel, find_model, list_families
from safelight.pipeline.engine.engine import SampleOutcome
from safelight.pipeline.engine.image_decoder import InvalidImage
from safelight.pipeline.flops.denoiser import forward_flops, row_flops, text_flops, times_flops
from safelight.pipeline.params import GenerationParams
from tests.models.families import plaid

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecation warnings of diffusers


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    plaid.write_plaid(tmp_path / "checkpoint")
    monkeypatch.setattr(registry, "FAMILIES", (*registry.FAMILIES, plaid.FAMILY))
    return tmp_path / "checkpoint"


def test_a_folder_of_an_unregistered_family_is_refused(tmp_path: Path) -> None:
    plaid.write_plaid(tmp_path / "checkpoint")
    with pytest.raises(UnknownModel, match="'PlaidPipeline' with these parts is not supported"):
        find_model(str(tmp_path / "checkpoint"))


def test_it_is_listed_recognised_and_sized(folder: Path) -> None:
    assert list_families()[-1] is plaid.FAMILY
    model = find_model(str(folder))
    assert (model.family, model.num_steps, model.guidance_scale) == ("plaid", 4, 2.0)
    assert model.native_size == (128, 128)
    assert (144, 112) in model.sizes
    assert (152, 104) not in model.sizes  # a bucket that is not whole patches


def test_its_folder_is_checked(folder: Path) -> None:
    report = check_folder(str(folder))
    assert (report.family, report.faults) == ("plaid", ())
    assert [part.folder for part in report.parts] == ["transformer", "vae"]
    write_part(folder / "transformer", {"_class_name": "PlaidTransformer2DModel", "warp": 1}, {})
    assert any("not supported: warp" in fault for fault in check_folder(str(folder)).faults)


def test_its_formulas_equal_the_counter(folder: Path) -> None:
    network = load_network(folder / "transformer", "cpu", torch.float32)
    states, mask, pooled = example_text(network.config)
    times = network.prepare_times(torch.tensor([1000.0, 500.0]), (64, 96))
    with FlopCounterMode(display=False) as preparing:
        row = network.prepare_row(states, mask, pooled, times)
    with FlopCounterMode(display=False) as evaluating:
        network.predict(torch.zeros(1, 4, 8, 12), network.collate([row]), [0])
    config = network.config
    assert forward_flops(config, 8, 12, len(mask)) == evaluating.get_total_flops()
    once = text_flops(config, len(mask)) + row_flops(config, len(mask), 2) + times_flops(config, 2)
    assert once == preparing.get_total_flops()
    profile = model_profile(find_model(str(folder)))
    assert profile.evaluation(8, 12) == evaluating.get_total_flops()


def test_it_is_packed_without_quantization(folder: Path) -> None:
    network = load_network(folder / "transformer", "cpu", torch.float32)
    assert pack(network).config == plaid.PlaidConfig()
    with pytest.raises(QuantizationUnavailable, match="a plaid network's are not"):
        pack(network, "int8")


def test_it_generates_images_through_the_engine(folder: Path) -> None:
    model = find_model(str(folder))
    encoder, engine, decoder = build_text_encoder(model), build_engine(model), build_decoder(model)
    for seed, (width, height) in enumerate(model.sizes[:2]):
        params = GenerationParams("a red apple", "", width, height, 4, 2.0, "euler", seed)
        cond, uncond = encoder.encode([params.prompt, params.negative_prompt])
        engine.add(str(seed), params, cond, uncond)
    outcomes: dict[str, SampleOutcome] = {}
    while engine.has_work:
        outcomes |= {outcome.request_id: outcome for outcome in engine.step()}
    latents = [outcomes[str(seed)].latents for seed in range(2)]
    images = decoder.decode([tensor for tensor in latents if tensor is not None])
    shapes = [image[0].shape for image in images if not isinstance(image, InvalidImage)]
    assert shapes == [(height, width, 3) for width, height in model.sizes[:2]]
