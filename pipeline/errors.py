"""The error that the pipeline raises for a request that it cannot serve."""


class InvalidParams(ValueError):
    """A request that cannot be served.

    `param` names the faulty field as `GenerationParams` or the called function names it; the message says
    what is allowed.
    """

    def __init__(self, param: str, message: str):
        super().__init__(message)
        self.param = param

    def __reduce__(self) -> tuple[type["InvalidParams"], tuple[str, str]]:
        return type(self), (self.param, str(self))
