"""Dataset distillation from real image patches. Submodules load when they are first used: `import rded` alone brings no torch."""
from importlib import import_module

__version__ = "0.1.0"

_MODULES = ("files", "images", "datasets", "shards", "models", "replay", "ranks", "resume", "optimizers", "observer", "patches", "select", "mosaic", "score", "distilled", "export", "evidence",
            "views", "labels", "student", "evaluate", "fair", "vinformation", "baselines", "sre2l", "recipes", "pipeline", "report", "prepare", "reproduce", "bench", "plan", "cli", "compare", "damage", "faults")


def __getattr__(name):
    if name not in _MODULES: raise AttributeError(f"module 'rded' has no attribute {name!r}")
    return import_module(f"rded.{name}")


def __dir__():
    return [*globals(), *_MODULES]
