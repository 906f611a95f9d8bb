"""LangChain's tool for images, and the wrapper that it is made of."""

import io
import sys
from contextlib import redirect_stdout
from pathlib import Path

from langchain_community.tools.openai_dalle_image_generation import OpenAIDALLEImageGenerationTool
from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

from tests.clients.programs.report import action

NAME = "LangChain"


def run(url: str, folder: Path) -> None:
    options = {"api_key": "none", "base_url": f"{url}/v1"}
    with action(NAME, "DallEAPIWrapper") as result:
        result["urls"] = DallEAPIWrapper(**options).run("a red apple").split("\n")
    with action(NAME, "OpenAIDALLEImageGenerationTool") as result:
        wrapper = DallEAPIWrapper(model="dall-e-3", n=2, quality="standard", **options)
        result["urls"] = OpenAIDALLEImageGenerationTool(api_wrapper=wrapper).invoke("a red apple").split("\n")
    with action(NAME, "example") as result:
        with redirect_stdout(io.StringIO()) as printed:
            exec((folder / "langchain.py").read_text(encoding="utf-8"), {})
        result["urls"] = printed.getvalue().split()


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]))
