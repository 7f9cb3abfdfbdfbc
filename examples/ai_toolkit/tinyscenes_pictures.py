"""Writes the 256 clean captioned pictures that tinyscenes_cpu.yaml trains on: `python
tinyscenes_pictures.py FOLDER`.

Runs in AI Toolkit's environment, where soarflow need not be installed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from soarflow.tinyscenes.scenes import write_clean_set

if __name__ == "__main__":
    write_clean_set(Path(sys.argv[1]))
    print(f"wrote pictures with captions to {sys.argv[1]}")
