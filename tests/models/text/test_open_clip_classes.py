"""models/text/open_clip_classes.py: a short import, after which all libraries are what they were."""

import subprocess
import sys

PROGRAM = """
import sys
from safelight.models.text import open_clip_classes
loaded = {"transformers", "timm", "torch._dynamo", "sympy"} & sys.modules.keys()
assert not loaded, loaded

import open_clip, timm, torch, torchvision, transformers
assert open_clip_classes.CustomTextCLIP is open_clip.CustomTextCLIP
assert transformers.T5Config().d_model == 512 and timm.list_models("vit*")

boxes = [torch.tensor([[0.0, 0.0, 4.0, 4.0]])]
means = torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), boxes, 2)
assert means.tolist() == [[[[1.0, 1.0], [1.0, 1.0]]]]
assert torchvision.ops.roi_align.__globals__["is_compile_supported"]("cpu") is True
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist() == [2.0, 2.0]
"""


def test_the_import_is_short_and_leaves_every_library_as_it_was() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
