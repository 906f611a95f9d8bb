"""T5 encoders equal transformers', and faults of folders and libraries are named."""

import copy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.families.pixart import T5Conditioning
from safelight.models.text.hf_folder import HF_WEIGHTS
from safelight.models.text.t5 import (
    EMBEDDING,
    EMBEDDING_ALIAS,
    T5Encoder,
    T5Tower,
    canonical_names,
    expected_shapes,
)
from tests.models.text.folders import VOCABULARY, edit, edit_json, randomise, shapes_in, write_t5_tokenizer

CONTEXT = 20
TEXTS = ["a red apple on the table", "", "Green APPLE, cooking.", "a  red\n apple " * 20]
SIZES = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 3}


Written = tuple[Path, T5EncoderModel]


def write(folder: Path, feed_forward_proj: str) -> Written:
    theirs = randomise(T5EncoderModel(T5Config(**SIZES, feed_forward_proj=feed_forward_proj)))
    theirs.save_pretrained(folder / "text_encoder")
    write_t5_tokenizer(folder / "tokenizer")
    return folder, theirs


@pytest.fixture(scope="module")
def modern(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(tmp_path_factory.mktemp("modern"), "gated-gelu")  # version 1.1, which PixArt and SD3 use


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(tmp_path_factory.mktemp("original"), "relu")


@pytest.fixture(params=["modern", "original"])
def written(request: pytest.FixtureRequest) -> Written:
    written: Written = request.getfixturevalue(request.param)
    return written


@pytest.fixture
def folder(modern: Written, tmp_path: Path) -> Path:
    return shutil.copytree(modern[0], tmp_path / "model")


def tower(folder: Path, dtype: torch.dtype = torch.float32) -> T5Tower:
    return T5Tower(folder / "text_encoder", folder / "tokenizer", CONTEXT, "cpu", dtype)


def their_states(folder: Path, theirs: T5EncoderModel, text: str) -> tuple[Tensor, Tensor]:
    """States and mask of `text` by diffusers' PixArt pipelines."""
    tokenizer = T5TokenizerFast.from_pretrained(folder / "tokenizer")
    encoding = tokenizer(
        [text.lower().strip()], padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt"
    )
    ids, mask = encoding.input_ids, encoding.attention_mask
    with torch.inference_mode():
        return theirs(ids, attention_mask=mask)[0][0], mask[0].bool()


def test_states_and_mask_equal_transformers(written: Written) -> None:
    ours = tower(written[0])
    for text in TEXTS:
        states, mask = their_states(*written, text)
        reading = ours.read(text)
        torch.testing.assert_close(reading.states, states, atol=1e-4 * states.std().item(), rtol=0)
        assert torch.equal(reading.mask, mask)
        assert reading.pooled is None


def test_bfloat16_states_are_close_in_direction(written: Written) -> None:
    folder, theirs = written
    ours, rounded = tower(folder, torch.bfloat16), copy.deepcopy(theirs).to(torch.bfloat16)
    for text in TEXTS:
        expected, states = their_states(folder, theirs, text)[0], ours.read(text).states
        assert torch.cosine_similarity(states.flatten(), expected.flatten(), dim=0) >= 0.999
        assert torch.equal(states, their_states(folder, rounded, text)[0].float())


def test_long_texts_are_truncated_and_reported(modern: Written) -> None:
    ours = tower(modern[0])
    fits, cut = ours.read("apple " * (CONTEXT - 1)), ours.read("apple " * CONTEXT)
    assert (fits.num_tokens, fits.truncated) == (CONTEXT - 1, False)
    assert (cut.num_tokens, cut.truncated) == (CONTEXT, True)
    assert torch.equal(fits.states, cut.states)
    assert fits.mask.all()


def test_words_that_t5_has_no_token_for_are_named(modern: Written) -> None:
    ours = tower(modern[0])
    assert ours.read("a 東京 apple 🦊 東京").unknown_words == ("東京", "🦊")
    assert ours.read("a red apple").unknown_words == ()


def test_the_expected_shapes_are_what_transformers_writes(written: Written) -> None:
    assert expected_shapes(written[0] / "text_encoder") == shapes_in(written[0] / "text_encoder")


def test_flops_equal_the_counter_of_torch(written: Written) -> None:
    encoder = T5Encoder(written[0] / "text_encoder", written[0] / "tokenizer", CONTEXT, "cpu", torch.float32)
    shadow = copy.deepcopy(encoder._network).to("meta")  # the counter ignores attention on processors
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        shadow(torch.empty(1, CONTEXT, dtype=torch.long, device="meta"))
    assert encoder.flops_per_text == tower(written[0]).flops_per_text == counter.get_total_flops()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("encoder.final_layer_norm.weight"), r"encoder\.final_layer_norm\.weight is missing"),
        (lambda t: t.pop(EMBEDDING), r"tensor shared\.weight is missing$"),
        (lambda t: t.update(stowaway=torch.zeros(1)), "stowaway is not expected"),
        (
            lambda t: t.update({EMBEDDING: torch.zeros(9, 32)}),
            r"shared\.weight has shape \(9, 32\), expected \(256, 32\)",
        ),
    ],
    ids=["missing", "no embedding", "extra", "shape"],
)
def test_weights_are_loaded_strictly(
    folder: Path, change: Callable[[dict[str, Tensor]], object], match: str
) -> None:
    edit(folder / "text_encoder", change)
    with pytest.raises(CheckpointError, match=match):
        tower(folder)


