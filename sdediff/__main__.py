"""`python -m sdediff`."""
import sys

from .cli import main

sys.exit(main())
