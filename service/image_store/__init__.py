"""The image store: images that are answered as links, in a folder or a bucket, until the links expire."""
