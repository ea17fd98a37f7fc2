"""vpipe's command line: parse, plan, start, watch. Of the worker it knows only the floor."""
