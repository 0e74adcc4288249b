"""Run by ``test_lazy_sdk.py``: begin a library as a provider does, use it as an agent may, and look whether
anything of it is missing. ``python whole_sdk.py NAME``; prints what differs, as JSON."""

from __future__ import annotations

import gc
import importlib
import json
import pickle
import sys
import threading
from types import ModuleType
from typing import Any

from mesh.providers import lazy_sdk

NAME = sys.argv[1]
CLIENTS = {"anthropic": "AsyncAnthropic", "openai": "AsyncOpenAI"}
SET = {"anthropic": "HUMAN_PROMPT", "openai": "api_key"}
gc.disable()


def said_by_source(package: ModuleType) -> dict[str, Any]:
    """The names of a package, by running its ``__init__`` once more: all of its modules are there."""
    names: dict[str, Any] = {
        key: package.__dict__[key] for key in ("__name__", "__package__", "__path__", "__file__", "__spec__")
    }
    loader: Any = package.__loader__
    exec(compile(loader.get_source(package.__name__), package.__name__, "exec"), names)
    return names


def at_once(count: int, work: Any) -> list[BaseException]:
    """What threads that begin together fail with."""
    failed: list[BaseException] = []
    begin = threading.Barrier(count)

    def run(n: int) -> None:
        begin.wait()
        try:
            work(n)
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [*failed, *(TimeoutError(thread.name) for thread in threads if thread.is_alive())]


def main() -> None:
    found: dict[str, Any] = {}
    module = lazy_sdk.client_module(NAME)
    began = [name for name in sys.modules if name.startswith(NAME)]
    found["modules"] = len(began)
    errors = sys.modules[f"{NAME}._exceptions"]
    setattr(importlib.import_module(NAME), SET[NAME], "set by an agent")
    statements = (f"from {NAME} import {CLIENTS[NAME]}, RateLimitError", f"import {NAME}.types.shared",
                  f"from {NAME}.types import *", f"from {NAME} import *", f"import {NAME}; dir({NAME}.types)")
    found["threads"] = [repr(exc) for exc in at_once(
        10, lambda n: exec(statements[n % len(statements)], {}))]
    top = importlib.import_module(NAME)
    found["kept"] = getattr(top, SET[NAME])
    found["same client"] = getattr(top, CLIENTS[NAME]) is getattr(module, CLIENTS[NAME])
    found["same errors"] = all(getattr(errors, name) is getattr(top, name) for name in dir(errors)
                               if name in top.__all__)
    found["missing"] = [name for name in top.__all__ if not hasattr(top, name)]
    packages = [value for name, value in list(sys.modules.items())
                if name.startswith(f"{NAME}.") and name != NAME and hasattr(value, "__path__")]
    for package in packages:
        dir(package)
    found["differing"] = [
        named for package in packages for name, value in said_by_source(package).items()
        if not name.startswith("__") and package.__dict__.get(name) is not value
        and (named := f"{package.__name__}.{name}") not in lazy_sdk.LATE
        and getattr(value, "__module__", "") != package.__name__  # what it defines is made anew
    ]
    found["packages"] = len(packages)
    found["lazy"] = [name for name, value in sys.modules.items() if name == NAME
                     and type(value) is not ModuleType]
    found["pickled"] = pickle.loads(pickle.dumps(top.RateLimitError)) is top.RateLimitError
    late = [name for name in lazy_sdk.LATE if name.startswith(f"{NAME}.")]
    found["late"] = [name for name in late if not callable(
        getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2]))]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
