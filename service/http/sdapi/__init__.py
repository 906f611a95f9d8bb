"""The part of AUTOMATIC1111's API that draws images, `/sdapi/v1`, for the programs that speak it."""
