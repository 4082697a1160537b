"""`python -m tests.server.serve_fake`: the real server process around a fake detector."""

import sys

from app.main import serve
from app.settings import load_settings
from tests.fakes import load_fake

if __name__ == "__main__":
    sys.exit(serve(load_settings(), load_fake))
