"""A server of S3 in this process, for the image store: moto's, with one bucket."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from moto.server import ThreadedMotoServer
from obstore.store import S3Store

BUCKET = "images"


@contextmanager
def s3_server() -> Iterator[str]:
    """The server's URL; within the block the environment has its credentials, as obstore reads them."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    variables = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
    }
    try:
        with patch.dict(os.environ, variables):
            yield url
    finally:
        server.stop()


def bucket_store() -> S3Store:
    """The bucket, as another program sees it."""
    return S3Store(BUCKET)