@pytest.mark.parametrize(
    "names", [[EMBEDDING], [EMBEDDING_ALIAS], [EMBEDDING, EMBEDDING_ALIAS]], ids=" and ".join
)
def test_the_tied_embedding_may_have_either_name(modern: Written, folder: Path, names: list[str]) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        embedding = tensors.pop(EMBEDDING)
        tensors.update({name: embedding.clone() for name in names})

    edit(folder / "text_encoder", rename)
    assert torch.equal(tower(folder).read("a red apple").states, tower(modern[0]).read("a red apple").states)
    assert canonical_names(shapes_in(folder / "text_encoder")) == expected_shapes(folder / "text_encoder")


def test_shards_load(modern: Written, tmp_path: Path) -> None:
    modern[1].save_pretrained(tmp_path / "text_encoder", max_shard_size="20KB")
    assert len(list((tmp_path / "text_encoder").glob("*.safetensors"))) > 1
    shutil.copytree(modern[0] / "tokenizer", tmp_path / "tokenizer")
    assert torch.equal(tower(tmp_path).read("apple").states, tower(modern[0]).read("apple").states)


def test_a_pickle_is_refused(folder: Path) -> None:
    (folder / "text_encoder" / HF_WEIGHTS).rename(folder / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle"):
        tower(folder)


@pytest.mark.parametrize(
    ("file", "changes", "match"),
    [
        (
            "text_encoder/config.json",
            {"model_type": "umt5"},
            r"config\.json: model_type is 'umt5', expected 't5'",
        ),
        (
            "text_encoder/config.json",
            {"feed_forward_proj": "gated-silu"},
            r"config\.json: feed_forward_proj is 'gated-silu', only relu, gated-gelu",
        ),
        (
            "text_encoder/config.json",
            {"d_model": "wide"},
            r"config\.json: d_model is 'wide', expected a whole number, at least 0",
        ),
        ("text_encoder/config.json", {"dropout_rate": "much"}, r"config\.json is not a T5's: "),
        (
            "text_encoder/config.json",
            {"vocab_size": 60},
            r"tokenizer is not this encoder's tokenizer: it has \d+ tokens",
        ),
        ("text_encoder/config.json", {"eos_token_id": 7}, "tokenizer is not this encoder's tokenizer"),
    ],
)
def test_a_wrong_config_is_named(folder: Path, file: str, changes: dict[str, Any], match: str) -> None:
    edit_json(folder / file, **changes)
    with pytest.raises(CheckpointError, match=match):
        tower(folder)


def test_a_missing_or_malformed_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="tokenizer is not a T5 tokenizer"):
        tower(folder)
    (folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"spiece\.model is missing, and so is tokenizer\.json"):
        tower(folder)


def test_the_network_can_be_imported_ahead_of_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers is missing, that is an error of loading only."""
    imported = []

    class Library(ModuleType):
        def __getattr__(self, name: str) -> None:
            imported.append(name)

    monkeypatch.setitem(sys.modules, "transformers", Library("transformers"))
    T5Conditioning(num_tokens=300).import_libraries()
    assert "T5EncoderModel" in imported
    monkeypatch.setitem(sys.modules, "transformers", None)
    T5Conditioning(num_tokens=300).import_libraries()


def test_missing_libraries_are_named_with_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        CheckpointError, match=r"needs transformers: in the checkout, pip install -e '.\[t5\]'"
    ):
        tower(folder)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    (folder / "tokenizer" / "tokenizer.json").rename(folder / "tokenizer" / "spiece.model")
    with pytest.raises(
        CheckpointError, match=r"spiece\.model needs sentencepiece: in the checkout, pip install -e '.\[t5\]'"
    ):
        tower(folder)


def test_a_sentencepiece_tokenizer_equals_sentencepiece(folder: Path, tmp_path: Path) -> None:
    """PixArt's folders have a sentencepiece model only."""
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "corpus.txt").write_text("a red apple on the green table under a tree, in the house\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(folder / "tokenizer" / "spiece"), vocab_size=40,
        hard_vocab_limit=False, model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer" / "tokenizer.json").unlink()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer" / "spiece.model"))
    encoder = T5Encoder(folder / "text_encoder", folder / "tokenizer", CONTEXT, "cpu", torch.float32)
    for text in ("a red apple", "a  house\nunder", ""):
        pieces = processor.encode(text)
        assert encoder.tokenise(text).ids.tolist() == [*pieces, 1] + [0] * (CONTEXT - len(pieces) - 1)
