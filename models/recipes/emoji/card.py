"""The figures of the model card as the table that stands in it, from what stage `evaluate` found."""

from typing import Any

ASKED = {
    "names": "concepts by plain name",
    "styled": "trained (concept, style) pairs: `3d red apple`",
    "held-out": "pairs never trained, in the same words",
    "backgrounds": "`… on a blue background`, colours that may have been trained",
    "held-out-backgrounds": "the same, (concept, colour) pairs never trained",
    "keywords": "two or three keywords without the name; any concept that bears them is right",
}
HEAD = (
    "| set | what is asked | prompts | concept top-1 | of the ceiling | top-5 | ceiling | floor | CLIP score (ceiling, floor) | |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def table(evaluation: dict[str, Any]) -> str:
    """Markdown: a row a set, in the order of `ASKED`."""
    return "\n".join([HEAD, *(_row(name, asked, evaluation["sets"][name]) for name, asked in ASKED.items())])


def _row(name: str, asked: str, found: dict[str, Any]) -> str:
    top1 = found["concept_top1"]
    cells = [
        f"`{name}`",
        asked,
        str(found["prompts"]),
        f"**{top1['rate']:.1%}** ({top1['low']:.1%} to {top1['high']:.1%})",
        f"{top1['rate'] / found['ceiling']['rate']:.1%}",
        *(f"{found[figure]['rate']:.1%}" for figure in ("concept_top5", "ceiling", "floor")),
        _second_opinion(found),
        ", ".join(_also(found)),
    ]
    return f"| {' | '.join(cells)} |"


def _second_opinion(found: dict[str, Any]) -> str:
    if "clip_score" not in found:
        return ""
    score, ceiling, floor = (found[name]["mean"] for name in ("clip_score", "clip_ceiling", "clip_floor"))
    return f"{score:.1f} ({ceiling:.1f}, {floor:.1f})"


def _also(found: dict[str, Any]) -> list[str]:
    words = {"style_accuracy": "style", "concept_and_style": "both", "background_accuracy": "background"}
    return [f"{word} {found[figure]['rate']:.1%}" for figure, word in words.items() if figure in found]
