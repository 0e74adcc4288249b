"""A library that is imported in parts: less is imported, and nothing is missing for whoever else uses it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.providers import lazy_sdk

ROOT = Path(__file__).resolve().parents[2]
SDK = "mesh_fake_sdk"
FILES = {
    "__init__.py": "from . import types\nfrom ._client import Client\nfrom .extra import word\ncount = 1\n",
    "_client.py": "from .types.chat import Asked\nfrom . import _errors\nclass Client: asked = Asked\n",
    "_errors.py": "class Failed(Exception): ...\n",
    "extra.py": "word = 'said'\n",
    "types/__init__.py": "from .big import Big as Big\nfrom .chat import Asked as Asked\n",
    "types/big.py": "class Big: ...\n",
    "types/chat/__init__.py": "from .asked import Asked as Asked\nfrom .other import Other as Said\n",
    "types/chat/asked.py": "class Asked: ...\n",
    "types/chat/other.py": "class Other: ...\n",
}


@pytest.fixture
def sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FILES.items():
        (tmp_path / SDK / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / SDK / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / SDK
    lazy_sdk._FINDER.names.discard(SDK)
    for name in [name for name in sys.modules if f"{name}.".startswith(f"{SDK}.")]:
        del sys.modules[name]


def loaded() -> set[str]:
    """The library's modules that were imported, without its name."""
    return {name.removeprefix(f"{SDK}.") for name in sys.modules if name.startswith(f"{SDK}.")}


@pytest.mark.usefixtures("sdk")
def test_only_what_the_client_needs_is_imported() -> None:
    """If a library is begun, then only its client is imported, and what that takes by name."""
    assert lazy_sdk.client_module(SDK).Client.asked.__name__ == "Asked"
    assert loaded() == {"_client", "_errors", "types", "types.chat", "types.chat.asked"}


@pytest.mark.usefixtures("sdk")
def test_names_are_those_of_the_whole_library() -> None:
    """If somebody imports the library beside, then all names are there, and are the client's own."""
    client = lazy_sdk.client_module(SDK)
    top = importlib.import_module(SDK)
    assert (top.word, top.count, top.Client) == ("said", 1, client.Client)
    assert top.types.chat.Said.__name__ == "Other"
    assert top.types.big.Big is top.types.Big
    assert "Asked" in dir(top.types) and "Client" in dir(top)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = top.nothing
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = top.types.chat.nothing


@pytest.mark.usefixtures("sdk")
def test_star_takes_all_names_of_a_package() -> None:
    """If a package has no list of its names, then a star import takes all of them."""
    lazy_sdk.client_module(SDK)
    names: dict[str, object] = {}
    exec(f"from {SDK}.types import *", names)
    assert {"Big", "Asked"} <= names.keys()


@pytest.mark.usefixtures("sdk")
def test_what_is_set_before_the_first_use_stays() -> None:
    """If an agent sets something on the library first, then the library's own start does not undo it."""
    lazy_sdk.client_module(SDK)
    top = importlib.import_module(SDK)
    top.count = 7
    assert (top.word, top.count) == ("said", 7)


def test_another_build_of_it_is_imported_whole(sdk: Path) -> None:
    """If the client cannot be had alone, then the library is imported as everybody does."""
    (sdk / "_client.py").write_text(f"import sys\nif not sys.modules['{SDK}'].__dict__.get('types'):\n"
                                    "    raise ImportError('not alone')\nclass Client: ...\n")
    top = lazy_sdk.client_module(SDK)
    assert top is sys.modules[SDK] and top.Client.__name__ == "Client"
    assert type(top).__name__ == "module" and "types.big" in loaded()


def test_a_library_whose_start_fails_may_be_asked_again(sdk: Path) -> None:
    """If the library's own start raises, then whoever asked is told, and the next one tries again."""
    (sdk / "extra.py").write_text("raise ValueError('not yet')\n")
    lazy_sdk.client_module(SDK)
    top = importlib.import_module(SDK)
    with pytest.raises(ValueError, match="not yet"):
        _ = top.word
    (sdk / "extra.py").write_text("word = 'now'\n")
    importlib.invalidate_caches()
    assert top.word == "now"


@pytest.mark.usefixtures("sdk")
def test_a_library_that_is_there_is_taken_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """If somebody imported the library before, or wants its log, then it is the whole one."""
    monkeypatch.setenv(f"{SDK.upper()}_LOG", "debug")
    top = lazy_sdk.client_module(SDK)
    assert top.__name__ == SDK
    monkeypatch.undo()
    assert lazy_sdk.client_module(SDK) is top


