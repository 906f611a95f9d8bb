"""Programs that use a client as its users do: `python -m tests.clients.programs.NAME URL FOLDER`.

`FOLDER` holds `image.png` and `mask.png`. A program prints one JSON object a line: what the client returned
for one action. Those of `litellm_gateway` and `langchain_tools` run in the environment of `make clients`, so
they import nothing of the service.
"""
