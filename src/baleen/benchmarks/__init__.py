"""`baleen bench`: what this machine reaches, beside a peer and a target, measured in one run."""