def test_threads_in_a_circle_do_not_wait_for_ever(sdk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a module asks the library for what another thread's start of it does not have yet, while that start
    needs the module, then both go on."""
    monkeypatch.setattr(lazy_sdk, "WAIT_S", 0.2)
    (sdk / "__init__.py").write_text(
        "first = 1\nrunning.set()\nassert go.wait(30)\nfrom .extra import word\n")
    (sdk / "extra.py").write_text(f"import {SDK}\n{SDK}.inside.set()\nlater = hasattr({SDK}, 'later')\n"
                                  f"word = {SDK}.first\n")
    lazy_sdk.client_module(SDK)
    top, running, inside, go = (importlib.import_module(SDK), *(threading.Event() for _ in range(3)))
    top.__dict__.update(running=running, inside=inside, go=go)
    first = threading.Thread(target=lambda: top.word, daemon=True)
    second = threading.Thread(target=lambda: importlib.import_module(f"{SDK}.extra"), daemon=True)
    first.start()
    assert running.wait(30)
    second.start()
    assert inside.wait(30)
    go.set()
    for thread in (first, second):
        thread.join(30)
        assert not thread.is_alive()
    assert (top.word, type(top).__name__) == (1, "module")


def test_a_library_starts_once(sdk: Path) -> None:
    """If several threads ask a library for its names, then its start runs once, and all get theirs."""
    (sdk / "__init__.py").write_text("runs.append(1)\nfrom .extra import word\n")
    (sdk / "extra.py").write_text("import time\ntime.sleep(0.05)\nword = 'said'\n")
    lazy_sdk.client_module(SDK)
    top, runs, words = importlib.import_module(SDK), [], []
    top.__dict__["runs"] = runs
    threads = [threading.Thread(target=lambda: words.append(top.word)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (runs, words) == ([1], ["said"] * 8)


@pytest.mark.parametrize("wake", ["rare.made(2)", "rare.Thing"])
def test_a_module_of_rare_functions_runs_when_it_is_needed(
    sdk: Path, monkeypatch: pytest.MonkeyPatch, wake: str
) -> None:
    """If a client takes a function that is rarely called, then its module runs at the first call, or when
    another name of it is asked for; what was taken before is that function."""
    (sdk / "_client.py").write_text("from ._rare import made\nclass Client: make = staticmethod(made)\n")
    (sdk / "_rare.py").write_text(
        "from .types.big import Big\nclass Thing: ...\ndef made(n, *, more=0): return [Big] * (n + more)\n")
    monkeypatch.setattr(lazy_sdk, "LATE", frozenset((f"{SDK}._rare.made",)))
    monkeypatch.setattr(lazy_sdk, "_LATE_MODULES", frozenset((f"{SDK}._rare",)))
    make = lazy_sdk.client_module(SDK).Client.make
    assert "types.big" not in loaded()
    rare = importlib.import_module(f"{SDK}._rare")
    assert "types.big" not in loaded()
    eval(wake)
    assert "types.big" in loaded()
    assert make(1, more=1) == [rare.Big, rare.Big]
    assert type(rare).__name__ == "module"
    assert not hasattr(rare, "missing")


@pytest.mark.parametrize(("source", "names"), [
    ("from .a import B as C, d\n", {"C": ("p.a", "B"), "d": ("p.a", "d")}),
    ("from __future__ import annotations\n", {"annotations": ("__future__", "annotations")}),
    ("import os\n", None), ("from .a import *\n", None), ("from . import a\n", None),
    ("# of them\n\nfrom .a import (  \n    B as B,\n    C,\n)  # all\n\n# the end\n",
     {"B": ("p.a", "B"), "C": ("p.a", "C")}),
    ("from .a.b import C", {"C": ("p.a.b", "C")}), ("", {}), ("# nothing\n", {}),
    ("from .a import (\n    B,  # of them\n)\n", None), ("from .a import B; import os\n", None),
    ("from .a import B\nif B: from .c import D\n", None), ("from a import B\n", None),
    ("from ..a import B\n", None), ("from .a import a\n", None), ("X = 1\n", None), ("'text'\n", None),
])
def test_packages_that_only_re_export_are_told(source: str, names: object) -> None:
    """If a package does anything but take names from its own modules, then it is imported as it is."""
    assert lazy_sdk.re_exported(source, "p") == names


@pytest.mark.parametrize(("name", "most"), [("anthropic", 600), ("openai", 300)])
def test_a_real_library_is_whole_for_everybody(name: str, most: int) -> None:
    """If a provider began a library in parts, then an agent in the same process finds every name of every
    package of it, as its sources say, in many threads at once. (Its whole import takes 1 to 2 s.)"""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    script = Path(__file__).with_name("whole_sdk.py")
    done = subprocess.run([sys.executable, str(script), name], capture_output=True, text=True, timeout=120,
                          env={"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("modules") < most
    assert found.pop("packages") > 5
    assert found == {
        "threads": [], "kept": "set by an agent", "same client": True, "same errors": True, "missing": [],
        "differing": [], "lazy": [], "pickled": True, "late": [],
    }


RUNS = '''
import asyncio, sys
from scripted import Threaded, end, text
from mesh.providers import kinds
from mesh.providers.base import Output, RunContext, SessionInfo

async def play(table):
    provider = kinds.build(table, kinds.Place(None, False, "agent", None))
    pieces = [piece async for piece in provider.run(RunContext("run_1", SessionInfo("ses_1"), "hi"))]
    await provider.close()
    return pieces

with Threaded({"m": [text("hello"), end()]}) as server:
    for provider, api in (("anthropic", None), ("openai", "chat"), ("openai", "responses")):
        url = server.url if api is None else server.url + "/v1"
        more = {} if api is None else {"api": api}
        pieces = asyncio.run(play({"provider": provider, "model": "m", "base_url": url, **more}))
        assert isinstance(pieces[-1], Output) and pieces[-1].data["content"] == "hello", pieces
for name in ("anthropic", "openai"):
    print(name, sum(module.startswith(name + ".") for module in sys.modules))
'''


def test_a_run_imports_no_more_than_the_client() -> None:
    """If a run asks a model and hears its answer, then of the library no more is imported for it."""
    pytest.importorskip("anthropic")
    pytest.importorskip("openai")
    path = f"{ROOT}:{Path(__file__).parent}"
    done = subprocess.run([sys.executable, "-c", RUNS], capture_output=True, text=True, timeout=120,
                          env={"PYTHONPATH": path}, check=False)
    assert done.returncode == 0, done.stderr
    counts = {name: int(count) for name, count in map(str.split, done.stdout.splitlines())}
    assert counts["anthropic"] < 600 and counts["openai"] < 300, counts
