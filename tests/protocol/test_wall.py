"""The wall: protocol/ knows neither Django nor the network."""

import subprocess
import sys
from pathlib import Path

import oidc_rp

ROOT = Path(oidc_rp.__file__).parent.parent

IMPORT_ALL = """
import importlib, pkgutil, sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"django", "requests", "urllib3", "mozilla_django_oidc"}:
            raise ImportError(f"protocol/ imports {name}")

sys.meta_path.insert(0, Wall())
import oidc_rp.protocol
names = [found.name for found in pkgutil.iter_modules(oidc_rp.protocol.__path__)]
for name in names:
    importlib.import_module(f"oidc_rp.protocol.{name}")
beyond = {"conf", "transport", "models", "views", "discovery"}
print(len(names), sorted(name for name in beyond if f"oidc_rp.{name}" in sys.modules))
"""


def test_the_protocol_imports_with_django_and_requests_blocked() -> None:
    """Every module of protocol/ imports in a fresh interpreter that has neither."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_ALL],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    modules = len(list((ROOT / "oidc_rp" / "protocol").glob("[!_]*.py")))
    assert (ran.stderr, ran.stdout) == ("", f"{modules} []\n")
    assert modules >= 9
