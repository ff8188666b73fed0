"""`python -m audiolm_utils` is the command line of `audiolm_utils.app.cli`."""

import sys

from audiolm_utils.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
