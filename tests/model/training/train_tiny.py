"""`python -m tests.model.training.train_tiny TOWER train ...`: `nsnet`, to which TINY is known."""

import sys
from pathlib import Path

from cli.main import main
from tests.model.training.toy import know_tiny

if __name__ == "__main__":
    know_tiny(Path(sys.argv.pop(1)))
    main()
