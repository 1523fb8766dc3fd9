"""Ditto: quantization-aware secure two-party inference of Transformers, with a dealer.

    import ditto

    with ditto.connect() as cluster:
        for answer in cluster.model("sst2").classify(["A fine film."]):
            print(answer.label, answer.probabilities)

`connect` and `local` are the Python API (docs/python.md), `aio` its twin for asyncio, `errors` what they raise. Below
them, `ditto.ops` holds the operations on shares, `ditto.engine` the programs made of them and what runs these,
`ditto.models` the architectures, `ditto.client` what asks the running servers, whose mains are in `parties`.
"""

from importlib import import_module

TYPE_CHECKING = False  # as typing has it, which takes longer to load than all that is here
if TYPE_CHECKING:
    from ditto import aio, errors
    from ditto.api.answers import Answer, Classification, Cost, Layer, ModelInfo, Phase, Token
    from ditto.api.cluster import Cluster, connect
    from ditto.api.generation import Generation
    from ditto.api.local import local
    from ditto.api.model import Model

__version__ = "0.1.0"

# Where each name is, so that `import ditto` alone loads neither torch nor grpc nor numpy (PEP 562).
_WHERE = {
    "aio": "ditto.aio",
    "errors": "ditto.errors",
    "Answer": "ditto.api.answers",
    "Classification": "ditto.api.answers",
    "Cost": "ditto.api.answers",
    "Layer": "ditto.api.answers",
    "ModelInfo": "ditto.api.answers",
    "Phase": "ditto.api.answers",
    "Token": "ditto.api.answers",
    "Cluster": "ditto.api.cluster",
    "connect": "ditto.api.cluster",
    "local": "ditto.api.local",
    "Generation": "ditto.api.generation",
    "Model": "ditto.api.model",
}

__all__ = [
    "Answer",
    "Classification",
    "Cluster",
    "Cost",
    "Generation",
    "Layer",
    "Model",
    "ModelInfo",
    "Phase",
    "Token",
    "__version__",
    "aio",
    "connect",
    "errors",
    "local",
]


if not TYPE_CHECKING:  # a checker knows the names from above, and that there are no others

    def __getattr__(name):
        where = _WHERE.get(name)
        if where is None:
            raise AttributeError(f"module 'ditto' has no attribute {name!r}")
        module = import_module(where)
        found = module if where == f"ditto.{name}" else getattr(module, name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
