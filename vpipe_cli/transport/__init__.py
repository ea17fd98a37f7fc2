"""How vpipe reaches a machine: this one directly, others over SSH."""
