"""`python -m tests.apptainer`: makes what is slow before the tests begin, each of which has a time limit."""

from __future__ import annotations

import time

from tests.apptainer.fixtures import lacks_base, make_base, make_worker_image


def main() -> None:
    """Make the base and the image of the worker, unless the cache has them."""
    if missing := lacks_base():
        print(f"no image for the tests: it needs {missing}")
        return
    began = time.monotonic()
    image = make_worker_image(make_base())
    print(f"image of the worker: {image.path} ({image.size >> 20} MB, {time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
