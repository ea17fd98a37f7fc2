"""Configurations of the programs vPipe and PipeDream -> cluster.yml, and a list of what could not be carried."""
