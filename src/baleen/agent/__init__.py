"""An episode: think, call, observe. Tasks, environments, tools, policies, sandbox; it speaks messages, not tokens."""
