"""Load on a server, and the scripts that print every figure quoted in the documents.

`nsnet bench` uses `load`, `local` and `baseline`; all else is run as a script. What they need
beside the service comes with `nsnet[bench]`.
"""

from pathlib import Path

# Of the shipped checkpoint: trained likewise, but without the split `val`.
TWIN = Path(__file__).resolve().parent.parent / "weights" / "nsnet-vit-b-16-train.safetensors"
