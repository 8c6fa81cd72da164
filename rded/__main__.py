"""`python -m rded` is the `rded` command."""
from .cli import main

raise SystemExit(main())
