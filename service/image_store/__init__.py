"""The image store: images that are answered as links, in a local folder or a bucket, until the links expire."""
