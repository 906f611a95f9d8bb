"""Weights, LoRA tags and command flags in prompts: found, reported, and never drawn."""

import json

import pytest

from safelight.models.find_checkpoint import find_checkpoint
from safelight.models.text.clip import ClipTextTower
from safelight.models.text.prompt_syntax import PlainPrompt, read_prompt

CASES = {
    "(red apple:1.3)": ("red apple", ("(red apple:1.3)",)),
    "( red apple : .5 )": ("red apple", ("( red apple : .5 )",)),
    "((red apple))": ("red apple", ("((red apple))",)),
    "((red) apple:1.3)": ("red apple", ("((red) apple:1.3)",)),
    "(red (apple:1.2) car:0.9)": ("red apple car", ("(red (apple:1.2) car:0.9)",)),
    "[red apple]": ("red apple", ("[red apple]",)),
    "[[red]] {apple}": ("red apple", ("[[red]]", "{apple}")),
    "[red:green:0.5] apple": ("red green apple", ("[red:green:0.5]",)),
    "[red apple::10]": ("red apple", ("[red apple::10]",)),
    "[red|green] apple": ("red green apple", ("[red|green]",)),
    "([red:green:3] apple:1.2)": ("red green apple", ("([red:green:3] apple:1.2)",)),
    "(red apple:1.3": ("red apple", ("(red apple:1.3",)),
    "(red apple)1.3": ("red apple", ("(red apple)1.3",)),
    "red apple++": ("red apple", ("++",)),
    "red apple:1.3": ("red apple", (":1.3",)),
    "red apple::2": ("red apple", ("::2",)),
    "<lora:x:0.8> red apple": ("red apple", ("<lora:x:0.8>",)),
    "red apple, <lora:a-b_c.d:1:0.5>, <hypernet:y:1>": (
        "red apple",
        ("<lora:a-b_c.d:1:0.5>", "<hypernet:y:1>"),
    ),
    "red apple embedding:bad.pt __fruit__": ("red apple", ("embedding:bad.pt", "__fruit__")),
    "red apple --v 6 --fast": ("red apple", ("--v 6", "--fast")),
    "red apple --ar 16:9 --style raw --no green leaves --s=50": (
        "red apple",
        ("--ar 16:9", "--style raw", "--no green leaves", "--s=50"),
    ),
    "--v 6.1 red apple": ("red apple", ("--v 6.1",)),
    "red apple --fast on a table": ("red apple on a table", ("--fast",)),
    "red apple \u2014v 6 \u2014fast": ("red apple", ("\u2014v 6", "\u2014fast")),
    "red apple BREAK green pear": ("red apple green pear", ("BREAK",)),
    "red apple :1.2 AND pear :0.8": ("red apple pear", (":1.2", "AND", ":0.8")),
}
PLAIN = (
    "a red apple", "", "RED APPLE AND PEAR", "an apple (fruit)", "A button (blood type)", "person: red hair",
    "keycap: 5", "at 10:30", "rock-n-roll", "a -- b", "an apple \u2014red and green\u2014 here", ":)", "(((",
    "1:2", "<b>x</b>", "a+", "breaking band", "50% (approx.)-ish", "x [", "snake_case_name",
)  # fmt: skip


@pytest.mark.parametrize("text", CASES)
def test_marks_are_taken_out_and_listed(text: str) -> None:
    assert read_prompt(text) == PlainPrompt(*CASES[text])


@pytest.mark.parametrize("text", PLAIN)
def test_other_text_is_unchanged(text: str) -> None:
    assert read_prompt(text) == PlainPrompt(text, ())


def test_no_name_of_the_model_is_taken_for_a_mark() -> None:
    path = find_checkpoint("emoji-128").folder
    entries = json.loads((path / "gallery.json").read_text())["entries"]
    names = {name for entry in entries for name in (entry["label"], *entry["keywords"])}
    prompts = [
        json.loads(line)["prompt"]
        for file in sorted((path / "prompts").glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    assert len(prompts) == 3500
    assert [text for text in (*names, *prompts) if read_prompt(text).marks] == []


def test_the_embedded_model_draws_the_words_without_marks() -> None:
    tower = ClipTextTower(find_checkpoint("emoji-128").folder / "text_encoder")
    for text, (plain, marks) in CASES.items():
        tokenised = tower.tokenise(text)
        assert tokenised.ids.tolist() == tower.tokenise(plain).ids.tolist(), text
        assert tokenised.prompt_syntax == marks and tokenised.num_tokens > 0
        assert tower.read(text).prompt_syntax == marks
