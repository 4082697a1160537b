"""`python -m tests.model.training.train_tiny TOWER train ...`: `nsnet`, to which TINY is known."""

import sys
from pathlib import Path

import open_clip

from cli.main import main
from model import backbone
from tests.conftest import TINY

if __name__ == "__main__":
    tower = Path(sys.argv.pop(1))
    open_clip.add_model_config(tower.parent / f"{TINY}.json")
    backbone.cached_path = lambda *_: tower
    main()
