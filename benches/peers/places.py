"""Where things lie. Light to import: no numeric library."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"

MODELS = REPOSITORY / "target" / "peers-models"
SPEC = SHARED / "spec" / "tools" / "specmodels.py"
BOTTLE = SHARED / "data" / "bottle"
RESNET18 = SHARED / "weights" / "resnet18.safetensors"
