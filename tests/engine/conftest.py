"""Other processes find the data sets and statistics of these tests by the path they inherit."""

import sys
from pathlib import Path

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.append(HERE)
