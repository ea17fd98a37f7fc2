"""What vpipe's parts tell each other: cluster.yml, the job, records, and the name of every file of a run."""
