"""`python -m sdediff`."""
from . import ranks
from .cli import main

ranks.leave(main())
