"""The page at `/`: a client of the public API that runs in the browser, without a build step."""
