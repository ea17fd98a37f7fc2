"""vpipe's worker: everything that runs on the machines. It never imports ``vpipe_cli``."""

__version__ = "0.1.0"
