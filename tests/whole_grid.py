"""How much of a large grid of cases is tested: LEANSPLIT_WHOLE_GRID=1 for all, else a part."""

import os

WHOLE_GRID = bool(os.environ.get("LEANSPLIT_WHOLE_GRID"))
