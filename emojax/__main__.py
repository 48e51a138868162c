"""`python -m emojax` is the `emojax` command."""

import sys

from emojax.cli import main

sys.exit(main())
