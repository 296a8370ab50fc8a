"""Make `made_up` importable, which is a script too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
