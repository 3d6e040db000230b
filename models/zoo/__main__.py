"""Write files of the zoo: python -m models.zoo FOLDER NAME...; without names, list them.

A file that cannot be exported leaves NAME.error with the reason instead.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from pathlib import Path

from models.zoo import load


def main(argv: list[str]) -> None:
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
            zoo[name](part)
            part.replace(done)
            print(f"{name}: {done.stat().st_size / 1e6:.1f} MB", file=sys.stderr, flush=True)
        except Exception as error:
            part.unlink(missing_ok=True)
            (folder / f"{name}.error").write_text(traceback.format_exc())
            reason = str(error).strip().splitlines()[:1]
            print(f"{name}: {type(error).__name__}: {reason}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
