"""Prune a model and keep the plan: python -m examples.prune [MODEL.onnx] [OUT.onnx]."""

from __future__ import annotations

import sys
from pathlib import Path

import spa

DEMO = Path(spa.__file__).parent / "data" / "digits.onnx"


def main(model: str | Path = DEMO, out: str | Path = "smaller.onnx") -> None:
    try:
        result = spa.prune(model, "macs=0.7", exact=True)
    except spa.TargetError as error:  # says what the model can lose at most
        sys.exit(str(error))

    for measure in ("macs", "params", "bytes"):
        print(f"{measure:7s} {result.figures.share(measure):.1%} kept")
    for number, units in result.removed.items():
        group = result.groups[number]
        print(f"{group.name}: {group.size} -> {group.size - len(units)} units")

    # The model has been checked already; here is what was seen.
    checked = result.verification
    if checked is not None and checked.law is not None:
        print(f"law holds to {checked.law:.1e}; drift {checked.drift}")

    spa.save(result.model, out)
    Path(out).with_suffix(".plan.json").write_text(result.plan.to_json())
    print(f"wrote {out}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
