"""The table of rates in the model card, from the results of stage `evaluate`."""

from typing import Any

SETS = {
    "names": "concepts by plain name",
    "styled": "trained (concept, style) pairs: `3d red apple`",
    "held-out": "pairs never trained, in the same words",
    "backgrounds": "`… on a blue background`, colours that may have been trained",
    "held-out-backgrounds": "the same, (concept, colour) pairs never trained",
    "keywords": "two or three keywords without the name; any concept that bears them is right",
    "natural": "captions as people type them, in words never trained: `mic for the singer`",
}
HEAD = (
    "| set | what is asked | prompts | concept top-1 | of the ceiling | top-5 | ceiling | floor "
    "| CLIP score (ceiling, floor) | |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def table(evaluation: dict[str, Any]) -> str:
    """Markdown with one row for each set that was evaluated, in the order of `SETS`."""
    results = evaluation["sets"]
    rows = [_row(name, description, results[name]) for name, description in SETS.items() if name in results]
    return "\n".join([HEAD, *rows])


def _row(name: str, description: str, result: dict[str, Any]) -> str:
    top1 = result["concept_top1"]
    cells = [
        f"`{name}`",
        description,
        str(result["prompts"]),
        f"**{top1['rate']:.1%}** ({top1['low']:.1%} to {top1['high']:.1%})",
        f"{top1['rate'] / result['ceiling']['rate']:.1%}",
        *(f"{result[figure]['rate']:.1%}" for figure in ("concept_top5", "ceiling", "floor")),
        _clip_scores(result),
        ", ".join(_other_rates(result)),
    ]
    return f"| {' | '.join(cells)} |"


def _clip_scores(result: dict[str, Any]) -> str:
    if "clip_score" not in result:
        return ""
    score, ceiling, floor = (result[name]["mean"] for name in ("clip_score", "clip_ceiling", "clip_floor"))
    return f"{score:.1f} ({ceiling:.1f}, {floor:.1f})"


def _other_rates(result: dict[str, Any]) -> list[str]:
    words = {"style_accuracy": "style", "concept_and_style": "both", "background_accuracy": "background"}
    rates = [f"{word} {result[figure]['rate']:.1%}" for figure, word in words.items() if figure in result]
    detail = [f"{name} {result[name]['mean']:.1f}" for name in ("sharpness", "chroma") if name in result]
    return rates + detail
