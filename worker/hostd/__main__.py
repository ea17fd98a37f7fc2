"""``python3 -I -S .../worker/hostd``: the folder runs as a package of its own, wherever it was put."""

import os
import sys

# Behind the standard library, so that no file beside this folder can stand for one of its modules.
sys.path[:] = [path for path in sys.path if path != os.path.dirname(os.path.abspath(__file__))]
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from hostd import slurm, start  # type: ignore[import-not-found]  # noqa: E402

if __name__ == "__main__":
    sys.exit(slurm.main(sys.argv) if sys.argv[1:2] == ["slurm"] else start.main(sys.argv))
