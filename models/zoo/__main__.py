"""Write files of the zoo with the frameworks that this Python has.

    python -m models.zoo                   list the names
    python -m models.zoo FOLDER NAME...    write them; MODEL@VARIANT may be one that is not listed
    python -m models.zoo --versions        the frameworks that are installed, as JSON

A source (`models.zoo.SOURCES`) whose framework is missing is left out and named. A file that cannot
be exported leaves NAME.error with the reason instead. The frameworks do not all fit into one
environment; `make zoo ZOO_PYTHONS="..."` takes one Python for each of these, the last one last:

    pip install torch onnxscript timm transformers scikit-learn skl2onnx onnx onnxruntime
    pip install tensorflow-cpu keras tf2onnx onnx onnxruntime
    pip install jax flax equinox jax2onnx onnx onnxruntime
    pip install paddlepaddle paddle2onnx onnx
    pip install onnxsim onnxslim onnx onnxruntime

docs/coverage.md names the versions that made its files.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from importlib import metadata
from pathlib import Path

from models.zoo import load
from models.zoo.registry import find

FRAMEWORKS = (
    "torch", "onnxscript", "timm", "transformers", "tensorflow", "tensorflow-cpu", "keras",
    "tf2onnx", "jax", "flax", "equinox", "jax2onnx", "paddlepaddle", "paddle2onnx", "scikit-learn",
    "skl2onnx", "onnx", "onnxruntime", "onnxsim", "onnxslim", "onnxconverter-common",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Framework -> its version, for those that are installed."""
    found = {}
    for name in FRAMEWORKS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main(argv: list[str]) -> None:
    if argv == ["--versions"]:
        print(json.dumps(versions()))
        return
    zoo, missing = load()
    for source, why in missing.items():
        print(f"models.zoo.{source} is left out: {why}", file=sys.stderr)
    if not argv:
        print("\n".join(zoo))
        return
    folder = Path(argv[0])
    folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    for name in argv[1:]:
        part, done = folder / f"{name}.part", folder / f"{name}.onnx"
        try:
            find(name)(part)
            part.replace(done)
            print(f"{name}: {done.stat().st_size / 1e6:.1f} MB", file=sys.stderr, flush=True)
        except Exception as error:
            part.unlink(missing_ok=True)
            (folder / f"{name}.error").write_text(traceback.format_exc())
            reason = str(error).strip().splitlines()[:1]
            print(f"{name}: {type(error).__name__}: {reason}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
